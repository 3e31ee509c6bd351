"""The law of a site learned by a hierarchy of generators, with players on as many ranks as there are."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from exafield.optim import Optimiser, Schedule
from exafield.problem import Player
from exafield.subsurface.average import Averaged
from exafield.subsurface.exchange import HUB, STRIPS, WHOLE, Layout, bill, fine, judge, layout
from exafield.subsurface.hierarchy import COARSE_MODES, Hierarchy
from exafield.subsurface.judging import Judge, SensorJudge, StripJudge
from exafield.subsurface.partition import partition
from exafield.subsurface.problem import FlowProblem
from exafield.subsurface.relay import Relay
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots
from exafield.subsurface.verdict import Report
from exafield.world import World

# Where lengths start, coarse and fine, as shares of the root of the site's area, and the fine field's share of the
# variance; what is learned hardly depends on them. Of the judgements, the whole site's counts 1, those of the
# subdomains 1 together, that of the strips less: it has hardly any data but that neighbours agree. All our choice.
_LENGTHS, _FINE_SHARE, _STRIPS = (0.2, 0.05), 0.5, 0.1


class HierarchicalProblem(FlowProblem):
    """Learns the same law as FlowProblem, by a coarse generator, a fine one of each subdomain, and a judge of each.

    Heads are those of the assembled field, solved at one place for all: exact, and cheap up to some ten thousand cells.
    Every generator gets the gradient of all judgements by its own field through that solve. Subdomains so learn from
    the sensors of ln T and heads within them, from the whole site's, and from agreeing with their neighbours; all from
    the same step's solve. (Our choice: the papers do not say.)

    Args:
        site: mesh and boundary conditions, in one piece.
        snapshots: one group.
        test: what the law is judged by; None: a tenth of the snapshots, held back.
        subdomains: how many.
        overlap: layers of cells by which each reaches into its neighbours.
        coarse_modes: of the coarse field.
        rows: fields of each move, to be the trainer's batch size.
        sliced_weight, critic_weight: of judgements, see FlowProblem; there must be a critic.
        critic_moves: in a step.
        optimiser, schedule: of the generators.
        critic_optimiser: of the critics.
        decay: of the generators' averages.
        seats: who plays where; None: by :func:`exafield.subsurface.exchange.layout`.
        replicas: of the game, for that.
        seed: of all noise, of what is held back, and of fields drawn to judge the law.

    Raises:
        SiteError, MeshError: snapshots are not of this site, or it cannot be cut so.
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        site: Site,
        snapshots: Snapshots,
        *,
        test: Snapshots | None = None,
        subdomains: int = 4,
        overlap: int = 4,
        coarse_modes: int = COARSE_MODES,
        rows: int = 64,
        sliced_weight: float = 1.0,
        critic_weight: float = 0.02,
        critic_moves: int = 1,
        optimiser: Optimiser | None = None,
        schedule: Schedule | None = None,
        critic_optimiser: Optimiser | None = None,
        decay: float = 0.99,
        seats: Layout | None = None,
        replicas: int | None = None,
        seed: int = 0,
    ) -> None:
        if not critic_weight > 0:
            raise ValueError(f"hierarchy: critic_weight must be above 0, since judges are critics; got {critic_weight}")
        if overlap < 1:
            raise ValueError(f"hierarchy: subdomains must overlap by 1 layer of cells or more, got {overlap}")
        if critic_moves < 1 or rows < 4:
            raise ValueError(f"hierarchy: needs 1 move or more of 4 rows or more, got {critic_moves} and {rows}")
        cut = partition(site.mesh, subdomains, overlap)
        values = snapshots.y if snapshots.y.size else np.zeros(2)
        variance, extent = max(float(values.var()), 1e-6), math.sqrt(site.mesh.areas.sum())
        lengths = _LENGTHS[0] * extent, _LENGTHS[1] * extent
        variances = (1 - _FINE_SHARE) * variance, _FINE_SHARE * variance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # on all ranks alike
            made = Hierarchy(cut, float(values.mean()), lengths, variances, coarse_modes=coarse_modes)
        self.hierarchy = made.float()  # weights of blending have been found in double
        super().__init__(
            site,
            snapshots,
            test=test,
            generator=self.hierarchy,
            sliced_weight=sliced_weight,
            critic_weight=critic_weight,
            critic_moves=critic_moves,
            optimiser=optimiser,
            schedule=schedule,
            critic_optimiser=critic_optimiser,
            decay=decay,
            seed=seed,
        )
        self.partition, self.rows, self._layout, self._replicas = cut, rows, seats, replicas
        self.relay: Relay | None = None
        self.averages: dict[str, Averaged] = {}

    def layout(self, world: World) -> Layout:
        """Who plays where. A fake world's ranks are all alike, so each is a replica of its own."""
        if self._layout is not None:
            return self._layout
        return layout(world.size, self.partition.parts, world.size if world.kind == "fake" else self._replicas)

    def judges(self) -> dict[str, Judge]:
        """By role, made anew."""
        weights = self._sliced_weight, self._critic_weight
        part, count = self.groups[""], self.partition.parts
        found: dict[str, Judge] = {WHOLE: SensorJudge(self.site, part, np.arange(self.site.cells), 1.0, *weights)}
        for number, extended in enumerate(self.partition.extended):
            found[judge(number)] = SensorJudge(
                self.site, part, extended.cells, 1 / count, *weights, name=f"subdomain {number}"
            )
        if count > 1:
            found[STRIPS] = StripJudge(self.site, self.partition, part, _STRIPS, *weights)
        return found

    def players(self, world: World) -> Sequence[Player]:
        """Judges, the coarse generator, the fine ones."""
        who = self.layout(world)
        self.model = Averaged(self.hierarchy, self._decay).to(world.device)
        judges = {role: module.to(world.device) for role, module in self.judges().items()}
        settings = {"rows": self.rows, "moves": self._critic_moves, "seed": self._seed}
        relay = self.relay = Relay(self.site, self.hierarchy, judges, who, world, **settings)
        generators = {HUB: self.hierarchy.coarse} | {fine(n): m for n, m in enumerate(self.hierarchy.fines())}
        self.averages = {role: Averaged(module, self._decay) for role, module in generators.items()}
        made = [
            Player(
                role,
                module,
                partial(relay.judge, role),
                self._critic_optimiser,
                moves=self._critic_moves,
                ranks=who.ranks(role),
                begin=relay.begin,
            )
            for role, module in judges.items()
        ]
        for role, average in self.averages.items():
            loss = relay.coarse_loss if role == HUB else partial(relay.fine_loss, role)
            begin = _both(average.update, relay.begin)
            made.append(
                Player(role, average, loss, self._optimiser, self._schedule, ranks=who.ranks(role), begin=begin)
            )
        return made

    def bill(self, world: World) -> dict[tuple[int, int], int]:
        """Bytes each link carries in a step, by sender and receiver."""
        assert self.relay is not None, "players() makes it"
        cells = {fine(number): len(part.cells) for number, part in enumerate(self.partition.extended)}
        readings = {role: module.columns for role, module in self.relay.judges.items()}
        bills = [bill(seats, self.rows, self._critic_moves, cells, readings) for seats in self.layout(world).seats]
        return {link: count for one in bills for link, count in one.items()}

    # ---- what has been learnt ----

    def evaluate(self, world: World) -> dict[str, float]:
        """As FlowProblem's."""
        self.share(world)
        return super().evaluate(world)

    def report(self, world: World) -> Report | None:
        """As FlowProblem's."""
        self.share(world)
        return super().report(world)

    @torch.no_grad()
    def share(self, world: World) -> None:
        """Brings every generator's average from a rank it is trained on to all. Collective."""
        assert self.model is not None, "players() makes the model"
        whole = self.model.average()
        places = {HUB: "coarse"} | {fine(number): f"fine.{number}" for number in range(self.partition.parts)}
        for role, average in self.averages.items():
            owner, prefix = self.layout(world).ranks(role)[0], places[role]
            for name, value in average.average().items():
                sent = value.clone()
                if world.size > 1 and world.kind == "real":
                    world.broadcast(sent, owner)
                whole[f"{prefix}.{name}"].copy_(sent)


def _both(first: Callable[[int], None], second: Callable[[int], None]) -> Callable[[int], None]:
    def begin(step: int) -> None:
        first(step)
        second(step)

    return begin
