"""`premed bench` end to end: cheap rows for real, and what becomes of rows that cannot be measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tasks import refused
from typer.testing import CliRunner

from premed.benchmarks import bench, crops, made_up, mae, peers, scores, sliding_windows, steps, unetr, views
from premed.benchmarks.result import Times
from premed.benchmarks.rows import ROWS, Row, chosen
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.cli import bench as command
from premed.cli.app import app

SHORT = Settings(short=True, pairs=2)


@pytest.fixture(autouse=True)
def settings_of_malloc_stay(monkeypatch):
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def row(comparisons) -> Row:
    """A row that yields these."""

    class Made(Row):
        def comparisons(self, settings):
            return iter(comparisons() if callable(comparisons) else comparisons)

    return Made("made-up", "nothing", "nobody", "")


def comparison(**fields) -> Comparison:
    works = {"ours": lambda: Times(1, 1), "theirs": lambda: Times(2, 2)}
    return Comparison("peer", **{**works, "unit": "a step", "sizes": "", "same": "", **fields})


def measured(*rows, settings=SHORT):
    reported = []
    report = bench.run(settings, rows, lambda report, complete: reported.append((len(report.results), complete)))
    return report, reported


# ---- rows


def test_every_row_is_where_the_list_says():
    import importlib

    for each in ROWS:
        module, function = each.where.split(".")
        assert callable(getattr(importlib.import_module(f"premed.benchmarks.{module}"), function)), each


def test_an_unknown_row_is_refused_by_name():
    refused(lambda: chosen(["mae-4d"]), "mae-4d", "mae-3d", "sliding-window")
    assert [each.name for each in chosen(["scores", "mae-3d"])] == ["mae-3d", "scores"]


def test_a_row_is_told_pair_by_pair():
    report, reported = measured(row([comparison(), NotMeasured("another", "no peer")]))
    assert reported == [(1, False), (1, False), (1, True), (2, True), (2, False)]
    first, second = report.results
    assert first.ratio().median == 2 and second.not_measured == "no peer" and report.differing == []
    assert "made-up" in report.minutes


def test_a_row_takes_at_most_the_pairs_it_allows():
    report, _ = measured(row([comparison(most=1)]), settings=Settings(short=True, pairs=5))
    assert len(report.results[0].ours) == 1


def test_what_does_not_do_the_same_work_is_not_timed_and_the_other_rows_are():
    def differing():
        yield comparison()
        raise NotTheSame("losses 1 and 2")

    report, _ = measured(row(differing), row([comparison()]))
    assert [result.not_measured[-14:] for result in report.results] == ["", "losses 1 and 2", ""]
    assert report.differing == ["made-up"]


def test_a_peer_that_fails_is_a_line_and_the_other_rows_are_measured():
    def failing():
        yield comparison()
        raise RuntimeError("no kernel\nfor this")

    report, _ = measured(row(failing), row([comparison()]))
    assert [result.not_measured for result in report.results] == ["", "RuntimeError: no kernel", ""]
    assert report.differing == ["made-up"]


def test_peers_are_given_or_their_rows_say_so():
    for found in (*mae.volumes(SHORT), *mae.pictures(SHORT)):
        assert isinstance(found, NotMeasured) and "--peer-" in found.why


def test_bf16_is_measured_where_it_is_multiplied_alone(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    (found,) = mae.volumes_bf16(SHORT)
    assert isinstance(found, NotMeasured) and "AMX" in found.why


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    refused(lambda: peers.refuse_others({"mae": tmp_path}), "--peer-mae", "models_mae.py", "facebookresearch/mae")
    assert peers.refuse_others({"mae": None}) == {}


@pytest.mark.slow  # imports timm
def test_a_checkout_that_does_not_work_here_is_a_row_not_measured(tmp_path):
    (tmp_path / "models_mae.py").write_text("from timm import what_is_not_there")
    report, _ = measured(*chosen(["mae-2d"]), settings=Settings(short=True, peers={"mae": tmp_path}))
    (result,) = report.results
    assert "cannot be used" in result.not_measured and not result.differs


# ---- what is asserted before anything is timed


def test_other_losses_or_gradients_are_not_the_same_training():
    gradients = {"a": torch.tensor([3.0, 4.0])}
    steps.assert_same_training((1.0, gradients), (1.0, gradients), torch.float32)
    for loss, other in ((1.001, gradients), (1.0, {"a": torch.tensor([3.0, 4.1])}), (1.0, {"b": gradients["a"]})):
        with pytest.raises(NotTheSame):
            steps.assert_same_training((loss, other), (1.0, gradients), torch.float32)
    with pytest.raises(NotTheSame):
        steps.assert_same_training((1.0, {"a": torch.tensor([4.0, 3.0])}), (1.0, gradients), torch.bfloat16)


def test_other_scores_are_not_the_same_work():
    row = {f"{score}/{label}": 1.0 for score in ("dice", "hd95") for label in range(1, 14)}
    ones = torch.ones(1, 13)
    assert "equal" in scores.assert_equal(row, ones, ones)
    for dice, distance in ((ones + 1e-3, ones), (ones, ones + 1e-2), (ones * float("nan"), ones)):
        with pytest.raises(NotTheSame):
            scores.assert_equal(row, dice, distance)


def test_windows_that_give_other_classes_are_not_the_same_work():
    logits = torch.nn.functional.one_hot(torch.arange(1000) % 3).T.float()
    other = logits.clone()
    other[:, :10] = logits[:, 1:11]
    assert "100.00%" in sliding_windows.same_classes(logits, logits)
    with pytest.raises(NotTheSame, match="99.00%"):
        sliding_windows.same_classes(logits, other)


@pytest.mark.slow  # imports all of MONAI's transforms
def test_crops_of_other_voxels_are_not_the_same_work(tmp_path):
    from premed.data.cache import Cache

    case = made_up.write_ct(tmp_path, (40, 40, 36))
    (prepared,) = Cache(tmp_path / "cache").prepare([case], made_up.PREPROCESSING)
    sample, roi = crops.Sample(case, prepared), (16, 16, 16)
    batches, peer = crops.premed_batches(sample, roi, crops.PLAIN), crops.MonaiBatches(sample, roi, crops.PLAIN, True)
    assert "equal labels" in crops.same_batches(sample, roi, batches, peer)
    peer.cached["image"][:] += 0.01
    with pytest.raises(NotTheSame, match="voxels"):
        crops.same_batches(sample, roi, batches, peer)


def test_views_of_other_pixels_are_not_the_same_work(tmp_path, monkeypatch):
    (sample,) = views.write_pictures(tmp_path, 1)
    assert "equal pixels" in views.same_pixels(sample)
    monkeypatch.setattr(views, "STD", 0.25)
    with pytest.raises(NotTheSame, match="grey levels"):
        views.same_pixels(sample)


def test_the_prediction_that_is_scored_is_a_little_off():
    truth = np.pad(np.ones((8, 8, 10), np.uint8), 4)
    prediction = scores.a_little_off(truth)
    assert prediction.shape == truth.shape and 0.3 < (prediction == truth).mean() < 1


# ---- the command


def test_cheap_rows_end_to_end_with_a_page_and_json(tmp_path):
    page = tmp_path / "speed.md"
    done = run("views-2d", "mae-2d", "--short", "--pairs", "1", "--to", str(page), "--json")
    assert done.exit_code == 0, done.output
    first, second, *_ = json.loads(done.stdout.splitlines()[-1])["results"]
    assert first["row"] == "mae-2d" and "no checkout" in first["not_measured"]
    assert (
        second["numbers"]["ratio"]["median"] > 0 and "equal pixels" in second["same"] and second["floor"]["seconds"] > 0
    )
    assert (
        "| views-2d | PIL, grey |" in page.read_text() and "mae-2d, facebookresearch/mae: not measured" in done.stderr
    )


def test_what_was_measured_before_a_ctrl_c_is_on_the_page(tmp_path, monkeypatch):
    def stopped():
        yield comparison()
        raise KeyboardInterrupt

    monkeypatch.setattr("premed.benchmarks.rows.ROWS", (row(stopped),))
    page = tmp_path / "speed.md"
    with pytest.raises(KeyboardInterrupt, match="stopped; .*speed.md has what was measured"):
        command.bench(to=page)
    assert "| made-up | peer | 1 s | 2 s | 2.00 × [2.00, 2.00] |" in page.read_text()


def test_rows_that_differ_end_with_exit_code_1(monkeypatch):
    def differing():
        yield from ()
        raise NotTheSame("losses 1 and 2")

    monkeypatch.setattr("premed.benchmarks.rows.ROWS", (row(differing),))
    done = run()
    assert done.exit_code == 1 and "losses 1 and 2" in done.stdout


def test_the_list_names_every_row():
    done = run("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [each.name for each in ROWS]


def test_a_checkout_may_be_named_by_the_environment(tmp_path):
    done = CliRunner(env={"PREMED_PEER_MAE": str(tmp_path)}).invoke(app, ["bench", "mae-2d"])
    assert "--peer-mae" in str(done.exception) and Path(tmp_path).name in str(done.exception)


def test_unetr_s_weights_are_selfmedmae_s_by_name():
    assert unetr.renamed("head.decoder2.x") == "decoder.decoder2.x"
    assert unetr.renamed("encoder.blocks.0.x") == "encoder.blocks.0.x"
