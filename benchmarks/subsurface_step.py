"""What a generator's step costs, by the way the flow equation enters it.

    python benchmarks/subsurface_step.py [--batch 16] [--rounds 9] [--deepxde PYTHON] [--json FILE] [--quick]

A step is: readings of a batch at 100 sensors of ln T and 100 of head, with the residual of the flow equation at 500
points or in all cells, the score of a critic 4 x 128 of them, the way back and Adam. The mesh is the Hanford Site's if
the data set is there, else a generated box of about as many cells. Networks are 4 x 128 tanh with 20 dimensions of
noise. In each round every way makes a step, in turns, so that what else the machine does falls on all alike. Times are
CPU time of one thread; ratios are those of the same round. The baseline is nested automatic differentiation of the
equation as it is written, div(T grad h); expanded by hand to T (grad ln T . grad h + Laplacian h) it is cheaper, so
ratios to that are given beside. Ways that mean the same must agree, or the run fails.

DeepXDE is measured in an environment of its own, residual and way back only:

    python -m venv peer && peer/bin/pip install torch==2.13.0 deepxde==1.15.0
    python benchmarks/subsurface_step.py --deepxde peer/bin/python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exafield.datasets import DatasetError
from exafield.subsurface import darcy
from exafield.subsurface.checks import SlantedMeshWarning
from exafield.subsurface.coordinate import Coordinate
from exafield.subsurface.critic import Critic
from exafield.subsurface.generated import box
from exafield.subsurface.random_fields import MeshSpectrum, SpectralField
from exafield.subsurface.residual import FiniteVolumes, divergence
from exafield.subsurface.separable import Modes, Separable
from exafield.subsurface.site import Site

NOISE, SENSORS = 20, 100
FLUX, EXPANDED = "nested autograd, flux form", "nested autograd, expanded"
PLAIN, COMPILED = "forward-propagated", "forward-propagated, compiled"
#: DeepXDE's forms, see peers/subsurface_deepxde.py.
PEER = {"model": "one network", "apart": "networks apart"}
DEFAULT = "spectral field, exact solve (default style)"
Way = Callable[[], Tensor]


def the_site() -> Site:
    """The Hanford Site, or a box."""
    try:
        return Site.load("hanford")
    except DatasetError:
        return box(48, 31)


def plain(generator: Coordinate) -> nn.Sequential:
    """The same network as anyone writes it: layers of position and noise together."""
    network, extent, last = generator.network, generator.network.extent, generator.last
    first = nn.Linear(2 + NOISE, network.first.out_features)
    with torch.no_grad():
        slopes = network.first.weight / extent
        first.weight.copy_(torch.cat([slopes, generator.shift.weight], 1))
        first.bias.copy_(network.first.bias - slopes @ network.get_buffer("centre"))
    layers: list[nn.Module] = [first]
    for layer in (*network.hidden, last):
        copied = nn.Linear(layer.in_features, layer.out_features)
        copied.load_state_dict(layer.state_dict())
        layers += [nn.Tanh(), copied]
    return nn.Sequential(*layers)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"least": min(values), "median": statistics.median(values), "largest": max(values)}


class Bench:
    """The ways, on one site and batch.

    Args:
        site: mesh and boundary conditions; lengths in units of half its extent.
        batch, points: sizes.
        compiled: whether to measure torch.compile too.
    """

    def __init__(self, site: Site, batch: int, points: int, compiled: bool) -> None:
        torch.manual_seed(0)
        self.site, self.batch = site, batch
        centres = torch.tensor(site.mesh.centres, dtype=torch.float32)
        centres = (centres - centres.mean(0)) / float((centres.amax(0) - centres.amin(0)).max() / 2)
        rng = np.random.default_rng(0)
        at_y, at_u = (torch.from_numpy(rng.permutation(site.cells)[:SENSORS]) for _ in "yu")
        self.cells = at_y, at_u
        self.sensors = centres[at_y], centres[at_u]
        self.points = centres[torch.from_numpy(rng.integers(0, site.cells, points))]
        self.noise = torch.randn(batch, NOISE)
        self.nets = Coordinate(centres, NOISE), Coordinate(centres, NOISE)
        self.naive = tuple(plain(net) for net in self.nets)
        self.volumes = FiniteVolumes(site)
        spectrum = MeshSpectrum.of(site.mesh)
        self.residuals: dict[str, tuple[Way, Sequence[nn.Module]]] = {
            FLUX: (lambda: self.nested(flux_form), self.naive),
            EXPANDED: (lambda: self.nested(expanded_form), self.naive),
            PLAIN: (lambda: self.propagated(self.nets), self.nets),
        }
        if compiled:
            fast = tuple(Coordinate(centres, NOISE, compiled=True) for _ in "yu")
            for net, same in zip(fast, self.nets, strict=True):
                net.load_state_dict(same.state_dict())
            self.residuals[COMPILED] = (lambda: self.propagated(fast), fast)
        self.steps: dict[str, Way] = {}
        for name, (residual, nets) in self.residuals.items():
            self.steps[name] = self.step(self.beside(residual, nets), 2 * SENSORS + points, nets)
        pairs = {
            "coordinate, finite volumes": tuple(Coordinate(centres, NOISE) for _ in "yu"),
            "separable, learned trunk, finite volumes": tuple(Separable(centres, NOISE) for _ in "yu"),
            "separable, fixed modes, finite volumes": tuple(
                Modes(MeshSpectrum(spectrum.eigenvalues[:256], spectrum.functions[:, :256]), NOISE) for _ in "yu"
            ),
        }
        for name, pair in pairs.items():
            self.steps[name] = self.step(self.in_cells(*pair), 2 * SENSORS + site.cells, pair)
        field = SpectralField(spectrum.to(dtype=torch.float32), (4000.0,), (2.6,), mean=7.8)
        self.steps[DEFAULT] = self.step(self.solved(field), 2 * SENSORS, (field,))

    def nested(self, form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """The residual by automatic differentiation of automatic differentiation."""
        x = self.points.repeat(self.batch, 1).requires_grad_()
        inputs = torch.cat([x, self.noise.repeat_interleave(len(self.points), 0)], 1)
        y, u = (net(inputs)[:, 0] for net in self.naive)
        return form(x, y, u).view(self.batch, -1)

    def propagated(self, nets: Sequence[Coordinate]) -> Tensor:
        """This package's."""
        return divergence(nets[0].gradient(self.noise, self.points), nets[1].laplacian(self.noise, self.points))

    def beside(self, residual: Way, nets: Sequence[nn.Module]) -> Way:
        """Readings at sensors, and a residual."""

        def read(net: nn.Module, points: Tensor) -> Tensor:
            if isinstance(net, Coordinate):
                return net.at(self.noise, points)
            inputs = points.repeat(self.batch, 1), self.noise.repeat_interleave(len(points), 0)
            found: Tensor = net(torch.cat(inputs, 1))
            return found.view(self.batch, -1)

        return lambda: torch.cat([*map(read, nets, self.sensors), residual()], 1)

    def in_cells(self, y: nn.Module, u: nn.Module) -> Way:
        """Readings at sensors, and the residual of all cells."""

        def read() -> Tensor:
            log, head = 7.8 + y(self.noise), 112 + u(self.noise)
            return torch.cat([log[:, self.cells[0]], head[:, self.cells[1]], self.volumes(log, head)], 1)

        return read

    def solved(self, field: SpectralField) -> Way:
        """Readings at sensors, heads solved for."""

        def read() -> Tensor:
            log = field(torch.randn(self.batch, field.spectrum.modes))
            return torch.cat([log[:, self.cells[0]], darcy.solve(self.site, log)[:, self.cells[1]]], 1)

        return read

    def step(self, read: Way, readings: int, modules: Sequence[nn.Module]) -> Way:
        """A whole step."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        critic, optimiser = Critic(readings), torch.optim.Adam(parameters, 1e-4, (0.0, 0.9), fused=True)

        def run() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            loss = -critic(read()).mean()
            loss.backward(inputs=parameters)
            optimiser.step()
            return loss.detach()

        return run

    def there_and_back(self, name: str) -> Way:
        """The residual alone, its mean square taken back to the weights."""
        residual, modules = self.residuals[name]
        parameters = [p for module in modules for p in module.parameters()]

        def run() -> Tensor:
            loss = residual().square().mean()
            torch.autograd.grad(loss, parameters, allow_unused=True)
            return loss.detach()

        return run

    def disagreement(self) -> float:
        """Largest relative difference of residuals and of their mean square's derivatives by the inner weights."""
        worst, truth = 0.0, None
        for residual, modules in self.residuals.values():
            value = residual()
            inner = [p for net in modules for p in net.parameters() if p.ndim == 2 and p.shape[0] == p.shape[-1]]
            found = [value.detach(), *torch.autograd.grad(value.square().mean(), inner)]
            truth = truth or found
            pairs = zip(found, truth, strict=True)
            worst = max(worst, *(float((a.flatten() - b.flatten()).abs().max() / b.abs().max()) for a, b in pairs))
        return worst


def flux_form(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """As the equation is written: the divergence of T grad h."""
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    flux = y.exp()[:, None] * slope
    parts = [torch.autograd.grad(flux[:, d].sum(), x, create_graph=True)[0][:, d] for d in (0, 1)]
    return parts[0] + parts[1]


def expanded_form(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """T (grad ln T . grad h + Laplacian h)."""
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (drift,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    parts = [torch.autograd.grad(slope[:, d].sum(), x, create_graph=True)[0][:, d] for d in (0, 1)]
    return y.exp() * ((drift * slope).sum(1) + parts[0] + parts[1])


@contextmanager
def peer(python: Path, bench: Bench) -> Iterator[dict[str, Callable[[], float]]]:
    """DeepXDE's forms, by what they are called, as what measures each once [s]."""
    arrays = {"points": bench.points.numpy(), "noise": bench.noise.numpy()}
    for name, net in zip(("log", "head"), bench.naive, strict=True):
        for number, layer in enumerate(layer for layer in net if isinstance(layer, nn.Linear)):
            arrays[f"{name}.weight{number}"] = layer.weight.detach().numpy()
            arrays[f"{name}.bias{number}"] = layer.bias.detach().numpy()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.npz"
        np.savez(file, **arrays)
        command = [str(python), str(Path(__file__).parent / "peers" / "subsurface_deepxde.py"), str(file)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout
        try:
            version = answers.readline().strip()
            if not version:
                raise SystemExit(f"{python} does not run DeepXDE, see above")
            truth = bench.residuals[FLUX][0]().detach()
            for form in PEER:
                apart = torch.from_numpy(np.load(file.with_name(f"{form}.npy"))) - truth
                if float(apart.abs().max()) > 1e-3 * float(truth.abs().max()):
                    raise SystemExit(f"DeepXDE's residual, {form}, is another: apart by {float(apart.abs().max())}")

            def once(form: str) -> float:
                asked.write(form + "\n")
                asked.flush()
                return float(answers.readline())

            yield {f"DeepXDE {version}, {name}": partial(once, form) for form, name in PEER.items()}
        finally:
            asked.close()
            process.kill()
            process.wait()
            answers.close()


def measured(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = way()
            if number:
                times[name].append(taken)
    return times


def timed(way: Way) -> Callable[[], float]:
    """A way as its CPU time."""

    def once() -> float:
        begun = time.process_time()
        way()
        return time.process_time() - begun

    return once


def table(title: str, times: dict[str, list[float]], anchors: Sequence[str]) -> dict[str, object]:
    """Prints and returns times and ratios."""
    print(f"\n{title}; CPU ms, median (least..largest), times as cheap as {'; '.join(anchors)}")
    result: dict[str, object] = {}
    for name, values in times.items():
        row: dict[str, object] = {"ms": spread([1e3 * v for v in values])}
        text = [f"{1e3 * statistics.median(values):8.1f} ({1e3 * min(values):.1f}..{1e3 * max(values):.1f})"]
        for anchor in anchors:
            ratio = spread([slow / fast for slow, fast in zip(times[anchor], values, strict=True)])
            row[f"times as cheap as {anchor}"] = ratio
            text.append(f"{ratio['median']:6.2f} x ({ratio['least']:.2f}..{ratio['largest']:.2f})")
        print(f"{name:44} {'   '.join(text)}")
        result[name] = row
    return result


def main() -> None:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--deepxde", type=Path, metavar="PYTHON", help="of an environment that has DeepXDE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 samples on a small site, nothing compiled")
    given = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # it is read when the library is loaded, so begin anew
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlantedMeshWarning)
    batch, points, rounds = (2, 50, 2) if given.quick else (given.batch, given.points, given.rounds)
    site = box(20, 15) if given.quick else the_site()
    bench = Bench(site, batch, points, compiled=not given.quick)
    apart = bench.disagreement()
    if apart > 1e-3:  # of single precision
        raise SystemExit(f"residuals or their derivatives disagree by {apart:.1e}")
    print(
        f"{site.name}, {site.cells} cells, batch {batch}, {points} points, {rounds} rounds; ways agree to {apart:.1e}"
    )
    steps = measured({name: timed(way) for name, way in bench.steps.items()}, rounds)
    result = {
        "site": site.name, "cells": site.cells, "batch": batch, "points": points, "rounds": rounds,
        "disagreement": apart, "baseline": FLUX, "step": table("whole generator step", steps, [FLUX, EXPANDED]),
    }  # fmt: skip
    ways = {name: timed(bench.there_and_back(name)) for name in bench.residuals}
    if given.deepxde is None:
        result["residual"] = table("residual and back", measured(ways, rounds), [FLUX, EXPANDED])
    else:
        with peer(given.deepxde, bench) as forms:
            times = measured(ways | forms, rounds)
            result["residual"] = table("residual and back", times, [FLUX, EXPANDED, *forms])
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
