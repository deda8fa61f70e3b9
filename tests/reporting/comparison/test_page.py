"""The page of a comparison: it holds the numbers, needs nothing else, and leaves out what there is nothing of."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.comparing import CLASSES, add, built, leave, png, stages, volumes, xrays

from premed.errors import UserError
from premed.reporting import charts
from premed.reporting.comparison import artifacts
from premed.reporting.comparison import page as report
from premed.reporting.comparison.compare import compare
from premed.reporting.formatting import number, p_value, signed
from premed.reporting.refusals import refuse_page


@pytest.fixture
def trained(store):
    """Three seeds of `none` and of `mae`, at two label fractions."""
    for seed in range(3):
        for fraction in (0.1, 1.0):
            add(store, "none", seed, fraction=fraction)
            add(store, "mae", seed, xrays(2.5 if fraction == 1 else 1.1, seed + 9 * seed), fraction=fraction)
    return store


# ---- what is on it


def test_every_number_of_the_main_table_is_on_the_page(trained):
    expected = []
    for arm in compare(trained).tasks[0].blocks[0].rows:
        score = arm.scores["mauc"]
        cells = [arm.label, str(arm.num_seeds), f"{number(score.mean)} ± {score.std:.3f}"]
        cells += [f"[{number(score.interval[0])}, {number(score.interval[1])}]"]
        if difference := score.difference:
            low, high = map(signed, difference.interval)
            cells += [signed(difference.value), f"[{low}, {high}]", p_value(difference.p), p_value(difference.p_holm)]
            cells += [difference.verdict]
        else:
            cells += ["baseline", "", "", "", ""]
        expected.append(cells)
    head, *lines = built(trained).rows[: 1 + len(expected)]
    assert any(line[-3] != line[-2] for line in lines)  # a corrected p is another
    assert head[-1] == "verdict" and [line[1:] for line in lines] == expected
    assert [line[0] for line in lines] == ["10 %", "", "100 %", ""]


def test_the_verdict_is_in_words(trained):
    assert "better than none" in built(trained).words


def test_notes_are_on_the_page(trained):
    result = compare(trained)
    (block,) = result.tasks[0].blocks
    page = built(trained)
    assert block.notes and all(note in page.words for note in block.notes + result.tasks[0].notes)


def test_charts_are_drawn_from_the_comparison_s_own_numbers(trained, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "label_fractions", lambda lines, *more: drawn.extend(lines) or b"<svg/>")
    built(trained)
    rows = [arm for arm in compare(trained).tasks[0].blocks[0].rows if arm.label == "mae"]
    (line,) = (line for line in drawn if line.name == "mae")
    assert line.x == [0.1, 1.0] and line.values == [arm.scores["mauc"].mean for arm in rows]
    assert [*zip(line.low, line.high, strict=True)] == [arm.scores["mauc"].interval for arm in rows]


@pytest.mark.slow
def test_a_curve_is_a_share_of_its_gate_and_a_shared_pretraining_is_drawn_once(trained, tmp_path, monkeypatch):
    leave(trained, stages(trained, "mae")["pretrain"], tmp_path / "a", [0.9, 0.4], gate=0.8)
    leave(trained, stages(trained, "mae", 1)["pretrain"], tmp_path / "b", [0.8, 0.6], gate=0.8)
    shared = {"mae": stages(trained, "mae")["pretrain"]}
    add(trained, "mae", 0, xrays(2, 0), fraction=0.5, shared=shared["mae"])
    drawn = []
    monkeypatch.setattr(charts, "pretraining_curves", lambda lines, *more: drawn.append((lines, *more)) or b"<svg/>")
    built(trained)
    ((lines, _, gate),) = drawn
    assert sorted((line.name, *line.x, *np.round(line.values, 6)) for line in lines) == [
        ("mae: 50 %", 10, 20, 1.125, 0.5),
        ("mae: 75 %", 10, 20, 1.0, 0.75),
    ]
    assert gate == 1.0


def test_a_loss_without_a_gate_is_drawn_as_it_is(trained, tmp_path, monkeypatch):
    leave(trained, stages(trained, "mae")["pretrain"], tmp_path / "a", [3.0, 2.0])
    drawn = []
    monkeypatch.setattr(charts, "pretraining_curves", lambda lines, *more: drawn.append((lines, *more)) or b"<svg/>")
    built(trained)
    (((line,), word),) = drawn
    assert (line.name, line.values, word) == ("mae", [3.0, 2.0], "validation loss")


def test_what_the_probe_and_rank_me_were_stands_beside_the_loss(trained, tmp_path, monkeypatch):
    more = [{"val/probe_mauc": 0.6, "val/rankme": 5.0}, {"val/probe_mauc": 0.71}]
    result = {"stopped": {"step": 20, "of": 90, "by": "probe_mauc"}}
    leave(trained, stages(trained, "mae")["pretrain"], tmp_path / "a", [3.0, 2.0], more=more, result=result)
    drawn = []
    monkeypatch.setattr(charts, "pretraining_curves", lambda lines, *more: drawn.append((lines, *more)) or b"<svg/>")
    page = report.page(compare(trained), trained)
    (_, ((probe,), word, _, height), ((rank,), other, *_)) = drawn
    assert (probe.name, [*probe.x], [*probe.values], word) == ("mae: 0.71", [10, 20], [0.6, 0.71], "probe, mean AUC")
    assert (rank.name, [*rank.x], [*rank.values], other) == ("mae: 5", [10], [5.0], "RankMe") and height < 3
    assert "mae ended at step 20 of 90, by the probe." in page


@pytest.mark.slow
def test_pictures_of_the_lowest_seed_stand_side_by_side_and_long_ones_alone(trained, tmp_path):
    for strategy in ("none", "mae"):
        for seed in (0, 1):
            shown = [("probabilities.png", png(30 + seed))]
            leave(trained, stages(trained, strategy, seed)["test"], tmp_path / f"{strategy}{seed}", pictures=shown)
    leave(trained, stages(trained, "mae")["pretrain"], tmp_path / "film", pictures=[("progress.png", png(1600, 20))])
    text = report.page(compare(trained), trained)
    assert text.count('<figure class="long"') == 1 and text.count("data:image/png") == 3
    assert "<b>none</b>, seed 0: probabilities" in text and "<b>mae</b>, seed 0: probabilities" in text


# ---- cases


def test_strips_are_paired_by_case_and_ordered_by_the_baseline(store, monkeypatch):
    for seed in range(2):
        for strategy, value in (("none", 0.6), ("mae", 0.8)):
            add(store, strategy, seed, volumes(value, seed + 7 * (strategy == "mae")), score="dice")
    drawn = []
    monkeypatch.setattr(charts, "strip_plots", lambda *given: drawn.append(given) or b"<svg/>")
    page = built(store)
    ((mae,), none, places, *_) = drawn[0]

    def expected(value, offset):
        some = [volumes(value, seed + offset) for seed in range(2)]
        return {
            rows[0]["case"]: np.mean([np.nanmean([row[f"dice/{name}"] for name in CLASSES]) for row in rows])
            for rows in zip(*some, strict=True)
        }

    ours, theirs = expected(0.8, 7), expected(0.6, 0)
    assert list(places) == sorted(theirs, key=theirs.__getitem__)
    assert mae.values == pytest.approx([ours[place] for place in places])
    assert none.values == pytest.approx([theirs[place] for place in places])
    best = max(ours, key=lambda name: ours[name] - theirs[name])
    assert best in page.words.partition("Best and worst cases")[2]


def test_where_a_case_has_no_score_of_its_own_strips_are_over_classes(trained, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "strip_plots", lambda *given: drawn.append(given) or b"<svg/>")
    built(trained)
    ((mae,), _, places, *_) = drawn[0]
    rows = compare(trained).tasks[0].blocks[0].rows
    (arm,) = (arm for arm in rows if (arm.label, arm.label_fraction) == ("mae", 1.0))
    assert mae.values == [arm.scores["mauc"].classes[place].mean for place in places]


def test_the_mean_placement_of_the_cases_with_a_finding_is_its_auc():
    rows = xrays(1.0)
    table = {name: [row[name] for row in rows] for name in rows[0]}
    table["p/heart"] = np.round(table["p/heart"], 1).tolist()  # with ties
    found = dict(artifacts.placements(table))
    for name in CLASSES:
        auc = roc_auc_score(table[f"y/{name}"], table[f"p/{name}"])
        assert np.mean([x for case, x in found.items() if case.endswith(f", {name}")]) == pytest.approx(auc)


def test_the_largest_gain_comes_first_and_the_largest_loss_last():
    values = {"none": np.array([0.5, 0.5, np.nan, 0.5]), "mae": np.array([0.4, 0.9, 0.5, 0.6])}
    found = artifacts.CaseScores(["a", "b", "c", "d"], values, "", True).differences("mae", "none")
    assert [name for name, *_ in found] == ["b", "d", "a"]


# ---- what is not there


def test_empty_parts_are_left_out(store):
    add(store, "none", 0, xrays(1.0))
    page = built(store)
    assert page.headings == [
        "mean AUC",
        "AUC by class",
        "mean AUC by class",
        "Calibration: lower is better",
        "Reliability with 100 % of the labels",
        "What it cost, and what stands beside the scores",
        "Notes on these rows",
        "Methods, to copy",
    ]
    assert page.tags.count("img") == 2 and "better than" not in page.words


def test_what_is_undefined_is_called_so_and_not_drawn(store):
    rows = [{"case": c, "patient": "p", "y/x": 0.0, "p/x": 0.2} for c in "ab"]
    add(store, "none", 0, rows, tested=False)
    page = built(store)
    assert "undefined" in page.words and "img" not in page.tags and "circle" not in page.tags


# ---- what may stand on it


def test_names_on_the_page_are_text_whatever_they_hold(store, tmp_path):
    odd = "<script>alert(1)</script>&\"'"
    rows = [{name.replace("heart", odd): x for name, x in row.items()} for row in xrays(1.0)]
    rows = [row | {"case": f"<img src=x>{row['case']}"} for row in rows]
    for seed, strategy in enumerate(("none", "<b>mae</b>")):
        add(store, strategy, 0, [row | {f"p/{odd}": row[f"p/{odd}"] ** (1 + seed)} for row in rows],
            change={"task": {"name": "<i>chest</i>"}})  # fmt: skip
    page = built(store)
    assert "i" not in page.tags and all(word in page.words for word in ("<i>chest</i>", "<b>mae</b>", odd))


def test_runs_are_linked_where_the_ui_is_known(trained):
    page = built(trained, ui="http://127.0.0.1:5000/")
    run = compare(trained).tasks[0].blocks[0].rows[0].runs[0]
    below = f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/"
    assert len(page.links) == 12 * 3 + 6 and all(link.startswith(below) for link in page.links)
    assert {below + run.run_id, *(below + stage for stage in run.stages.values())} <= set(page.links)


def test_runs_are_ids_where_the_ui_is_not_known(trained):
    page = built(trained)
    assert page.links == [] and stages(trained, "mae")["test"] in page.words


def test_tasks_are_one_page_with_links_to_each(trained):
    for seed in range(2):
        add(trained, "none", seed, volumes(0.7, seed), change={"task": {"name": "btcv"}}, score="dice")
    page = built(trained)
    assert page.links == ["#task-0", "#task-1"]


# ---- where it goes


def test_the_server_in_use_is_linked_without_its_password(trained, tmp_path, monkeypatch):
    result = compare(trained)
    monkeypatch.setattr(trained, "uri", "https://me:secret@runs.example:8080/ui")
    report.write(result, trained, tmp_path / "page.html", None)
    text = (tmp_path / "page.html").read_text()
    assert "https://runs.example:8080/ui/#/experiments/" in text and "secret" not in text


def test_a_page_that_cannot_be_written_is_one_line(trained, tmp_path):
    with pytest.raises(UserError, match="no/page.html: its folder does not exist"):
        refuse_page(tmp_path / "no" / "page.html", None)
    with pytest.raises(UserError, match=f"--html {tmp_path}: cannot be written"):
        report.write(compare(trained), trained, tmp_path, None)


def test_what_a_page_cannot_read_is_not_blamed_on_its_file(trained, tmp_path, monkeypatch):
    def unreadable(*arguments):
        raise OSError("a picture")

    monkeypatch.setattr(report, "page", unreadable)
    with pytest.raises(OSError, match="^a picture$"):
        report.write(compare(trained), trained, tmp_path / "page.html", None)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5000", "javascript:alert(1)", "http://", "file:///x", "javascript://x/%0aalert(1)"]
)
def test_an_address_that_is_none_is_refused(tmp_path, address):
    with pytest.raises(UserError, match="is not a URL; write it as premed ui prints it: http://127.0.0.1:5000"):
        refuse_page(tmp_path / "page.html", address)
