"""Judges of a hierarchical game: of the whole site, of a subdomain, and of the strips where subdomains overlap.

A judge sees readings only, never fields: few numbers that can come from another rank. Beside its critic it knows the
sliced-Wasserstein distance, and its judgement, which generators want low, is of both.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from exafield.subsurface.critic import Critic, critic_loss
from exafield.subsurface.mesh import Mesh
from exafield.subsurface.partition import Partition
from exafield.subsurface.sensing import View
from exafield.subsurface.site import Site
from exafield.subsurface.sliced import Sliced
from exafield.subsurface.snapshots import Snapshots
from exafield.subsurface.transform import Robust

# Border faces of each strip at which fluxes and values of both sides are compared, evenly along it (our choice).
_FACES = 8


class Judge(nn.Module, ABC):
    """A critic and the sliced-Wasserstein distance on readings. Subclasses say what these are.

    Args:
        columns: of the readings.
        weight: of its judgement among those of all judges.
        sliced_weight, critic_weight: within its judgement.
    """

    def __init__(self, columns: int, weight: float, sliced_weight: float, critic_weight: float) -> None:
        super().__init__()
        self.columns, self.weight = columns, weight
        self._weights = sliced_weight, critic_weight
        self.critic = Critic(columns)

    @abstractmethod
    def see(
        self,
        whole: Float[Tensor, "batch cell"],
        head: Float[Tensor, "batch cell"],
        coarse: Float[Tensor, "batch cell"],
        fine: Float[Tensor, "batch extended"],
    ) -> Float[Tensor, "batch column"]:
        """Readings, called at the hub.

        Args:
            whole: assembled fields.
            head: theirs [m].
            coarse, fine: their two levels, as in `Hierarchy.assembled`.
        """
        ...

    @abstractmethod
    def read(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch column"]:
        """Readings of snapshots."""
        ...

    @abstractmethod
    def scaled(self, readings: Float[Tensor, "batch column"]) -> Float[Tensor, "batch column"]:
        """Readings on a common scale."""
        ...

    @abstractmethod
    def distance(self, real: Float[Tensor, "batch column"], fake: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """Sliced-Wasserstein, of scaled readings."""
        ...

    def judgement(self, batch: Mapping[str, Tensor], readings: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """What generators want low; in fp32, since its gradient is taken without a loss scale."""
        sliced, critic = self._weights
        with torch.autocast(readings.device.type, enabled=False):
            real, fake = self.scaled(self.read(batch)), self.scaled(readings)
            total: Tensor = -critic * self.critic(fake).mean()
            if sliced:
                total = total + sliced * self.distance(real, fake)
            return self.weight * total

    def loss(self, batch: Mapping[str, Tensor], readings: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """What its critic wants low."""
        return critic_loss(self.critic, self.scaled(self.read(batch)), self.scaled(readings))


class SensorJudge(Judge):
    """Of ln T and heads of the assembled field at sensors.

    Args:
        site: mesh of the sensors.
        snapshots: all readings for training.
        cells: the sensors in these cells are judged.
        weights: as of Judge.
        name: of these cells.
    Raises:
        ValueError: there is no sensor in them.
    """

    def __init__(
        self,
        site: Site,
        snapshots: Snapshots,
        cells: Int[np.ndarray, "some"],
        *weights: float,
        name: str = "whole site",
    ) -> None:
        chosen = [np.flatnonzero(np.isin(all_of, cells)) for all_of in (snapshots.y_cells, snapshots.u_cells)]
        columns = sum(map(len, chosen))
        if not columns:
            raise ValueError(f"hierarchy: there is no sensor in the {name}: choose fewer subdomains, or more overlap")
        super().__init__(columns, *weights)
        part = snapshots.at(y_cells=snapshots.y_cells[chosen[0]], u_cells=snapshots.u_cells[chosen[1]])
        self.view = View(site, part)
        self._names = [key for key, of in zip(("y", "u"), chosen, strict=True) if len(of)]
        for key, of in zip(("y", "u"), chosen, strict=True):
            self.register_buffer(f"{key}_columns", torch.from_numpy(of), persistent=False)

    def see(
        self,
        whole: Float[Tensor, "batch cell"],
        head: Float[Tensor, "batch cell"],
        coarse: Float[Tensor, "batch cell"],
        fine: Float[Tensor, "batch extended"],
    ) -> Float[Tensor, "batch column"]:
        """ln T at its sensors, then heads [m]."""
        return torch.cat([whole[:, self.view.get_buffer("y_cells")], head[:, self.view.get_buffer("u_cells")]], dim=1)

    def read(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch column"]:
        """The same of snapshots."""
        return torch.cat([batch[key][:, self.get_buffer(f"{key}_columns")] for key in self._names], dim=1)

    def scaled(self, readings: Float[Tensor, "batch column"]) -> Float[Tensor, "batch column"]:
        """By robust spread, tails of heads tamed."""
        count = len(self.get_buffer("y_columns"))
        return torch.cat([self.view.y(readings[:, :count]), self.view.u(readings[:, count:])], dim=1)

    def distance(self, real: Float[Tensor, "batch column"], fake: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """With differences of near sensors."""
        found: Tensor = self.view.sliced(real, fake)
        return found


class StripJudge(Judge):
    """Of what neighbours make of the cells they share: their fields and fluxes have to agree.

    For each strip, ln T at its sensors as one subdomain has it and as the other; at some faces of the border the
    difference of both in ln T of the two cells, and that of the flux over its sum. One solve gives the heads of both,
    so they cancel from the latter, which is tanh of half the difference of ln conductance. In truth both sides are the
    same, and there the differences are zero.

    Args:
        site: its mesh.
        partition: into two subdomains or more, with overlap.
        snapshots: all readings for training.
        weights: as of Judge.
    """

    sensors: Tensor
    faces: Tensor
    log_shapes: Tensor
    typical: Tensor

    def __init__(self, site: Site, partition: Partition, snapshots: Snapshots, *weights: float) -> None:
        mesh, extended = site.mesh, partition.extended
        # Where each subdomain has each cell, among the fine fields of all one after the other.
        place, start = np.full((partition.parts, site.cells), -1), 0
        for number, part in enumerate(extended):
            place[number, part.cells] = start + np.arange(len(part.cells))
            start += len(part.cells)
        sensors, faces, shapes = [], [], []
        for strip in partition.strips:
            columns = np.flatnonzero(np.isin(snapshots.y_cells, strip.cells))
            cells = snapshots.y_cells[columns]
            sensors.append(np.stack([columns, cells, place[strip.one, cells], place[strip.other, cells]]))
            chosen = _spread(mesh, strip.faces)
            pairs = mesh.neighbours[chosen].T
            faces.append(np.stack([pairs, place[strip.one, pairs], place[strip.other, pairs]]))
            shapes.append(np.log(mesh.shapes[chosen]).T)
        at_sensors, at_faces = np.concatenate(sensors, axis=-1), np.concatenate(faces, axis=-1)
        count, border = at_sensors.shape[-1], at_faces.shape[-1]
        super().__init__(2 * count + 3 * border, *weights)
        for name, values in (("sensors", at_sensors), ("faces", at_faces)):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        self.register_buffer("log_shapes", torch.from_numpy(np.concatenate(shapes, axis=-1)).float(), persistent=False)
        readings = snapshots.y[:, at_sensors[0]]
        self.y = Robust(readings, tails=False)
        spread = self.y.get_buffer("spread")
        self.register_buffer("typical", spread.median() if count else torch.tensor(1.0), persistent=False)
        twice = self.y(torch.from_numpy(readings).float()).repeat(1, 2)
        zeros = torch.zeros(len(readings), 3 * border)
        pairs = np.stack([np.arange(count), count + np.arange(count)], axis=1)
        self.sliced = Sliced(torch.cat([twice, zeros], dim=1), pairs)

    def see(
        self,
        whole: Float[Tensor, "batch cell"],
        head: Float[Tensor, "batch cell"],
        coarse: Float[Tensor, "batch cell"],
        fine: Float[Tensor, "batch extended"],
    ) -> Float[Tensor, "batch column"]:
        """ln T of sensors by one side, by the other, differences of both in cells at the border, and of fluxes."""
        _, cells, one, other = self.sensors
        values = coarse[:, cells]
        at, ours, theirs = self.faces
        first, second = coarse[:, at] + fine[:, ours], coarse[:, at] + fine[:, theirs]  # batch x 2 x face
        fluxes = torch.tanh((self._log_conductance(first) - self._log_conductance(second)) / 2)
        differences = (first - second).flatten(1)
        return torch.cat([values + fine[:, one], values + fine[:, other], differences, fluxes], dim=1)

    def _log_conductance(self, sides: Float[Tensor, "batch 2 face"]) -> Float[Tensor, "batch face"]:
        """Of faces, up to what both subdomains have in common."""
        return -torch.logsumexp(-(sides + self.log_shapes), dim=1)

    def read(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch column"]:
        """The same of snapshots: both sides are one."""
        columns, border = self.sensors[0], self.faces.shape[-1]
        # Heads alone may be read, and then there is nothing but the zeros.
        rows = next(iter(batch.values()))
        y = batch["y"][:, columns] if len(columns) else rows[:, :0]
        return torch.cat([y, y, rows.new_zeros(len(rows), 3 * border)], dim=1)

    def scaled(self, readings: Float[Tensor, "batch column"]) -> Float[Tensor, "batch column"]:
        """Values by robust spread, differences by that of a typical sensor; fluxes are of order 1 as they are."""
        count, border = self.sensors.shape[-1], self.faces.shape[-1]
        one, other, differences, fluxes = readings.split([count, count, 2 * border, border], dim=1)
        return torch.cat([self.y(one), self.y(other), differences / self.typical, fluxes], dim=1)

    def distance(self, real: Float[Tensor, "batch column"], fake: Float[Tensor, "batch column"]) -> Float[Tensor, ""]:
        """With differences of both sides at sensors."""
        found: Tensor = self.sliced(real, fake)
        return found


def _spread(mesh: Mesh, faces: Int[np.ndarray, "face"]) -> Int[np.ndarray, "some"]:
    """A few of a border's faces, evenly along it."""
    centres = mesh.centres[mesh.neighbours[faces]].mean(axis=1)
    # Along the border is where its faces vary most.
    way = np.linalg.svd(centres - centres.mean(axis=0))[2][0]
    count = min(_FACES, len(faces))
    chosen = np.linspace(0, len(faces) - 1, count).round().astype(int)
    return np.asarray(faces[np.argsort(centres @ way)][chosen])
