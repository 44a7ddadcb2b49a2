"""Tickets on the Hugging Face Hub, against a stand-in of its file API."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import http_backoff, validate_repo_id
from transformers import AutoModel

import tamt
from tamt.cli import main
from tamt.masks.hub import model_card
from tamt.runtime.errors import UserError
from tamt.runtime.quiet import quiet_transformers


@pytest.fixture
def ticket(tiny_bert: Path) -> tamt.Ticket:
    return tamt.Ticket.magnitude(AutoModel.from_pretrained(tiny_bert), 0.7)


class Hub:
    """Stands in for the file API of the Hugging Face Hub: repositories are folders. Takes what `HfApi` takes."""

    root: Path

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        inspect.signature(HfApi.create_repo).bind(self, repo_id, **options)
        validate_repo_id(repo_id)
        (self.root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.root / repo_id / filename).exists()

    def create_commit(self, repo_id: str, operations: list[CommitOperationAdd], **options: Any) -> str:
        inspect.signature(HfApi.create_commit).bind(self, repo_id, operations, **options)
        for operation in operations:
            with operation.as_file() as file:
                (self.root / repo_id / operation.path_in_repo).write_bytes(file.read())
        return f"https://hub/{repo_id}/commit/1"

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        inspect.signature(HfApi.hf_hub_download).bind(self, repo_id, filename, **options)
        validate_repo_id(repo_id)
        file = self.root / repo_id / filename
        if not file.exists() or options["revision"] not in (None, "main"):
            raise LocalEntryNotFoundError(f"404: no {filename}\n in {repo_id}")
        return str(file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Hub, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr("tamt.masks.hub.HfApi", Hub)
    return tmp_path / "hub"


def test_a_ticket_goes_to_the_hub_and_comes_back(hub: Path, ticket: tamt.Ticket) -> None:
    assert ticket.push_to_hub("user/omp-70", private=True) == "https://hub/user/omp-70/commit/1"
    assert tamt.Ticket.from_pretrained("user/omp-70") == ticket
    read = tamt.Ticket.from_pretrained("user/omp-70", revision="main")
    assert read.path == "hub:user/omp-70@main"
    assert tamt.Ticket.load(read.path) == ticket
    assert tamt.Ticket.load("hub:user/omp-70") == ticket
    assert tamt.Ticket.from_pretrained(hub / "user/omp-70") == ticket
    card = ModelCard.load(hub / "user/omp-70/README.md")
    assert card.data.library_name == "tamt"
    assert card.data.base_model is None  # a folder of this machine
    assert str(hub.parent.parent) not in card.content
    assert "69.9% of 17,280" in card.text
    assert 'from_pretrained("user/omp-70")' in card.text
    (hub / "user/omp-70/README.md").write_text("my own words")
    ticket.push_to_hub("user/omp-70")
    assert (hub / "user/omp-70/README.md").read_text() == "my own words"


def test_a_card_names_a_model_of_the_hub() -> None:
    card = model_card({"model": "google/bert_x", "method": "OMP"}, "user/t")
    assert ModelCard(card).data.base_model == "google/bert_x"
    assert "| model | google/bert\\_x |" in card


def test_every_command_takes_a_mask_of_the_hub(
    hub: Path,
    ticket: tamt.Ticket,
    tiny_bert: Path,
    corpus: Path,
    cats_and_dogs: dict[str, Path],
    tmp_path: Path,
    capsys,
) -> None:
    ticket.push_to_hub("user/omp-70")
    mask, model = "hub:user/omp-70", ["--model", str(tiny_bert)]
    files = [word for name, file in cats_and_dogs.items() for word in (f"--{name.replace('_', '-')}", str(file))]
    few = ["--epochs", "1", "--train-samples", "8", "--batch-size", "4", "--output", str(tmp_path / "tuned")]
    short = ["--corpus", str(corpus), "--max-length", "16"]
    search = ["--method", "tamt-kd", "--initial", mask, "--steps", "1", "--output", str(tmp_path / "searched")]
    for words, told in (
        (["evaluate", *model, "--mask", mask, "--blocks", "2", *short], {"mask": mask}),
        (["finetune", "--task", "classification", *model, "--mask", mask, *files, *few], {"mask": mask}),
        (["export", *model, "--mask", mask, "--output", str(tmp_path / "plain")], {"mask": mask}),
        (["compare", mask, f"{mask}@main"], {"first": mask, "second": f"{mask}@main"}),
        (["train", *model, *short, *search], {"method": "tamt-kd"}),
    ):
        assert main([*words, "--json"]) == 0, words[0]
        (row, *_) = json.loads(capsys.readouterr().out)["results"]
        assert told.items() <= row.items()


def test_what_the_hub_does_not_have_is_told(hub: Path, ticket: tamt.Ticket) -> None:
    for name in ("user/none", "a/b/c"):
        with pytest.raises(UserError, match=f"mask.safetensors of hub:{name} cannot be downloaded"):
            tamt.Ticket.from_pretrained(name)
    with pytest.raises(UserError, match="the ticket cannot be uploaded to a/b/c"):
        ticket.push_to_hub("a/b/c")


def test_a_hub_that_does_not_answer_is_reported_once(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: SimpleNamespace(request=refuse))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with quiet_transformers():
        for _ in range(2):
            with pytest.raises(ConnectionError, match="refused"):
                http_backoff("HEAD", "http://hub/model", retry_on_exceptions=ConnectionError)
    assert capsys.readouterr().err.splitlines() == [
        "the Hugging Face Hub does not answer; trying for a minute (HF_HUB_OFFLINE=1 takes what is cached)"
    ]
