"""The Triton kernels, each beside its launcher, in files with the names of ``tamt_kernels.ops``.

They are imported when an operator first runs on a device that Triton serves, so that ``import tamt_kernels`` neither
needs Triton nor waits for it. A launcher has the signature of its definition in ``tamt_kernels.reference`` and, like
that, checks nothing.
"""
