"""The search for winning tickets: mask training, iterative magnitude pruning, and the one-shot baselines."""
