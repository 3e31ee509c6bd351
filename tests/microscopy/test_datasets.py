"""Data sets: looked up, downloaded from a server on loopback, checked, and never written where they should not be."""

import io
import os
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from exafield import datasets
from exafield.datasets import DatasetError
from exafield.microscopy.crystal import from_cif
from exafield.microscopy.views import views

FILES = {"one.txt": b"first\n", "sub/two.txt": b"second\n"}


class Server:
    """An http server on a free port of loopback; `pages` maps a path to what it answers."""

    def __init__(self) -> None:
        pages: dict[str, bytes] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = pages.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.pages = pages
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def put(self, path: str, content: bytes) -> str:
        self.pages[path] = content
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    started = Server()
    yield started
    started.close()


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> datasets.Dataset:
    """A data set of two files, registered, with an empty cache and no EXAFIELD_DATA."""
    source = tmp_path / "source"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    monkeypatch.delenv("EXAFIELD_DATA", raising=False)
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "cache"))
    known = datasets.Dataset(
        "sample", "two files", "this test", "none", "some/sample", datasets.checksum(source), url=None
    )
    monkeypatch.setitem(datasets.REGISTRY, "sample", known)
    return known


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the tests wants a name twice
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def nothing_was_kept(folder: Path) -> None:
    assert everything(folder) == {"source/one.txt", "source/sub/two.txt"}
    assert not list(folder.rglob(".get-*"))


@pytest.mark.parametrize(
    "pack", [zipped, tarred, lambda files: tarred(files, "w:xz"), lambda files: tarred(files, "w")]
)
@pytest.mark.parametrize("prefix", ["", "release-1.0/", "a/b/"])
def test_get_downloads_unpacks_and_is_found(
    server: Server, sample: datasets.Dataset, tmp_path: Path, pack: object, prefix: str
) -> None:
    url = server.put("/sample", pack({prefix + name: content for name, content in FILES.items()}))  # type: ignore[operator]
    assert datasets.where("sample") is None
    folder = datasets.get("sample", url=url)
    assert folder == tmp_path / "cache/data/some/sample"
    assert {name: (folder / name).read_bytes() for name in everything(folder)} == FILES
    assert datasets.find("sample") == folder
    server.pages.clear()
    assert datasets.get("sample", url=url) == folder  # no second download
    assert everything(tmp_path / "cache") == {f"data/some/sample/{name}" for name in FILES}


def test_registered_address_is_used(server: Server, sample: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.REGISTRY, "sample", replace(sample, url=server.put("/known.zip", zipped(FILES))))
    assert datasets.checksum(datasets.get("sample")) == sample.checksum


def test_wrong_content_is_refused(server: Server, sample: datasets.Dataset, tmp_path: Path) -> None:
    url = server.put("/sample.zip", zipped(FILES | {"one.txt": b"forged\n"}))
    with pytest.raises(
        DatasetError, match=rf"does not hold data set 'sample'.*not {sample.checksum}; nothing was kept"
    ):
        datasets.get("sample", url=url)
    nothing_was_kept(tmp_path)
    assert datasets.where("sample") is None


@pytest.mark.parametrize("files", [{"one.txt": b"first\n"}, FILES | {"three.txt": b""}, {"uno.txt": b"first\n"}])
def test_missing_and_further_files_are_noticed(
    server: Server, sample: datasets.Dataset, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(DatasetError, match="its checksum is"):
        datasets.get("sample", url=server.put("/sample.zip", zipped(files)))
    nothing_was_kept(tmp_path)


def test_not_found_on_the_server(server: Server, sample: datasets.Dataset, tmp_path: Path) -> None:
    url = server.put("/here.zip", b"") + ".not"
    with pytest.raises(DatasetError, match=r"here\.zip\.not cannot be downloaded: 404"):
        datasets.get("sample", url=url)
    nothing_was_kept(tmp_path)


def test_no_server(server: Server, sample: datasets.Dataset, tmp_path: Path) -> None:
    url = server.put("/sample.zip", zipped(FILES))
    server.http.server_close()
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        datasets.get("sample", url=url)
    nothing_was_kept(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"this is no archive", zipped(FILES)[:-30], tarred(FILES)[:60]],
    ids=["empty", "text", "zip", "tar"],  # archives hold the time, and so would differ from process to process
)
def test_broken_archive(server: Server, sample: datasets.Dataset, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatasetError, match=r"(neither a zip nor a tar archive|broken archive|its checksum is)"):
        datasets.get("sample", url=server.put("/sample.zip", content))
    nothing_was_kept(tmp_path)


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archive_cannot_write_outside(
    server: Server, sample: datasets.Dataset, tmp_path: Path, name: str, pack: object
) -> None:
    url = server.put("/sample", pack({name: b"bad"} | FILES))  # type: ignore[operator]
    with pytest.raises(DatasetError, match="leads out of its folder; nothing was kept"):
        datasets.get("sample", url=url)
    nothing_was_kept(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archive_cannot_hold_links_or_devices(
    server: Server, sample: datasets.Dataset, tmp_path: Path, kind: bytes
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DatasetError, match="'link', which is no plain file"):
        datasets.get("sample", url=server.put("/sample.tar", buffer.getvalue()))
    nothing_was_kept(tmp_path)


def test_zip_cannot_hold_links(server: Server, sample: datasets.Dataset, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DatasetError, match="'link', which is no plain file"):
        datasets.get("sample", url=server.put("/sample.zip", buffer.getvalue()))
    nothing_was_kept(tmp_path)


def test_archive_that_is_too_large(
    server: Server, sample: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_LARGEST", 8)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        datasets.get("sample", url=server.put("/sample.zip", zipped(FILES)))
    nothing_was_kept(tmp_path)


def test_data_folder_comes_first(sample: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own/some/sample"
    own.mkdir(parents=True)
    monkeypatch.setenv("EXAFIELD_DATA", str(tmp_path / "own"))
    assert datasets.where("sample") is None  # an empty folder is no data set
    (own / "mine.txt").write_text("a user's own files need no checksum")
    assert datasets.find("sample") == own
    assert datasets.get("sample") == own
    cached = datasets.cache() / sample.folder
    cached.mkdir(parents=True)
    (cached / "one.txt").write_text("x")
    assert datasets.find("sample") == own
    monkeypatch.delenv("EXAFIELD_DATA")
    assert datasets.find("sample") == cached


def test_errors_say_what_to_do(sample: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DatasetError, match=r"not in .*cache/data/some/sample: set EXAFIELD_DATA.*exafield data get sample"
    ):
        datasets.find("sample")
    with pytest.raises(DatasetError, match="unknown data set 'sampel': did you mean 'sample'"):
        datasets.find("sampel")
    with pytest.raises(DatasetError, match="nobody hosts data set 'sample': give the address"):
        datasets.get("sample")
    for url in ("ftp://host/x", "file:///etc/passwd", "sample.zip"):
        with pytest.raises(DatasetError, match="no http or https address"):
            datasets.get("sample", url=url)
    monkeypatch.setenv("EXAFIELD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"EXAFIELD_DATA is .*nowhere', which is no folder"):
        datasets.find("sample")


def test_cache_that_cannot_be_written(
    server: Server, sample: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    monkeypatch.setenv("EXAFIELD_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DatasetError, match="'sample' cannot be written to"):
        datasets.get("sample", url=server.put("/sample.zip", zipped(FILES)))


def test_listing_tells_origin_and_licence(sample: datasets.Dataset) -> None:
    listed = {item.dataset.name: item for item in datasets.listing()}
    assert listed["sample"].path is None
    crystals = listed["crystals"].dataset
    assert "Crystallography Open Database" in crystals.origin
    assert "BSD-3-Clause" in crystals.licence
    assert len(crystals.checksum) == 64


@pytest.mark.skipif("EXAFIELD_DATA" not in os.environ, reason="needs the crystals: set EXAFIELD_DATA")
def test_crystals_are_what_the_registry_says_and_can_be_read() -> None:
    folder = datasets.find("crystals")
    assert datasets.checksum(folder) == datasets.describe("crystals").checksum
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # partial occupancies
        crystals = [from_cif(path) for path in sorted(folder.glob("*.cif"))]
    assert len(crystals) == 206
    seen = [view for crystal in crystals for view in views(crystal)]
    assert len(seen) == 304
