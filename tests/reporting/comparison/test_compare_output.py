"""What `premed compare` prints and writes: the table, the CSV and the JSON."""

import csv
import json
import shutil

import pytest
from support.comparing import (
    add,
    difference_of,
    exclusive,
    in_order,
    variety,
    volumes,
)
from support.suite import REPOSITORY

from premed.cli.options import as_json_value, print_result
from premed.errors import UserError
from premed.reporting.comparison import terminal
from premed.reporting.comparison.compare import compare
from premed.tracking.run_store import RunStore

pytest_plugins = ["support.store_fixtures"]


# ---- what people see


def test_the_table_fits_120_columns_and_says_all(trained, capsys):
    for seed in range(3):
        add(trained, "none", seed, volumes(0.6, seed), change={"task": {"name": "btcv"}}, score="dice")
    terminal.show(compare(trained))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    for words in (
        "baseline",
        "better",
        "95 % interval",
        "3 x 0.033 CPU-h",
        "CPU-h",
        "mean AUC by class",
        "HD95, mm",
        "missed",
    ):
        assert words in out, words


def test_two_exclusive_classes_whose_auc_is_one_have_no_table_of_their_own(store, capsys):
    def of_two(rows):
        names = {"a": "benign", "b": "malignant"}
        kept = [{key: row[key] for key in ("case", "patient")} for row in rows if not row["y/c"]]
        for row, each in zip(kept, (row for row in rows if not row["y/c"]), strict=True):
            for old, name in names.items():
                row |= {f"y/{name}": each[f"y/{old}"], f"p/{name}": each[f"p/{old}"] / (each["p/a"] + each["p/b"])}
        return kept

    for strategy, value in (("none", 0.5), ("mae", 1.5)):
        add(store, strategy, 0, of_two(exclusive(value)), score="mauc")
    for run in store.search({"premed.kind": "experiment"}):
        store.log_rows(run.run_id, [{"step": 0, "time": 0, "metrics": {"test/accuracy": 0.7}}])
    terminal.show(compare(store))
    out = capsys.readouterr().out
    assert "mean AUC" in out and "by class" not in out and "malignant" not in out


def test_in_the_csv_the_constant_answer_s_score_stands_beside_that_score_alone(store, tmp_path):
    """An accuracy of always the same answer, beside an AUC, read as the AUC of one: it has 0.5."""
    for strategy, value in (("none", 0.5), ("mae", 1.5)):
        add(store, strategy, 0, exclusive(value), score="accuracy")
    terminal.write_csv(compare(store), tmp_path / "all.csv")
    lines = list(csv.DictReader((tmp_path / "all.csv").open()))
    scores = {(line["score"], line["class"]): line["constant"] for line in lines}
    assert scores.pop(("accuracy", "")) == "0.5" and len(scores) > 2 and {*scores.values()} == {""}


def test_the_csv_has_every_number_once(trained, tmp_path):
    result = compare(trained)
    terminal.write_csv(result, tmp_path / "all.csv")
    lines = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [(line["label"], line["class"]) for line in lines] == [
        (label, name) for label in ("none", "mae") for name in ("", "heart", "lung")
    ]
    assert (
        float(lines[3]["difference"]) == difference_of(result).value
        and lines[3]["verdict"] == "better, this pre-training"
    )
    assert lines[0]["difference"] == "" and lines[0]["is_baseline"] == "True"
    with pytest.raises(UserError, match="cannot be written"):
        terminal.write_csv(result, tmp_path / "absent" / "all.csv")


# ---- what programs see


GOLDEN = REPOSITORY / "tests" / "golden" / "comparison"


def rounded(value):
    """Other processors add in another order: nine decimals are the same everywhere."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value


def cell(text):
    try:
        return repr(rounded(float(text))) if set(text) & {".", "e"} else text
    except ValueError:
        return text


def test_json_terminal_and_csv_are_what_they_were(store, capsys, tmp_path):
    variety(store)
    result = compare(store)
    print_result(result, True, terminal.show)
    written = rounded(json.loads(capsys.readouterr().out))
    assert json.dumps(written, indent=1) + "\n" == (GOLDEN / "variety.json").read_text()
    print_result(result, False, terminal.show)
    assert capsys.readouterr().out == (GOLDEN / "variety.txt").read_text()
    terminal.write_csv(result, tmp_path / "all.csv")
    lines = csv.reader((tmp_path / "all.csv").open())
    assert [[*map(cell, line)] for line in lines] == [*csv.reader((GOLDEN / "variety.csv").open())]


def test_mlflow_s_store_gives_what_the_store_in_memory_gives(store, empty_database, tmp_path):
    messages = []
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    for each in (store, RunStore(f"sqlite:///{tmp_path}/mlflow.db")):
        ids = in_order(each)
        add(each, "none", 0, volumes(0.5), change={"task": {"name": "btcv"}}, score="dice")
        add(each, "mae", 0, volumes(0.8), change={"task": {"name": "btcv"}}, score="dice")
        add(each, "none", 0, status="RUNNING")
        messages.append(json.dumps(as_json_value(compare(each))))
        for number, run_id in enumerate(ids):
            messages[-1] = messages[-1].replace(run_id, f"run{number:03d}")
    assert messages[0] == messages[1]
