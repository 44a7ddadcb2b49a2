"""Structures: which groups of weights a mask prunes together, and how many of them.

Nothing here imports torch, so that the command line answers at once.
"""

from dataclasses import dataclass

from tamt.runtime.errors import UserError, check_choice, check_sparsity

KINDS = {
    "ffn": "intermediate neurons, in each layer",
    "heads": "attention heads, in each layer",
    "layers": "layers",
    "hidden": "entries of the hidden states, in the whole model",
}
"""The kinds of groups, and what they are."""


@dataclass(frozen=True)
class Structure:
    """A sparsity for each kind of group that is pruned, in the order of `KINDS`; written as "ffn:0.5,heads:0.5"."""

    shares: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> "Structure":
        """Read a structure.

        Raises:
            UserError: a kind is unknown or named twice, or its sparsity is missing or not between 0 and 1.
        """
        shares: dict[str, float] = {}
        for part in text.split(","):
            kind, _, number = part.strip().partition(":")
            check_choice("structure", kind, KINDS)
            if kind in shares:
                raise UserError(f"--structure {text} names {kind} twice; give it once")
            try:
                shares[kind] = float(number)
            except ValueError as error:
                raise UserError(
                    f"--structure {text} has no number after {kind}; give {kind}:0.5 to prune half of them, say"
                ) from error
            check_sparsity(f"--structure {kind}", shares[kind])
        return cls(tuple((kind, shares[kind]) for kind in KINDS if kind in shares))

    @property
    def kinds(self) -> list[str]:
        """The kinds of groups."""
        return [kind for kind, _ in self.shares]

    @property
    def most(self) -> float:
        """The highest of the sparsities."""
        return max(share for _, share in self.shares)

    def share(self, mask: str) -> float:
        """The sparsity of the mask of this name. Raises ValueError if the structure has no such mask."""
        for kind, share in self.shares:
            if kind == kind_of(mask):
                return share
        raise ValueError(f"{mask} is no mask of the structure {self}")

    def __str__(self) -> str:
        return ",".join(f"{kind}:{share!r}" for kind, share in self.shares)


def structure_of(text: str | None) -> Structure | None:
    """The structure that an option or a mask file names. Raises UserError, see `Structure.parse`."""
    return None if text is None else Structure.parse(text)


def kind_of(mask: str) -> str:
    """The kind of the groups of a mask, by its name: `ffn.3` and `heads.3` of layer 3, `layers`, `hidden`."""
    return mask.partition(".")[0]
