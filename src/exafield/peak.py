"""Peak: how fast a device multiplies matrices, which bounds how fast a network on it can be trained."""

import time

import torch

# Edges of the square matrices that are tried [elements], and how often each is: our choice.
_EDGES = (256, 512, 1024, 2048, 4096, 8192)
_REPEATS = 4
# What is shorter cannot be timed alone [s]; our choice.
_LONG = 2e-3


@torch.no_grad()
def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Measured rate of the product of two square matrices [FLOP/s], the best of several sizes; 2 n^3 operations each.

    With the threads and the settings torch has now, so on a GPU fp32 is TF32 where that is allowed.

    Args:
        device: that is measured.
        dtype: of the matrices.
        seconds: that it may take, about: sizes for which no time is left are not tried.
    """
    best, end = 0.0, time.perf_counter() + seconds
    for edge in _EDGES:
        a, b = (torch.rand(edge, edge, device=device).to(dtype) for _ in range(2))
        once = min(_timed(a, b, 1) for _ in range(2))
        count = max(1, int(_LONG / once))
        took = min(once, *(_timed(a, b, count) for _ in range(_REPEATS)))
        best = max(best, 2.0 * edge**3 / took)
        if time.perf_counter() + 8 * took * (2 + _REPEATS) > end:  # twice the edge takes eight times as long
            break
    return best


def _timed(a: torch.Tensor, b: torch.Tensor, count: int) -> float:
    """Mean time of a product [s]."""
    wait = torch.cuda.synchronize if a.device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(count):
        a @ b
    wait()
    return max(time.perf_counter() - began, 1e-9) / count
