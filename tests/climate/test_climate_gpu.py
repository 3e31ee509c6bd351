"""On a GPU: networks, losses, classes and scores are those of the CPU, and a training step never waits for the device.

Networks are compared in double precision: with normalisation over few samples, rounding grows a thousandfold on the
way through them, and gradients change where a value crosses zero.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exafield.climate.loss import CrossEntropy, Focal, Jaccard, Loss
from exafield.climate.metrics import Tally
from exafield.climate.model import DeepLabV3Plus, Tiramisu
from exafield.climate.normalisation import Statistics
from exafield.climate.segmenter import Segmenter
from exafield.field import Field
from exafield.optim import LARC
from exafield.precision import Precision
from exafield.problem import Player
from exafield.report import Report
from exafield.trainer import Trainer
from exafield.world import World

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
NAMES = ("TMQ", "U850", "V850", "PSL")
LOSSES = [CrossEntropy(), CrossEntropy.published(), CrossEntropy.deepcam(), Focal(), Focal(1.5, (1, 2, 3)), Jaccard()]


def small(kind: str, periodic: bool = False) -> nn.Module:
    torch.manual_seed(3)
    if kind == "tiramisu":
        return Tiramisu(4, layers=(1, 2, 3), width=0.25, dropout=0.0, periodic=periodic)
    return DeepLabV3Plus(4, depth=26, width=0.125, periodic=periodic)


def away(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm, of all numbers together."""
    a, b = (torch.cat([t.detach().cpu().flatten() for t in tensors]) for tensors in (found, truth))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["tiramisu", "deeplab"])
@pytest.mark.parametrize(("periodic", "shape"), [(False, (32, 48)), (True, (32, 48)), (True, (29, 43))])
def test_networks_are_those_of_the_cpu(kind: str, periodic: bool, shape: tuple[int, int]) -> None:
    here = small(kind, periodic).double()
    there = copy.deepcopy(here).to(GPU, memory_format=torch.channels_last)
    fields = torch.randn(2, 4, *shape, dtype=torch.float64)
    slope = torch.randn(2, 3, *shape, dtype=torch.float64)
    outputs = []
    for model in (here, there):
        x = fields.to(next(model.parameters()).device, copy=True).requires_grad_()
        logits = model(x)
        logits.backward(slope.to(logits.device))
        assert x.grad is not None
        outputs.append((logits, x.grad))
    (logits, inwards), (other, other_inwards) = outputs
    assert other.is_cuda == (GPU.type == "cuda")
    assert away([other], [logits]) < 1e-10
    assert away([other_inwards], [inwards]) < 1e-10
    pairs = list(zip(here.parameters(), there.parameters(), strict=True))
    assert all((p.grad is None) == (q.grad is None) for p, q in pairs)
    assert away([q.grad for _, q in pairs if q.grad is not None], [p.grad for p, _ in pairs if p.grad is not None]) < (
        1e-10
    )
    buffers = [(b.double(), c.double()) for b, c in zip(here.buffers(), there.buffers(), strict=True)]
    for mine, theirs in buffers:
        torch.testing.assert_close(theirs.cpu(), mine, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_losses_are_those_of_the_cpu(loss: Loss, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    values = torch.randn(2, 3, 40, 60).to(dtype)
    labels = torch.randint(3, (2, 40, 60), dtype=torch.uint8)
    found = []
    for device in (torch.device("cpu"), GPU):
        logits = values.to(device, copy=True).requires_grad_()
        result = loss(logits, labels.to(device))
        result.backward()
        assert logits.grad is not None
        assert result.dtype == torch.float32
        found.append((float(result.detach()), logits.grad.double()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    # Of gradients in bf16 the last of eight bits may differ.
    assert away([found[1][1]], [found[0][1]]) < (1e-5 if dtype == torch.float32 else 4e-3)


class Noise:
    """Random fields and labels."""

    fields: Mapping[str, Field] = {
        "fields": Field("fields", ("channel", "lat", "lon"), "1"),
        "labels": Field("labels", ("lat", "lon"), "1"),
    }

    def __len__(self) -> int:
        return 16

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(indices[0])
        labels = torch.randint(3, (len(indices), 32, 48), generator=generator, dtype=torch.uint8)
        return {"fields": torch.randn(len(indices), 4, 32, 48, generator=generator), "labels": labels}


class Masks:
    """One small network."""

    name = "masks"

    def __init__(self, kind: str, loss: Loss) -> None:
        self.source, self.net, self.of = Noise(), small(kind), loss

    def players(self, world: World) -> Sequence[Player]:
        return [Player("net", self.net, self.loss, LARC())]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.of(self.net(batch["fields"]), batch["labels"])

    def evaluate(self, world: World) -> dict[str, float]:
        return {}

    def picture(self, path: object) -> None: ...


@pytest.mark.parametrize(
    ("kind", "loss", "precision"),
    [
        ("tiramisu", CrossEntropy(), "bf16"),
        ("deeplab", CrossEntropy(), "fp16"),
        ("deeplab", Focal(2.0, (1, 2, 3)), "bf16"),
        ("tiramisu", Jaccard((1, 2, 3)), "fp32"),
    ],
    ids=["tiramisu-bf16", "deeplab-fp16", "focal", "jaccard"],
)
def test_a_step_never_waits_for_the_device(kind: str, loss: Loss, precision: Precision) -> None:
    problem = Masks(kind, loss)
    trainer = Trainer(problem, World.single(GPU), batch_size=2, precision=precision, report=Report(show=False))
    for _ in range(4):
        trainer.step()
    before = [p.detach().clone() for p in problem.net.parameters()]
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert np.isfinite(trainer.metrics()["loss"])
    assert away(list(problem.net.parameters()), before) > 0
    trainer.close()


def test_classes_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    generator = np.random.default_rng(5)
    values = (50 + 20 * generator.standard_normal((4, 32, 48))).astype(np.float32)
    # Without normalisation, since its running statistics know nothing yet, and in single precision as always.
    here = Segmenter(small("tiramisu", periodic=True), NAMES).eval()
    here.set_statistics(Statistics.of(NAMES, values))
    there = copy.deepcopy(here).to(GPU)
    assert there.shift.is_cuda == (GPU.type == "cuda")
    with torch.no_grad():
        scaled = (torch.from_numpy(values) - here.shift[:, None, None]) * here.factor[:, None, None]
        best = here(scaled[None])[0].topk(2, dim=0).values
    clear = ((best[0] - best[1]) > 1e-3).numpy()
    mine, theirs = here.classify(values), there.classify(values)
    assert clear.mean() > 0.9
    assert len(np.unique(mine[clear])) > 1
    np.testing.assert_array_equal(theirs[clear], mine[clear])


def test_scores_are_those_of_the_cpu() -> None:
    torch.manual_seed(6)
    truth = torch.randint(3, (5, 12, 20), dtype=torch.uint8)
    guess = torch.where(torch.rand(5, 12, 20) < 0.7, truth, truth.flip(0))
    scores = []
    for device in (torch.device("cpu"), GPU):
        tally = Tally()
        for part in (slice(0, 3), slice(3, 5)):
            tally.add(guess[part].to(device), truth[part].to(device))
        scores.append(tally.scores(World.single(device)))
    np.testing.assert_array_equal(scores[1].table, scores[0].table)
    assert (scores[1].samples, scores[1].per_sample) == (scores[0].samples, scores[0].per_sample)
    with pytest.raises(ValueError, match="truth holds labels from 0 to 3"):
        Tally().add(guess.to(GPU), (truth + (truth == 2).to(torch.uint8)).to(GPU))
