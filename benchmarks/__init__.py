"""What the kernels and a whole step cost, against what a user would pick instead. ``python -m benchmarks COMMAND``."""
