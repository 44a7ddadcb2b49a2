"""The Triton kernels of the operations: a file for each group of operations, each kernel beside its launcher.

Imported when an operator first runs on a device that Triton serves, so that ``import tamt_kernels`` neither
needs Triton nor waits for it. Launchers have the signatures of the definitions in ``tamt_kernels.reference``
and, like those, check nothing.
"""
