"""Trainer: against a plain loop, resumed bit for bit, and errors that reach all ranks."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exafield.checkpoint import CheckpointError
from exafield.field import Field
from exafield.meter import NonFiniteLossError
from exafield.optim import SGD, Adam, AdamW, Constant, Cosine, Schedule, TimedCosine
from exafield.problem import Player, Problem
from exafield.reduce import Bitvector, Grouped, Reducer
from exafield.report import Report, read_metrics
from exafield.source import Sampler, Source, SourceError
from exafield.store import RunFolder
from exafield.trace import Trace
from exafield.trainer import Trainer
from exafield.world import World
from ranks import run_ranks

QUIET = Report(show=False)


class Points:
    """Noisy values of a linear function; sample `bad` is NaN."""

    fields: Mapping[str, Field] = {"x": Field("x", ("n",), "1"), "y": Field("y", ("n",), "1")}

    def __init__(self, length: int = 40, bad: int = -1) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int], epoch: int) -> dict[str, Tensor]:
        x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in indices])
        if self.bad in indices:
            x[list(indices).index(self.bad)] = math.nan
        return {"x": x, "y": x.sum(1, keepdim=True)}


class Noisy(nn.Module):
    """A small network that draws random numbers and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 1))
        self.layers[4].weight = nn.Parameter(self.layers[4].weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Regression:
    """One player; its loss can be told to fail at a step of a rank."""

    name = "regression"

    def __init__(
        self,
        make: Callable[[], nn.Module] = lambda: nn.Linear(4, 1),
        optimiser: Any = None,
        schedule: Schedule | None = None,
        source: Source | None = None,
        nan_at: int = -1,
    ) -> None:
        self.make, self.source = make, source or Points()
        self.optimiser, self.schedule, self.nan_at = optimiser or SGD(0.05), schedule or Constant(), nan_at
        self.begun: list[int] = []

    def players(self, world: World) -> Sequence[Player]:
        self.net = self.make()
        return [Player("net", self.net, self.loss, self.optimiser, self.schedule, begin=self.begun.append)]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = ((self.net(batch["x"]) - batch["y"]) ** 2).mean()
        return loss * math.nan if self.begun[-1] == self.nan_at else loss

    def evaluate(self, world: World) -> dict[str, float]:
        assert not any(module.training for module in self.net.modules())
        assert not torch.is_grad_enabled()
        torch.rand(1)
        batch = Points().batch(range(100, 120), 0)
        return {"error": float(self.loss({name: tensor.to(world.device) for name, tensor in batch.items()}))}

    def picture(self, path: object) -> None:
        raise AssertionError("no picture was asked for")


def by_hand(
    steps: int, batch_size: int, accumulate: int = 1, clip: float | None = None, schedule: Schedule | None = None
) -> nn.Module:
    from exafield.state import seed_everything

    seed_everything(0)
    net = nn.Linear(4, 1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.01)
    sampler = Sampler(40, batch_size)
    for step in range(steps):
        optimiser.zero_grad()
        for _ in range(accumulate):
            parts = [Points().batch(i, e) for e, i in sampler.draw()]
            x, y = (torch.cat([part[key] for part in parts]) for key in ("x", "y"))
            (((net(x) - y) ** 2).mean() / accumulate).backward()
        if clip is not None:
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None))
            for p in net.parameters():
                assert p.grad is not None
                p.grad *= min(1.0, clip / norm)
        optimiser.param_groups[0]["lr"] = 0.1 * (schedule or Constant()).factor(step)
        optimiser.step()
    return net


@pytest.mark.parametrize(
    ("accumulate", "clip", "schedule"),
    [(1, None, None), (3, None, None), (1, 0.5, None), (2, 0.5, Cosine(steps=12, warmup=4))],
)
def test_training_equals_a_plain_loop(accumulate: int, clip: float | None, schedule: Schedule | None) -> None:
    problem = Regression(optimiser=AdamW(0.1), schedule=schedule)
    trainer = Trainer(problem, World.single(), batch_size=6, accumulate=accumulate, clip=clip, report=QUIET)
    trainer.fit(steps=9)
    for name, value in by_hand(9, 6, accumulate, clip, schedule).state_dict().items():
        torch.testing.assert_close(problem.net.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert problem.begun == list(range(9))


def test_accumulated_draws_equal_one_large_draw() -> None:
    small, large = Regression(), Regression()
    Trainer(small, World.single(), batch_size=4, accumulate=3, report=QUIET).fit(steps=5)
    Trainer(large, World.single(), batch_size=12, report=QUIET).fit(steps=5)
    torch.testing.assert_close(small.net.weight, large.net.weight, rtol=1e-5, atol=1e-6)


def test_bf16_computes_in_bf16_and_keeps_fp32() -> None:
    seen: list[torch.dtype] = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            seen.append(result.dtype)
            return result

    problem = Regression(lambda: Watched(4, 1), Adam(0.05))
    trainer = Trainer(problem, World.single(), precision="bf16", report=QUIET)
    for _ in range(60):
        trainer.step()
    assert set(seen) == {torch.bfloat16}
    assert problem.net.weight.dtype == torch.float32
    assert trainer.seats.here["net"].optimiser.state[problem.net.weight]["exp_avg"].dtype == torch.float32
    assert float((problem.net.weight.detach() - 1).abs().max()) < 0.1


def test_metrics_are_means_over_the_interval() -> None:
    problem = Regression(optimiser=SGD(1e-9))
    trainer = Trainer(problem, World.single(), batch_size=10, accumulate=2, report=QUIET)
    for _ in range(2):  # 2 x 2 x 10 samples: all of them, once
        trainer.step()
    values = trainer.metrics()
    everything = Points().batch(range(40), 0)
    expected = ((problem.net(everything["x"]) - everything["y"]) ** 2).mean().item()
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert 0 <= values["data wait"] <= 1
    assert values["samples/s"] > 0
    # Per draw of 10 samples: 2 x 10 x 4 x 1 operations forward, as many for the weight gradient.
    assert trainer.meter.flops == 2 * (80 + 80)
    assert values["FLOP/s"] == pytest.approx(320 / 20 * values["samples/s"])
    # As published: three times forward, although no gradient of the input is taken.
    assert trainer.meter.published == 3 * 2 * 80
    assert values["published FLOP/s"] == pytest.approx(480 / 20 * values["samples/s"])


def test_evaluating_leaves_no_trace_in_the_training() -> None:
    nets = []
    for every in (None, 2):
        problem = Regression(Noisy)
        frozen = Trainer(problem, World.single(), report=QUIET)
        problem.net.layers[1].eval()
        frozen.fit(steps=6, evaluate_every=every)
        assert [m.training for m in problem.net.layers] == [True, False, True, True, True]
        nets.append(problem.net.state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


def test_fit_by_the_clock_stops_when_it_is_time() -> None:
    problem = Regression(optimiser=SGD(0.1), schedule=TimedCosine(seconds=0.3))
    trainer = Trainer(problem, World.single(), report=QUIET)
    trainer.fit(seconds=0.3)
    assert trainer.elapsed >= 0.3
    assert trainer.steps > 1
    seat = trainer.seats.here["net"]
    assert seat.optimiser.param_groups[0]["lr"] < 0.1
    done = trainer.steps
    trainer.fit(seconds=0.3)  # counted from the start of the run
    assert trainer.steps == done
    trainer.fit(steps=done + 2)
    assert trainer.steps == done + 2


def test_the_run_folder_and_the_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    trainer = Trainer(Regression(), World.single(), folder=folder, log_every=4, report=Report(metrics=folder.metrics))
    result = trainer.fit(steps=10, evaluate_every=5, checkpoint_every=4)
    records = read_metrics(folder.metrics)
    assert [r["step"] for r in records if r["kind"] == "train"] == [4, 8, 10]
    assert [r["step"] for r in records if r["kind"] == "evaluate"] == [5, 10]
    assert records[-2]["error"] == result["error"] or records[-1]["error"] == result["error"]
    assert trainer.checkpoints is not None
    assert trainer.checkpoints.steps() == [4, 8, 10]
    spans = Trace.load(folder.trace).spans
    for name, count in {"forward": 10, "backward": 10, "finish": 10, "optimiser": 10, "data wait": 10}.items():
        assert len([s for s in spans if s.lane == "trainer" and s.name == name]) == count
    assert {s.name for s in spans if s.lane == "trainer"} >= {"evaluate", "checkpoint"}


# ---- players ----


class Pair:
    """Two players that pull at each other: a generator and a critic with a gradient penalty."""

    name = "pair"

    def __init__(self) -> None:
        self.source: Source = Points()
        self.grads: list[list[bool]] = []

    def players(self, world: World) -> Sequence[Player]:
        self.generator, self.critic = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        return [
            Player("critic", self.critic, self.criticise, Adam(0.01), moves=3),
            Player("generator", self.generator, self.generate, Adam(0.01)),
        ]

    def criticise(self, batch: Mapping[str, Tensor]) -> Tensor:
        fake = self.generator(torch.randn(len(batch["x"]), 2))
        mixed = (0.5 * fake.detach() + 0.5 * batch["x"]).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        penalty = ((slope.norm(dim=1) - 1) ** 2).mean()
        return self.critic(fake).mean() - self.critic(batch["x"]).mean() + 10 * penalty

    def generate(self, batch: Mapping[str, Tensor]) -> Tensor:
        return -self.critic(self.generator(torch.randn(len(batch["x"]), 2))).mean()

    def evaluate(self, world: World) -> dict[str, float]:
        return {"nothing": 0.0}

    def picture(self, path: object) -> None:
        raise AssertionError("no picture was asked for")


def test_a_gan_fits_and_no_player_touches_another() -> None:
    pair = Pair()
    trainer = Trainer(pair, World.single(), Reducer(Bitvector(), Grouped(2)), batch_size=5, report=QUIET)
    trainer.step()
    critic = [p.detach().clone() for p in pair.critic.parameters()]
    critics_gradients = [p.grad.clone() for p in pair.critic.parameters() if p.grad is not None]
    # The generator's move came last and went through the critic, whose gradients are still those of its own move.
    seat = trainer.seats.here["critic"]
    generator = pair.generator.weight.detach().clone()
    trainer._move(trainer.seats.here["generator"], [trainer._draw()])
    assert not torch.equal(pair.generator.weight, generator)
    assert all(torch.equal(a, b) for a, b in zip(critic, pair.critic.parameters(), strict=True))
    now = [p.grad for p in pair.critic.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(critics_gradients, now, strict=True))
    assert seat.reduction.stats.steps == 3
    values = trainer.metrics()
    assert set(values) == {"loss/critic", "loss/generator", "samples/s", "FLOP/s", "published FLOP/s", "data wait"}


def test_each_move_sees_a_draw_of_its_own() -> None:
    seen: dict[str, list[list[float]]] = {"critic": [], "generator": []}

    class Watched(Pair):
        def criticise(self, batch: Mapping[str, Tensor]) -> Tensor:
            seen["critic"].append(batch["y"].flatten().tolist())
            return super().criticise(batch)

        def generate(self, batch: Mapping[str, Tensor]) -> Tensor:
            seen["generator"].append(batch["y"].flatten().tolist())
            return super().generate(batch)

    trainer = Trainer(Watched(), World.single(), batch_size=5, report=QUIET)
    trainer.step()
    trainer.step()
    assert len({tuple(draw) for draw in seen["critic"]}) == 6
    assert seen["generator"] == [seen["critic"][0], seen["critic"][3]]


class Cast:
    """Any players."""

    name, source = "cast", Points()

    def __init__(self, *players: Player) -> None:
        self.cast = players

    def players(self, world: World) -> Sequence[Player]:
        return self.cast

    def evaluate(self, world: World) -> dict[str, float]:
        return {}

    def picture(self, path: object) -> None:
        return None


def player(name: str, module: nn.Module | None = None, **options: Any) -> Player:
    net = module or nn.Linear(4, 1)
    return Player(name, net, lambda batch: net(batch["x"]).mean(), **options)


SHARED = nn.Linear(4, 1)


@pytest.mark.parametrize(
    ("cast", "message"),
    [
        ([], "at least one player"),
        ([player("a"), player("a")], r"names of their own, got \['a', 'a'\]"),
        ([player("a", SHARED), player("b", nn.Sequential(SHARED))], "players 'a' and 'b' both train '0.weight'"),
        ([player("a", ranks=(0, 1))], r"'a' lives on ranks \[0, 1\], but there are only 1: run on 2 ranks"),
    ],
)
def test_players_that_do_not_fit_together(cast: list[Player], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(Cast(*cast), World.single(), report=QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"name": "a", "moves": 0}, "moves must be 1"),
        ({"name": "a", "ranks": ()}, "ranks must name"),
        ({"name": "a", "ranks": (1, 1)}, "ranks must name"),
    ],
)
def test_players_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        player(**options)


@pytest.mark.parametrize("loss", [lambda b: b["x"].sum(1), lambda b: b["x"].sum()])
def test_a_loss_that_is_none(loss: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
    trainer = Trainer(Cast(Player("a", nn.Linear(4, 1), loss)), World.single(), report=QUIET)
    with pytest.raises(ValueError, match="loss of player 'a' must be one number that depends on its module"):
        trainer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1"),
        ({"accumulate": 0}, "accumulate must be 1"),
        ({"log_every": 0}, "log_every must be 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"keep": 0}, "keep must be 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(Regression(), World.single(), folder=RunFolder(tmp_path), report=QUIET, **options)


def test_how_long_to_train_must_be_said() -> None:
    trainer = Trainer(Regression(), World.single(), report=QUIET)
    for arguments in ({}, {"steps": 1, "seconds": 1.0}):
        with pytest.raises(ValueError, match="either steps= or seconds="):
            trainer.fit(**arguments)
    with pytest.raises(ValueError, match="evaluate_every must be 1"):
        trainer.fit(steps=1, evaluate_every=0)
    with pytest.raises(ValueError, match="give the trainer a folder"):
        trainer.save()
    assert not trainer.resume()


def test_more_ranks_than_samples() -> None:
    with pytest.raises(ValueError, match=r"3 samples cannot be shared by 4 ranks: .*run on 3 ranks or fewer"):
        Trainer(Regression(source=Points(3)), World.fake(4), report=QUIET)


# ---- what goes wrong ----


def test_a_loss_that_is_not_finite_is_named_and_nothing_bad_is_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trainer = Trainer(Regression(nan_at=7), World.single(), folder=folder, log_every=5, report=QUIET)
    with pytest.raises(
        NonFiniteLossError,
        match=r"the loss or gradient of player 'net' on rank 0 is NaN or infinite at step 7: lower the learning",
    ):
        trainer.fit(steps=20, checkpoint_every=3)
    assert trainer.checkpoints is not None
    assert trainer.checkpoints.steps() == [3, 6]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    problem = Regression()
    trainer = Trainer(problem, World.single(), folder=RunFolder(tmp_path), report=QUIET)
    trainer.step()
    with torch.no_grad():
        problem.net.bias.fill_(math.inf)
    with pytest.raises(CheckpointError, match="parameter 'bias' of player 'net' is NaN or infinite"):
        trainer.save()


def test_nan_in_the_data_names_the_sample() -> None:
    trainer = Trainer(Regression(source=Points(bad=17)), World.single(), report=QUIET)
    with pytest.raises(SourceError, match="Points: sample 17 holds NaN or infinity in 'x'"):
        trainer.fit(steps=5)


def test_training_goes_on_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = []
    for trouble in (False, True):
        problem = Regression(Noisy, Adam(0.01))
        trainer = Trainer(problem, World.single(), folder=RunFolder(tmp_path / str(trouble)), report=QUIET)
        if trouble:
            with monkeypatch.context() as patch:

                def full(path: Path, data: bytes) -> None:
                    raise OSError(28, "No space left on device", str(path))

                patch.setattr("exafield.checkpoint._write", full)
                with pytest.raises(CheckpointError, match="free space"):
                    trainer.fit(steps=8, checkpoint_every=3)
            assert trainer.steps == 3
        trainer.fit(steps=8)
        nets.append(problem.net.state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


# ---- resuming ----


def noisy(folder: Path, world: World, **options: Any) -> tuple[Trainer, Regression]:
    problem = Regression(Noisy, AdamW(0.02), Cosine(steps=14, warmup=3), **options)
    reducer = Reducer(Bitvector(), Grouped(2))
    return Trainer(
        problem, world, reducer, batch_size=6, clip=1.0, folder=RunFolder(folder), report=QUIET, seed=4
    ), problem


@pytest.mark.parametrize("optimiser", [SGD(0.05, momentum=0.9), Adam(0.02), AdamW(0.02)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, optimiser: Any) -> None:
    def run(folder: str, *until: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        for steps in until:
            torch.manual_seed(99)  # whatever went on in the process before
            problem = Regression(Noisy, optimiser, Cosine(steps=14, warmup=3))
            trainer = Trainer(problem, World.single(), batch_size=6, folder=RunFolder(tmp_path / folder), report=QUIET)
            assert trainer.resume() == (steps != until[0])
            values = trainer.fit(steps=steps, checkpoint_every=5)
        return problem.net.state_dict(), values

    (whole, value), (parts, other) = run("a", 14), run("b", 4, 10, 14)
    assert value == other
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_damaged_checkpoint_costs_only_its_steps(tmp_path: Path) -> None:
    one, problem = noisy(tmp_path / "a", World.single())
    one.fit(steps=10, checkpoint_every=4)
    two, again = noisy(tmp_path / "b", World.single())
    two.fit(steps=8, checkpoint_every=4)
    path = tmp_path / "b" / "checkpoints" / "step-00000008" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    two, again = noisy(tmp_path / "b", World.single())
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        assert two.resume()
    assert two.steps == 4
    two.fit(steps=10)
    assert all(torch.equal(a, b) for a, b in zip(problem.net.parameters(), again.net.parameters(), strict=True))


class Wider(Noisy):
    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = nn.Linear(4, 13)
        self.extra = nn.Linear(1, 1)
        del self.layers[4]


def test_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    noisy(tmp_path, World.single())[0].fit(steps=2)
    problem = Regression(Wider, AdamW(0.02))
    before = Trainer(problem, World.single(), folder=RunFolder(tmp_path), batch_size=6, seed=4, report=QUIET)
    start = {name: value.clone() for name, value in problem.net.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        before.resume()
    text = str(error.value)
    assert "step-00000002 does not fit: player 'net': missing extra.bias, extra.weight" in text
    assert "unexpected layers.4.bias, layers.4.weight" in text
    assert "layers.0.weight has shape (12, 4) in the checkpoint and (13, 4) in the model" in text
    assert all(torch.equal(value, problem.net.state_dict()[name]) for name, value in start.items())
    other = Regression(Noisy, SGD(0.1))
    with pytest.raises(CheckpointError, match="another optimiser than SGD"):
        Trainer(other, World.single(), folder=RunFolder(tmp_path), report=QUIET).resume()
    with pytest.raises(CheckpointError, match="its players are"):
        Trainer(Pair(), World.single(), folder=RunFolder(tmp_path), report=QUIET).resume()
    with pytest.raises(ValueError, match="seed 4, this one has 5"):
        Trainer(Regression(Noisy, AdamW()), World.single(), folder=RunFolder(tmp_path), seed=5, report=QUIET).resume()


def test_a_compiled_module_is_compiled_and_saved_under_its_own_names(tmp_path: Path) -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = Regression(lambda: torch.compile(Noisy(), backend=backend), AdamW(0.02))  # type: ignore[arg-type, return-value]
    trainer = Trainer(compiled, World.single(), folder=RunFolder(tmp_path), report=QUIET)
    trainer.step()  # the operations of the first step are counted, uncompiled
    assert trainer.meter.flops > 0
    assert not graphs
    trainer.fit(steps=3)
    assert graphs
    plain = Regression(Noisy, AdamW(0.02))
    trainer = Trainer(plain, World.single(), folder=RunFolder(tmp_path), report=QUIET)
    assert trainer.resume()
    for ours, theirs in zip(plain.net.parameters(), compiled.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---- several ranks ----


def on_two_ranks(world: World, folder: str) -> None:
    states = []
    for name, stops in (("whole", (11,)), ("parts", (4, 11))):
        for steps in stops:
            trainer, problem = noisy(Path(folder) / name, world)
            assert trainer.resume() == (steps != stops[0])
            trainer.fit(steps=steps)
            trainer.close()
        states.append(problem.net.state_dict())
    for key, value in states[0].items():  # also the running means, which differ between ranks
        assert torch.equal(value, states[1][key]), key
    words = torch.cat([value.double().flatten() for key, value in states[0].items()])
    print("SUM", f"{words.sum().item():.17g}", f"{problem.net.layers[1].running_mean.sum().item():.17g}")

    for bad in (NonFiniteLossError, CheckpointError):
        name, nan_at = ("nan", 6 if world.rank == 1 else -1) if bad is NonFiniteLossError else ("disk", -1)
        trainer, _ = noisy(Path(folder) / name, world, nan_at=nan_at)
        if bad is CheckpointError and world.rank == 1:
            import exafield.checkpoint

            def full(path: Path, data: bytes) -> None:
                raise OSError(28, "No space left on device", str(path))

            exafield.checkpoint._write = full
        try:
            trainer.fit(steps=20, checkpoint_every=3)
        except bad as error:
            print("ERROR", trainer.steps, error)
        trainer.close()


def test_two_ranks_resume_bit_for_bit_and_fail_together(tmp_path: Path) -> None:
    said = run_ranks(2, on_two_ranks, str(tmp_path))
    sums, errors = [], []
    for text in said:
        sums.append([line.split() for line in text.splitlines() if line.startswith("SUM")])
        errors.append([line for line in text.splitlines() if line.startswith("ERROR")])
    assert sums[0][0][2] != sums[1][0][2]  # running means are each rank's own: the test would see them mixed up
    assert errors[0] == errors[1]
    assert "ERROR 9 the loss or gradient of player 'net' on rank 1 is NaN or infinite at step 6" in errors[0][0]
    assert errors[0][1].startswith("ERROR 3 checkpoint ")
    assert "rank.00001.safetensors: No space left on device: free space" in errors[0][1]
    assert [p.name for p in (tmp_path / "nan" / "checkpoints").iterdir()] == ["step-00000003"] or sorted(
        p.name for p in (tmp_path / "nan" / "checkpoints").iterdir()
    ) == ["step-00000003", "step-00000006"]
    assert list((tmp_path / "disk" / "checkpoints").iterdir()) == []


def by_the_clock(world: World) -> None:
    problem = Regression(optimiser=SGD(0.1), schedule=TimedCosine(seconds=0.5))
    trainer = Trainer(problem, world, report=QUIET)
    trainer.fit(seconds=0.5)
    print("END", trainer.steps, trainer.elapsed, trainer.seats.here["net"].optimiser.param_groups[0]["lr"])


def test_all_ranks_go_by_one_clock() -> None:
    said = run_ranks(2, by_the_clock)
    ends = [[line for line in text.splitlines() if line.startswith("END")] for text in said]
    assert ends[0] == ends[1]
    assert len(ends[0]) == 1


def test_the_protocols_are_met() -> None:
    assert isinstance(Regression(), Problem)
    assert isinstance(Points(), Source)
