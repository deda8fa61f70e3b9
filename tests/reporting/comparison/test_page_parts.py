"""The page of a comparison as a supplement: the answer first, then what it rests on, each with its numbers of cases."""

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from support.comparing import add, built, leave, png, stages, volumes, xrays
from support.pages import Page

from premed.data import figures
from premed.reporting import charts
from premed.reporting.comparison import page as report
from premed.reporting.comparison.artifacts import Picture, loss_curves
from premed.reporting.comparison.compare import compare
from premed.reporting.formatting import span

DAY = 86_400_000  # ms


@pytest.fixture
def trained(store, tmp_path):
    """Three seeds of `none` and of `mae` at two label fractions, with all that stages leave."""
    for seed in range(3):
        for share, images in ((0.1, 12 + seed), (1.0, 120)):
            for strategy in ("none", "mae"):
                parent = add(store, strategy, seed, xrays(1.0 + (strategy == "mae"), seed), fraction=share)
                tags, folder = store.get(parent).tags, tmp_path / f"{strategy} {share} {seed}"
                leave(
                    store, tags["finetune_run"], folder, [1.0], result={"num_cases": images}, time=DAY * (20_000 + seed)
                )
                leave(store, tags["test_run"], folder / "test", pictures=[("probabilities.png", png())])
                if strategy == "mae":
                    gate = {"loss": 0.6, "gate": 0.8, "below": 0.25, "passed": True}
                    shown = [("reconstruction.png", png())]
                    leave(store, tags["pretrain_run"], folder / "pretrain", [0.7, 0.6], 0.8, shown,
                          {"num_cases": 957, "gate": gate}, DAY * 19_990)  # fmt: skip
    return store


def headings(text):
    return re.findall("<h[23].*?>(.*?)</h[23]>", text)


# ---- the order


def test_the_parts_stand_in_the_order_in_which_they_are_asked_for(trained):
    assert headings(report.page(compare(trained), trained)) == [
        "chestxray14",
        "mean AUC",
        "mean AUC against the share of labels",
        "AUC by class, paired with none",
        "mean AUC by class",
        "Calibration: lower is better",
        "Reliability with 100 % of the labels",
        "What it cost, and what stands beside the scores",
        "Best and worst cases",
        "Cases by their difference",
        "Pre-training and its gate",
        "What pre-training sees",
        "Predictions",
        "Notes on these rows",
        "Methods, to copy",
        "Versions, date and digests",
    ]


def test_marks_and_counts_are_explained_where_there_are_any(store):
    marks, missed = "▲ ▼ above or below none", "missed, invented: a case&#39;s class"
    for seed in range(3):
        add(store, "none", seed, xrays(1.0, seed)), add(store, "mae", seed, xrays(1.0, seed))
    page = report.page(compare(store), store)
    assert marks not in page and missed not in page
    for seed in range(3):
        add(store, "unimiss", seed, xrays(6.0, seed))
        add(store, "none", seed, volumes(0.5, seed), change={"task": {"name": "btcv"}}, score="dice")
    page = report.page(compare(store), store)
    assert marks in page and missed in page


def test_first_come_the_answer_and_the_design_in_a_sentence_each(trained):
    block = compare(trained).tasks[0].blocks[0]
    first = re.findall("<p>(.*?)</p>", report.page(compare(trained), trained))[:4]
    assert first[0] == f"<b>{escape(block.conclusion)}.</b>"
    assert "with 10 % of the labels" in first[1] and "with 100 % of the labels" in first[2]
    assert "pre-training on 957 images, past its gate by 25%" in first[1]
    assert first[3] == (
        "mae and none, 3 seeds each (encoder vit, head linear), fine-tuned on 12–14 images (10 % of the labels) and "
        "120 images (100 %), pre-trained on 957 images; all scored on the same 30 cases of 10 patients, the test part, "
        "which no training and no choice of weights has seen."
    )


def test_scores_that_chose_the_weights_are_said_to_be_optimistic_where_they_are_answered(store):
    for strategy in ("none", "mae"):
        add(store, strategy, 0, tested=False)
    assert "the val part, which selected the weights: these numbers are optimistic" in built(store).words


def test_every_task_is_answered_before_the_first_table(trained):
    for seed in range(3):
        for strategy, value in (("none", 0.5), ("mae", 0.8)):
            add(trained, strategy, seed, volumes(value, seed), change={"task": {"name": "btcv"}}, score="dice")
    before = report.page(compare(trained), trained).partition("<table>")[0]
    for task in compare(trained).tasks:
        assert before.count(str(escape(task.blocks[0].conclusion))) >= 1
    assert before.index('href="#task-0"') < before.index('href="#task-1"') < before.index('id="task-0"')


# ---- numbers beside the scores


def test_the_sizes_of_training_sets_stand_at_each_share_of_labels(trained, monkeypatch):
    messages = []
    monkeypatch.setattr(charts, "label_fractions", lambda lines, word, sizes: messages.append(sizes) or b"<svg/>")
    page = built(trained)
    assert [row[0] for row in page.rows[1:5]] == ["10 %12–14 images", "", "100 %120 images", ""]
    assert messages == [{0.1: "12–14 images", 1.0: "120 images"}]
    (cost,) = [i for i, row in enumerate(page.rows) if row[-1] == "pre-trained on"]
    assert [row[-1] for row in page.rows[cost + 1 : cost + 5]] == ["–", "957 images"] * 2


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"num_cases": null}', '{"digest": "another", "num_cases": 9}', "[" * 100_000]
)
@pytest.mark.parametrize("more", [(), ("curve.jsonl",)])
def test_a_result_that_is_damaged_or_gone_leaves_the_size_out(trained, text, more):
    for name in ("result.json", *more):
        for path in trained.folder.rglob(name):
            path.write_text(text)
    page = built(trained)
    assert page.rows[1][0] == "10 %" and "fine-tuned on 10 % of the labels and 100 %;" in page.words


@pytest.mark.parametrize(
    "line",
    [
        *('{"time": 0, "metrics": {"val/loss": 1.0}}', '{"step": 2, "time": 0, "metrics": null}', "1"),
        *('{"step": 2, "time": "x", "metrics": {}}', '{"step": 2, "time": 1e300, "metrics": {}}', "[" * 100_000),
        *(
            '{"step": "2", "time": 0, "metrics": {"val/loss": 1.0}}',
            '{"step": 2, "time": 0, "metrics": {"val/loss": ""}}',
        ),
    ],
)
def test_a_curve_with_a_line_that_is_no_point_is_shown_up_to_there(trained, line, monkeypatch):
    for path in trained.folder.rglob("curve.jsonl"):
        first = path.read_text().splitlines()[:1]
        path.write_text("\n".join([*first, line, *first]))
    (arm,) = (arm for arm in compare(trained).tasks[0].blocks[0].rows if (arm.label, arm.label_fraction) == ("mae", 1))
    assert all((each.steps, each.losses) == ([10], [0.7]) for each in loss_curves(trained, [arm]))
    built(trained)


def test_a_class_has_its_cases_its_positives_and_its_interval(store):
    rows = [row | {"y/heart": float("nan")} if i < 4 else row for i, row in enumerate(xrays(1.0))]
    for strategy in ("none", "mae"):
        add(store, strategy, 0, rows)
    classes = compare(store).tasks[0].blocks[0].rows[0].scores["mauc"].classes
    heart, _ = (row for row in built(store).rows if row[0] == "heart")  # the other has its calibration
    known = [row["y/heart"] for row in rows[4:]]
    assert heart[1:3] == [str(len(known)), f"{sum(known):.0f}"] == ["26", "8"]
    assert heart[3].endswith(span(classes["heart"].interval)) and "[" in heart[3]


def test_an_organ_s_positives_are_the_cases_whose_truth_has_it(store):
    rows = volumes(0.7)
    rows[2]["state/heart"], rows[3]["state/heart"] = "invented", "absent"
    add(store, "none", 0, rows, score="dice")
    lines = {row[0]: row[1:3] for row in built(store).rows if row[0] in ("heart", "lung")}
    assert lines == {"heart": ["8", "6"], "lung": ["8", "7"]}  # one heart is missed, and counts; one lung is absent


# ---- cases


def drawing(tmp_path, names):
    cases = [(name, np.full((20, 20), i) + np.eye(20), {"x": (1, 0.9)}) for i, name in enumerate(names)]
    return figures.probabilities(tmp_path / "probabilities.png", cases).read_bytes()


def test_best_and_worst_cases_have_their_pictures_by_both_strategies(store, tmp_path):
    for strategy, value in (("none", 1.0), ("mae", 1.3)):
        add(store, strategy, 0, xrays(value))
        shown = [("probabilities.png", drawing(tmp_path, [f"c{i:03d}" for i in range(12)]))]
        leave(store, stages(store, strategy)["test"], tmp_path / strategy, pictures=shown)
    text = report.page(compare(store), store).partition("Best and worst cases")[2]
    cases = {row[1] for row in Page(text.partition("<table>")[2].partition("</table>")[0]).rows[1:]}
    pictured = re.findall(r'<figure class="case"><figcaption><b>(.*?)</b>', text)
    assert pictured and set(pictured) == {case for case in cases if int(case[1:4]) < 12}
    for case in pictured:
        assert all(f'alt="{case} by {strategy}"' in text for strategy in ("none", "mae"))


def test_a_case_is_cut_out_of_its_picture(tmp_path):
    dark = np.zeros((20, 20))
    dark[:2] = 1
    path = figures.probabilities(tmp_path / "a.png", [("a", dark, {"x": (1, 0.9)}), ("b", 1 - dark, {"x": (1, 0.9)})])
    found = Picture("mae", "0", "probabilities", path.read_bytes()).cases()
    middles = {}
    for name, content in found.items():
        (tmp_path / name).write_bytes(content)
        with Image.open(tmp_path / name) as part:
            middles[name] = part.convert("L").resize((3, 3)).getpixel((1, 1))
    assert middles.keys() == {"a", "b"} and middles["a"] < 100 < 150 < middles["b"]


BOXES = [[["a", 0, 0, 99, 9]], [["a", 5, 5, 5, 9]], [["a", "x", 0, 9, 9]], [["a", 1]], {"a": 1}, 7, [None]]


@pytest.mark.parametrize("boxes", [json.dumps(boxes) for boxes in BOXES] + ["{"])
def test_a_picture_that_tells_nonsense_has_no_cases(tmp_path, boxes):
    from PIL.PngImagePlugin import PngInfo

    (result := PngInfo()).add_text(figures.CASES, boxes)
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", pnginfo=result)
    assert Picture("mae", "0", "x", (tmp_path / "a.png").read_bytes()).cases() == {}


# ---- where it comes from


def test_versions_dates_and_digests_are_on_the_page(trained):
    for number, run in enumerate(trained.search({})):
        run.tags.update({"version.torch": "2.15.0", "mlflow.source.git.commit": "e89c848"})
        run.tags["premed.digest"] = f"{number:03d}abcdef0123456789"
    next(iter(trained.search({}))).tags["version.torch"] = "2.14.1"
    written = datetime(2026, 11, 28, 18, 10, tzinfo=UTC)
    page = Page(report.page(compare(trained), trained, written=written))
    for words in (
        "2026-11-28 18:10 UTC, by premed ",
        "2024-09-24 to 2024-10-06",
        "torch 2.14.1 and 2.15.0",
        "e89c848",
        "train cc, val dd, test ee, pre-training aa",
    ):
        assert words in page.words
    run = compare(trained).tasks[0].blocks[0].rows[1].runs[0]
    (row,) = (row for row in page.rows if run.run_id in "".join(row))
    assert all(
        trained.get(each).tags["premed.digest"][:12] in "".join(row) for each in (run.run_id, *run.stages.values())
    )


def test_every_column_of_bars_has_an_axis(trained):
    head, *_ = built(trained).rows
    low, high = (head[i] for i in (4, 6))
    assert re.fullmatch(r"95 % interval(0\.\d+){2,5}", low), low
    assert re.fullmatch(r"95 % interval([-+]\d\.\d+|0\.0+){2,5}", high), high
