"""Segmentation of extreme weather: which pixels belong to tropical cyclones, and which to atmospheric rivers?"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exafield.batchnorm import SyncBatchNorm
from exafield.climate import clock, plots
from exafield.climate.analysis import (
    RULE_CHANNELS,
    Masks,
    Report,
    compare,
    nothing,
    pixel_classifier,
    predicted,
    rules,
    storms_in,
)
from exafield.climate.augment import Augmentation
from exafield.climate.compact import Compact, CompactSnapshots
from exafield.climate.decoding import Scaling
from exafield.climate.fields import CHANNELS
from exafield.climate.generate import Generation, default_path, generate
from exafield.climate.grid import Grid
from exafield.climate.loss import CrossEntropy, Loss
from exafield.climate.metrics import Tally
from exafield.climate.parts import Parts
from exafield.climate.reading import Snapshots
from exafield.climate.segmenter import Segmenter
from exafield.climate.snapshot import Snapshot, SnapshotError
from exafield.climate.source import ClimateSource
from exafield.climate.staging import stage as bring
from exafield.climate.tiramisu import Tiramisu
from exafield.optim import AdamW, Constant, Optimiser, Schedule
from exafield.problem import Player
from exafield.store import StoreError
from exafield.world import World

# Snapshots that the classifier of single pixels learns from, at most; our choice.
_PIXEL_SNAPSHOTS = 64

#: Makes a network from a number of channels, and whether longitudes close.
MakeNetwork = Callable[[int, bool], nn.Module]


def small_tiramisu(channels: int, periodic: bool) -> nn.Module:
    """The network of the laptop preset: a quarter of the published features."""
    return Tiramisu(channels, width=0.25, periodic=periodic)


class ClimateProblem:
    """Learns masks of extreme weather from snapshots with labels.

    Args:
        data: what is generated when first needed, and kept; or what is there already.
        path: of the folder of what is generated; None: in the user's cache, by the parameters.
        channels: of generated data; default: all.
        network: makes it.
        loss: on logits; or what makes one from the shares of the classes in the training part.
        optimiser, schedule: of the network.
        scaling: of the fields.
        augment: whether samples are rolled and mirrored, as far as the grid allows.
        workers: processes that read.
        memory: bytes for snapshots that are kept, if all fit.
        compile_network: by torch.compile, for training.
        sync_norms: whether batch normalisation is over all ranks' samples; else running means are averaged over ranks
            before the network is judged.
        stage: folder on a disk of each node, into which :meth:`prepare` brings the training part.
        seed: of augmentation.
    """

    name = "climate"

    def __init__(
        self,
        data: Generation | Parts | None = None,
        path: str | Path | None = None,
        *,
        channels: Sequence[str] = tuple(CHANNELS),
        network: MakeNetwork = small_tiramisu,
        loss: Loss | Callable[[tuple[float, ...]], Loss] | None = None,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        scaling: Scaling = "standard",
        augment: bool = True,
        workers: int = 0,
        memory: int = 2**30,
        compile_network: bool = False,
        sync_norms: bool = False,
        stage: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.generation = None if isinstance(data, Parts) else data or Generation()
        if isinstance(data, Parts):
            self._parts = data
        else:
            assert self.generation is not None
            self._parts = Parts(path if path is not None else default_path(self.generation), channels)
        self.channels = self._parts.channels
        self._network, self._scaling, self._augment = network, scaling, augment
        self._loss = loss or CrossEntropy()
        self._optimiser = optimiser or AdamW(learning_rate=2e-3)
        self._schedule = schedule or Constant(warmup=30)
        self._workers, self._memory, self._seed = workers, memory, seed
        self._compile, self._sync_norms = compile_network, sync_norms
        self._stage = Path(stage) if stage is not None else None
        self._staged: CompactSnapshots | None = None
        self.model: Segmenter | None = None
        self._example: tuple[Snapshot, Masks] | None = None

    # ---- data ----

    @cached_property
    def parts(self) -> Parts:
        """Snapshots for training, validation and test; generated if they do not exist."""
        if self.generation is not None:
            generate(self._parts.folder, self.generation)
        return self._parts

    def prepare(self, world: World, say: Callable[[str], None]) -> None:
        """Brings the training part to a disk of each node, if that is asked for. Collective.

        Raises:
            StagingError: on all ranks: a file cannot be read or stored.
        """
        if self._stage is None:
            return
        parts = self.parts
        try:
            self._stage.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self._stage}: {error.strerror}") from error
        convert = Compact(parts.channels, names=tuple(parts.names.items()), units=tuple(parts.units.items()))
        staged = bring(world, parts.folder / "train", self._stage, convert=convert)
        for line in staged.lines():
            say(line)
        self._staged = CompactSnapshots(staged.files)

    @cached_property
    def source(self) -> ClimateSource:
        """The training snapshots, augmented."""
        snapshots = self._staged or self.parts.train
        grid = snapshots.axes.grid
        return ClimateSource(
            snapshots,
            self.parts.statistics,
            scaling=self._scaling,
            augmentation=_augmentation(grid) if self._augment else None,
            seed=self._seed,
            workers=self._workers,
            cache=self._memory,
        )

    # ---- training ----

    def players(self, world: World) -> Sequence[Player]:
        """One player: the network."""
        source = self.source
        if self.model is None:
            network = self._network(len(self.channels), source.snapshots.axes.grid.periodic)
            self.model = Segmenter(network, self.channels, self._scaling)
            self.model.set_statistics(self.parts.statistics)
            self.model.set_grid(source.snapshots.axes.grid)
            if world.size > 1 and self._sync_norms:
                SyncBatchNorm.convert(self.model, world)
            # What its convolutions are fastest with, on GPUs and on CPUs.
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self._compile:
                network.compile()
        model = self.model
        loss = self._loss if isinstance(self._loss, Loss) else self._loss(self.parts.frequencies)

        def of_batch(batch: Mapping[str, Tensor]) -> Tensor:
            return loss(model(batch["fields"]), batch["labels"])

        return [Player("network", model, of_batch, optimiser=self._optimiser, schedule=self._schedule)]

    def evaluate(self, world: World) -> dict[str, float]:
        """Pooled intersection over union on the validation part: of each kind of event, and the mean over all classes,
        background too."""
        assert self.model is not None, "players() makes the model"
        _level(self.model, world)
        tally = Tally()
        for snapshot in _share(self.parts.open("validation"), world):
            assert snapshot.labels is not None
            guess = torch.from_numpy(self.model.classify(snapshot.values))
            tally.add(guess[None], torch.from_numpy(snapshot.labels)[None])
        scores = tally.scores(world)
        _, cyclone, river = scores.iou.tolist()
        return {"mean_iou": scores.mean_iou, "iou_cyclone": cyclone, "iou_river": river}

    # ---- the verdict ----

    def report(self, world: World) -> Report | None:
        """Scores the network on the test part, beside what needs no network. Collective; rank 0 gets the report."""
        assert self.model is not None, "players() makes the model"
        model, training = self.model, self.model.training
        model.eval()
        _level(model, world)
        train, statistics = self.parts.train, self.parts.statistics
        chosen = np.linspace(0, len(train) - 1, min(_PIXEL_SNAPSHOTS, len(train))).round().astype(int)
        single = pixel_classifier([train[int(i)] for i in chosen], statistics, self._seed)
        kept: list[tuple[float, Snapshot, Masks]] = []
        test, ruled = self._test_part()
        own = len(self.channels)

        def masks(snapshot: Snapshot) -> Masks:
            return {
                "network": model.classify(snapshot.values[:own]),
                **({f"{name} heuristics": mask for name, mask in rules(snapshot).items()} if ruled else {}),
                "single pixels": predicted(single, replace(snapshot, values=snapshot.values[:own]), statistics),
                "all background": nothing(snapshot),
            }

        def judged() -> Iterator[tuple[Snapshot, Masks]]:
            for snapshot in _share(test, world):
                found = masks(snapshot)
                assert snapshot.labels is not None
                if world.rank == 0 and storms_in(snapshot.labels):
                    kept.append((float((found["network"] == snapshot.labels).mean()), snapshot, found))
                yield snapshot, found

        by_rules = ("published heuristics", "corrected heuristics") if ruled else ()
        names = ("network", *by_rules, "single pixels", "all background")
        scores = compare(judged(), world, names)
        model.train(training)
        if kept:  # not the prettiest one: the median by share of pixels that are right
            kept.sort(key=lambda entry: entry[0])
            self._example = kept[len(kept) // 2][1:]
        note = "" if ruled else f"no heuristics: they need {', '.join(RULE_CHANNELS)}, of which the files lack some"
        return Report(scores, note) if world.rank == 0 else None

    def _test_part(self) -> tuple[Snapshots, bool]:
        """The test part, with the channels of the heuristics behind the network's, and whether these are there."""
        more = [name for name in RULE_CHANNELS if name not in self.channels]
        try:
            return self.parts.open("test", more), True
        except SnapshotError:
            if not more:
                raise
            return self.parts.open("test"), False

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draws a snapshot of the test part: its labels, what the network finds, and what the rules find.

        Raises:
            RuntimeError: there is no report yet, or no snapshot that has both kinds of event.
        """
        if self._example is None:
            raise RuntimeError("nothing to draw: call report(world) first, with a test part in which there are events")
        snapshot, masks = self._example
        assert snapshot.labels is not None
        shown = {"truth": snapshot.labels, "network": masks["network"]}
        if "corrected heuristics" in masks:
            shown["corrected heuristics"] = masks["corrected heuristics"]
        vapour = snapshot["TMQ"] if "TMQ" in snapshot.channels else None
        unseen = "of years never seen in training" if self.generation is not None else "of the test part"
        when = clock.title(snapshot.time)
        title = f"{f'{when}, ' if when else ''}{unseen}; neither the best nor the worst"
        plots.snapshot(Path(path), shown, snapshot.grid, vapour, unit="TMQ [kg m$^{-2}$]", title=title)


@torch.no_grad()
def _level(model: nn.Module, world: World) -> None:
    """Averages the running means of batch normalisation over ranks: else these would judge by networks that differ."""
    if world.size == 1 or world.kind == "fake":
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for running in (module.running_mean, module.running_var):
                if running is not None:
                    world.all_reduce(running)
                    running /= world.size


def _share(snapshots: Snapshots, world: World) -> Iterator[Snapshot]:
    """This rank's, one after the other; files are closed at the end."""
    try:
        for index in range(world.rank, len(snapshots), world.size):
            yield snapshots[index]
    finally:
        snapshots.close()


def _augmentation(grid: Grid) -> Augmentation | None:
    """Whatever of it a grid allows."""
    rows = grid.latitude
    symmetric = float(np.abs(rows + rows[::-1]).max()) <= 0.1 * float(np.diff(rows).min())
    return Augmentation(roll=grid.periodic, mirror=symmetric) if grid.periodic or symmetric else None
