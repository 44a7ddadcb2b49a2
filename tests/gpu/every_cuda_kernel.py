"""Runs every operation that has a CUDA kernel in the extension, on small inputs, for compute-sanitizer to watch."""

import sys

import torch

import tamt_kernels as tk

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def ste_backward() -> None:
    for rows, columns in ((0, 5), (1, 1), (3, 5), (64, 257)):
        for grad_type in TYPES:
            for weight_type in TYPES:
                grad = torch.ones(rows, columns + 1, dtype=grad_type, device="cuda")
                weight = torch.ones(rows, columns + 1, dtype=weight_type, device="cuda")
                tk.ste_backward(grad, weight)
                tk.ste_backward(grad.flatten()[1:], weight.flatten()[1:], torch.float32)  # not aligned


def ste_backward_into() -> None:
    for rows, columns in ((0, 5), (1, 1), (3, 5), (64, 257)):
        for grad_type in TYPES:
            for weight_type in TYPES:
                grad = torch.ones(rows, columns + 1, dtype=grad_type, device="cuda")
                weight = torch.ones(rows, columns + 1, dtype=weight_type, device="cuda")
                total, _ = tk.ste_backward(grad, weight, squared_norm=True)
                tk.ste_backward(grad, weight, add_to=total, squared_norm=True)
                tk.ste_backward(grad.flatten()[1:], weight.flatten()[1:], add_to=total.flatten()[1:])  # not aligned


KERNELS = {"ste_backward": ste_backward, "ste_backward_into": ste_backward_into}

if __name__ == "__main__":
    compiled = {operation for operation, device in tk.backends().items() if device["cuda"] == "cpp"}
    if compiled != set(KERNELS):
        sys.exit(f"CUDA kernels are there for {sorted(compiled)}, but this runs {sorted(KERNELS)}")
    for run in KERNELS.values():
        run()
    torch.cuda.synchronize()
    print(f"ran {', '.join(KERNELS)}")
