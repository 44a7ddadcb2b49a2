"""A ticket: the subnetwork that a mask leaves of a pre-trained model."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.file import (
    MASK_FILE,
    TORCH_SUFFIXES,
    MaskInfo,
    PackedMasks,
    as_bytes,
    check_described,
    load_packed,
    pack_masks,
    save_packed,
)
from tamt.masks.hub import MODEL_CARD, download, model_card, upload
from tamt.masks.masking import (
    Masks,
    Sparsity,
    check_pattern_fits,
    check_shapes_fit,
    magnitude_masks,
    prunable_weights,
    random_masks,
    share_of_zeros,
)
from tamt.masks.origin import say_if_of_another
from tamt.masks.similarity import check_same_matrices, similarity
from tamt.masks.zeros import free_zeros, holds_zeros, holds_zeros_of, keep_zeros, revived
from tamt.methods import METHODS, OMP, PUBLISHED, RANDOM
from tamt.models.shrink import check_may_be_zeros, matrix_masks, shrink, zeros_for
from tamt.runtime.choices import HUB, parse_pattern
from tamt.runtime.errors import UserError, check_seed, check_sparsity
from tamt.runtime.notebook import table

LAYER = re.compile(r"\.(\d+)\.")


class Ticket:
    """Which weights of each prunable matrix of a model are kept (paper 3.2). One bit per weight.

    Example:
        >>> import tamt
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
        >>> ticket = tamt.Ticket.load("runs/kd-70")
        >>> ticket.apply(model)  # zeros now, and zeros while it trains

    Attributes:
        info: the model, method, sparsity, seed and step that the mask comes from.
        packed: the masks, one bit per weight, or per group of weights in a ticket with a structure.
        path: the mask file, as `--mask` takes it; None until the ticket is saved.
        results: the results of the search, if `tamt.find_ticket` returned the ticket: `kd_loss`, `mlm_loss`, `seconds`
            and the others of `results.json`.
    """

    def __init__(self, packed: PackedMasks, path: str | None = None) -> None:
        """Take packed masks; `load`, `magnitude`, `random` and `from_masks` make tickets."""
        self.packed = packed
        self.info = packed.info
        self.path = path
        self.results: dict[str, Any] = {}

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket.

        Args:
            path: a run folder of `tamt train`, a mask file, "hub:USER/REPO", or the `mask.pt` of the paper's published
                code.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not isinstance(path, str | Path):
            raise UserError(f"{path!r} is no ticket; give the path of a mask file or a run folder")
        path = Path(path)
        file = path / MASK_FILE if path.is_dir() else path
        return cls(load_packed(file), str(file))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> "Ticket":
        """Read a ticket from the Hugging Face Hub; it is downloaded once.

        Example:
            >>> ticket = tamt.Ticket.from_pretrained("user/bert-kd-70")  # doctest: +SKIP

        Args:
            name: USER/REPO, or a folder or file as `load` takes it.
            revision: branch, tag or commit; by default the newest.
            token: for a private repository; by default that of `hf auth login`.

        Raises:
            UserError: there is none, it is damaged, or the hub cannot be reached.
        """
        if Path(name).exists():
            return cls.load(name)
        path = f"{HUB}{str(name).removeprefix(HUB)}" + (f"@{revision}" if revision else "")
        return cls(load_packed(download(path, MASK_FILE, token)), path)

    @classmethod
    def from_masks(cls, masks: Masks, info: MaskInfo) -> "Ticket":
        """Make a ticket of masks: bool tensors by the names of the matrices, True where a weight is kept.

        Raises:
            UserError: there is no mask, or the masks do not have the pattern or the structure that `info` names.
        """
        if not masks:
            raise UserError("there are no masks; give one by the name of each matrix, as ticket.masks has them")
        packed = pack_masks(masks, info)
        try:
            check_described(packed)
        except ValueError as error:
            raise UserError(
                f"the masks are not what their info says ({error}); give an info without pattern and structure, or "
                "masks that have them"
            ) from error
        return cls(packed)

    @classmethod
    def magnitude(
        cls, model: PreTrainedModel, sparsity: float | None = None, *, pattern: str | None = None
    ) -> "Ticket":
        """Keep the largest weights of each matrix (OMP, paper 3.2), or of each group of neighbours.

        Example:
            >>> ticket = tamt.Ticket.magnitude(model, 0.7)
            >>> ticket = tamt.Ticket.magnitude(model, pattern="2:4")

        Args:
            model: a pre-trained model, with any head or none.
            sparsity: share of zeros in each matrix, between 0 and 1.
            pattern: instead of it, "N:M" to keep N of each M neighbours along the input.

        Raises:
            UserError: neither or both are given, one is out of range or does not fit a matrix, or the model has no
                prunable matrix.
        """
        weights = prunable_weights(model)
        pruned = _pruned(weights, sparsity, pattern)
        return cls.from_masks(magnitude_masks(weights, pruned), MaskInfo.of(model.name_or_path, OMP, pruned, 0, 0))

    @classmethod
    def random(
        cls, model: PreTrainedModel, sparsity: float | None = None, seed: int = 0, *, pattern: str | None = None
    ) -> "Ticket":
        """Keep random weights of each matrix. The arguments are those of `magnitude`; `seed` fixes the choice."""
        weights = prunable_weights(model)
        check_seed("seed", seed)
        seed = int(seed)  # it may be a number of NumPy
        pruned = _pruned(weights, sparsity, pattern)
        info = MaskInfo.of(model.name_or_path, RANDOM, pruned, seed, 0)
        return cls.from_masks(random_masks(weights, pruned, seed), info)

    def save(self, path: str | Path) -> None:
        """Write the ticket as a mask file, which every command takes as `--mask`. An existing file is replaced.

        Raises:
            UserError: the name ends in .pt, .bin or .pth, by which files of torch are known.
        """
        if Path(path).suffix in TORCH_SUFFIXES:
            raise UserError(f"{path} would be taken for a file of torch; end its name in .safetensors")
        save_packed(Path(path), self.packed)
        self.path = str(path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a ticket",
    ) -> str:
        """Upload the ticket to the Hugging Face Hub, with a model card if the repository has none.

        Every command takes it as `--mask hub:USER/REPO`, and `from_pretrained` reads it.

        Example:
            >>> ticket.push_to_hub("user/bert-kd-70", private=True)  # doctest: +SKIP

        Args:
            repo_id: USER/REPO; made if there is none.
            private: whether a new repository is private; by default as the user's settings have it.
            token: by default that of `hf auth login`.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            UserError: the name is wrong, the token may not write there, or the hub cannot be reached.
        """
        files = {MASK_FILE: as_bytes(self.packed), MODEL_CARD: model_card(self._described(), repo_id).encode()}
        return upload(repo_id, files, private, token, commit_message)

    @property
    def sparsity(self) -> float:
        """The share of zeros over all masked matrices."""
        return self.packed.sparsity()

    def sparsity_by_matrix(self) -> dict[str, float]:
        """The share of zeros in each matrix, by name."""
        return {name: self.packed.sparsity(name) for name in self.packed.shapes}

    @property
    def masks(self) -> Masks:
        """The masks as bool tensors by name, True where a weight is kept; eight times the memory of the ticket."""
        return {name: tk.unpack_mask(bits, self.packed.shapes[name]) for name, bits in _bits(self.packed).items()}

    def similarity(self, other: "Ticket") -> float:
        """The Jaccard similarity |A ∩ B| / |A ∪ B| over the matrices of both tickets (paper 4.2.5).

        Raises:
            UserError: the tickets are for different models, or `other` is none.
        """
        if not isinstance(other, Ticket):
            raise UserError(f"similarity: other is {other!r} but must be a ticket; read one with tamt.Ticket.load")
        check_same_matrices({"of this ticket": self.packed, "of the other": other.packed})
        return similarity(self.packed, other.packed)[0]

    def apply(self, model: PreTrainedModel) -> None:
        """Set the pruned weights of a model to zero, and keep them zero while it trains.

        Apply it before the optimizer's first step: moments of earlier steps would move pruned weights again. An
        optimizer must change a weight by its own gradients alone, as all of torch's but Muon do.

        Args:
            model: the model that the ticket was found in, with any head, changed in place.

        Raises:
            UserError: the ticket is for another model, the model has a ticket already, or the ticket prunes layers or
                hidden entries, which only `shrink` can take away.
        """
        packed = self.packed
        say_if_of_another(self.masks, self.info.model, model)
        if self.info.structure is not None:
            packed = pack_masks(zeros_for(model, self.masks), self.info)
        keep_zeros(model, _bits(packed), packed.shapes)

    def is_applied(self, model: PreTrainedModel) -> bool:
        """Whether a model keeps the zeros of this ticket, by `apply`. Raises UserError if the ticket is for another."""
        return holds_zeros_of(model, _bits(self._packed_for(model)))

    def shrink(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model without the groups of weights that the ticket prunes: of the same class, and smaller.

        Example:
            >>> small = tamt.Ticket.load("runs/kd-ffn-50").shrink(model)  # doctest: +SKIP

        Args:
            model: the model that the ticket was found in, with any head; it does not change.

        Returns:
            A model that any training may change, and that `save_pretrained` saves as an ordinary one.

        Raises:
            UserError: the ticket prunes single weights or is for another model, the model has another ticket, or no
                configuration of its class has what is kept.
        """
        if self.info.structure is None:
            raise UserError("the ticket prunes single weights, which leave no smaller model; call ticket.apply(model)")
        if holds_zeros(model) and not self.is_applied(model):
            raise UserError(
                "the model has another ticket, whose zeros would train in the smaller model; shrink the model before "
                "that ticket is applied, or call its remove(model)"
            )
        masks = self.masks
        say_if_of_another(masks, self.info.model, model)
        return shrink(model, masks)

    def remove(self, model: PreTrainedModel) -> None:
        """Let the pruned weights of a model train again. They stay zero until then.

        Raises:
            UserError: the model has no ticket.
        """
        free_zeros(model)

    def revived(self, model: PreTrainedModel) -> dict[str, int]:
        """How many pruned weights of `model` are not zero, for each matrix that has any; {} where all are zero.

        Raises:
            UserError: the ticket is for another model, or prunes layers or hidden entries, which cannot be zeros.
        """
        if self.info.structure is not None:
            check_may_be_zeros(self.packed.shapes)
        packed = self._packed_for(model)
        return revived(model, _bits(packed), packed.shapes)

    def sparsity_of(self, model: PreTrainedModel) -> float:
        """The share of zeros in the matrices of `model` that the ticket masks, counted."""
        shapes = self._packed_for(model).shapes
        weights = prunable_weights(model, pooler=True)
        return share_of_zeros(weight for name, weight in weights.items() if name in shapes)

    def merge_lora(self, model: Any) -> PreTrainedModel:
        """Merge LoRA adapters into a subnetwork: W ⊙ m + m ⊙ BA, so that what the ticket prunes is exactly zero.

        During training the adapters act on pruned weights too, so measure the merged model. Needs peft.

        Example:
            >>> from peft import LoraConfig, get_peft_model  # doctest: +SKIP
            >>> ticket.apply(model)  # doctest: +SKIP
            >>> adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"]))  # doctest: +SKIP
            >>> ...  # train  # doctest: +SKIP
            >>> model = ticket.merge_lora(adapted)  # doctest: +SKIP

        Args:
            model: a `peft.PeftModel` around the model that the ticket is of, with any head; its layers are changed.

        Returns:
            The model without adapters, its zeros kept from now on.

        Raises:
            UserError: the model has no adapters to merge, or the ticket is for another model.
        """
        if not hasattr(model, "merge_and_unload"):
            raise UserError(f"the model ({type(model).__name__}) has no LoRA adapters; give one of peft.get_peft_model")
        merged = model.merge_and_unload()
        if holds_zeros(merged):
            free_zeros(merged)
        self.apply(merged)
        return merged

    def _packed_for(self, model: PreTrainedModel) -> PackedMasks:
        """The masks of the matrices of a model. Raises UserError if the ticket is for another one."""
        structured = self.info.structure is not None
        packed = pack_masks(matrix_masks(model, self.masks), self.info) if structured else self.packed
        check_shapes_fit(packed.shapes, model)
        return packed

    def _described(self) -> dict[str, str]:
        """What a reader wants to know of the ticket, by name."""
        info = self.info
        entries = sum(int(np.prod(shape)) for shape in self.packed.shapes.values())
        count = f"{entries / 1e6:.1f} M" if entries >= 1e6 else f"{entries:,}"
        label = METHODS[info.method].label if info.method in METHODS else info.method
        of = f"{count} groups" if info.structure else count
        described = {"model": info.model, "method": label, "pruned": f"{self.sparsity:.1%} of {of}"}
        if info.pattern:
            described["pattern"] = info.pattern
        if info.structure:
            described["structure"] = info.structure
        if info.step:
            described["step"] = f"{info.step:,}"
        if info.method != PUBLISHED and info.method in METHODS and METHODS[info.method].seeded:
            described["seed"] = str(info.seed)
        return described

    def __eq__(self, other: object) -> bool:
        """Whether both keep the same weights and come from the same search."""
        if not isinstance(other, Ticket):
            return NotImplemented
        mine, others = self.packed.bits, other.packed.bits
        same = self.info == other.info and self.packed.shapes == other.packed.shapes
        return same and all(np.array_equal(bits, others[name]) for name, bits in mine.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        described = self._described()
        named = [f"{name} {described[name]}" for name in ("pattern", "structure", "step", "seed") if name in described]
        return (
            f"Ticket({', '.join([described['model'], described['method'], described['pruned'] + ' pruned', *named])})"
        )

    def _repr_html_(self) -> str:
        """A small table for notebooks, and a strip for each layer: the darker, the more of it is kept."""
        layers: dict[str, list[tuple[str, float]]] = {}
        for name, sparsity in self.sparsity_by_matrix().items():
            found = LAYER.search(name)
            layers.setdefault(f"layer {found[1]}" if found else "others", []).append((name, sparsity))
        strips = "".join(
            f"<tr><th>{layer}</th><td>{''.join(_cell(name, sparsity) for name, sparsity in matrices)}</td></tr>"
            for layer, matrices in layers.items()
        )
        return table(self._described(), strips)


def _pruned(weights: Mapping[str, Tensor], sparsity: float | None, pattern: str | None) -> Sparsity:
    """How much a ticket prunes, by its sparsity or its pattern. Raises UserError, see `Ticket.magnitude`."""
    if (sparsity is None) == (pattern is None):
        given = "both sparsity and pattern are" if pattern else "neither sparsity nor pattern is"
        raise UserError(f'{given} given; give one of them, such as sparsity=0.7 or pattern="2:4"')
    if isinstance(sparsity, str):
        raise UserError(f"the sparsity {sparsity!r} is text; give a number such as 0.7, or pattern={sparsity!r}")
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
        return float(sparsity)  # it may be a number of NumPy
    groups = tk.Pattern(*parse_pattern(str(pattern)))
    check_pattern_fits(weights, groups)
    return groups


def _bits(packed: PackedMasks) -> dict[str, Tensor]:
    return {name: torch.from_numpy(bits) for name, bits in packed.bits.items()}


def _cell(name: str, sparsity: float) -> str:
    label = html.escape(f"{name}: {sparsity:.1%} pruned", quote=True)
    style = "display:inline-block;width:1.2em;height:1em;margin-right:1px;border:1px solid #8888"
    return f'<span title="{label}" style="{style};background:rgba(31,119,180,{1 - sparsity:.2f})"></span>'
