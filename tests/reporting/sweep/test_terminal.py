"""A sweep's result on the terminal and as CSV."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from support.suite import REPOSITORY, examples
from support.sweeping import by_seed, full_grid, pruned_search, results, sweep, trial, two_objectives

from premed.errors import UserError
from premed.reporting.sweep import terminal

GOLDEN = REPOSITORY / "tests" / "golden" / "sweep"
RATIO, EPOCHS, DECAY = "pretext.mask_ratio", "pretrain.epochs", "finetune.layer_decay"


@pytest.mark.parametrize("make", [full_grid, pruned_search, two_objectives])
def test_a_pipe_and_the_csv_get_to_the_byte_what_they_got(make, capsys, tmp_path):
    terminal.show(result := make())
    assert capsys.readouterr().out == (GOLDEN / f"{make.__name__}.txt").read_text()
    terminal.write_csv(result, tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").read_bytes() == (GOLDEN / f"{make.__name__}.csv").read_bytes()


@pytest.mark.parametrize("make", [full_grid, pruned_search, two_objectives])
def test_every_trial_is_one_line_of_80_columns(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.show(result := make())
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    rows = [line for line in out.splitlines() if re.search(" (done|stopped|running|failed) +", line)]
    assert {str(each.number) for each in result.trials} <= {row.split()[0].rstrip("*") for row in rows}
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_failure_is_one_line_with_its_reason(capsys):
    terminal.show(pruned_search())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial 4 failed")]
    assert "the loss is not finite at step 41" in line


def test_many_fields_share_a_column_where_a_line_is_too_short_for_one_each(capsys):
    setting = {f"some.field{i}": f"number {i}" for i in range(16)}
    terminal.show(sweep({path: [value, 0] for path, value in setting.items()}, [trial(0, setting, {"0": 0.5})]))
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "trial setting state" in text and "field0 number 0, field1 number 1" in text


# ---- CSV


def test_the_csv_has_a_line_for_each_trial_and_seed(tmp_path):
    terminal.write_csv(result := full_grid(), tmp_path / "trials.csv")
    frame, columns = pd.read_csv(tmp_path / "trials.csv"), [RATIO, EPOCHS, DECAY, "trial", "seed", "val/dice"]
    assert np.allclose(frame[columns].to_numpy(float), by_seed(result).astype(float))
    assert frame["is_best"].sum() == 2 and "0.30000000000000004" not in (tmp_path / "trials.csv").read_text()


def test_a_trial_without_seeds_has_a_line_too(tmp_path):
    terminal.write_csv(pruned_search(), tmp_path / "trials.csv")
    frame = pd.read_csv(tmp_path / "trials.csv").set_index("trial")
    failed = frame.loc[4]
    assert len(frame) == 12 and pd.isna(failed["seed"]) and failed["failure"].startswith("finetune: the loss")


def test_a_csv_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written"):
        terminal.write_csv(full_grid(), tmp_path)


@settings(max_examples=examples(30), deadline=None)
@given(results())
def test_no_result_is_too_odd_for_the_terminal_and_the_csv(tmp_path_factory, result):
    terminal.show(result)
    terminal.write_csv(result, path := tmp_path_factory.mktemp("csv") / "trials.csv")
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == sum(max(len(each.by_seed), 1) for each in result.trials)
    assert all(len(row) == len(header) for row in rows)
