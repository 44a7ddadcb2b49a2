"""A ticket: the subnetwork that a mask leaves of a pre-trained model."""

import html
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tamt_kernels as tk
from tamt.masks.file import MASK_FILE, MaskInfo, PackedMasks, load_packed, pack_masks, save_packed
from tamt.masks.masking import Masks, magnitude_masks, prunable_weights, random_masks
from tamt.masks.similarity import check_same_matrices, similarity
from tamt.masks.zeros import free_zeros, keep_zeros
from tamt.methods import METHODS, OMP, PUBLISHED, RANDOM
from tamt.runtime.errors import UserError

LAYER = re.compile(r"\.(\d+)\.")


class Ticket:
    """Which weights of each prunable matrix of a model are kept (paper 3.2). One bit per weight.

    Example:
        >>> import tamt
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")  # doctest: +SKIP
        >>> ticket = tamt.Ticket.load("runs/kd-70")  # doctest: +SKIP
        >>> ticket.apply(model)  # zeros now, and zeros under any optimizer  # doctest: +SKIP

    Attributes:
        info: the model, method, sparsity, seed and step that the mask comes from.
    """

    def __init__(self, packed: PackedMasks) -> None:
        """Take packed masks; `load`, `magnitude`, `random` and `from_masks` make tickets."""
        self._packed = packed
        self.info = packed.info

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket.

        Args:
            path: a run folder of `tamt train`, a mask file, or the `mask.pt` of the paper's published code.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = Path(path)
        return cls(load_packed(path / MASK_FILE if path.is_dir() else path))

    @classmethod
    def from_masks(cls, masks: Masks, info: MaskInfo) -> "Ticket":
        """Make a ticket of masks: bool tensors by the names of the matrices, True where a weight is kept."""
        return cls(pack_masks(masks, info))

    @classmethod
    def magnitude(cls, model: PreTrainedModel, sparsity: float) -> "Ticket":
        """Keep the largest weights of each matrix (OMP, paper 3.2).

        Args:
            model: a pre-trained model, with any head or none.
            sparsity: share of zeros in each matrix, between 0 and 1.

        Raises:
            UserError: the sparsity is out of range, or the model has no prunable matrix.
        """
        _check_sparsity(sparsity)
        masks = magnitude_masks(prunable_weights(model), sparsity)
        return cls.from_masks(masks, MaskInfo(model.name_or_path, OMP, sparsity, 0, 0))

    @classmethod
    def random(cls, model: PreTrainedModel, sparsity: float, seed: int = 0) -> "Ticket":
        """Keep random weights of each matrix. The arguments are those of `magnitude`; `seed` fixes the choice."""
        _check_sparsity(sparsity)
        masks = random_masks(prunable_weights(model), sparsity, seed)
        return cls.from_masks(masks, MaskInfo(model.name_or_path, RANDOM, sparsity, seed, 0))

    def save(self, path: str | Path) -> None:
        """Write the ticket as a mask file, which every command takes as `--mask`. An existing file is replaced."""
        save_packed(Path(path), self._packed)

    @property
    def sparsity(self) -> float:
        """The share of zeros over all masked matrices."""
        return self._packed.sparsity()

    def sparsity_by_matrix(self) -> dict[str, float]:
        """The share of zeros in each matrix, by name."""
        return {name: self._packed.sparsity(name) for name in self._packed.shapes}

    @property
    def masks(self) -> Masks:
        """The masks as bool tensors by name, True where a weight is kept; eight times the memory of the ticket."""
        return {name: tk.unpack_mask(bits, self._packed.shapes[name]) for name, bits in self._bits().items()}

    def similarity(self, other: "Ticket") -> float:
        """The Jaccard similarity |A ∩ B| / |A ∪ B| over the matrices of both tickets (paper 4.2.5).

        Raises:
            UserError: the tickets are for different models.
        """
        check_same_matrices({"of this ticket": self._packed, "of the other": other._packed})
        return similarity(self._packed, other._packed)[0]

    def apply(self, model: PreTrainedModel) -> None:
        """Set the pruned weights of a model to zero, and keep them zero under any optimizer; see `tamt.masks.zeros`.

        Args:
            model: the model that the ticket was found in, with any head, changed in place.

        Raises:
            UserError: the ticket is for another model, or the model has a ticket already.
        """
        keep_zeros(model, self._bits(), self._packed.shapes)

    def remove(self, model: PreTrainedModel) -> None:
        """Let the pruned weights of a model train again. They stay zero until then.

        Raises:
            UserError: the model has no ticket.
        """
        free_zeros(model)

    def _bits(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(bits) for name, bits in self._packed.bits.items()}

    def _described(self) -> dict[str, str]:
        """What a reader wants to know of the ticket, by name."""
        info = self.info
        entries = sum(int(np.prod(shape)) for shape in self._packed.shapes.values())
        count = f"{entries / 1e6:.1f} M" if entries >= 1e6 else f"{entries:,}"
        label = METHODS[info.method].label if info.method in METHODS else info.method
        described = {"model": info.model, "method": label, "pruned": f"{self.sparsity:.1%} of {count}"}
        if info.step:
            described["step"] = f"{info.step:,}"
        if info.method != PUBLISHED and info.method in METHODS and METHODS[info.method].seeded:
            described["seed"] = str(info.seed)
        return described

    def __repr__(self) -> str:
        described = self._described()
        named = [f"{name} {described[name]}" for name in ("step", "seed") if name in described]
        return (
            f"Ticket({', '.join([described['model'], described['method'], described['pruned'] + ' pruned', *named])})"
        )

    def _repr_html_(self) -> str:
        """A small table for notebooks, and a strip for each layer: the darker, the more of it is kept."""
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(of)}</td></tr>" for name, of in self._described().items())
        layers: dict[str, list[tuple[str, float]]] = {}
        for name, sparsity in self.sparsity_by_matrix().items():
            found = LAYER.search(name)
            layers.setdefault(f"layer {found[1]}" if found else "others", []).append((name, sparsity))
        strips = "".join(
            f"<tr><th>{layer}</th><td>{''.join(_cell(name, sparsity) for name, sparsity in matrices)}</td></tr>"
            for layer, matrices in layers.items()
        )
        return f"<table>{rows}{strips}</table>"


def _cell(name: str, sparsity: float) -> str:
    label = html.escape(f"{name}: {sparsity:.1%} pruned", quote=True)
    style = "display:inline-block;width:1.2em;height:1em;margin-right:1px;border:1px solid #8888"
    return f'<span title="{label}" style="{style};background:rgba(31,119,180,{1 - sparsity:.2f})"></span>'


def _check_sparsity(sparsity: float) -> None:
    if not 0 < sparsity < 1:
        raise UserError(f"sparsity is {sparsity:g}, which is not between 0 and 1; give 0.7 for 70 % zeros, say")
