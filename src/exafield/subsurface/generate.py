"""Realisations of an aquifer: fields of ln T drawn from a law, and the heads that follow, kept in a store."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from exafield.engine import MapEngine
from exafield.engine.local import ProcessEngine
from exafield.store import SampleStore, cache_folder, locked
from exafield.subsurface import darcy
from exafield.subsurface.checks import SiteError
from exafield.subsurface.laws import Law
from exafield.subsurface.nongaussian import Channels, Family, Realisation, TruncatedGaussian, realise
from exafield.subsurface.opening import NAMES, open_site
from exafield.subsurface.random_fields import SpectralField
from exafield.subsurface.site import Site
from exafield.subsurface.snapshots import Snapshots

# Raised whenever the same parameters give other numbers than before: data generated earlier is then made again.
_PHYSICS = 1
Kind = Literal["matern", "facies", "channels"]
_FAMILIES: Mapping[Kind, Family] = {"facies": TruncatedGaussian(), "channels": Channels()}


@dataclass(frozen=True, slots=True)
class Generation:
    """What is drawn. Defaults are about those of the Hanford Site.

    Args:
        site: as :func:`exafield.subsurface.opening.open_site` takes it.
        length, time: units where its files state none.
        kind: matern, a Gaussian law; facies or channels, laws of two kinds of rock, see
            :mod:`exafield.subsurface.nongaussian`.
        mean, variance: of ln T, of the Gaussian law.
        correlation: its length [m].
        smoothness: its nu.
        train, test: realisations to learn from, and to judge by.
        seed: of all.
    """

    site: str = "box"
    length: str | None = None
    time: str | None = None
    kind: Kind = "matern"
    mean: float = 7.8
    variance: float = 2.6
    correlation: float = 1900.0
    smoothness: float = 2.5
    train: int = 1500
    test: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"generation: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")

    @property
    def law(self) -> Law:
        """The Gaussian law."""
        return Law(self.mean, (self.variance,), (self.correlation,), (self.smoothness,))

    def attributes(self) -> dict[str, Any]:
        """What a store made with these parameters says of itself; not how many there are, so that more can be added."""
        told = {name: value for name, value in asdict(self).items() if name not in ("train", "test")}
        if self.site not in NAMES:  # a file may change under its name
            told["site"] = _digest(Path(self.site))
        return {"format": "exafield-aquifer", "physics": _PHYSICS, **told}


def _digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    content = hashlib.sha256()
    for file in files:
        if file.is_file():
            content.update(file.name.encode() + file.read_bytes())
    return content.hexdigest()[:16]


def default_path(generation: Generation) -> Path:
    """Where realisations are kept if nobody says otherwise."""
    text = json.dumps(generation.attributes(), sort_keys=True)
    return cache_folder() / f"subsurface-{hashlib.sha256(text.encode()).hexdigest()[:16]}.h5"


# Once for each process: the mesh's modes take far longer than a field.
@lru_cache(maxsize=2)
def _made(name: str, length: str | None, time: str | None, law: Law | None) -> tuple[Site, SpectralField | None]:
    site = open_site(name, length=length, time=time)
    return site, None if law is None else law.field(site)


@torch.no_grad()
def realisation(task: tuple[Generation, int]) -> dict[str, Float[np.ndarray, "cell"]]:
    """ln T and heads of one realisation, a function of its argument alone, for any engine.

    Raises:
        SiteError: heads cannot be solved for; names the realisation.
    """
    generation, number = task
    gaussian = generation.kind == "matern"
    place = (generation.site, generation.length, generation.time)
    site, field = _made(*place, generation.law if gaussian else None)
    if field is not None:
        rng = np.random.default_rng((generation.seed, number))
        y = field(torch.from_numpy(rng.standard_normal((1, field.noise))))[0].numpy()
    else:
        family = _FAMILIES[generation.kind]
        y = realise(Realisation(family, site.mesh.centres, site.mesh.areas, generation.seed, number))[0]
    try:
        head = darcy.solve(site, y).numpy()
    except SiteError as error:
        raise SiteError(f"realisation {number}: {error}") from error
    return {"y": y.astype(np.float32), "u": head.astype(np.float32)}


def generate(path: str | Path, generation: Generation, engine: MapEngine | None = None) -> int:
    """Draws every realisation that the store at `path` does not hold yet; returns how many that were.

    Interrupted, it goes on where it stopped when called again; two processes do not disturb each other.

    Raises:
        StoreError: the store was made with other parameters, is damaged, or cannot be written.
        SiteError: the site cannot be used, or heads not be solved for.
        EngineError: the engine failed.
    """
    keys = _keys(generation)
    made = 0
    with locked(path), SampleStore(path, generation.attributes(), write=True) as store:
        there = store.keys()
        done = {index for index, (key, _) in enumerate(keys) if key in there}
        if len(done) == len(keys):
            return 0
        tasks = ((generation, number) for _, number in keys)
        for index, arrays in (engine or ProcessEngine()).map(realisation, tasks, done=done):
            store.write(keys[index][0], arrays, {})
            made += 1
    return made


def load(path: str | Path, generation: Generation) -> tuple[Snapshots, Snapshots]:
    """Full fields to learn from, and to judge by.

    Raises:
        StoreError: there is no such store, or it does not hold them.
    """
    parts: dict[str, list[Mapping[str, np.ndarray]]] = {"train": [], "test": []}
    with SampleStore(path, generation.attributes()) as store:
        for key, _ in _keys(generation):
            parts[key.partition("-")[0]].append(store.read(key)[0])
    every = np.arange(len(parts["train"][0]["y"]))
    train, test = (
        Snapshots.of(
            y_cells=every, y=np.stack([one["y"] for one in part]), u_cells=every, u=np.stack([one["u"] for one in part])
        )
        for part in parts.values()
    )
    return train, test


def _keys(generation: Generation) -> list[tuple[str, int]]:
    """Of all samples, with their numbers: test ones count from the other end, so that either part can grow."""
    return [(f"train-{number:06d}", number) for number in range(generation.train)] + [
        (f"test-{number:06d}", 2**31 - 1 - number) for number in range(generation.test)
    ]
