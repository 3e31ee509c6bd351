"""What the commands on scans take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from exafield.microscopy.calibration import Calibration, ScanError
from exafield.microscopy.readers import open_scan
from exafield.microscopy.scanfile import ScanFile
from exafield.microscopy.simulated import Recording


@dataclass(frozen=True)
class ScanAt:
    """A scan in a file, and how it is read.

    Args:
        scan: .h5, .hdf5, .emd (also of py4DSTEM), .zarr, .mib (Merlin), .npy, or raw numbers.
        dataset: path of the array in the file, where there is more than one of four axes.
        axes: the file's axes in its order, with commas: x, y of the scan, kx, ky of the detector. None: x,y,kx,ky, or
            as the units of its axes tell.
        shape: rows and columns of the scan, where the file only counts patterns (.mib, raw, three axes).
        detector_shape: rows and columns of a pattern, of raw numbers.
        dtype: of raw numbers, such as uint16, or >u2 where the higher byte comes first.
        offset: bytes before the first pattern of raw numbers.
        gap: bytes between two patterns of raw numbers.
    """

    scan: tyro.conf.Positional[Path]
    dataset: str | None = None
    axes: str | None = None
    shape: tuple[int, int] | None = None
    detector_shape: tuple[int, int] | None = None
    dtype: str | None = None
    offset: int = 0
    gap: int = 0

    def open(self) -> ScanFile:
        """The scan.

        Raises:
            ScanError: it cannot be used.
        """
        return open_scan(
            self.scan,
            dataset=self.dataset,
            axes=None if self.axes is None else [name.strip() for name in self.axes.split(",")],
            scan_shape=self.shape,
            detector_shape=self.detector_shape,
            dtype=self.dtype,
            offset=self.offset,
            gap=self.gap,
        )


@dataclass(frozen=True)
class Known:
    """What is known of how a scan was recorded; what is given goes before what the file states.

    Args:
        energy: of the beam [eV].
        convergence_angle: semi-angle of the probe [rad].
        scan_step: between probes [A].
        detector_step: angle of a detector pixel [rad]. None: from the file, or the bright-field disc.
        detector_angle: half the detector's width [rad], instead of its step.
        thickness: of the specimen [A].
        dose: incident electrons per pattern. None: as many as are counted.
        gain: counts of the file per electron.
        centre: of the bright-field disc, kx and ky [pixels]. None: of the data.
        rotation: by which detector vectors are to be turned, from x towards y, to lie along the scan's axes [degrees].
        transpose: whether kx and ky are to be swapped before that.
    """

    energy: float | None = None
    convergence_angle: float | None = None
    scan_step: float | None = None
    detector_step: float | None = None
    detector_angle: float | None = None
    thickness: float | None = None
    dose: float | None = None
    gain: float | None = None
    centre: tuple[float, float] | None = None
    rotation: float | None = None
    transpose: bool | None = None

    def calibration(self, scan: ScanFile) -> Calibration:
        """The same, checked.

        Args:
            scan: which it is about.
        Raises:
            ScanError: a value is out of range.
        """
        if self.detector_step is not None and self.detector_angle is not None:
            raise ScanError("--detector-step and --detector-angle say the same: give one of them")
        detector = None if self.detector_step is None else (self.detector_step, self.detector_step)
        if self.detector_angle is not None:
            detector = (2 * self.detector_angle / scan.shape[2], 2 * self.detector_angle / scan.shape[3])
        return Calibration(
            energy=self.energy,
            convergence_angle=self.convergence_angle,
            scan_step=None if self.scan_step is None else (self.scan_step, self.scan_step),
            detector_step=detector,
            thickness=self.thickness,
            dose=self.dose,
            gain=self.gain,
            centre=self.centre,
            rotation=self.rotation,
            transpose=self.transpose,
        )


@dataclass(frozen=True)
class Describe:
    """Tells what the reader finds in a scan: axes, calibration, disc, electrons, and what is doubtful.

    Args:
        at: which scan.
        known: of it.
    """

    at: Annotated[ScanAt, tyro.conf.arg(name="")]
    known: Annotated[Known, tyro.conf.arg(name="")] = field(default_factory=Known)


@dataclass(frozen=True)
class Detectors:
    """Draws what virtual detectors see of a scan: bright and dark field, centre of mass, differential phase contrast.

    Args:
        at: which scan.
        out: the picture: .png, .pdf or .svg.
        known: of the scan.
    """

    at: Annotated[ScanAt, tyro.conf.arg(name="")]
    out: Path
    known: Annotated[Known, tyro.conf.arg(name="")] = field(default_factory=Known)


@dataclass(frozen=True)
class Simulate:
    """Simulates a scan of a perfect crystal, with the potential behind it: to try things on.

    Args:
        crystal: name of the built-in table, such as SrTiO3, or a .cif file.
        out: the scan: .h5 or .emd (EMD 1.0), or .zarr.
        zone: axis along the beam, in the crystal's own axes, such as 110, 1-12 or 1,-1,12.
        max_edge: longest edge of the orthogonal cell across the beam [A].
        max_strain: by which the crystal may be strained to make a cell orthogonal; 0.01 changes no length by more than
            1 %.
        recording: how it is recorded.
    """

    crystal: tyro.conf.Positional[str]
    out: Path
    zone: str = "001"
    max_edge: float = 30.0
    max_strain: float = 0.01
    recording: Annotated[Recording, tyro.conf.arg(name="")] = field(default_factory=Recording)
