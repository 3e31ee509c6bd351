"""On a GPU: reduction and training agree with the CPU in double precision, and a step never waits for the device."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exafield.batchnorm import SyncBatchNorm
from exafield.optim import AdamW
from exafield.precision import Precision
from exafield.reduce import AutoTuned, Fused, Reducer, Single
from exafield.report import Report
from exafield.trainer import Trainer
from exafield.world import World
from test_trainer import Regression

pytestmark = pytest.mark.gpu


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(6, 64), nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, x: Tensor, right: bool) -> Tensor:
        return (self.right if right else self.left)(torch.tanh(self.body(x)))


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("grouping", [Single(), Fused(mb=1e-4), AutoTuned()])
def test_gradients_are_those_of_the_cpu(grouping: object, lag: int) -> None:
    torch.manual_seed(0)
    here = Heads().double()
    there = copy.deepcopy(here).cuda()
    pairs = [
        (m, Reducer(grouping=grouping, lag=lag).attach(m, World.single(d))) for m, d in ((here, "cpu"), (there, "cuda"))
    ]  # type: ignore[arg-type]
    for step in range(6):
        x = torch.randn(32, 6, dtype=torch.float64)
        for model, reduction in pairs:
            model.zero_grad()
            y = x.to(next(model.parameters()).device)
            for part in (y, 2 * y) if step % 3 == 2 else (y,):  # the second finds groups that have left
                model(part, step % 2 == 1).square().mean().backward()
            assert reduction.finish() is (step >= lag)
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None and q.grad is not None and step >= lag:
                torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lag", [0, 1])
def test_gradients_are_waited_for_however_long_packing_takes(lag: int) -> None:
    """Packing is held up on its stream; what lands is right all the same, and its memory is not given away before."""
    layer = nn.Linear(2048, 2048, bias=False, device="cuda")
    reduction = Reducer(grouping=Single(), lag=lag).attach(layer, World.single("cuda"))
    expected: list[Tensor] = []
    for step in range(5):
        layer.zero_grad()
        (layer(torch.randn(8, 2048, device="cuda")).sum() * (step + 1)).backward()
        assert layer.weight.grad is not None
        expected.append(layer.weight.grad.clone())
        if reduction._session._stream is not None:
            with torch.cuda.stream(reduction._session._stream):
                torch.cuda._sleep(50_000_000)
        if reduction.finish():
            torch.testing.assert_close(layer.weight.grad, expected[step - lag], rtol=0, atol=0)
        torch.randn(2048, 2048, device="cuda")  # takes memory that has become free


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits_for_the_device(precision: Precision) -> None:
    problem = Regression(optimiser=AdamW(0.01))
    trainer = Trainer(
        problem, World.single("cuda"), precision=precision, clip=1.0, batch_size=4, report=Report(show=False)
    )
    for _ in range(4):
        trainer.step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    trainer.metrics()
    trainer.close()


def test_training_is_that_of_the_cpu(tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        problem = Regression(make=lambda: nn.Linear(4, 1), optimiser=AdamW(0.01))
        Trainer(problem, World.single(device), clip=1.0, report=Report(show=False)).fit(steps=12)
        found.append(torch.cat([p.detach().cpu().flatten() for p in problem.net.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_normalisation_is_that_of_torch() -> None:
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64, device="cuda")
    ours, torchs = SyncBatchNorm(3, World.single("cuda")).cuda().double(), nn.BatchNorm2d(3).cuda().double()
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.running_var, torchs.running_var)
