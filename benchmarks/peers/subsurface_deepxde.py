"""Beside subsurface_step.py: DeepXDE's residual of the flow equation and the way back, in its own environment.

    PYTHON benchmarks/peers/subsurface_deepxde.py FILE

Started by subsurface_step.py. FILE holds the weights of both networks, points and noise; residuals are written beside
it. Each line on standard input names a form; its residual is worked out once and its mean square goes back to the
weights, and the answer is the CPU time of that in seconds. Forms:

- model: one PFNN with two outputs, as `dde.Model` takes one network. A derivative of one output then goes back through
  both networks, since they are joined before it.
- apart: two FNN outside of a model, derivatives by `dde.grad`: the best that its derivatives can do.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["DDE_BACKEND"] = "pytorch"

import deepxde as dde
import numpy as np
import torch

Layers = list[tuple[np.ndarray, np.ndarray]]


def given(linear: torch.nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    """Sets a layer."""
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))


def together(networks: list[Layers]) -> torch.nn.Module:
    """Both as one, with two outputs."""
    sizes = [networks[0][0][0].shape[1], *([len(bias)] * 2 for _, bias in networks[0][:-1]), 2]
    made = dde.nn.PFNN(sizes, "tanh", "Glorot normal")
    for level, pair in enumerate(made.layers):
        for linear, layers in zip(pair, networks, strict=True):
            given(linear, *layers[level])
    return made


def alone(layers: Layers) -> torch.nn.Module:
    """One of them."""
    made = dde.nn.FNN([layers[0][0].shape[1], *(len(bias) for _, bias in layers)], "tanh", "Glorot normal")
    for linear, pair in zip(made.linears, layers, strict=True):
        given(linear, *pair)
    return made


def main() -> None:
    """Answers line by line."""
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    with np.load(file) as arrays:
        count = sum(key.startswith("log.weight") for key in arrays.files)
        networks = [
            [(arrays[f"{name}.weight{k}"], arrays[f"{name}.bias{k}"]) for k in range(count)] for name in ("log", "head")
        ]
        points, noise = torch.from_numpy(arrays["points"]), torch.from_numpy(arrays["noise"])
    # Derivatives are taken by all inputs of a network, and noise is an input.
    x = torch.cat([points.repeat(len(noise), 1), noise.repeat_interleave(len(points), 0)], 1).requires_grad_()
    both, log, head = together(networks), alone(networks[0]), alone(networks[1])
    jacobian, hessian = dde.grad.jacobian, dde.grad.hessian

    def model() -> torch.Tensor:
        out = both(x)
        parts = [
            jacobian(out, x, i=0, j=j) * jacobian(out, x, i=1, j=j) + hessian(out, x, component=1, i=j, j=j)
            for j in (0, 1)
        ]
        return torch.exp(out[:, :1]) * (parts[0] + parts[1])

    def apart() -> torch.Tensor:
        y, u = log(x), head(x)
        parts = [jacobian(y, x, i=0, j=j) * jacobian(u, x, i=0, j=j) + hessian(u, x, i=j, j=j) for j in (0, 1)]
        return torch.exp(y) * (parts[0] + parts[1])

    forms: dict[str, Callable[[], torch.Tensor]] = {"model": model, "apart": apart}
    for name, form in forms.items():
        np.save(file.with_name(f"{name}.npy"), form().detach().numpy().reshape(len(noise), -1))
        dde.grad.clear()
    print(dde.__version__, flush=True)
    for line in sys.stdin:
        begun = time.process_time()
        forms[line.strip()]().square().mean().backward()
        dde.grad.clear()
        for network in (both, log, head):
            network.zero_grad(set_to_none=True)
        print(time.process_time() - begun, flush=True)


if __name__ == "__main__":
    main()
