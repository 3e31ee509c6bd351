"""exafield climate: what a user does with files of fields and masks, and what is said where they do not fit."""

import csv
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from drawn_storms import add_cyclone, add_disc, add_river, calm
from exafield.climate.besttracks import TrackFileError
from exafield.climate.columns import read_table
from exafield.climate.command import FAILED
from exafield.climate.command import main as carry_out
from exafield.climate.events import Found
from exafield.climate.fields import CHANNELS, CYCLONE, RIVER
from exafield.climate.flags import channel_pairs
from exafield.climate.grid import Grid
from exafield.climate.masks import Fields, How
from exafield.climate.snapshot import Axes, SnapshotError
from exafield.climate.tracking import Track, Tracker
from exafield.climate.writing import MaskWriter
from exafield.setting import RunError
from exafield.subcommand import USAGE


def main(arguments: list[str]) -> int:
    """As the command line does it."""
    try:
        return carry_out(arguments)
    except RunError as error:
        print(f"exafield: {error}", file=sys.stderr)
        return USAGE
    except SnapshotError as error:
        raise SnapshotError(error.as_flags()) from error


GRID = Grid(np.arange(-58.0, 59.0, 4.0), np.arange(0.0, 360.0, 4.0))
TIMES = [np.datetime64("2001-08-31T12:00:00", "s") + np.timedelta64(6 * i, "h") for i in range(5)]
# A storm that goes west by 4 degrees in 6 hours, over the meridian of Greenwich; its places as HURDAT2 has them.
PLACES = [(18.0, 4.0 - 4.0 * i) for i in range(5)]
BEST = """\
AL012001,               MADE,      5,
20010831, 1200,  , TS, 18.5N,   4.0E,  50,  990,
20010831, 1800,  , TS, 18.5N,   0.0W,  50,  990,
20010901, 0000,  , HU, 18.5N,   4.0W,  70,  980,
20010901, 0600,  , HU, 18.5N,   8.0W,  70,  980,
20010901, 1200,  , HU, 18.5N,  12.0W,  70,  980,
AL022001,            UNNAMED,      2,
20010831, 1200,  , TS, 30.0N,  60.0W,  50,  990,
20010831, 1800,  , TS, 31.0N,  60.0W,  50,  990,
AL032001,              LATER,      1,
20011031, 1200,  , TS, 30.0N,  60.0W,  50,  990,
"""


def weather(index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    fields, mask = calm(GRID), np.zeros(GRID.shape, np.uint8)
    add_cyclone(fields, GRID, *PLACES[index])
    add_river(fields, (-25.0, 200.0), (-45.0, 240.0), GRID)
    add_disc(mask, GRID, *PLACES[index], 600e3, CYCLONE)
    mask[(fields["TMQ"] > 30) & (GRID.latitude[:, None] < -20)] = RIVER
    return fields, mask


def store(path: Path, fields: dict[str, np.ndarray], units: dict[str, str], times: list[np.datetime64] = TIMES) -> None:
    where = {
        "time": times,
        "lat": ("lat", GRID.latitude, {"units": "degrees_north"}),
        "lon": ("lon", GRID.longitude, {"units": "degrees_east"}),
    }
    variables = {
        name: (("time", "lat", "lon"), values.astype("f4"), {"units": units[name]} if name in units else {})
        for name, values in fields.items()
    }
    xr.Dataset(variables, where).to_netcdf(path, engine="h5netcdf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks, fields in two files with names and units as reanalyses have them, and best tracks."""
    folder = tmp_path_factory.mktemp("climate")
    made = [weather(i) for i in range(len(TIMES))]
    writer = MaskWriter(folder / "masks.nc", Axes(GRID.latitude, GRID.longitude), TIMES, {"by": "test"})
    for index, (_, mask) in enumerate(made):
        writer.write(index, mask)
    writer.finish()
    whole = {name: np.stack([fields[name] for fields, _ in made]) for name in made[0][0]}
    names = ("TMQ", "U850", "V850")
    store(folder / "wind.nc", {name: whole[name] for name in names}, {name: CHANNELS[name].unit for name in names})
    surface = {"msl": whole["PSL"] / 100, "pr": whole["PRECT"] * 1000}
    store(folder / "surface.nc", surface, {"msl": "hPa", "pr": "kg m-2 s-1"})
    (folder / "best.txt").write_text(BEST)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{name.partition(" [")[0]: text for name, text in row.items()} for row in csv.DictReader(file)]


def test_storms_from_masks_and_fields(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["events", str(data / "masks.nc"), "--fields", str(data / "wind.nc"), str(data / "surface.nc")]
    assert main([*given, "--best-tracks", str(data / "best.txt"), "--film", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 snapshots, 2001-08-31T12:00:00 to 2001-09-01T12:00:00, 30 x 90 cells" in said
    assert "tropical cyclone: events 5, tracks 1" in said
    assert "measured by TMQ, U850, V850, PSL, PRECT" in said
    assert "tropical cyclone, JJA            1" in said
    assert "2 storms of the best tracks, looked for within 300 km and 3 h: 1 hit, 1 miss (" in said
    assert said.count("basins: NA North Atlantic, EP eastern Pacific, ") == 1
    out = tmp_path / "out"
    cyclone, river = sorted(rows(out / "tracks.csv"), key=lambda row: row["kind"])
    assert (cyclone["duration"], cyclone["snapshots"], cyclone["basin"]) == ("24", "5", "NA")
    assert float(cyclone["path"]) == pytest.approx(16 * 111.2 * np.cos(np.deg2rad(18)), rel=0.01)
    lowest = min(float(weather(i)[0]["PSL"].min()) for i in range(5))
    assert float(cyclone["minimum_pressure"]) == pytest.approx(lowest, rel=1e-5)
    assert float(river["mean_transport"]) > 1e8
    # The same tables for other programs; events of one track belong to one storm.
    events = read_table(out / "events.nc")
    of_cyclone = events["kind"] == CYCLONE
    assert set(events["track"][of_cyclone]) == {int(cyclone["number"])}
    assert events["time"][of_cyclone].tolist() == [time.astype(object) for time in TIMES]
    fields, mask = weather(0)
    rain = (fields["PRECT"] * GRID.areas)[mask == CYCLONE].sum()
    assert events["precipitation"][of_cyclone][0] == pytest.approx(rain, rel=1e-5)
    with xr.open_dataset(out / "tracks.nc", engine="h5netcdf") as tracks:
        assert tracks.sizes == {"track": 2}
        assert (tracks["end"].attrs["long_name"], tracks["path"].attrs["units"]) == ("last time", "km")
    told = {row["storm"]: row["outcome"] for row in rows(out / "matches.csv")}
    assert told == {"AL012001": "hit", "AL022001": "miss"}
    (share,) = (row for row in rows(out / "shares.csv") if row["basin"] == "all")
    assert float(share["cyclone_share"]) > 10 * float(share["cyclone_area"])
    with xr.open_dataset(out / "frequency.nc", engine="h5netcdf") as often:
        seen = np.mean([weather(i)[1] == RIVER for i in range(5)], axis=0)
        np.testing.assert_allclose(often["river_frequency"][0], seen)
        assert often["snapshots"].values.tolist() == [5, 0, 0, 2, 3]
    with Image.open(out / "film.gif") as film:
        assert film.n_frames == 5
    assert {path.name for path in out.glob("*.png")} == {
        "snapshot.png", "tracks.png", "frequency.png", "counts.png", "shares.png",
    }  # fmt: skip
    # Once more without fields: what they are needed for is not there, nor left over from before.
    assert main([*given[:2], "--out", str(out), "--shortest", "30", "--tables-only"]) == 0
    said = capsys.readouterr().out
    assert "without fields, wind, pressure, precipitation, transport of vapour are not known" in said
    assert "tracks 1, 0 of which last long enough to count" in said
    assert rows(out / "tracks.csv")[0]["peak_wind"] == ""
    assert rows(out / "counts.csv") == []
    left = {path.name for path in out.iterdir()}
    assert not left & {"shares.csv", "shares.nc", "shares.png", "tracks.png", "matches.csv", "film.gif"}
    assert not [name for name in left if "partial" in name]


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    """HDF5 says it of every object, again when it is let go of, and then may crash."""
    fields = {name: np.zeros((5, *GRID.shape)) for name in ("TMQ", "U850", "V850")}
    store(tmp_path / "calm.nc", fields, {name: CHANNELS[name].unit for name in fields})
    words = ("climate", "label", "calm.nc", "--rivers-only", "--out", "masks.nc")
    done = subprocess.run(
        [sys.executable, "-m", "exafield", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )  # fmt: skip
    assert done.returncode == FAILED, done.stderr
    assert done.stderr.count("\n") == 1
    assert "exafield: cannot write masks.nc: " in done.stderr
    assert done.stderr.endswith("; free some space and run again, nothing is lost\n")
    assert not list(tmp_path.glob("*masks.nc"))


def test_masks_without_any_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "empty.nc", {"LABELS": np.zeros((5, *GRID.shape))}, {})
    (tmp_path / "best.txt").write_text(BEST)
    out = tmp_path / "out"
    given = ["events", str(tmp_path / "empty.nc"), "--best-tracks", str(tmp_path / "best.txt"), "--film"]
    assert main([*given, "--out", str(out)]) == 0
    assert "0 hits, 2 misses (probability of detection 0.00)" in capsys.readouterr().out
    assert rows(out / "events.csv") == []
    assert {"film.gif", "snapshot.png", "events.nc", "tracks.png"} <= {path.name for path in out.iterdir()}


def test_files_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    masks = str(data / "masks.nc")

    def refused(text: str, *arguments: str | Path, error: type[Exception] = SnapshotError) -> None:
        with pytest.raises(error, match=text):
            main(["events", *map(str, arguments), "--out", str(tmp_path / "out")])

    zeros = np.zeros((5, *GRID.shape))
    wrong = zeros.copy()
    wrong[3, 4, 5] = 7
    store(tmp_path / "wrong.nc", {"LABELS": wrong}, {})
    refused("wrong.nc, 2001-09-01T06:00:00: 1 label is none of .* first is 7", tmp_path / "wrong.nc")
    later = [time + np.timedelta64(365, "D") for time in TIMES]
    store(tmp_path / "later.nc", {"PSL": zeros + 1e5}, {"PSL": "Pa"}, later)
    missing = "PSL is missing at 5 of 5 times of the masks, the first is 2001-08-31T12:00:00; .* of 5 times, 2002"
    refused(missing, masks, "--fields", tmp_path / "later.nc")
    with xr.open_dataset(data / "masks.nc", engine="h5netcdf") as whole:
        whole.isel(lat=slice(5, 20)).to_netcdf(tmp_path / "region.nc", engine="h5netcdf")
        whole.drop_vars("time").to_netcdf(tmp_path / "timeless.nc", engine="h5netcdf")
        whole.isel(lat=slice(5, 20)).rename(LABELS="storms").to_netcdf(tmp_path / "named.nc", engine="h5netcdf")
    refused("latitude has 30 values.*of the masks 15", tmp_path / "region.nc", "--fields", data / "wind.nc")
    refused("timeless.nc, no time: events are followed", tmp_path / "timeless.nc")
    refused("there is no variable LABELS", tmp_path / "named.nc")
    refused("two masks of 2001-08-31T12:00:00", masks, masks)
    refused("two fields of TMQ.* of one time", masks, "--fields", data / "wind.nc", data / "wind.nc")
    refused("none of TMQ.* is there: .*say which it is, as in --names TMQ=VARIABLE", masks, "--fields", masks)
    store(tmp_path / "unit.nc", {"PSL": zeros + 1000}, {})
    refused("--units PSL=hPa", masks, "--fields", tmp_path / "unit.nc")
    (tmp_path / "old.txt").write_text("\n".join(BEST.splitlines()[-2:]))
    refused(
        "of 1 best track, none is in the period", masks, "--best-tracks", tmp_path / "old.txt", error=TrackFileError
    )
    assert not list((tmp_path / "out").glob("*")), "something was written of what was refused"
    assert (
        main(
            [
                "events",
                str(tmp_path / "named.nc"),
                "--variable",
                "storms",
                "--tables-only",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )


def test_arguments_that_are_wrong(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = str(data / "masks.nc")
    for arguments, text in (
        (["evens"], "did you mean 'climate events'"),
        (["events"], "which files?"),
        (["events", masks, "--overlap", "2"], "overlap must be above 0"),
        (["events", masks, "--within", "0"], "--within must be above 0"),
        (["events", masks, "--names", "PSL"], "--names PSL: it is to be CHANNEL=VALUE"),
        (["events", masks, "--units", "PSLL=hPa"], "did you mean 'PSL'"),
        (["label", masks, "--out", "masks.txt"], "ends in .nc or .zarr"),
        (["label", masks, "--out", "x.nc", "--engine", "proceses"], "did you mean 'processes'"),
        (["show", str(data / "surface.nc"), "--time", "1999"], "--time 1999: there are 2001-08-31T12:00:00"),
        (["show", masks], "say what to show by --fields"),
        (["describe", masks, "--samples", "0"], "at least one snapshot"),
    ):
        assert main(arguments) == USAGE, arguments
        assert text in capsys.readouterr().err


def test_snapshots_that_cannot_be_read_are_left_out_and_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pressure = np.stack([weather(i)[0]["PSL"] for i in range(5)])
    pressure[2, 3, 4] = np.nan
    store(tmp_path / "gap.nc", {"PSL": pressure}, {"PSL": "Pa"})
    (tmp_path / "cut.nc").write_bytes((data / "wind.nc").read_bytes()[:3000])
    given = ["events", str(data / "masks.nc"), "--fields", str(tmp_path / "gap.nc"), str(tmp_path / "cut.nc")]
    with pytest.raises(SnapshotError, match=r"cut\.nc"):
        main([*given, "--out", str(tmp_path / "out")])
    assert main([*given, "--on-error", "skip", "--tables-only", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "4 of 5 snapshots" in said.out
    assert "tropical cyclone: events 4, tracks 1" in said.out
    assert "wind: not known, which takes UBOT and VBOT or U850 and V850" in said.out
    assert "cut.nc" in said.err
    assert "2001-09-01T00:00:00: PSL: 1 of 2700 values are missing" in said.err


def test_nothing_is_left_half_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tracker: Tracker, found: Found) -> list[Track]:
        if found.time == TIMES[2]:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(Tracker, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["events", str(data / "masks.nc"), "--film", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_fields_belong_to_masks_by_the_minute(tmp_path: Path) -> None:
    # Days as floating-point numbers miss the second.
    near = [time - np.timedelta64(1, "s") for time in TIMES]
    store(
        tmp_path / "near.nc", {"PSL": np.arange(5)[:, None, None] + np.full((5, *GRID.shape), 1e5)}, {"PSL": "Pa"}, near
    )
    fields = Fields([str(tmp_path / "near.nc")], GRID, How())
    fields.check(TIMES)
    assert [float(fields.at(time)["PSL"][0, 0]) for time in TIMES] == [1e5, 1e5 + 1, 1e5 + 2, 1e5 + 3, 1e5 + 4]
    assert set(fields.absent) == {"TMQ", "U850", "V850", "UBOT", "VBOT", "PRECT", "IVT"}
    fields.close()


def test_describe(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(data / "surface.nc"), str(data / "masks.nc")]) == 0
    said = capsys.readouterr().out
    assert "30 x 90: 58 S to 58 N every 4, 0 E to 356 E every 4; round the globe" in said
    assert "5, 2001-08-31T12:00:00 to 2001-09-01T12:00:00, every 6 h, calendar standard" in said
    assert "channels  2 of 16" in said
    assert "PSL      msl       Pa (hPa x 100) " in said
    assert "m s-1 (kg m-2 s-1 x 0.001)" in said
    masks = np.stack([weather(i)[1] for i in range(5)])
    assert f"in 5 of 5 snapshots; of the cells: background {(masks == 0).mean():.2%}" in said
    assert said.count("problems  none in 5 of 5 snapshots, which were looked at") == 2
    # What is wrong is named, and shows in the exit code.
    zeros = np.zeros((5, *GRID.shape))
    bad = zeros + 1000
    bad[1, 0, 0] = np.nan
    store(tmp_path / "bad.nc", {"PSL": bad, "LABELS": zeros + 3}, {})
    (tmp_path / "cut.nc").write_bytes((data / "wind.nc").read_bytes()[:3000])
    assert main(["describe", str(tmp_path)]) == FAILED
    said = capsys.readouterr().out
    assert "--units PSL=hPa" in said
    assert "labels: 2700 labels are none of" in said
    assert "cannot be read:" in said and "cut.nc" in said  # noqa: PT018
    assert main(["describe", str(tmp_path / "bad.nc"), "--units", "PSL=hPa"]) == FAILED
    said = capsys.readouterr().out
    assert "1 of 2700 values are missing or not finite" in said
    assert "Pa (hPa x 100)" in said


def test_describe_the_published_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    middles = np.array([np.mean(channel.usual or channel.typical) for channel in CHANNELS.values()], "f4")
    for day in (1, 2):
        with h5py.File(tmp_path / f"data-1996-01-0{day}-00-1.h5", "w") as file:
            file["climate/data"] = np.broadcast_to(middles, (12, 18, 16))
            file["climate/labels_0"] = file["climate/labels_1"] = np.zeros((12, 18), "f4")
    assert main(["describe", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "and 1 more like it: HDF5 in the layout of the published set" in said
    assert "2, 1996-01-01T00:00:00 to 1996-01-02T00:00:00, every 24 h, calendar noleap" in said
    assert "channels  16 of 16" in said
    assert "labels    in 2 of 2 snapshots, 2 versions" in said


def test_show(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    assert main(["show", str(data / "wind.nc"), "--out", str(one)]) == 0
    given = ["show", str(data / "wind.nc"), "--fields", "TMQ", "U850", "--time", "2001-09-01 06", "--out", str(two)]
    assert main([*given, "--masks", str(data / "masks.nc")]) == 0
    plain, drawn = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, two))
    assert drawn.shape[0] > 1.6 * plain.shape[0]
    vermilion = np.array([0xD5, 0x5E, 0x00])
    assert not (np.abs(plain - vermilion).max(axis=-1) < 30).any()
    assert (np.abs(drawn - vermilion).max(axis=-1) < 30).any()


def test_label(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "labels.nc"
    with pytest.raises(SnapshotError, match="--rivers-only looks for rivers alone"):
        main(["label", str(data / "wind.nc"), "--out", str(out), "--engine", "serial"])
    # Rivers alone need one field.
    assert main(["label", str(data / "wind.nc"), "--out", str(out), "--engine", "serial", "--rivers-only"]) == 0
    assert "5 masks" in capsys.readouterr().out
    assert main(["events", str(out), "--tables-only", "--out", str(tmp_path / "out")]) == 0
    assert "tropical cyclone: events 0, tracks 0\natmospheric river: events 5, tracks 1" in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == USAGE
    assert capsys.readouterr().out.count("usage: exafield climate COMMAND") == 2
    for command in ("events", "label", "show", "describe"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        assert f"exafield climate {command}" in capsys.readouterr().out


def test_fields_whose_longitudes_begin_elsewhere_are_turned(data: Path, tmp_path: Path) -> None:
    """The storm of the test data crosses the meridian of Greenwich: the seam of one grid, and not of the other."""
    for name in ("masks", "wind", "surface"):
        with xr.open_dataset(data / f"{name}.nc", engine="h5netcdf") as whole:
            east = (whole.lon + 180) % 360 - 180
            whole.assign_coords(lon=east).sortby("lon").to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")

    def events(masks: Path, fields: Path, out: str) -> list[dict[str, str]]:
        paths = [str(fields / "wind.nc"), str(fields / "surface.nc")]
        given = [str(masks / "masks.nc"), "--fields", *paths, "--tables-only", "--out", str(tmp_path / out)]
        assert main(["events", *given]) == 0
        found = rows(tmp_path / out / "events.csv")
        return sorted(found, key=lambda row: (row["time"], row["kind"], row["latitude"]))

    same = events(data, data, "same")
    assert same == events(data, tmp_path, "east")
    for one, other in zip(same, events(tmp_path, data, "west"), strict=True):
        for name in one:
            if name in ("longitude", "west", "east"):
                assert (float(one[name]) - float(other[name])) % 360 == pytest.approx(0.0, abs=1e-6)
            elif name not in ("number", "track"):  # which go by the order of the columns
                assert one[name] == other[name] or float(one[name]) == pytest.approx(float(other[name]), rel=1e-5), name


def test_pictures_of_no_known_kind_and_several_names(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(data / "wind.nc"), "--out", "storm.xyz"]) == USAGE
    assert "choose a name that ends in .png" in capsys.readouterr().err
    known = ["TMQ", "PSL"]
    together = channel_pairs("--names", ["TMQ=iwv,PSL=slp"], known)
    assert together == channel_pairs("--names", ["TMQ=iwv", "PSL=slp"], known) == {"TMQ": "iwv", "PSL": "slp"}
