"""Models from strangers: no code in their folders is executed, and no pickle."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tamt.models.language_model import load_masked_language_model
from tamt.models.task_models import load_classifier
from tamt.models.tokenizer import load_tokenizer
from tamt.runtime.errors import UserError


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "executed"))


@pytest.fixture
def stranger(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of tiny BERT."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "stranger"))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("kind", ["bert", "new"])
def test_code_in_a_model_folder_is_never_executed(kind: str, stranger: Path, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).write_text('executed')\n"
    (stranger / "evil.py").write_text(code)
    names = ["AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"]
    change(stranger / "config.json", model_type=kind, auto_map=dict.fromkeys(names, "evil.Evil"))
    change(stranger / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    for load in (
        load_masked_language_model,
        load_tokenizer,
        lambda name: load_classifier(name, ["a", "b"]),
    ):
        with suppress(UserError):  # refused, or read as the BERT that it says it is
            load(str(stranger))
    assert not (tmp_path / "executed").exists()


def test_a_pickled_model_is_read_as_tensors_alone(stranger: Path, tmp_path: Path) -> None:
    state = load_file(stranger / "model.safetensors")
    (stranger / "model.safetensors").unlink()
    torch.save(state, stranger / "pytorch_model.bin")
    read = load_masked_language_model(str(stranger)).model.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items() if name in read)
    torch.save({**state, "bomb": Bomb(tmp_path / "executed")}, stranger / "pytorch_model.bin")
    with pytest.raises(UserError, match="stranger.*nothing in it is executed"):
        load_masked_language_model(str(stranger))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_is_told(name: str, stranger: Path) -> None:
    content = (stranger / name).read_bytes()
    (stranger / name).write_bytes(content[: len(content) // 2])
    load = load_tokenizer if name == "tokenizer.json" else load_masked_language_model
    with pytest.raises(UserError, match="stranger"):
        load(str(stranger))
