"""Nothing that is read executes code: stores made by somebody else, and every reader the package calls."""

import ast
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import pytest

import exafield
from exafield.store import SampleStore, StoreError


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _store(path: Path, group: dict[str, Any], array: dict[str, Any], names: tuple[str, str, str], data: bytes) -> None:
    """A zarr store by hand: the store, its sample "s" and that sample's array "x" with one chunk."""
    about, node, chunk = names
    attributes = {"made_with": json.dumps({"format": 1})}, {"attributes": "{}"}
    for folder, said in ((path, attributes[0]), (path / "s", attributes[1])):
        folder.mkdir()
        if about == "zarr.json":
            (folder / about).write_text(json.dumps(group | {"attributes": said}))
        else:
            (folder / about).write_text(json.dumps(group))
            (folder / ".zattrs").write_text(json.dumps(said))
    target = path / "s" / "x" / chunk
    target.parent.mkdir(parents=True)
    (path / "s" / "x" / node).write_text(json.dumps(array))
    target.write_bytes(data)


@pytest.mark.parametrize(
    ("dtype", "filters"),
    [
        ("<f8", [{"id": "pickle"}]),
        ("|O", [{"id": "pickle"}]),
        ("|O", [{"id": "vlen-utf8"}, {"id": "pickle"}]),
    ],
)
def test_a_codec_that_unpickles_is_not_asked(
    tmp_path: Path, dtype: str, filters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where numcodecs itself would do it: versions before 0.16.6 did."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": dtype, "order": "C"}
    array |= {"compressor": None, "fill_value": None, "filters": filters}
    _store(tmp_path / "evil.zarr", {"zarr_format": 2}, array, (".zgroup", ".zarray", "0"), bomb)
    with pytest.raises(StoreError, match=r"evil\.zarr"), SampleStore(tmp_path / "evil.zarr", {}) as store:
        store.read("s")
    assert not (tmp_path / "boom").exists()


def test_a_codec_of_the_new_format_that_unpickles_is_unknown(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1],
        "data_type": "float64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "numcodecs.pickle"}],
    }
    group = {"zarr_format": 3, "node_type": "group"}
    _store(tmp_path / "evil.zarr", group, array, ("zarr.json", "zarr.json", "c/0"), bomb)
    with (
        SampleStore(tmp_path / "evil.zarr", {}) as store,
        pytest.raises(StoreError, match=r"sample 's' is missing or damaged"),
    ):
        store.read("s")
    assert not (tmp_path / "boom").exists()


# What executes what it reads, by the name it is called by; numpy's load does so only if it is told to.
_DANGEROUS = {"pickle.load", "pickle.loads", "torch.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads"}
_DANGEROUS |= {"eval", "exec", "shelve.open", "joblib.load", "torch.jit.load"}


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_reader_is_called_that_executes_what_it_reads() -> None:
    """Checkpoints are safetensors and JSON, run files YAML by a safe loader, and npz files hold no objects.

    Engines send functions to their own workers, as the systems behind them do: pickled, by message or in a
    folder that only their user can read.
    """
    sources = sorted(Path(exafield.__file__).parent.rglob("*.py"))
    assert len(sources) > 50
    for path in sources:
        message = {"pickle.loads"} if path.parent.name == "engine" else set()
        for name, call in _calls(path):
            assert name not in _DANGEROUS - message, f"{path.name}, line {call.lineno}: {name}"
            if name in ("np.load", "numpy.load"):
                allowed = [k.value for k in call.keywords if k.arg == "allow_pickle"]
                assert all(isinstance(v, ast.Constant) and v.value is False for v in allowed), path
