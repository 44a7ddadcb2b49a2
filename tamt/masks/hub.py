"""Tickets on the Hugging Face Hub: a repository for each, with its mask file and a model card."""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from tamt.runtime.choices import HUB
from tamt.runtime.errors import UserError

MODEL_CARD = "README.md"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Of a repository."""
FAULTS: tuple[type[Exception], ...] = (HFValidationError, OSError, *HfHubHTTPError.__bases__)
"""A wrong name, and what cannot be reached or written. The bases are errors of the hub's HTTP client."""


def is_on_hub(path: str | Path) -> bool:
    """Whether a path is `hub:USER/REPO` or `hub:USER/REPO@REVISION`."""
    return str(path).startswith(HUB)


def download(path: str | Path, file: str, token: str | None = None) -> Path:
    """The local copy of a file of the repository that a path names; it is downloaded once.

    Raises:
        UserError: there is no such repository or file, or the hub cannot be reached.
    """
    repo, _, revision = Path(path).as_posix().removeprefix(HUB).partition("@")
    try:
        return Path(HfApi(token=token).hf_hub_download(repo, file, revision=revision or None))
    except FAULTS as error:
        raise UserError(
            f"{file} of {HUB}{repo} cannot be downloaded ({_reason(error)}); check the name of the repository, the "
            "network, and for a private one the token"
        ) from error


def upload(repo: str, files: Mapping[str, bytes], private: bool | None, token: str | None, message: str) -> str:
    """Make a repository, if there is none, and commit files to it; a model card that is there already stays.

    Returns:
        The address of the commit.

    Raises:
        UserError: the name is wrong, the token may not write there, or the hub cannot be reached.
    """
    hub = HfApi(token=token)
    try:
        repo = hub.create_repo(repo, private=private, exist_ok=True).repo_id
        if hub.file_exists(repo, MODEL_CARD):
            files = {name: content for name, content in files.items() if name != MODEL_CARD}
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repo, operations, commit_message=message))
    except FAULTS as error:
        raise UserError(
            f"the ticket cannot be uploaded to {repo} ({_reason(error)}); check the name, the network, and that the "
            "token may write there"
        ) from error


def model_card(described: Mapping[str, str], repo: str) -> str:
    """The page of a ticket: where it comes from, and how it is used.

    Args:
        described: what is known of the ticket, by name; `model` among it.
        repo: USER/REPO.
    """
    model = described["model"]
    on_hub = NAME.fullmatch(model) is not None and not Path(model).exists() and model != "unknown"
    shown = model if on_hub else Path(model).name
    small = "structure" in described
    what, use = (
        ("groups of weights", "model = ticket.shrink(model)  # a smaller model of the same class")
        if small
        else ("weights", "ticket.apply(model)  # zeros now, and zeros while it trains")
    )
    data = ModelCardData(
        base_model=model if on_hub else None,
        library_name="tamt",
        tags=["lottery-ticket-hypothesis", "pruning", "sparsity", "tamt"],
    )
    table = "\n".join(f"| {name} | {_cell(shown if name == 'model' else text)} |" for name, text in described.items())
    return f"""---
{data.to_yaml()}
---

# A winning ticket of {_cell(shown)}

This is a mask: it says by bits which {what} of the pre-trained model are kept. The kept weights are those of the
pre-trained model, unchanged. A ticket is fine-tuned instead of the full model, and what it prunes does not come back.

| | |
| --- | --- |
{table}

```python
import tamt
from transformers import AutoModelForSequenceClassification

ticket = tamt.Ticket.from_pretrained("{repo}")
model = AutoModelForSequenceClassification.from_pretrained("{shown}")
{use}
```

On the command line: `tamt finetune --model {shown} --mask {HUB}{repo} --task sst2 --output runs/sst2`
"""


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
