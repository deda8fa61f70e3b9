"""What a sweep found: its numbers, and what a terminal, a page and a CSV say of them."""

import csv
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page
from sweeping import outcome, searched, stage, table, trial, weighed

from premed import sweep_board, sweep_charts, sweep_page
from premed.axes import axis, scale, short, varied, word
from premed.errors import UserError
from premed.findings import Spread, against, cost, grid, pairs, ranking, reuse, scored
from premed.sweep_words import answer, caveats, reused

RATIO, EPOCHS, DECAY = "pretext.mask_ratio", "pretrain.epochs", "finetune.layer_decay"


def frame(told) -> pd.DataFrame:
    """One line per trial and seed."""
    rows = [
        {**each["setting"], "number": each["number"], "seed": seed, "score": values[0]}
        for each in told["trials"]
        for seed, values in each["by_seed"].items()
    ]
    return pd.DataFrame(rows)


# ---- fields and values


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["pretext.mask_ratio", "pretrain.epochs"], ["mask_ratio", "epochs"]),
        (["pretrain.lr", "finetune.lr", "task.size"], ["pretrain.lr", "finetune.lr", "size"]),
        (["finetune.head.name", "seed"], ["head.name", "seed"]),
        (["a.b.lr", "c.b.lr", "lr"], ["a.b.lr", "c.b.lr", "lr"]),
        (["name"], ["name"]),
    ],
)
def test_a_field_is_called_by_what_tells_it_apart(paths, names):
    assert list(short(paths).values()) == names


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1 + 0.2, "0.3"),
        (1e-3, "0.001"),
        (3.0, "3"),
        (40, "40"),
        (True, "true"),
        (None, "null"),
        ("vit", "vit"),
        ([0.1 + 0.2, "ü"], '[0.3, "ü"]'),
        ({"name": "vit", "width": 24}, '{"name": "vit", "width": 24}'),
    ],
)
def test_a_value_is_said_as_a_yaml_has_it_and_without_noise(value, said):
    assert word(value) == said


def test_numbers_stand_in_their_order_and_words_as_the_space_has_them():
    told = outcome({"a": [3, 1, 20], "b": {"choice": ["x", None, "a"]}}, [trial(0, {"a": 1, "b": "a"})])
    assert axis(told, "a").labels == ["1", "3", "20"] and axis(told, "b").labels == ["x", "null", "a"]
    assert (axis(told, "a").places, axis(told, "b").places) == ({0: 0}, {0: 2})


def test_a_range_with_many_values_is_shown_in_parts_of_equal_width_on_its_scale():
    values = [1e-4, 2e-4, 9e-4, 2e-3, 2e-2, 9e-2, 1e-1]
    told = outcome({"lr": {"loguniform": [1e-4, 1.0]}}, [trial(i, {"lr": x}) for i, x in enumerate(values)])
    found = axis(told, "lr")
    assert found.labels == ["0.0001 … 0.001", "0.001 … 0.01", "0.01 … 0.1", "0.1 … 1"]
    assert list(found.places.values()) == [0, 0, 0, 1, 2, 2, 3]
    assert (scale(told, "lr"), axis(outcome(told["space"], told["trials"][:2]), "lr").labels) == (
        "log",
        ["0.0001", "0.0002"],
    )


def test_parts_of_whole_numbers_share_none():
    told = outcome({"n": {"int": [5, 80]}}, [trial(i, {"n": n}) for i, n in enumerate([5, 23, 24, 42, 43, 61, 80])])
    assert axis(told, "n").labels == ["5 … 23", "24 … 42", "43 … 61", "62 … 80"]
    assert list(axis(told, "n").places.values()) == [0, 0, 1, 1, 2, 2, 3]


def test_the_most_important_field_comes_first_and_one_with_one_value_is_none():
    told = table()
    assert varied(told) == [EPOCHS, RATIO, DECAY]
    assert varied(outcome({"a": [1], "b": [1, 2]}, [])) == ["b"]


# ---- the grid, and scores against fields


def test_a_cell_is_the_mean_and_deviation_over_seeds_and_over_the_other_fields():
    found = grid(told := table(), RATIO, EPOCHS)
    cells = frame(told).groupby([RATIO, EPOCHS])["score"].agg(["mean", "std", "size"])
    assert found.rows.labels == ["0.3", "0.5", "0.75"] and found.columns.labels == ["20", "40"]
    assert np.allclose(np.reshape(found.cells, (6, 3)), cells.to_numpy())
    assert (found.over, found.num_seeds) == ([DECAY], 2)


def test_a_trial_that_was_stopped_failed_or_has_no_number_is_in_no_cell():
    trials = [trial(0, {"a": 1}, {"0": 0.5}), trial(1, {"a": 1}, {"0": 0.1}, state="stopped")]
    trials += [trial(2, {"a": 2}, {"0": math.nan}), trial(3, {"a": 2}, state="failed"), trial(4, {"b": 0}, {"0": 0.9})]
    found = grid(outcome({"a": [1, 2]}, trials), "a", None)
    assert found.cells[0][0].mean == 0.5 and found.cells[0][0].num == 1 and found.cells[1][0].num == 0


def test_without_numbers_by_seed_a_cell_has_the_trial_s_own():
    found = grid(outcome({"a": [1]}, [trial(0, {"a": 1}, values=[0.7])]), "a", None)
    assert found.cells[0][0].mean == 0.7 and math.isnan(found.cells[0][0].std)


@pytest.mark.parametrize(("mode", "expected"), [("max", [0.0, 0.5, 1.0]), ("min", [1.0, 0.5, 0.0])])
def test_the_best_cell_is_the_highest_or_the_lowest_as_the_mode_says(mode, expected):
    trials = [trial(i, {"a": i}, {"0": value}) for i, value in enumerate([0.2, 0.3, 0.4])]
    found = grid(outcome({"a": [0, 1, 2, 3]}, trials), "a", None)
    assert np.allclose(found.shares(mode)[:, 0], [*expected, math.nan], equal_nan=True)


def test_fields_are_paired_by_importance_and_stand_as_in_the_space():
    assert pairs(table()) == [(RATIO, EPOCHS), (EPOCHS, DECAY), (RATIO, DECAY)]
    assert pairs(outcome({"a": [1, 2]}, [])) == [("a", None)] and pairs(outcome({}, [])) == []


def test_a_wide_table_is_laid_down():
    assert pairs(outcome({"a": [1, 2], "b": [*range(9)]}, [])) == [("b", "a")]


def test_points_stand_at_their_values_and_means_are_over_what_is_done():
    told = table()
    found, means = against(told, DECAY), frame(told).groupby(DECAY)["score"].mean()
    assert found.scale == "words" and np.allclose(found.means, means) and len(found.points) == 18
    told = searched()
    points = {point.number: point for point in against(told, "finetune.lr").points}
    assert {number for number, point in points.items() if point.stopped} == {1, 2, 5, 7, 8, 10}
    assert points[3].x == told["trials"][3]["setting"]["finetune.lr"] and 4 not in points and 11 not in points


# ---- scores


def test_a_trial_s_score_is_the_sweep_s_own_with_the_deviation_over_its_seeds():
    assert scored(trial(0, {}, {"0": 0.4, "1": 0.6})) == Spread(0.5, pytest.approx(np.std([0.4, 0.6], ddof=1)), 2)
    assert math.isnan(scored(trial(0, {}, {"0": 0.4})).std)


def test_a_stopped_trial_s_score_is_how_far_it_came():
    assert scored(trial(0, {}, state="stopped", curve={"2": 0.5, "10": 0.6, "1": 0.2})).mean == 0.6


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_a_trial_without_an_end_has_no_score(state):
    assert math.isnan(scored(trial(0, {}, {"0": 0.4}, state=state)).mean)


@pytest.mark.parametrize(("mode", "numbers"), [("max", [2, 0, 1]), ("min", [1, 0, 2])])
def test_trials_are_ranked_by_the_mode(mode, numbers):
    values = [0.5, 0.4, 0.6, math.nan]
    told = outcome({}, [trial(i, {}, {"0": value}) for i, value in enumerate(values)], modes=[mode])
    assert [each["number"] for each in ranking(told)] == numbers


# ---- costs


def test_a_stage_is_paid_for_once_and_would_have_been_paid_for_by_every_trial():
    again = stage("pretrain", "p", 100, reused=True)
    trials = [
        trial(0, {}, stages=[stage("pretrain", "p", 100), again, stage("finetune", "a", 10)]),
        trial(1, {}, stages=[again, stage("finetune", "b", 20, 1500)]),
        trial(2, {}, stages=[stage("finetune", "c", math.nan, None)], state="failed"),
    ]  # fmt: skip
    found = reuse(told := outcome({}, trials))
    assert (found.spent, found.alone) == ({"pretrain": 100, "finetune": 30}, {"pretrain": 200, "finetune": 30})
    assert (found.saved, found.share, found.num_spent["pretrain"]) == (100, 100 / 230, 1)
    assert (
        reused(told)[0]
        == "All stages took 2.2 min; had every trial trained its own, 3.8 min: reuse saved 1.7 min (43%)."
    )
    costs = [cost(each) for each in trials]
    assert [(each.total, each.reused) for each in costs] == [(110, set()), (120, {"pretrain"}), (0, set())]
    assert costs[1].peak_memory_mb == 1500 and math.isnan(costs[2].peak_memory_mb)


def test_the_table_s_six_pretrainings_serve_three_trials_each():
    found = reuse(table())
    assert (found.num_spent["pretrain"], found.num_alone["pretrain"], found.num_spent["finetune"]) == (6, 18, 36)
    assert found.saved == pytest.approx(2 * found.spent["pretrain"])


# ---- the answer in words


def test_the_answer_names_the_best_setting_and_how_sure_it_is():
    told = table()
    best = frame(told).groupby("number")["score"].mean().idxmax()
    said = "Best of 18 finished trials: mask_ratio 0.5, epochs 40, layer_decay 0.85 gave val Dice 0.749 ± 0.009"
    assert answer(told) == f"{said} over 2 seeds (trial {best})."
    words = " ".join(caveats(told))
    assert "the variance over seeds is not known" in words and "optimistic" in words and "not finished" not in words


def test_with_three_seeds_it_says_who_lies_within_their_deviation():
    trials = [
        trial(i, {"a": i}, dict(zip("012", [x - 0.02, x, x + 0.02], strict=True)))
        for i, x in enumerate([0.7, 0.69, 0.6])
    ]
    words = " ".join(caveats(outcome({"a": [0, 1, 2]}, trials, seeds=[0, 1, 2])))
    assert "1 trial lies within the best's deviation" in words and "not known" not in words
    assert "The next best is trial 1 (a 1), 0.010 behind." in words


def test_an_unfinished_sweep_and_stopped_trials_are_said():
    words = " ".join(caveats(searched()))
    assert "not finished: 1 trial to come" in words and "6 trials stopped early" in words


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([], "No trial is done yet."),
        (["waiting", "failed"], "No trial is done yet."),
        (["failed", "failed"], "No trial came to a score: all failed."),
    ],
)
def test_without_a_score_the_answer_says_so(states, said):
    assert answer(outcome({"a": [1]}, [trial(i, {"a": 1}, state=state) for i, state in enumerate(states)])) == said


# ---- the terminal


@pytest.mark.parametrize("make", [table, searched, weighed])
def test_every_trial_is_one_line_of_80_columns(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    sweep_board.show(told := make())
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [
        line.split()[0].rstrip("*") for line in out.splitlines() if re.search(" (done|stopped|running|failed) +", line)
    ]
    assert {str(each["number"]) for each in told["trials"]} <= {*lines}
    assert all(len(line) <= 80 for line in out.splitlines())


def test_piped_it_is_plain_and_marks_the_best(capsys):
    sweep_board.show(table())
    out = capsys.readouterr().out
    assert "\x1b" not in out and re.search(r"^ 5\* .*0\.749 ± 0\.009", out, re.M)
    assert "0.740 ± 0.013*" in out and out.endswith("premed run /premed/sweeps/sweep/best.yaml\n")
    assert "pre-training: 6 in place of 18" in out and "layer_decay   7%" in out


def test_a_failure_is_one_line_with_its_reason(capsys):
    sweep_board.show(searched())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial 4 failed")]
    assert "the loss is not a number at step 41" in line


def test_many_settings_share_a_column_where_a_line_has_not_room_for_one_each(capsys):
    setting = {f"some.field{i}": f"number {i}" for i in range(16)}
    told = outcome({path: [value, 0] for path, value in setting.items()}, [trial(0, setting, {"0": 0.5})])
    sweep_board.show(told)
    words = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "trial setting state" in words and "field0 number 0, field1 number 1" in words


# ---- the page


def built(told) -> Page:
    page = Page(text := sweep_page.page(told))
    assert page.open == [] and not {"script", "link", "a"} & {*page.tags} and page.links == []
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.loads)
    assert not re.search(r"https?://", text)
    return page


@pytest.mark.parametrize("make", [table, searched, weighed])
def test_the_page_holds_all_trials_best_first(make):
    page, told = built(json.loads(json.dumps(make()))), make()
    lines = [row for row in page.rows if len(row) > 4 and row[0].isdigit()][: len(told["trials"])]
    assert sorted(int(row[0]) for row in lines) == [*range(len(told["trials"]))]
    assert lines[0][0] == str(ranking(told)[0]["number"])


def test_the_page_shows_all_there_is_to_a_sweep():
    assert built(searched()).headings == [
        "Trials",
        "val mean AUC by setting",
        "val mean AUC against each field",
        "What val mean AUC depends on most",
        "Learning curves",
        "What it cost, and what reuse saved",
        "What failed",
    ]
    assert built(weighed()).headings[0] == "val Dice against seconds"


def test_a_heat_map_has_its_means_and_deviations():
    told, page = table(), built(table())
    cells = frame(told).groupby([RATIO, EPOCHS])["score"].agg(["mean", "std"])
    said = [f"{row['mean']:.3f}± {row['std']:.3f}" for _, row in cells.iterrows()]
    assert [cell for row in page.rows for cell in row if cell in said] == said


def test_what_there_is_nothing_of_is_left_out():
    page = built(outcome({"a": [1, 2]}, []))
    assert page.headings == ["Trials"] and "No trial is done yet." in page.words and "img" not in page.tags


def test_names_on_the_page_are_text_whatever_they_hold():
    odd = "<script>alert(1)</script>&\"'$x_"
    settings_ = [{"a.b": odd, f"x.{odd}": i} for i in range(2)]
    trials = [
        trial(i, each, {"0": i}, failure=odd, curve={"1": i}, run_id=odd, stages=[stage(odd, odd)])
        for i, each in enumerate(settings_)
    ]
    trials.append(trial(2, {"a.b": "c"}, state="failed", failure=odd))
    page = built(outcome({"a.b": [odd, "c"]}, trials, name=odd, task=odd, where=f"/tmp/{odd}", metrics=[f"val/{odd}"],
                         importances={f"x.{odd}": 0.9, "a.b": 0.1}))  # fmt: skip
    assert page.words.count("<script>alert(1)</script>") > 9


def test_a_chart_is_drawn_from_the_findings_and_is_the_same_each_time(monkeypatch):
    told = weighed()
    assert sweep_page.page(told) == sweep_page.page(told)
    drawn = []
    monkeypatch.setattr(sweep_charts, "rivals", lambda *given: drawn.append(given) or b"<svg/>")
    built(told)
    (((rival,), name, on_front),) = drawn
    assert (name, rival.name, on_front) == ("val Dice", "seconds", told["front"])
    assert list(rival.y) == [each["values"][0] for each in told["trials"]]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        sweep_page.write(table(), tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        sweep_board.write_csv(table(), tmp_path)


# ---- CSV


def test_the_csv_has_a_line_for_each_trial_and_seed(tmp_path):
    sweep_board.write_csv(told := table(), tmp_path / "trials.csv")
    read, expected = pd.read_csv(tmp_path / "trials.csv"), frame(told)
    assert np.allclose(
        read[[RATIO, EPOCHS, DECAY, "trial", "seed", "val/dice"]].to_numpy(float), expected.astype(float)
    )
    assert read["is_best"].sum() == 2 and "0.30000000000000004" not in (tmp_path / "trials.csv").read_text()


def test_a_trial_without_seeds_has_a_line_too(tmp_path):
    sweep_board.write_csv(searched(), tmp_path / "trials.csv")
    read = pd.read_csv(tmp_path / "trials.csv").set_index("trial")
    assert len(read) == 12 and pd.isna(read.loc[4, "seed"]) and read.loc[4, "failure"].startswith("finetune: the loss")


# ---- whatever comes

NUMBERS = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, None, 0.0]))
SCALARS = st.one_of(
    st.booleans(), st.integers(-3, 99), st.floats(allow_nan=False, width=32), st.text(max_size=6), st.none()
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))
PATHS = st.sampled_from(["finetune.lr", "pretrain.lr", "pretext.mask_ratio", "finetune.head.name", "seed", "ü.<b>"])
ENDS = st.tuples(st.floats(1e-6, 1), st.floats(2, 50)).map(list)
RANGES = st.one_of(
    st.lists(VALUES, min_size=1, max_size=4),
    st.builds(lambda ends, kind: {kind: ends}, ENDS, st.sampled_from(["uniform", "loguniform"])),
    st.builds(lambda low, more: {"int": [low, low + more]}, st.integers(-5, 5), st.integers(1, 40)),
)
KINDS = st.sampled_from(["pretrain", "import", "trunk", "cooldown", "finetune"])
STAGES = st.builds(stage, KINDS, st.sampled_from("abc"), NUMBERS, NUMBERS, st.booleans())


@st.composite
def outcomes(draw):
    """Anything that the outcome's description allows, and numbers that are none."""
    metrics = draw(
        st.sampled_from(
            [["val/dice"], ["seconds"], ["val/mauc", "seconds"], ["val/dice", "val/hd95", "peak_memory_mb"]]
        )
    )
    space = draw(st.dictionaries(PATHS, RANGES, max_size=4))
    values = st.one_of(st.none(), st.lists(NUMBERS, min_size=len(metrics), max_size=len(metrics)))
    seeds = st.dictionaries(st.sampled_from("012"), values.filter(bool), max_size=3)
    curves = st.dictionaries(st.integers(0, 30).map(str), NUMBERS, max_size=4)

    def setting():
        held = {
            path: draw(st.sampled_from(said) if isinstance(said, list) else st.floats(0.1, 40))
            for path, said in space.items()
        }
        return held | draw(st.dictionaries(PATHS, VALUES, max_size=1))

    trials = [
        trial(number, setting(), state=draw(st.sampled_from(["waiting", "running", "done", "stopped", "failed"])),
              values=draw(values), by_seed=draw(seeds), curve=draw(curves), stages=draw(st.lists(STAGES, max_size=3)),
              failure=draw(st.none() | st.text(max_size=99)), run_id=draw(st.none() | st.text(max_size=4)))
        for number in range(draw(st.integers(0, 9)))
    ]  # fmt: skip
    modes = [draw(st.sampled_from(["max", "min"])) for _ in metrics]
    about = {"metrics": metrics, "modes": modes, "num_trials": len(trials) + draw(st.integers(0, 2))}
    about["importances"] = draw(st.none() | st.dictionaries(PATHS, st.floats(0, 1), max_size=3))
    told = outcome(space, trials, **about)
    first = [each["number"] for each in ranking(told)]
    best = first[0] if first and len(metrics) == 1 else None
    return told | {"best": best, "front": first[:1] if len(metrics) == 1 else first[:2]}


@settings(max_examples=30, deadline=None)
@given(outcomes())
def test_no_outcome_is_too_odd_for_the_terminal_and_the_csv(tmp_path_factory, told):
    told = json.loads(json.dumps(told))
    sweep_board.show(told)
    sweep_board.write_csv(told, path := tmp_path_factory.mktemp("csv") / "trials.csv")
    with path.open(encoding="utf-8", newline="") as file:
        heads, *lines = csv.reader(file)
    assert len(lines) == sum(max(len(each["by_seed"]), 1) for each in told["trials"])
    assert all(len(line) == len(heads) for line in lines)


@settings(max_examples=15, deadline=None)
@given(outcomes())
def test_no_outcome_is_too_odd_for_the_page(told):
    page = built(json.loads(json.dumps(told)))
    assert {str(each["number"]) for each in told["trials"]} <= {row[0] for row in page.rows}
