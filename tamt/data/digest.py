"""The digest of tokenised data, by which a resumed run knows whether it still reads the same."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

Row: TypeAlias = Sequence[float] | np.ndarray
"""Numbers: token ids, or labels."""


def data_digest(tables: Iterable[Iterable[Row]]) -> str:
    """SHA-256 of tables of numbers, as hexadecimal digits.

    Args:
        tables: each is rows of numbers; their order counts, and where a row or a table ends.
    """
    digest = hashlib.sha256()
    for table in tables:
        lengths = []
        for row in table:
            digest.update(np.asarray(row, dtype=np.float64).tobytes())
            lengths.append(len(row))
        digest.update(np.array([*lengths, len(lengths)], dtype=np.int64).tobytes())
    return digest.hexdigest()
