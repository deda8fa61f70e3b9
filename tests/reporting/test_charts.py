"""charts.py: a chart shows the values that it is given; names are taken literally, gaps are gaps."""

import re

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from premed.reporting import charts
from premed.reporting.charts import Line, Strip

LINES = [
    Line("none", "#777777", [0.05, 1.0], [0.5, 0.7], [0.4, 0.6], [0.6, 0.8]),
    Line("mae", "#0072B2", [0.05, 1.0], [0.6, 0.8], [0.5, 0.7], [0.7, 0.9]),
]
NONE, MAE = Strip("none", "#777777", [0.1, 0.2, np.nan]), Strip("mae", "#0072B2", [0.3, 0.1, 0.5])
DRAWINGS = {
    "fractions": lambda: charts.label_fractions(LINES, "mean AUC"),
    "one fraction": lambda: charts.label_fractions([line._replace(x=[1.0, 1.0]) for line in LINES], "mean AUC"),
    "pretraining": lambda: charts.pretraining_curves(LINES, "loss / gate", 1.0),
    "low": lambda: charts.pretraining_curves(LINES, "probe, mean AUC", None, 2.4),
    "one validation": lambda: charts.pretraining_curves([Line("mae", "#0072B2", [9], [0.4])], "loss"),
    "strips": lambda: charts.strip_plots([MAE, MAE], NONE, ["a", "b", "c"], "cases", "Dice"),
    "a strip alone": lambda: charts.strip_plots([NONE], None, ["a", "b", "c"], "cases", "Dice"),
    "many": lambda: charts.strip_plots([MAE._replace(values=np.arange(999))], None, ["x"] * 999, "cases", "Dice"),
    "many, paired": lambda: charts.strip_plots(
        [MAE._replace(values=np.arange(999))], NONE._replace(values=np.arange(999)), ["x"] * 999, "cases", "Dice"
    ),  # fmt: skip
    "odd names": lambda: charts.label_fractions([LINES[0]._replace(name="$a_<&> ^{")], "$x_<b>"),
    "undefined": lambda: charts.label_fractions([LINES[0]._replace(values=[np.nan, np.nan])], "mean AUC"),
}


@pytest.fixture
def figure(monkeypatch):
    """What a chart is made of, in place of the SVG."""
    monkeypatch.setattr(charts, "svg", lambda figure: figure)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def of(axes: Axes, colour: str) -> list[list[float]]:
    """The values of the lines of a colour."""
    return [list(line.get_ydata()) for line in axes.lines if line.get_color() == colour]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_is_an_svg_that_loads_nothing_and_is_the_same_each_time(name):
    svg = DRAWINGS[name]()
    assert svg.startswith(b"<?xml") and svg.rstrip().endswith(b"</svg>") and svg == DRAWINGS[name]()
    assert not re.search(rb'href="(?!#|data:)', svg) and b"<script" not in svg


def test_scores_stand_over_the_share_of_labels_within_their_intervals(figure):
    drawn = charts.label_fractions(LINES, "mean AUC")
    (axes,) = drawn.axes  # type: ignore[attr-defined]
    assert of(axes, "#0072B2")[0] == [0.6, 0.8] and list(axes.lines[0].get_xdata()) == [0.05, 1.0]
    bands = [{tuple(point) for point in band.get_paths()[0].vertices.round(3).tolist()} for band in axes.collections]
    assert {(0.05, 0.4), (0.05, 0.6), (1.0, 0.6), (1.0, 0.8)} <= bands[0]
    assert words(drawn) == ["none", "mae"]  # type: ignore[arg-type]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5 %", "100 %"]


def test_seeds_of_one_pretraining_are_named_once_beside_the_gate(figure):
    seeds = [LINES[1], LINES[1]._replace(values=[0.7, 0.75])]
    drawn = charts.pretraining_curves(seeds, "loss / gate", 1.0)
    (axes,) = drawn.axes  # type: ignore[attr-defined]
    assert of(axes, "#0072B2") == [[0.6, 0.8], [0.7, 0.75]] and [1.0, 1.0] in [list(x.get_ydata()) for x in axes.lines]
    assert sorted(words(drawn)) == ["gate: no network", "mae"]  # type: ignore[arg-type]


def test_a_stem_leads_from_the_baseline_to_the_row_at_every_place(figure):
    drawn = charts.strip_plots([MAE], NONE, ["a", "b", "c"], "cases", "Dice")
    (axes,) = drawn.axes  # type: ignore[attr-defined]
    stems = [path.vertices[:, 1].tolist() for path in axes.collections[0].get_paths()]
    assert stems[:2] == [[0.1, 0.3], [0.2, 0.1]]
    assert words(drawn) == ["mae\nabove none in 1 of 2"]  # type: ignore[arg-type]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]


def test_names_of_lines_that_end_together_do_not_lie_on_each_other():
    axes = Figure().add_subplot()
    charts.label_ends(axes, [(value, "a", "k") for value in (0.5, 0.5, 0.9, 1.0, 1.0, 1.0)])
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.05 and heights[-1] <= 1.02


def test_a_bar_lies_where_its_numbers_are():
    svg = charts.interval_bar(0.5, [0.25, 0.75], (0.0, 1.0), "#0072B2", [0.0], width=106)
    assert '<line x1="28.0" x2="78.0"' in svg and '<circle cx="53.0"' in svg and '<line x1="3.0" x2="3.0"' in svg


def test_a_value_without_an_interval_is_a_dot_and_an_undefined_one_is_nothing():
    alone = charts.interval_bar(0.5, [np.nan, np.nan], (0.0, 1.0), "#0072B2")
    assert alone.count("<circle") == 1 and "<line" not in alone
    assert charts.interval_bar(np.nan, [np.nan, np.nan], (0.0, 1.0), "#0072B2") == ""


def test_an_axis_has_its_ticks_where_the_bars_have_these_values():
    span = (0.47, 0.91)
    axis = charts.bar_axis(span)
    at = re.findall(r'<line x1="([\d.]+)"', axis)[1:]
    ticks = [*zip(at, re.findall(r">([\d.]+)</text>", axis), strict=True)]
    assert len(ticks) >= 3
    for x, value in ticks:
        (bar,) = re.findall(r'<circle cx="([\d.]+)"', charts.interval_bar(float(value), [np.nan, np.nan], span, "k"))
        assert float(x) == pytest.approx(float(bar), abs=0.11)


@pytest.mark.parametrize("span", [(-0.04, 0.13), (-0.0012, 0.0007), (2.0, 97.0), (0.5, 0.5), (-1e-12, 1e-12)])
def test_an_axis_of_differences_is_signed_and_its_ticks_are_apart(span):
    axis = charts.bar_axis(span, signed=True)
    ticks = [(float(x), text) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*>(.*?)</text>', axis)]
    assert all(text[0] in "+-" or float(text) == 0 for _, text in ticks)
    assert all(b[0] - a[0] > 25 for a, b in zip(ticks, ticks[1:], strict=False)) and len({*ticks}) == len(ticks)


def test_shares_of_labels_tell_their_numbers_of_images(figure):
    drawn = charts.label_fractions(LINES, "mean AUC", {0.05: "12–14 images"})
    (axes,) = drawn.axes  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5 %\n12–14 images", "100 %"]
    assert axes.get_xlabel() == "share of the labels used in fine-tuning" and axes.get_ylabel() == "mean AUC"


@pytest.mark.parametrize("name", ["fractions", "pretraining", "strips", "many, paired"])
def test_both_axes_have_names(figure, name):
    some = DRAWINGS[name]().axes  # type: ignore[attr-defined]
    assert any(axes.get_xlabel() for axes in some) and any(axes.get_ylabel() for axes in some)


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_tick_and_no_name_of_an_axis_is_cut_by_the_figure_s_edge(figure, name):
    drawn = DRAWINGS[name]()
    FigureCanvasAgg(drawn)  # type: ignore[arg-type]
    width, height = drawn.get_window_extent().size  # type: ignore[attr-defined]
    for axes in drawn.axes:  # type: ignore[attr-defined]
        box = axes.get_tightbbox(drawn.canvas.get_renderer())  # type: ignore[attr-defined]
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, axes.get_xlabel()


def test_bars_of_a_column_share_a_span_that_holds_all_that_is_known():
    low, high = charts.bar_span([0.2, np.nan, 0.6], [0.1])  # type: ignore[misc]
    assert low < 0.1 and high > 0.6 and charts.bar_span([np.nan]) is None
