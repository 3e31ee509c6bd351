"""Generated sets, the classifier of single pixels, and what networks are compared with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exafield.climate.analysis import Report, compare, nothing, pixel_classifier, predicted, rules
from exafield.climate.fields import CHANNELS, CYCLONE, RIVER
from exafield.climate.generate import PARTS, Generation, generate
from exafield.climate.normalisation import Statistics
from exafield.climate.pixels import Points, fit, judge_points
from exafield.climate.reading import open_snapshots
from exafield.datasets import DatasetError, find
from exafield.engine import engine
from exafield.store import StoreError
from exafield.world import World

SMALL = Generation(latitudes=64, longitudes=96, train=3, validation=1, test=2, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("climate") / "set"
    assert generate(made, SMALL, engine("serial")) == 6
    return made


def test_a_set_is_made_once_and_gone_on_with(folder: Path) -> None:
    assert generate(folder, SMALL, engine("serial")) == 0
    lost = sorted((folder / "train").glob("*.h5"))[1]
    before = lost.read_bytes()
    lost.unlink()
    assert generate(folder, SMALL, engine("serial")) == 1
    first, second = (open_snapshots(lost)[0].values for _ in range(2))
    assert np.array_equal(first, second)
    assert len(before) == lost.stat().st_size
    with pytest.raises(StoreError, match="seed"):
        generate(folder, replace(SMALL, seed=2), engine("serial"))


def test_parts_share_no_time() -> None:
    times = [set(Generation().times(part)) for part in PARTS]
    assert [len(part) for part in times] == [320, 24, 48]
    assert len(set.union(*times)) == 320 + 24 + 48


@pytest.mark.parametrize("wrong", [{"latitudes": 8}, {"train": 0}, {"seed": -1}])
def test_what_cannot_be_generated_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"generation: .*(16 x 16|train|seed)"):
        Generation(**wrong)


def test_the_classifier_learns_what_single_pixels_tell_and_no_more() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=(6000, 4)).astype(np.float32))
    labels = (values[:, 0] > 1).long() + (values[:, 1] > 1.5).long().clamp(max=1)
    labels[:3] = torch.arange(3)
    model = fit(values, labels)
    guess = model(values[:, :, None, None])[:, :, 0, 0].argmax(1)
    assert (guess == labels).float().mean() > 0.85
    assert torch.equal(fit(values, labels)[0].weight, model[0].weight)


def test_methods_are_compared_on_the_same_snapshots(folder: Path) -> None:
    statistics = Statistics.load(folder / "statistics.json")
    train, test = open_snapshots(folder / "train"), open_snapshots(folder / "test")
    model = pixel_classifier(list(train), statistics)
    masks = [
        (one, {"truth": one.labels, "pixels": predicted(model, one, statistics), "nothing": nothing(one), **rules(one)})
        for one in test
    ]
    names = ("truth", "pixels", "nothing", "published", "corrected")
    scores = compare(masks, World.single(), names)  # type: ignore[arg-type]
    report = Report(scores)
    assert report.network.mean_iou == 1
    assert scores["nothing"].iou[RIVER] == 0
    assert scores["pixels"].mean_iou < 1
    # Whether there is a cyclone in so few snapshots is not certain: the second line is about them.
    assert [good for good, _ in report.gate()][::2] == [True, True]
    swapped = Report({"nothing": scores["nothing"], "truth": scores["truth"]})
    assert [good for good, _ in swapped.gate()][::2] == [False, False]
    assert all(name in "\n".join(report.lines()) for name in names)


def test_real_points_are_judged_on_later_dates() -> None:
    try:
        table = find("climate") / "climatenet_cam5_points_train.csv.zip"
    except DatasetError as error:
        pytest.skip(str(error))
    points = Points.read(table)
    assert points.values.shape == (44760, len(CHANNELS))
    assert points.contradictions() == (21120, 2815)
    chosen = slice(None, None, 4)
    few = Points(points.values[chosen], points.labels[chosen], points.dates[chosen], points.places[chosen])
    report = judge_points(few)
    assert report.trained + report.tested == len(few.labels)
    assert report.iou[CYCLONE] > 0.1
    assert report.iou[RIVER] > 0.25
    assert report.majority_iou[RIVER] == 0
    assert "contradictory" in report.lines()[1]
