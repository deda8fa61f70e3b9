"""The file that marks a stage as finished: what it holds is what the stage wrote, or it does not count."""

import json

import pytest

from premed.config.settings import Train
from premed.events import WarningIssued
from premed.training.results import other_rounding, put_files, put_result, read_result, whole_result
from premed.training.storage import StageStorage

RESULT = {
    "kind": "test",
    "digest": "a" * 64,
    "summary": {"test/mauc": 0.92, "test/auc/a": None},
    "num_cases": 4,
    "seconds": 1.5,
    "peak_memory_mb": 900.0,
    "interval": (0.8, 0.98),
}
ROWS = [
    {"case": "a", "patient": "p", "y/a": 1, "p/a": 0.25},
    {"case": "b", "patient": "q", "y/a": 0, "p/a": float("nan")},
]


@pytest.fixture
def storage(tmp_path):
    storage = StageStorage(str(tmp_path), "stage")
    storage.put_json("scores.json", ROWS)
    storage.put_json("constant.json", ROWS)
    put_result(storage, RESULT)
    return storage


def test_a_result_is_read_as_it_was_written(storage):
    found = read_result(storage)
    assert {name: found[name] for name in RESULT} == json.loads(json.dumps(RESULT))
    assert whole_result(storage, "test", print) == found


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"0.92", b"0.98"), (b"summary", b"summbry"), (b'"num_cases": 4', b'"num_cases": 5'), (b"0.8", b"0.1")],
)
def test_a_result_with_a_changed_character_does_not_count_and_is_put_aside(storage, caplog, before, after):
    content = storage.get("result.json")
    storage.put("result.json", content.replace(before, after, 1))
    assert content != storage.get("result.json") and read_result(storage) is None
    assert "result.json is damaged (it is not what the stage wrote)" in caplog.text
    assert "result.json.damaged" in storage.names() and read_result(storage) is None


@pytest.mark.parametrize("value", [{}, [], 3, {"kind": "test"}, {"hashes": []}, {**RESULT, "summary": []}])
def test_json_that_is_no_result_does_not_count(storage, value):
    storage.put_json("result.json", value)
    assert read_result(storage) is None


def test_a_result_of_an_earlier_version_has_no_hashes_and_counts(storage):
    storage.put_json("result.json", RESULT)
    assert whole_result(storage, "test", print)["summary"] == RESULT["summary"]


@pytest.mark.parametrize(
    "damage", [lambda content: content.replace(b"0.25", b"0.75"), lambda content: content[:40], None]
)
def test_a_table_of_scores_that_is_not_the_stage_s_takes_the_result_with_it(storage, damage):
    if damage:
        storage.put("scores.json", damage(storage.get("scores.json")))
    else:
        storage.remove("scores.json")
    shown = []
    assert whole_result(storage, "test", shown.append) is None and read_result(storage) is None
    assert [type(event) for event in shown] == [WarningIssued]
    assert "scores.json damaged or missing: fetched from MLflow, or made again" in shown[0].text


def test_files_from_elsewhere_count_though_their_tables_are_laid_out_in_another_way(storage, tmp_path):
    folder = tmp_path / "stage"
    (folder / "scores.json").write_text(json.dumps([dict(reversed(row.items())) for row in ROWS]))
    copy = StageStorage(str(tmp_path), "copy")
    put_files(copy, folder)
    assert copy.get("result.json") == storage.get("result.json")
    assert whole_result(copy, "test", print) == read_result(storage)
    (folder / "result.json").write_bytes(storage.get("result.json").replace(b"0.92", b"0.98"))
    other = StageStorage(str(tmp_path), "other")
    put_files(other, folder)
    assert read_result(other) is None


def test_a_result_in_another_precision_than_is_asked_for_is_told():
    result = RESULT | {"precision": "float32"}
    (line,) = other_rounding(result, Train(precision="bf16"))
    assert line == "was trained in float32, and is used as it is; another PREMED_HOME has it trained in bfloat16"
    assert other_rounding(result, Train(precision="fp32")) == other_rounding(result, Train()) == []
    assert other_rounding(RESULT, Train(precision="bf16")) == []  # a test has none


def test_a_result_that_was_compiled_and_now_would_not_be_is_told_and_the_other_way_round():
    (line,) = other_rounding(RESULT | {"compiled": True}, Train())
    assert line == (
        "was trained with torch.compile, and is used as it is; another PREMED_HOME has it trained without torch.compile"
    )
    (line,) = other_rounding(RESULT | {"compiled": False}, Train(compile=True))
    assert line.startswith("was trained without torch.compile, and")
    for compiled in (True, False):
        assert other_rounding(RESULT | {"compiled": compiled}, Train(compile=compiled)) == []
        assert other_rounding(RESULT, Train(compile=compiled)) == []  # a test, or a closed form


def test_a_result_of_another_stage_does_not_count_in_this_one_s_folder(tmp_path, caplog):
    folders = [StageStorage(str(tmp_path), f"test-{letter * 16}") for letter in "ab"]
    for letter, folder in zip("ab", folders, strict=True):
        folder.put_json("scores.json", ROWS)
        put_result(folder, RESULT | {"digest": letter * 64})
    one, other = folders
    assert read_result(one) is not None
    one.put("result.json", other.get("result.json"))
    assert whole_result(one, "test", print) is None
    assert "it is of another stage, test-bbbbbbbbbbbbbbbb" in caplog.text and read_result(other) is not None
