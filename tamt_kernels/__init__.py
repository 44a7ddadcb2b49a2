"""Masked-weight operations on tensors: exact top-k masks, masked layers and their straight-through gradients.

Every operation has one definition, in plain torch (``tamt_kernels.reference``). A mask, a threshold or a masked weight
has the same bits on every device and with every backend.
"""

from tamt_kernels.backend.dispatch import backends, load_extension
from tamt_kernels.backend.memory import reuse_freed_memory
from tamt_kernels.nn import MaskedEmbedding, MaskedLinear, update_masks
from tamt_kernels.ops.binarize import binarize
from tamt_kernels.ops.cosine import cosine
from tamt_kernels.ops.linear import Linear, linear, linear_backward_weight, linear_backward_x, use_fast_products
from tamt_kernels.ops.mask_weight import mask_weight
from tamt_kernels.ops.mask_weights import mask_weights
from tamt_kernels.ops.masked_embedding import masked_embedding
from tamt_kernels.ops.masked_linear import masked_linear
from tamt_kernels.ops.pack import pack_mask, unpack_mask
from tamt_kernels.ops.pack_sparse import SparseWeight, pack_sparse
from tamt_kernels.ops.pattern import pattern_mask, pattern_weight
from tamt_kernels.ops.prune import prune_
from tamt_kernels.ops.sparse_embedding import sparse_embedding
from tamt_kernels.ops.sparse_linear import sparse_linear
from tamt_kernels.ops.ste_backward import ste_backward, ste_backward_all
from tamt_kernels.ops.threshold import topk_threshold
from tamt_kernels.optim import MaskAdamW
from tamt_kernels.reference import Pattern, Thresholds
from tamt_kernels.sparse import SparseEmbedding, SparseLinear, sparsify

load_extension()

__all__ = [
    "Linear",
    "MaskAdamW",
    "MaskedEmbedding",
    "MaskedLinear",
    "Pattern",
    "SparseEmbedding",
    "SparseLinear",
    "SparseWeight",
    "Thresholds",
    "backends",
    "binarize",
    "cosine",
    "linear",
    "linear_backward_weight",
    "linear_backward_x",
    "mask_weight",
    "mask_weights",
    "masked_embedding",
    "masked_linear",
    "pack_mask",
    "pack_sparse",
    "pattern_mask",
    "pattern_weight",
    "prune_",
    "reuse_freed_memory",
    "sparse_embedding",
    "sparse_linear",
    "sparsify",
    "ste_backward",
    "ste_backward_all",
    "topk_threshold",
    "unpack_mask",
    "update_masks",
    "use_fast_products",
]
