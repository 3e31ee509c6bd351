"""Seats: players at work on this rank, each with its reduction, optimiser and sub-world."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from exafield.batchnorm import SyncBatchNorm
from exafield.checkpoint import Checkpoints, Loaded, agree
from exafield.precision import LossScale, Precision
from exafield.problem import Player
from exafield.reduce import Reducer
from exafield.state import Tree, misfit
from exafield.trace import Trace
from exafield.world import World


class Seat:
    """What the trainer needs to move a player.

    Args:
        player: lives on this rank.
        world: the ranks the player lives on.
        reducer: attached here, so all those ranks make the seat together.
        alone: whether no other player is there. Backward then runs plainly; else it is kept from the others'
            parameters, so that no move disturbs another player's reduction; torch does not allow that together
            with reentrant activation checkpointing (use_reentrant=False works).
        precision: in which losses are computed.
        clip: greatest norm of the whole gradient, after averaging; None for no limit.
        cache: where the reducer keeps what it has tuned.
    """

    def __init__(
        self,
        player: Player,
        world: World,
        reducer: Reducer,
        trace: Trace,
        *,
        alone: bool,
        precision: Precision = "fp32",
        clip: float | None = None,
        cache: Path | None = None,
    ) -> None:
        self.player, self.world, self._alone = player, world, alone
        # torch.compile wraps a module; what is saved should not depend on it.
        self._module: nn.Module = getattr(player.module, "_orig_mod", player.module)
        self.reduction = reducer.attach(self._module, world, name=player.name, trace=trace, cache=cache)
        for layer in self._module.modules():
            if isinstance(layer, SyncBatchNorm):
                layer.trace = trace
        self._precision, self._clip = precision, clip
        self.scale = LossScale(world.device) if precision == "fp16" else None
        self.parameters = list(player.module.parameters())
        self.optimiser = player.optimiser.build(self.parameters)
        self._sum = torch.zeros((), dtype=torch.float64, device=world.device)
        self._bad = torch.full((), -1, device=world.device)
        self._skipped = torch.zeros((), dtype=torch.float64, device=world.device)
        self._count = self._updates = self._step = 0

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The player's loss on a batch: a scalar.

        Raises:
            ValueError: it is no scalar, or does not depend on what is trained.
        """
        loss = self.player.loss(batch)
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"the loss of player {self.player.name!r} must be one number that depends on its module, "
                f"got shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            )
        return loss

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar to this player's parameters and no other's."""
        if self.scale is not None:
            self.reduction.scale = self.scale.value
            loss = loss * self.scale.value
        if self._alone:
            loss.backward()
        else:
            loss.backward(inputs=[p for p in self.parameters if p.requires_grad])

    def update(self, step: int, elapsed: float) -> None:
        """Makes the optimiser's step with the reduced gradients; on all ranks alike.

        With clipping or in mixed precision, a step whose gradient is not finite is skipped: reduced gradients are the
        same on all ranks, so all skip it. Nothing waits for the device.
        """
        self._set_rate(step, elapsed)
        self._updates, self._step = self._updates + 1, step
        if self._clip is not None or self._precision != "fp32":
            grads = [p.grad for p in self.parameters if p.grad is not None]
            norm = get_total_norm(grads)
            finite = torch.isfinite(norm)
            if self._clip is not None:
                clip_grads_with_norm_(self.parameters, self._clip, norm)
            if self.scale is not None:
                self.scale.update(finite)
            self._skipped += ~finite
            if not self.optimiser.defaults.get("fused"):
                if finite:
                    self.optimiser.step()
                return
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]  # fused kernels look at it
        self.optimiser.step()

    def _set_rate(self, step: int, elapsed: float) -> None:
        """Sets the learning rate to what the schedule says for a step [and s of training]."""
        rate = self.player.optimiser.learning_rate * self.player.schedule.factor(step, elapsed)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def tally(self, loss: Tensor, step: int) -> None:
        """Adds a loss to the sums, on the device: nothing waits."""
        value = loss.detach().reshape(())
        finite = torch.isfinite(value)
        if self.scale is not None:  # an overflow costs a step, and no more
            value = torch.where(finite, value, 0.0)
        else:
            self._bad = torch.where(finite | (self._bad >= 0), self._bad, step)
        self._sum += value
        self._count += 1

    def sums(self) -> tuple[float, int, int | None, int]:
        """Sum and number of the losses since the last call, the first step at which one was not finite, and the number
        of steps skipped because a gradient was not. If all were skipped, that counts as a loss that is not finite.
        """
        total, count, bad, skipped = float(self._sum), self._count, int(self._bad), int(self._skipped)
        hopeless = self.scale.exhausted if self.scale is not None else 0 < self._updates == skipped
        if hopeless and bad < 0:
            total, bad = float("nan"), self._step - self._updates + 1
        self._skipped, self._updates = torch.zeros_like(self._skipped), 0
        self._sum, self._bad, self._count = torch.zeros_like(self._sum), torch.full_like(self._bad, -1), 0
        return total, count, bad if bad >= 0 else None, skipped

    # ---- state ----

    def unsound(self) -> str | None:
        """Why the player is not worth saving: a parameter that is not finite, or will not be after the next step."""
        numbers: dict[str, Tensor] = {f"parameter {name!r}": value for name, value in self._module.named_parameters()}
        if self._clip is None and self._precision == "fp32":  # otherwise the step that would apply it is skipped
            late = self.reduction.lagged() or {}
            numbers |= {f"the gradient kept of parameter {name!r}": value for name, value in late.items()}
        for what, value in numbers.items():
            if not bool(torch.isfinite(value).all()):
                return f"{what} of player {self.player.name!r} is NaN or infinite"
        return None

    def shared_state(self) -> Tree:
        """What is the same on all ranks of the player."""
        return {
            "model": self._module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scale": self.scale.state_dict() if self.scale is not None else None,
            "lagged": self.reduction.lagged(),
        }

    def own_state(self) -> Tree:
        """What may differ between them: buffers such as running means, and the reducer's state."""
        trained = {name for name, _ in self._module.named_parameters(remove_duplicate=False)}
        buffers = {name: value for name, value in self._module.state_dict().items() if name not in trained}
        return {"buffers": buffers, "reducer": self.reduction.state_dict()}

    def misfit(self, shared: Tree) -> str | None:
        """Why a saved state does not fit this player; None if it does."""
        text = misfit(self._module, shared["model"])
        if text is None:
            groups: Sequence[Mapping[str, Any]] = shared["optimiser"]["param_groups"]
            ours = self.optimiser.state_dict()["param_groups"]
            if [sorted(g) for g in groups] != [sorted(g) for g in ours]:
                text = f"it was trained with another optimiser than {type(self.player.optimiser).__name__}"
        return f"player {self.player.name!r}: {text}" if text else None

    def load_state(self, shared: Tree, own: Tree, resized: bool = False) -> None:
        """Takes over a state; all ranks of the player together.

        Args:
            resized: it was saved by another number of ranks, and `own` is that of their rank 0. Its buffers and its
                plan are taken; what was tuned is tuned anew, and what compression still owed is let go.
        """
        self._module.load_state_dict({**shared["model"], **own["buffers"]})
        self.optimiser.load_state_dict(shared["optimiser"])
        anew: dict[str, Any] = {"links": {}, "control": None, "tuned": False} if resized else {}
        self.reduction.load_state_dict(own["reducer"] | anew)
        self.reduction.load_lagged(shared.get("lagged"))
        if self.scale is not None and shared.get("scale") is not None:
            self.scale.load_state_dict(shared["scale"])


class Seats:
    """All players of a problem, seated on their sub-worlds. Made on all ranks together; `settings` go to each Seat.

    Attributes:
        players: all, in the order in which they move.
        seats: one for each; None for a player who does not live on this rank.
        here: the seats on this rank, by the player's name.

    Raises:
        ValueError: the players differ between ranks, share a name or a parameter, or live on ranks there are not.
    """

    def __init__(
        self, players: Sequence[Player], world: World, reducer: Reducer, trace: Trace, **settings: Any
    ) -> None:
        _check(players, world)
        self.players, self._world = tuple(players), world
        parted = iter(world.split([player.ranks for player in players if player.ranks is not None]))
        self.seats: list[Seat | None] = []
        for player in players:
            home = world if player.ranks is None else next(parted)
            if home is None:
                self.seats.append(None)
                continue
            player.module.to(world.device)
            self.seats.append(Seat(player, home, reducer, trace, alone=len(players) == 1, **settings))
        self.here = {seat.player.name: seat for seat in self.seats if seat is not None}

    def __iter__(self) -> Iterator[tuple[Player, Seat | None]]:
        return zip(self.players, self.seats, strict=True)

    def decisions(self) -> list[str]:
        """What the reducers here have decided since the last call, in words."""
        said = [text for seat in self.here.values() for text in seat.reduction.decisions]
        for seat in self.here.values():
            seat.reduction.decisions.clear()
        return said

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, modules are in evaluation mode, nothing is recorded for backward, and torch's generators
        are put back afterwards.
        """
        modules = [module for seat in self.here.values() for module in seat.player.module.modules()]
        modes = [module.training for module in modules]
        device = self._world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            try:
                for module in modules:
                    module.training = False
                yield
            finally:
                for module, mode in zip(modules, modes, strict=True):
                    module.training = mode

    # ---- checkpoints ----

    def save(self, checkpoints: Checkpoints, step: int, mine: Tree, about: Mapping[str, Any]) -> Path:
        """Writes all players, and `mine` (this rank's) and `about` (rank 0's, plain values). Collective."""
        return checkpoints.save(
            step,
            owned={name: seat.shared_state() for name, seat in self.here.items() if seat.world.rank == 0},
            mine={"players": {name: seat.own_state() for name, seat in self.here.items()}, "trainer": mine},
            about={"players": self._described(), **about},
            refusal=next((text for seat in self.here.values() if (text := seat.unsound())), None),
        )

    def read(self, checkpoints: Checkpoints) -> Loaded | None:
        """The newest whole checkpoint, if it fits these players; None if there is none. Collective.

        Raises:
            CheckpointError: on all ranks.
        """
        loaded = checkpoints.load(list(self.here), {"players": self._described()})
        if loaded is None:
            return None
        texts = [text for name, seat in self.here.items() if (text := seat.misfit(loaded.shared[name]))]
        parted = [player.name for player in self.players if player.ranks is not None]
        if parted and loaded.ranks != self._world.size:
            texts.append(f"player {parted[0]!r} lives on some ranks only: resume on {loaded.ranks} ranks, as before")
        agree(self._world, "; ".join(texts) or None, f"{checkpoints.path(loaded.step)} does not fit")
        return loaded

    def take(self, loaded: Loaded) -> None:
        """Takes over what :meth:`read` gave. Collective."""
        for name, seat in self.here.items():
            own = loaded.mine["players"][name]
            seat.load_state(loaded.shared[name], own, resized=loaded.ranks != self._world.size)

    def _described(self) -> list[object]:
        return [[player.name, player.ranks and list(player.ranks)] for player in self.players]

    def close(self) -> None:
        """Ends all reductions. Collective."""
        for seat in self.here.values():
            seat.reduction.close()


def _check(players: Sequence[Player], world: World) -> None:
    if not players:
        raise ValueError("a problem needs at least one player: return one from its players()")
    said = world.all_gather_objects([[p.name, p.moves, p.ranks and list(p.ranks)] for p in players])
    if any(other != said[0] for other in said):
        raise ValueError(f"ranks disagree on the players (name, moves, ranks): {said}")
    names = [player.name for player in players]
    if len(set(names)) != len(names):
        raise ValueError(f"players need names of their own, got {names}")
    owner: dict[int, str] = {}
    for player in players:
        for name, parameter in player.module.named_parameters():
            if owner.setdefault(id(parameter), player.name) != player.name:
                raise ValueError(
                    f"players {owner[id(parameter)]!r} and {player.name!r} both train {name!r}: give it to one of them"
                )
        if player.ranks is not None and not all(0 <= rank < world.size for rank in player.ranks):
            raise ValueError(
                f"player {player.name!r} lives on ranks {list(player.ranks)}, but there are only {world.size}: "
                f"run on {max(player.ranks) + 1} ranks or choose others"
            )
