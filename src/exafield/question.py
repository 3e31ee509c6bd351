"""Questions: what a training is about, one class of settings for each science.

They import nothing heavy; `exafield.microscopy.assembly` and its like make the real objects of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from exafield.choice import Choice, Option
from exafield.setting import RunError, above_zero, at_least, chosen, pairs

# ---- microscopy ----

MICROSCOPY_NETWORK = Choice(
    "network",
    "exafield.microscopy.networks",
    {
        "dense": Option("Dense", {"growth": int, "first": int, "layers": int}),
        "attentive": Option("Attentive", {"channels": int, "depth": int, "heads": int}),
        "published": Option("Published", {"growth": int, "first": int, "layers": int, "skips": str}),
    },
)
MICROSCOPY_LOSS = Choice(
    "loss",
    "exafield.microscopy.loss",
    {
        "mse": Option("MSE", {}),
        "huber": Option("Huber", {"start": float, "end": float, "factor": float, "every": int}),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Diffraction patterns that are simulated, and where they are kept.

    Args:
        crystals: "embedded" for the built-in table, the name of a data set ("crystals"), a folder of CIF files, a .cif
            file, or several of these with commas between.
        store: where the patterns are kept, ending in .zarr or .h5. None: in the user's cache, by their parameters.
        energy: of the beam [eV].
        energy_to: highest, where it is drawn between two. None: all alike; so also for what follows.
        convergence_angle: semi-angle of the beam [rad].
        convergence_angle_to: largest.
        thickness: of the specimen [A].
        thickness_to: largest.
        b_factor: Debye-Waller factor of every atom [A^2].
        b_factor_to: largest.
        variants: simulations of each view, with other energies, angles and B factors.
        thicknesses: of each simulation, at little cost.
        largest_edge: of a cell across the beam [A]; larger cells are left out.
    """

    crystals: str = "embedded"
    store: str | None = None
    energy: float = 200e3
    energy_to: float | None = None
    convergence_angle: float = 0.025
    convergence_angle_to: float | None = None
    thickness: float = 40.0
    thickness_to: float | None = None
    b_factor: float = 0.6
    b_factor_to: float | None = None
    variants: int = 1
    thicknesses: int = 1
    largest_edge: float = 9.0

    def __post_init__(self) -> None:
        positive = ("energy", "convergence_angle", "thickness", "largest_edge")
        above_zero("problem.data", **{name: getattr(self, name) for name in positive})
        at_least("problem.data", 0, b_factor=self.b_factor)
        at_least("problem.data", 1, variants=self.variants, thicknesses=self.thicknesses)
        for name in ("energy", "convergence_angle", "thickness", "b_factor"):
            low, high = getattr(self, name), getattr(self, f"{name}_to")
            above_zero("problem.data", **{f"{name}_to": high})
            at_least("problem.data", low, **{f"{name}_to": high})
        if self.store is not None and not self.store.endswith((".zarr", ".h5", ".hdf5")):
            raise RunError(f"problem.data: store must end in .zarr, .h5 or .hdf5, got {self.store!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Microscopy:
    """Which projected potential is behind these diffraction patterns?

    Args:
        data: what is simulated.
        dose: electrons per pattern. None: no noise.
        dose_to: highest, where it is drawn anew for each window, evenly in its logarithm. None: all alike.
        network: dense, attentive or published, such as dense:growth=32,first=96.
        per_scan: windows of each scan per epoch.
        split_by: what must not be on two sides of the split into training, validation and test.
        loss: mse, or huber such as huber:start=5,end=1,factor=0.75,every=100.
    """

    name: ClassVar[str] = "microscopy"
    in_memory: ClassVar[bool] = True  # whether nothing is read while it trains

    data: Simulation = field(default_factory=Simulation)
    dose: float | None = 1000.0
    dose_to: float | None = None
    network: str = "dense"
    per_scan: int = 8
    split_by: Literal["material", "space_group"] = "material"
    loss: str = "mse"

    def __post_init__(self) -> None:
        above_zero("problem", dose=self.dose, dose_to=self.dose_to)
        if self.dose_to is not None and (self.dose is None or self.dose_to < self.dose):
            raise RunError(f"problem: dose_to must be at least dose, {self.dose}, got {self.dose_to}")
        at_least("problem", 1, per_scan=self.per_scan)
        chosen("problem", MICROSCOPY_NETWORK, self.network)
        chosen("problem", MICROSCOPY_LOSS, self.loss)


# ---- climate ----

NETWORK = Choice(
    "network",
    "exafield.climate.model",
    {
        "tiramisu": Option(
            "Tiramisu",
            {"width": float, "growth": int, "first": int, "kernel": int, "norm": str, "dropout": float},
        ),
        "deeplab": Option(
            "DeepLabV3Plus",
            {
                "depth": int,
                "output_stride": int,
                "decoder": str,
                "width": float,
                "norm": str,
                "dropout": float,
                "linear": bool,
            },
        ),
    },
)
CLIMATE_LOSS = Choice(
    "loss",
    "exafield.climate.loss",
    {
        "cross_entropy": Option("CrossEntropy", {"reduction": str, "scale": float}),
        "focal": Option("Focal", {"gamma": float, "reduction": str, "scale": float}),
        "jaccard": Option("Jaccard", {"smooth": float}),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Snapshots of the atmosphere with masks of extreme weather.

    Args:
        snapshots: "synthetic", which are generated, or a folder that holds the folders train, validation and test.
        store: where generated snapshots are kept. None: in the user's cache, by their parameters.
        latitudes: rows of the generated grid, poles included.
        longitudes: columns of the generated grid.
        train: snapshots generated to learn from.
        validation: snapshots generated to look at during training.
        test: snapshots generated to judge by, of years that training never sees.
        weather_seed: of what is generated.
        channels: all (sixteen), four (TMQ, U850, V850 and PSL), or names with commas between.
        names: variables of the files that are to be taken for channels, such as TMQ=tcwv,PSL=msl; empty: by their
            standard names.
        units: of channels, such as PSL=hPa, where the files tell none or wrong ones.
    """

    snapshots: str = "synthetic"
    store: str | None = None
    latitudes: int = 144
    longitudes: int = 216
    train: int = 320
    validation: int = 24
    test: int = 48
    weather_seed: int = 0
    channels: str = "all"
    names: str = ""
    units: str = ""

    def __post_init__(self) -> None:
        at_least("problem.data", 16, latitudes=self.latitudes, longitudes=self.longitudes)
        at_least("problem.data", 1, train=self.train, validation=self.validation, test=self.test)
        at_least("problem.data", 0, weather_seed=self.weather_seed)
        if self.snapshots != "synthetic" and self.store is not None:
            raise RunError("problem.data: store is for synthetic snapshots, and those of a folder are given")
        for name, text in (("names", self.names), ("units", self.units)):
            pairs(f"problem.data: {name}", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Climate:
    """Which pixels belong to tropical cyclones, and which to atmospheric rivers?

    Args:
        data: what is learnt from.
        network: tiramisu or deeplab, such as tiramisu:width=0.25 or deeplab:depth=26,output_stride=16,width=0.25.
        loss: cross_entropy, focal or jaccard, such as focal:gamma=2.
        weights: of the classes in it: inverse_root or inverse_eighth_root of their share, or equal.
        frequencies: what share the classes have: that of the published set, or measured on the training part.
        scaling: of fields, standard to mean 0 and deviation 1, or range to 0..1 as published.
        augment: whether samples are rolled in longitude and mirrored at the equator, where the grid allows it.
        workers: processes per rank that read. 0: the rank itself reads.
        memory: for snapshots kept by each rank [MiB], if all fit; else each is read anew in every epoch.
        stage: folder on a disk of each node, into which the training part is brought before training: each file is
            read from the shared file system once, and kept with the channels of the run in 16 bits.
        compile: the network before training, which takes a minute and pays on a GPU.
        sync_norms: batch normalisation over the samples of all ranks, which costs a tenth of a step, not of each rank
            as published. Either way all ranks judge by the same running means.
    """

    name: ClassVar[str] = "climate"
    in_memory: ClassVar[bool] = False  # sets of real use are far larger

    data: Weather = field(default_factory=Weather)
    network: str = "tiramisu:width=0.25"
    loss: str = "cross_entropy"
    weights: Literal["inverse_root", "inverse_eighth_root", "equal"] = "inverse_root"
    frequencies: Literal["published", "measured"] = "published"
    scaling: Literal["standard", "range"] = "standard"
    augment: bool = True
    workers: int = 0
    memory: int = 1024
    stage: str | None = None
    compile: bool = False
    sync_norms: bool = False

    def __post_init__(self) -> None:
        at_least("problem", 0, workers=self.workers, memory=self.memory)
        chosen("problem", NETWORK, self.network)
        chosen("problem", CLIMATE_LOSS, self.loss)


# ---- subsurface ----

GENERATOR = Choice(
    "generator",
    "exafield.subsurface.styles",
    {
        "spectral": Option("Spectral", {"scales": int, "critic": float}),
        "hierarchical": Option("Hierarchical", {"subdomains": int, "overlap": int, "critic": float}),
        "facies": Option("Facies", {"critic": float}),
        "paper": Option("Paper", {"network": str, "noise": int}),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aquifer:
    """Snapshots of an aquifer: ln T and heads read at sensors at the same time, many times over.

    Args:
        site: box (generated), hanford (a data set), an npz archive, a MODFLOW 6 simulation, or a folder with mesh.* and
            boundary.csv.
        length: unit of length, where the files of the site state none: m or ft.
        time: unit of time, where MODFLOW states none.
        snapshots: auto (realisations of the site's data set, where it has any, else generated), generated, or an npz
            archive with y_cells, y, u_cells and u: cells, and readings (snapshot, sensor) of ln T (m2/d) and heads [m].
        store: where generated realisations are kept. None: in the user's cache, by their parameters.
        law: that fields are generated of: matern (Gaussian), facies or channels (two kinds of rock).
        mean: of ln T, of the Gaussian law.
        variance: of ln T, of the Gaussian law.
        correlation: its length in the Gaussian law [m].
        train: realisations to learn from; of a data set, at most so many.
        test: realisations to judge by.
        sensors: cells in which ln T is read.
        wells: in which heads are read.
        snapshot_seed: of generated fields, and of where sensors are.
    """

    site: str = "box"
    length: str | None = None
    time: str | None = None
    snapshots: str = "auto"
    store: str | None = None
    law: Literal["matern", "facies", "channels"] = "matern"
    mean: float = 7.8
    variance: float = 2.6
    correlation: float = 1900.0
    train: int = 1500
    test: int = 300
    sensors: int = 100
    wells: int = 50
    snapshot_seed: int = 0

    def __post_init__(self) -> None:
        above_zero("problem.data", variance=self.variance, correlation=self.correlation)
        at_least("problem.data", 2, train=self.train, test=self.test)
        at_least("problem.data", 0, sensors=self.sensors, wells=self.wells, snapshot_seed=self.snapshot_seed)
        if self.store is not None and not self.store.endswith((".h5", ".hdf5", ".zarr")):
            raise RunError(f"problem.data: store must end in .h5, .hdf5 or .zarr, got {self.store!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsurface:
    """Which fields of transmissivity may an aquifer have, and so which heads?

    Args:
        data: what is learnt from.
        generator: of ln T: spectral (Gaussian, such as spectral:scales=2,critic=0.1), hierarchical (a coarse one of the
            site and a fine one of each subdomain, such as hierarchical:subdomains=4), facies (two kinds of rock, learnt
            from full fields), or paper (networks of position, tied by the residual; network=separable, coordinate or
            modes).
    """

    name: ClassVar[str] = "subsurface"
    in_memory: ClassVar[bool] = True

    data: Aquifer = field(default_factory=Aquifer)
    generator: str = "spectral"

    def __post_init__(self) -> None:
        chosen("problem", GENERATOR, self.generator)


#: What a run can be about.
Question = Microscopy | Climate | Subsurface
#: Settings that run files of former versions may hold, and what became of them.
FORMER = {
    "problem.growth": "it is part of network now, such as dense:growth=16; one trained before is another: train anew",
}
QUESTIONS: Mapping[str, type[Question]] = {kind.name: kind for kind in (Microscopy, Climate, Subsurface)}
