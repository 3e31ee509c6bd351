"""One step of a hierarchical game on one rank: fields to the hub, readings to the judges, gradients back.

    hub         coarse field                     -> fine generators
    fine        fine fields                      -> hub
    hub         assembled, heads solved, readings -> judges
    judges      gradient of the judgement by the readings of the generators' move -> hub
    hub         adjoint; gradient by the fine fields -> fine generators

Noise is not sent: all ranks of a replica draw the same from seed, replica and step. Judges have a batch of fields for
each of their moves, and that of the last is the generators' own. They judge it before that move, so the gradient is of
the critic one of its moves old (that is all the staleness there is), and generators make their move while critics make
theirs. Losses of generators are the received gradient times their field, so each gets the whole gradient of the sum of
all judgements by its own field; what the coarse field does to the fine through conditioning is left out.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from exafield.setting import RunError
from exafield.subsurface import darcy
from exafield.subsurface.exchange import HUB, Layout, Links, fine
from exafield.subsurface.hierarchy import Hierarchy
from exafield.subsurface.judging import Judge
from exafield.subsurface.site import Site
from exafield.world import World


class Relay:
    """Made on all ranks together.

    Args:
        site: for heads.
        hierarchy: both levels; those that play on this rank are trained here.
        judges: by role; those that play here likewise.
        layout: of the world.
        rows: fields of each move, the same as the trainer's batch size.
        moves: of the judges in a step.
        seed: of all noise.
    """

    def __init__(
        self,
        site: Site,
        hierarchy: Hierarchy,
        judges: Mapping[str, Judge],
        layout: Layout,
        world: World,
        *,
        rows: int,
        moves: int,
        seed: int,
    ) -> None:
        self.site, self.hierarchy, self.judges, self.world = site, hierarchy, judges, world
        self.rows, self.moves, self.seed = rows, moves, seed
        self.links = Links(world, layout.spokes())
        self.replica = layout.replica(world.rank)
        self.seats = layout.seats[self.replica or 0]
        self.here = layout.plays(world.rank)
        self.hub = self.seats[HUB]
        self.step = -1
        fines = {fine(number): module for number, module in enumerate(hierarchy.fines())}
        self._fines = {role: fines[role] for role in self.seats if role in fines}
        self._widths = {role: len(module.cells) for role, module in self._fines.items()}
        self._widths |= {role: module.columns for role, module in judges.items()}
        self._made: dict[str, Tensor] = {}  # fields of the generators' move, with their graphs
        self._readings: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._leaves: tuple[Tensor, Tensor] | None = None
        self._seen: dict[str, Tensor] = {}
        self._judged: dict[str, tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, int] = {}

    # ---- who is where ----

    def _others(self, kind: Mapping[str, object]) -> dict[int, list[str]]:
        """Roles of a kind on other ranks than the hub's, by rank; in the order of the game."""
        found: dict[int, list[str]] = {}
        for role, rank in self.seats.items():
            if role in kind and rank != self.hub:
                found.setdefault(rank, []).append(role)
        return found

    def _mine(self, kind: Mapping[str, object]) -> list[str]:
        return [role for role in self.here if role in kind]

    def _send(self, rank: int, values: dict[str, Tensor], roles: list[str]) -> None:
        """Hands over what belongs to some roles, in one message; it is not kept."""
        self.links.send(rank, torch.cat([values.pop(role) for role in roles], dim=1))

    def _receive(self, rank: int, rows: int, roles: list[str]) -> dict[str, Tensor]:
        """What the other side sends for some roles."""
        widths = [self._widths[role] for role in roles]
        message = self.links.receive(rank, (rows, sum(widths)))
        return dict(zip(roles, message.split(widths, dim=1), strict=True))

    # ---- forward ----

    def begin(self, step: int) -> None:
        """Makes and hands over all that judges need in a step; once, whoever of the players here calls first."""
        if step == self.step:
            return
        self.step, self._calls = step, {}
        self._made, self._readings, self._gradients, self._seen, self._judged = {}, {}, {}, {}, {}
        mine = self._mine(self._fines)
        if not mine and self.world.rank != self.hub:
            return
        first, white = self._noise()
        hub, every = self.world.rank == self.hub, self.moves * self.rows
        coarse = self._coarse(first) if hub else self._receive(self.hub, every, mine)
        made = {}
        for role in mine:
            module = self._fines[role]
            made[role] = self._generated(role, module, white[:, module.cells], coarse[role], first)
        if not hub:
            self._send(self.hub, made, mine)
            return
        for rank, there in self._others(self._fines).items():
            made |= self._receive(rank, every, there)
        self._assemble(torch.cat([made[role] for role in self._fines], dim=1))

    def _noise(self) -> tuple[Tensor, Tensor]:
        words = np.random.SeedSequence((self.seed, 2, self.replica or 0, self.step)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> 1))
        noise = torch.randn(self.moves * self.rows, self.hierarchy.noise, generator=generator)
        first, white = noise.to(self.world.device).split([self.hierarchy.coarse.noise, self.site.cells], dim=1)
        return first, white

    def _generated(self, role: str, module: torch.nn.Module, *inputs: Tensor) -> Tensor:
        """Fields of all moves without a graph, but for the last ones, which are kept with theirs."""
        early = (self.moves - 1) * self.rows
        with torch.no_grad():
            before = module(*(x[:early] for x in inputs)) if early else None
        self._made[role] = made = module(*(x[early:] for x in inputs))
        values = made.detach() if before is None else torch.cat([before, made.detach()])
        return values.float()

    def _coarse(self, first: Tensor) -> dict[str, Tensor]:
        self._values = self._generated(HUB, self.hierarchy.coarse, first)
        cut = {role: self._values[:, module.cells] for role, module in self._fines.items()}
        for rank, there in self._others(self._fines).items():
            self._send(rank, cut, there)
        return cut

    def _assemble(self, fines: Tensor) -> None:
        """At the hub: whole fields, heads, and what each judge sees of them."""
        early = (self.moves - 1) * self.rows
        before: dict[str, Tensor] = {}
        with torch.no_grad():
            if early:
                before = self._see(self._values[:early], fines[:early])
        self._leaves = self._values[early:].requires_grad_(), fines[early:].requires_grad_()
        with torch.enable_grad():
            self._seen = self._see(*self._leaves)
        for role, seen in self._seen.items():
            values = seen.detach()
            self._readings[role] = (torch.cat([before[role], values]) if early else values).float()
        for rank, there in self._others(self.judges).items():
            self._send(rank, self._readings, there)

    def _see(self, coarse: Tensor, fines: Tensor) -> dict[str, Tensor]:
        whole = self.hierarchy.assembled(coarse, fines)
        head = darcy.solve(self.site, whole)
        return {role: judge.see(whole, head, coarse, fines) for role, judge in self.judges.items()}

    # ---- judging ----

    def judge(self, role: str, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a judge's critic, and in the last of its moves, before it, its judgement."""
        call = self._calls[role] = self._calls.get(role, -1) + 1
        if call >= self.moves:
            raise RunError(
                "hierarchy: each move has a batch of fields of its own, so gradients of several draws cannot be added "
                "up: set accumulate to 1, and batch_size higher instead"
            )
        count = len(next(iter(batch.values())))
        if count != self.rows:
            raise RunError(
                f"hierarchy: it makes {self.rows} fields for {count} snapshots: set batch_size to {self.rows}"
            )
        if role not in self._readings:
            self._readings = self._receive(self.hub, self.moves * self.rows, self._mine(self.judges))
        module = self.judges[role]
        readings = self._readings[role][call * self.rows : (call + 1) * self.rows]
        with self._drawing(role, call):
            if call == self.moves - 1:
                leaf = readings.clone().requires_grad_()
                value = module.judgement(batch, leaf)
                (gradient,) = torch.autograd.grad(value, leaf)
                self._report(role, value.detach().float(), gradient)
            return module.loss(batch, readings)

    def _report(self, role: str, value: Tensor, gradient: Tensor) -> None:
        if self.world.rank == self.hub:
            self._judged[role] = value, gradient
        else:
            self.links.send(self.hub, torch.cat([value.reshape(1), gradient.flatten()]))

    @contextmanager
    def _drawing(self, role: str, call: int) -> Iterator[None]:
        """Inside, torch's random numbers are those of this judge and move, on whatever rank it plays."""
        place = list(self.seats).index(role)
        words = np.random.SeedSequence((self.seed, 3, self.replica or 0, self.step, place, call))
        device = self.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
            yield

    # ---- backward ----

    def coarse_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Of the coarse generator; its number is the sum of all judgements."""
        for role, module in self.judges.items():
            if (rank := self.seats[role]) != self.hub:
                message = self.links.receive(rank, (1 + self.rows * module.columns,))
                self._judged[role] = message[0], message[1:].reshape(self.rows, module.columns)
        assert self._leaves is not None, "begin() comes before every loss"
        roles = list(self.judges)  # in this order, whoever was first: sums then have the same rounding
        with torch.autocast(self.world.device.type, enabled=False):
            by_coarse, by_fine = torch.autograd.grad(
                [self._seen[role] for role in roles],
                self._leaves,
                [self._judged[role][1].to(self._seen[role]) for role in roles],
            )
        widths = [self._widths[role] for role in self._fines]
        self._gradients = dict(zip(self._fines, by_fine.split(widths, dim=1), strict=True))
        for rank, there in self._others(self._fines).items():
            self._send(rank, self._gradients, there)
        total = torch.stack([self._judged[role][0] for role in roles]).sum()
        return _along(self._made[HUB], by_coarse, total)

    def fine_loss(self, role: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Of a fine generator; its number says nothing, its gradient all."""
        if role not in self._gradients:
            self._gradients = self._receive(self.hub, self.rows, self._mine(self._fines))
        return _along(self._made[role], self._gradients[role], self._gradients[role].new_zeros(()))


def _along(made: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """A scalar that has this value, and by `made` this gradient."""
    product = (made * gradient.detach().to(made)).sum()
    return product - product.detach() + value
