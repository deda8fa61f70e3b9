"""A sweep's result as an HTML page."""

import re

import pytest
from hypothesis import given, settings
from support.pages import Page
from support.suite import examples
from support.sweeping import by_seed, full_grid, pruned_search, results, stage, sweep, trial, two_objectives

from premed.errors import UserError
from premed.reporting.sweep import charts
from premed.reporting.sweep import page as sweep_page
from premed.reporting.sweep.analysis import ranking

RATIO, EPOCHS = "pretext.mask_ratio", "pretrain.epochs"


def rendered(result) -> Page:
    page = Page(text := sweep_page.render(result))
    assert page.open == [] and not {"script", "link", "a"} & {*page.tags} and page.links == []
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.loads)
    assert not re.search(r"https?://", text)
    return page


@pytest.mark.parametrize("make", [full_grid, pruned_search, two_objectives])
def test_the_page_holds_all_trials_best_first(make):
    page, result = rendered(make()), make()
    rows = [row for row in page.rows if len(row) > 4 and row[0].isdigit()][: len(result.trials)]
    assert sorted(int(row[0]) for row in rows) == [*range(len(result.trials))]
    assert rows[0][0] == str(ranking(result)[0].number)


def test_the_page_shows_all_there_is_to_a_sweep():
    assert rendered(pruned_search()).headings == [
        "Trials",
        "val mean AUC by setting",
        "val mean AUC against each field",
        "What val mean AUC depends on most",
        "Learning curves",
        "What it cost, and what reuse saved",
        "What failed",
    ]
    assert rendered(two_objectives()).headings[0] == "val Dice against seconds"


def test_a_heat_map_has_its_means_and_deviations():
    result = full_grid()
    cells = by_seed(result).groupby([RATIO, EPOCHS])["score"].agg(["mean", "std"])
    texts = [f"{row['mean']:.3f}± {row['std']:.3f}" for _, row in cells.iterrows()]
    assert [cell for row in rendered(result).rows for cell in row if cell in texts] == texts


def test_what_there_is_nothing_of_is_left_out():
    page = rendered(sweep({"a": [1, 2]}, []))
    assert page.headings == ["Trials"] and "No trial is done yet." in page.words and "img" not in page.tags


def test_names_on_the_page_are_text_whatever_they_hold():
    odd = "<script>alert(1)</script>&\"'$x_"
    trials = [
        trial(i, {"a.b": odd, f"x.{odd}": i}, {"0": i}, failure=odd, curve={1: i}, run_id=odd, stages=[stage(odd, odd)])
        for i in range(2)
    ]
    trials.append(trial(2, {"a.b": "c"}, state="failed", failure=odd))
    fields = {"name": odd, "task": odd, "where": f"/tmp/{odd}", "metrics": [f"val/{odd}"]}
    page = rendered(sweep({"a.b": [odd, "c"]}, trials, importances={f"x.{odd}": 0.9, "a.b": 0.1}, **fields))
    assert page.words.count("<script>alert(1)</script>") > 9


def test_a_chart_is_drawn_from_the_result_and_is_the_same_each_time(monkeypatch):
    result, drawn = two_objectives(), []
    assert sweep_page.render(result) == sweep_page.render(result)
    monkeypatch.setattr(charts, "pareto_plots", lambda *given: drawn.append(given) or b"<svg/>")
    rendered(result)
    (((plot,), name, front),) = drawn
    assert (name, plot.name, front) == ("val Dice", "seconds", result.front)
    assert list(plot.y) == [each.values[0] for each in result.trials]


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        sweep_page.write(full_grid(), tmp_path)


@settings(max_examples=examples(15, least=5), deadline=None)
@given(results())
def test_no_result_is_too_odd_for_the_page(result):
    assert {str(each.number) for each in result.trials} <= {row[0] for row in rendered(result).rows}
