"""Names that are planted in tags, files, folders and tables are in nothing that is stored, with `tracking.hash_ids`."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from support.experiments import SCRATCH, TINY, bare
from support.readers import shipped

from premed.config.compose import merge, validate_experiment
from premed.contracts import Case, Sample
from premed.data.io.readers import read_file
from premed.errors import StageFailed
from premed.execution import runner
from premed.paths import ensure_home
from premed.reporting.comparison import compare
from premed.safety.pseudonyms import HASHED, make_key, pseudonym, read_key
from premed.tracking.run_store import open_store
from premed.training.privacy import Privacy

pytest_plugins = ["support.experiment_fixtures"]

PLANTED = ["DOE^JANE", "DOE_JANE_FILE", "DOE_JANE_FOLDER", "DOE_JANE_PATIENT"]
TABLE = f"{PLANTED[2]}/table.csv"
TASK = {
    "name": "images",
    "table": TABLE,
    "label": "kind",
    "roi": [16, 16],
    "stored": [32, 32],
    "split_seed": 1,
}
PRIVATE = {"tracking": {"hash_ids": True, "pictures": "none"}}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """16 patients with a DICOM picture each, whose names are everywhere."""
    root = tmp_path_factory.mktemp("hospital") / "xrays"
    (root / PLANTED[2]).mkdir(parents=True)
    picture, rows = pydicom.dcmread(shipped("CT_small.dcm")), []
    for number in range(16):
        picture.PatientName, picture.PatientID = PLANTED[0], f"{PLANTED[3]}_{number}"
        picture.BurnedInAnnotation = "YES" if number == 3 else "NO"
        picture.PixelData = bytes([number]) * 2 + picture.PixelData[2:]
        picture.save_as(root / PLANTED[2] / f"{PLANTED[1]}_{number}.dcm")
        path = f"{PLANTED[2]}/{PLANTED[1]}_{number}.dcm"
        rows.append({"path": path, "patient": f"{PLANTED[3]}_{number}", "kind": "ab"[number % 2]})
    with (root / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return root


def experiment(root, *changes):
    tree = merge({name: value for name, value in TINY.items() if name != "task"}, {"task": TASK | {"root": str(root)}})
    for change in changes:
        tree = merge(tree, change)
    return validate_experiment(tree)


def run(root, *changes):
    return runner.run(experiment(root, *changes), lambda event: None)


def found(folder):
    """The planted names in the files of a folder, and in their names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        (name, path.name)
        for path in files
        for name in PLANTED
        if name.encode() in path.read_bytes() or name in str(path.relative_to(folder))
    }


def test_a_planted_name_is_in_nothing_that_is_stored(hospital, home, monkeypatch):
    bare(monkeypatch)
    split = {part: [f"{PLANTED[3]}_{n}" for n in numbers] for part, numbers in
             {"train": range(8), "val": range(8, 12), "test": range(12, 16)}.items()}  # fmt: skip
    outcomes = [run(hospital, PRIVATE, {"task": {"split": split}}, change) for change in ({}, SCRATCH)]
    assert found(home) == set()
    tables = [json.loads(path.read_text()) for path in home.rglob("artifacts/**/scores.json")]
    columns = [dict(zip(each["columns"], zip(*each["data"], strict=True), strict=True)) for each in tables]
    assert len(tables) >= 4 and all(HASHED.fullmatch(name) for each in columns for name in each["case"])
    tested = [set(each["patient"]) for each in columns if len(each["patient"]) == 4]
    key = read_key(home)
    assert {pseudonym(key, name) for name in split["test"]} in tested  # the same in all runs: they are paired
    assert len({frozenset(each) for each in tested}) == 2, "val and test"
    result = compare.compare(open_store())
    assert not [name for name in PLANTED if name in repr(result)]
    assert [stage["kind"] for stage in outcomes[0]["stages"]] == ["pretrain", "finetune", "test"]
    assert (home / "id_key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_without_the_setting_the_names_are_there_which_is_what_the_test_above_looks_for(hospital, home, monkeypatch):
    bare(monkeypatch)
    run(hospital, SCRATCH)
    names = {name for name, _ in found(home)}
    assert names >= {*PLANTED[1:]} and PLANTED[0] not in names, "DICOM's tags are stored nowhere"
    files = {file for _, file in found(home)}
    assert {"scores.json", "scores.csv", "contents.sqlite"} <= files


def test_the_traceback_of_a_failed_stage_names_nobody(hospital, home, monkeypatch):
    def fail(*given):
        raise RuntimeError(f"of {PLANTED[1]}_3")

    bare(monkeypatch)
    monkeypatch.setattr("premed.training.stage.make_optimizer", fail)
    with pytest.raises(StageFailed, match=PLANTED[1]):  # who sees the terminal sees the files, too
        run(hospital, PRIVATE, SCRATCH)
    (file,) = (home / "checkpoints").glob("finetune-*/traceback.txt")
    assert found(home) == set()
    assert "training/stage.py" in file.read_text() and file.read_text().endswith("\nRuntimeError\n")


def test_the_settings_change_no_digest(hospital):
    plain, private = (
        [stage.digest() for stage in experiment(hospital, *changes).stages(lambda kind: f"data of {kind}")]
        for changes in ([], [PRIVATE])
    )
    assert len(plain) == 3 and plain == private


def test_what_a_person_is_to_add_again_is_left_out():
    tree = {
        "name": None,
        "task": {"name": "images", "root": "/DOE", "table": "DOE.csv", "split": {"train": ["DOE"]}, "roi": [16, 16]},
        "pretrain": {"sources": [{"task": {"name": "unlabelled", "exclude": ["DOE"]}}], "lr": 0.1},
    }
    tree["pretext"] = {"levels": ["a"], "sources": [{"task": {"name": "unlabelled", "root": "/DOE"}}]}
    left = {"name": None, "task": {"name": "images", "roi": [16, 16]}, "pretrain": {"lr": 0.1}}
    left["pretext"] = {"levels": ["a"]}
    assert Privacy(bytes(32)).without_names(tree) == left and Privacy().without_names(tree) == tree


def test_pictures_are_titled_by_hashes_or_not_drawn():
    privacy = Privacy(bytes(32))
    sample = Sample(Case("DOE", "JANE", ()), None)  # type: ignore[arg-type]
    (hidden,) = privacy.samples([sample])
    assert HASHED.fullmatch(hidden.case.name) and hidden.case.patient == "" and "JANE" not in repr(hidden)
    assert "key" not in repr(privacy) and Privacy().samples([sample]) == [sample]


def test_a_name_has_one_hash_per_home_and_a_hash_stays_itself(tmp_path):
    homes = [tmp_path / "a", tmp_path / "b"]
    for folder in homes:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: make_key(homes[0]), range(8)))
    assert len(keys) == 1 and [path.name for path in homes[0].iterdir()] == ["id_key"]
    (key,) = keys
    one = pseudonym(key, "DOE")
    assert one == pseudonym(make_key(homes[0]), "DOE") == pseudonym(key, one) != pseudonym(make_key(homes[1]), "DOE")
    # HMAC-SHA256 of RFC 4231, case 2
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == f"id-{expected[:16]}"


def test_a_new_home_is_its_owner_s_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "new"))
    assert ensure_home().stat().st_mode & 0o777 == 0o700
    (tmp_path / "old").mkdir(mode=0o750)
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "old"))
    assert ensure_home().stat().st_mode & 0o777 == 0o750, "a group's folder stays the group's"


@pytest.mark.parametrize("value, noted", [("YES", True), ("yes", True), ("NO", False), (None, False)])
def test_text_burnt_into_a_dicom_picture_is_a_finding(tmp_path, value, noted):
    picture = pydicom.dcmread(shipped("CT_small.dcm"))
    if value:
        picture.BurnedInAnnotation = value
    picture.save_as(tmp_path / "a.dcm")
    assert any("BurnedInAnnotation is YES" in note.text for note in read_file(tmp_path / "a.dcm").notes) is noted
