"""The cases of a page by their difference: both arms' numbers of each seed, pictures, and how many are left out."""

import re
from html import unescape

import numpy as np
import pytest
from support.comparing import add, exclusive, leave, png, stages, volumes, xrays

from premed.data import figures
from premed.reporting.comparison import artifacts, cases
from premed.reporting.comparison import page as report
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.tables import Section


def of_classes(store, seeds=2):
    for seed in range(seeds):
        add(store, "none", seed, exclusive(0.5, seed), score="accuracy")
        add(store, "mae", seed, exclusive(1.5, seed + 9), score="accuracy")
    for run in store.search({"premed.kind": "experiment"}):
        run.metrics["test/accuracy"] = 0.5
    return store


def lists(store, pictures=()):
    (task,) = compare(store).tasks
    section = Section(task, task.blocks[0], None)
    tables = artifacts.case_tables(store, task.part, section.largest)
    scores = artifacts.case_scores(tables, "accuracy" in section.arms[0].scores)
    return cases.case_lists(section, scores, pictures)


def page(store):
    text = report.page(compare(store), store)
    return text[text.index("<h3>Cases by their difference</h3>") :].partition("<h3>Notes")[0]


def test_of_exclusive_classes_a_case_s_number_is_the_probability_of_its_class(store):
    (found,) = lists(of_classes(store))
    ours, theirs = ([exclusive(v, s + o) for s in range(2)] for v, o in ((1.5, 9), (0.5, 0)))
    gain = {
        f"c{i:03d}, {'abc'[i % 3]}": np.subtract(
            *([rows[i][f"p/{'abc'[i % 3]}"] for rows in some] for some in (ours, theirs))
        )
        for i in range(60)
    }
    order = sorted(gain, key=lambda name: -gain[name].mean())
    assert [each.case for each in found.gains] == order[: cases.NUM_LISTED]
    assert [each.case for each in found.losses] == order[-cases.NUM_LISTED :]
    assert (found.num_cases, found.num_between, found.num_undefined) == (60, 20, 0)
    first = found.gains[0]
    assert first.value - first.baseline == pytest.approx(gain[order[0]].mean())
    number = int(order[0][1:4])
    values = [rows[number][f"p/{'abc'[number % 3]}"] for rows in ours]
    label, words = first.by_run[1]
    assert label == "mae" and words.split("; ") == [
        f"pre-training 0, seed {seed}: {value:.3f}" for seed, value in enumerate(values)
    ]
    assert first.by_run[0][0] == "none" and "pre-training" not in first.by_run[0][1]


def test_few_cases_are_all_listed_from_the_largest_gain_to_the_largest_loss(store):
    for strategy, value in (("none", 0.6), ("mae", 0.7)):
        add(store, strategy, 0, volumes(value, int(10 * value)), score="dice")
    (found,) = lists(store)
    differences = [each.value - each.baseline for each in found.gains]
    assert differences == sorted(differences, reverse=True) and len(differences) == 8
    assert (found.num_between, found.losses) == (0, [])


def test_a_case_that_one_arm_leaves_undefined_is_counted(store):
    for strategy in ("none", "mae"):
        rows = volumes(0.6)
        rows[3] |= {f"dice/{name}": np.nan for name in ("heart", "lung")} if strategy == "mae" else {}
        add(store, strategy, 0, rows, score="dice")
    (found,) = lists(store)
    assert (found.num_cases, found.num_undefined) == (7, 1)
    assert "1 case without a number by one of the two, left out" in page(store)


def test_what_is_left_out_is_said_and_each_case_opens_without_a_script(store):
    text = page(of_classes(store))
    assert text.count('<details class="case">') == 40 and text.count("<summary>") == 41
    assert "mae against none: 60 cases, 40 of them here: both ends, and those with a picture" in text
    assert "20 cases in between left out" in text and "<script" not in text and "onclick" not in text


def test_pictures_stand_in_the_cases_that_have_one(store, tmp_path):
    drawn = [(f"c{i:03d}", np.full((20, 20), i) + np.eye(20), {"a": (1, 0.9)}) for i in range(60)][::20]
    of_classes(store)
    for strategy in ("none", "mae"):
        content = figures.probabilities(tmp_path / "p.png", drawn).read_bytes()
        shown = [("probabilities.png", content), ("other.png", png())]
        leave(store, stages(store, strategy)["test"], tmp_path / strategy, pictures=shown)
    text = unescape(page(store))
    listed = re.findall(r'<span class="case">(.*?)</span>', text)
    drawn = {"c000, a", "c020, c", "c040, b"}  # wherever they stand, in their place
    with_picture = re.findall(r'alt="(.*?) listed, by (.*?)"', text)
    assert sorted(with_picture) == sorted((case, strategy) for case in drawn for strategy in ("none", "mae"))
    gains = [float(value) for value in re.findall(r'<span class="number (?:up|down)">(.*?)</span>', text)]
    assert drawn <= {*listed} and len(listed) > 40 and gains == sorted(gains, reverse=True)
    assert f"{60 - len(listed)} cases in between left out" in text


def test_without_a_baseline_there_is_no_list(store):
    add(store, "mae", 0)
    assert lists(store) == [] and "Cases by their" not in report.page(compare(store), store)


def test_a_case_s_numbers_of_an_auc_are_its_placements(store):
    for strategy, value in (("none", 1.0), ("mae", 2.0)):
        add(store, strategy, 0, xrays(value))
    (found,) = lists(store)
    table = {name: [row[name] for row in xrays(2.0)] for name in xrays(2.0)[0]}
    expected = dict(artifacts.placements(table))
    assert all(each.value == pytest.approx(expected[each.case]) for each in found.gains)
