"""Which library does the Fourier transforms on a CPU.

The rule: torch.fft, always. It was the faster one at every size in `benchmarks/multislice.py`; both work in single
precision. scipy.fft is there for its backend mechanism: a user who has FFTW (or another library with a scipy backend)
makes it do the work, with nothing of it in this package:

    import pyfftw, scipy.fft
    pyfftw.interfaces.cache.enable()                     # keeps the plans
    scipy.fft.set_global_backend(pyfftw.interfaces.scipy_fft)
    Multislice(..., fourier="scipy")

Transforms here are along the last dimension and not scaled; the caller divides where it multiplies anyway.
"""

from typing import Literal

import scipy.fft
import torch
from jaxtyping import Complex
from torch import Tensor

Library = Literal["torch", "scipy"]


def forward(wave: Complex[Tensor, "*shape"], library: Library) -> Complex[Tensor, "*shape"]:
    """sum_x wave(x) exp(-2 pi i k x / n) along the last dimension; the result is contiguous."""
    made: Tensor = torch.fft.fft(wave) if library == "torch" else torch.from_numpy(scipy.fft.fft(wave.numpy()))
    return made


def backward(spectrum: Complex[Tensor, "*shape"], library: Library) -> Complex[Tensor, "*shape"]:
    """sum_k spectrum(k) exp(2 pi i k x / n) along the last dimension, not divided by n; the result is contiguous."""
    made: Tensor
    if library == "torch":
        made = torch.fft.ifft(spectrum, norm="forward")
    else:
        made = torch.from_numpy(scipy.fft.ifft(spectrum.numpy(), norm="forward"))
    return made
