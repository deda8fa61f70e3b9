"""Calibration in a comparison: of each arm over its seeds, from the probabilities that runs stored."""

import csv
import json

import numpy as np
import pytest
from support.comparing import CLASSES, add, arm_of, built, exclusive, volumes, xrays

from premed.cli.options import as_json_value
from premed.reporting.calibration import NUM_BINS
from premed.reporting.comparison import terminal
from premed.reporting.comparison.compare import compare


def ece(p, y):
    """The formula, in bins of as many images each."""
    bins = np.searchsorted(np.quantile(p, np.linspace(0, 1, NUM_BINS + 1))[1:-1], p)
    return sum(abs(y[bins == b].mean() - p[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))


def of_class(rows, name):
    return ece(*(np.array([row[f"{kind}/{name}"] for row in rows]) for kind in "py"))


def test_of_several_labels_it_is_the_mean_over_classes_and_seeds(trained):
    found = arm_of(compare(trained)).calibration
    seeds = [np.mean([of_class(xrays(2.5, seed), name) for name in CLASSES]) for seed in range(3)]
    assert found.kind == "each class" and found.measured == pytest.approx(np.mean(seeds))
    assert found.std == pytest.approx(np.std(seeds, ddof=1))
    heart = np.mean([of_class(xrays(2.5, seed), "heart") for seed in range(3)])
    assert found.classes["heart"].measured == pytest.approx(heart)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert sum(point.num_images for point in found.curve) == 3 * 30 * 2
    assert sum(point.num_images for point in found.class_curves["lung"]) == 3 * 30


def test_of_exclusive_classes_it_is_that_of_the_likeliest(store):
    add(store, "none", 0, rows := exclusive(1.0), score="accuracy")
    found = arm_of(compare(store), "none").calibration
    p = np.array([[row[f"p/{name}"] for name in "abc"] for row in rows])
    y = np.array([[row[f"y/{name}"] for name in "abc"] for row in rows])
    assert found.kind == "likeliest class" and found.classes == {}
    assert found.measured == pytest.approx(ece(p.max(axis=1), (p.argmax(axis=1) == y.argmax(axis=1)).astype(float)))


def test_fine_tunings_of_one_pre_training_count_as_one_seed(store):
    values = {(0, 1): 1.0, (0, 2): 3.0, (0, 3): 2.0, (1, 1): 0.2, (2, 1): 2.2}
    for (pretrain, seed), value in values.items():
        add(store, "mae", seed, xrays(value, seed), pretrain_seed=pretrain)
    errors = {key: np.mean([of_class(xrays(value, key[1]), name) for name in CLASSES]) for key, value in values.items()}
    of_seeds = [np.mean([error for (number, _), error in errors.items() if number == each]) for each in range(3)]
    found = arm_of(compare(store)).calibration
    assert found.measured == pytest.approx(np.mean(of_seeds)) and found.std == pytest.approx(np.std(of_seeds, ddof=1))


def test_a_segmentation_has_none(store):
    add(store, "none", 0, volumes(0.7), score="dice")
    assert arm_of(compare(store), "none").calibration is None and "alibration" not in built(store).words


def test_it_is_in_the_table_the_json_and_the_csv(trained, capsys, tmp_path):
    result = compare(trained)
    found = arm_of(result).calibration
    terminal.show(result)
    (row,) = (
        line for line in capsys.readouterr().out.splitlines() if f"{found.measured:.3f} ± {found.std:.3f}" in line
    )
    assert row.split()[-3:] == [f"{found.value:.3f}", f"[{found.interval[0]:.3f},", f"{found.interval[1]:.3f}]"]
    (arm,) = (arm for arm in json.loads(json.dumps(as_json_value(result)))["tasks"][0]["blocks"][0]["rows"]
              if arm["label"] == "mae")  # fmt: skip
    assert arm["calibration"]["value"] == found.value and arm["calibration"]["interval"] == [*found.interval]
    terminal.write_csv(result, tmp_path / "all.csv")
    lines = [line for line in csv.DictReader((tmp_path / "all.csv").open()) if line["strategy"] == "mae"]
    assert [float(line["ece"]) for line in lines] == [found.value, *(each.value for each in found.classes.values())]


def test_probabilities_that_are_not_stored_are_called_so(trained, capsys, monkeypatch):
    from premed.reporting.comparison import compare as module

    monkeypatch.setattr(module, "with_calibration", lambda result, *more: result)
    terminal.show(compare(trained))
    assert capsys.readouterr().out.count("not stored") == 2


def test_one_patient_has_no_interval_and_no_diagram(store):
    add(store, "none", 0, [row | {"patient": "p"} for row in xrays(1.0)])
    found = arm_of(compare(store), "none").calibration
    assert found.measured > 0 and np.isnan([found.value, *found.interval]).all()
    assert "Reliability" not in "".join(built(store).headings)
