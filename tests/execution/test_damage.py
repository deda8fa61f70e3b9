"""Files of finished stages that a disk damaged, and images that change while a command runs."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load
from support.experiments import SCRATCH, run, settle_in
from support.stores import copied

from premed.errors import UserError
from premed.events import StageReused, StageStarted, WarningIssued
from premed.inference import load as loading
from premed.training import artifacts
from premed.training.storage import StageStorage

pytest_plugins = ["support.experiment_fixtures"]


@pytest.fixture
def used(mae_home, tmp_path, monkeypatch):
    """A copy of a home in which MAE has run to its end, in use, and the outcome."""
    home, outcome = mae_home
    settle_in(monkeypatch, copied(home, tmp_path / "used"))
    return tmp_path / "used", outcome


ANOTHER = {"finetune": {"seed": 1}}
"""A fine-tuning that has not run yet, of the pre-training that has."""


def again(chest, *changes):
    """Runs an experiment; returns its outcome, the kinds of the stages that were trained, and the warnings."""
    seen = []
    outcome = run(chest, *changes, show=seen.append)
    trained = [event.kind for event in seen if isinstance(event, StageStarted)]
    return outcome, trained, [event.text for event in seen if isinstance(event, WarningIssued)]


def flip(path, at=-1):
    """Turns one bit of a file; of its last byte, if `at` says nothing else."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def stage_folder(outcome, home, kind):
    where = next(stage["where"] for stage in outcome["stages"] if stage["kind"] == kind)
    return home / "checkpoints" / where.rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("parts/encoder.safetensors", "flipped"),
        ("parts/card.json", "torn"),
        ("result.json", "digit"),
        *(
            pytest.param(name, damage, marks=pytest.mark.slow)
            for name, damage in (
                *(("parts/encoder.safetensors", damage) for damage in ("torn", "gone")),
                *(("parts/card.json", damage) for damage in ("flipped", "gone")),
                *(("result.json", damage) for damage in ("torn", "gone")),
            )
        ),
    ],
)
def test_a_damaged_file_of_a_finished_stage_comes_back_from_mlflow_with_a_word(used, chest, caplog, name, damage):
    home, outcome = used
    file = stage_folder(outcome, home, "pretrain") / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "digit":  # of a number that is shown and compared
        changed = re.sub(rb'("val/[a-z_]+": [0-9]*[.])([0-8])', rb"\g<1>9", whole, count=1)
        assert changed != whole
        file.write_bytes(changed)
    else:
        file.write_bytes(whole.replace(b'"digest": "', b'"digest": "x')) if name[-4:] == "json" else flip(file)
    _, trained, warned = again(chest, ANOTHER)
    assert trained == ["finetune", "test"] and file.read_bytes() == whole
    damaged = [line for line in (*warned, *caplog.messages) if "damaged" in line]
    assert len(damaged) in ([0] if (name, damage) == ("result.json", "gone") else [1, 2])


def test_weights_that_nothing_needs_any_more_may_be_removed(used, chest):
    """To free a disk, say: the experiment is finished."""
    home, outcome = used
    for folder in home.glob("checkpoints/*/parts"):
        shutil.rmtree(folder)
    now, trained, warned = again(chest)
    assert (trained, warned) == ([], []) and not list(home.glob("checkpoints/*/parts"))
    assert now["stages"][-1]["value"] == outcome["stages"][-1]["value"]


@pytest.mark.slow
def test_weights_that_are_damaged_in_mlflow_too_are_trained_again(used, chest):
    home, outcome = used
    folder = stage_folder(outcome, home, "pretrain")
    whole = (folder / "parts" / "encoder.safetensors").read_bytes()
    expected = load(whole)
    for copy in home.rglob("encoder.safetensors"):
        if copy.read_bytes() == whole:
            flip(copy)
    _, trained, warned = again(chest, ANOTHER)
    found = load((folder / "parts" / "encoder.safetensors").read_bytes())
    assert trained == ["pretrain", "finetune", "test"] and len(warned) == 2
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_a_torn_curve_is_read_as_far_as_it_goes_and_told(used, caplog):
    home, outcome = used
    folder = stage_folder(outcome, home, "pretrain")
    points = artifacts.curve_of(StageStorage(str(folder.parent), folder.name))
    with (folder / "curve.jsonl").open("r+b") as file:
        file.truncate((folder / "curve.jsonl").stat().st_size - 5)
    assert artifacts.curve_of(StageStorage(str(folder.parent), folder.name)) == points[:-1]
    assert "curve.jsonl is damaged" in caplog.text and (folder / "curve.jsonl.damaged").is_file()


# ---- predict


def test_a_damaged_head_is_taken_from_mlflow(used):
    home, outcome = used
    folder = stage_folder(outcome, home, "finetune")
    before = (folder / "parts" / "head.safetensors").read_bytes()
    flip(folder / "parts" / "head.safetensors")
    with loading.open_trained(outcome["run_id"]) as found:
        assert found.storage.get("parts/head.safetensors") == before


@pytest.mark.parametrize("damaged", [False, True])
def test_the_weights_of_a_network_are_hashed_once(used, damaged, monkeypatch):
    home, outcome = used
    hashed, is_whole = [], artifacts.is_whole
    if damaged:
        flip(stage_folder(outcome, home, "finetune") / "parts" / "head.safetensors")
    monkeypatch.setattr(artifacts, "is_whole", lambda *args: (hashed.append(args[1]), is_whole(*args))[1])
    with loading.open_trained(outcome["run_id"]) as found:
        found.network()
        parts = [found.card["hashes"][part] for part in ("encoder", "head")]
    assert sorted(hashed) == sorted(parts * (2 if damaged else 1))  # in its folder, and MLflow's


@pytest.mark.parametrize("name", ["head.safetensors", "card.json"])
def test_a_network_that_is_damaged_everywhere_answers_nothing(used, name):
    home, outcome = used
    whole = (stage_folder(outcome, home, "finetune") / "parts" / name).read_bytes()
    for copy in home.rglob(name):
        if copy.read_bytes() == whole:
            flip(copy, whole.index(b"width") + 9 if name == "card.json" else -1)
    with (
        pytest.raises(UserError, match="weights are (damaged|neither) in .* run it again"),
        loading.open_trained(outcome["run_id"]),
    ):
        pass


def test_a_card_knows_its_parts_and_itself(used):
    home, outcome = used
    folder = stage_folder(outcome, home, "finetune")
    storage = StageStorage(str(folder.parent), folder.name)
    card = artifacts.read_card(storage)
    assert set(card["hashes"]) == {"card", "encoder", "head"} and artifacts.damaged_parts(storage) == []
    storage.put_json("parts/card.json", card | {"classes": card["classes"][::-1]})
    assert artifacts.damaged_parts(storage) == ["parts/card.json"]


def test_stages_without_hashes_from_before_are_used_if_they_can_be_read(used, chest):
    home, outcome = used
    folder = stage_folder(outcome, home, "pretrain")
    storage = StageStorage(str(folder.parent), folder.name)
    storage.put_json(
        "parts/card.json", {name: value for name, value in artifacts.read_card(storage).items() if name != "hashes"}
    )
    assert artifacts.damaged_parts(storage) == []
    (folder / "parts" / "encoder.safetensors").write_bytes(b"torn")
    assert artifacts.damaged_parts(storage) == ["parts/encoder.safetensors"]


# ---- images that change


def changing(chest, tmp_path, when):
    """A copy of the X-rays, and a handler that changes one of its train images at the first event of a class."""
    root = shutil.copytree(chest, tmp_path / "chestxray14")
    names = (root / "train_val_list.txt").read_text().split()
    (image,) = root.rglob(names[0])
    done = []

    def handle(event):
        if isinstance(event, when) and not done:
            done.append(event)
            Image.fromarray(255 - np.asarray(Image.open(image))).save(image)

    return root, handle


@pytest.mark.slow
def test_images_that_change_after_they_were_identified_are_not_trained_on(home, chest, tmp_path):
    root, change = changing(chest, tmp_path, StageStarted)
    with pytest.raises(UserError, match=rf"^{root}: images changed while the command ran.*run the same command again"):
        run(root, SCRATCH, show=change)
    assert again(root, SCRATCH)[1] == ["finetune", "test"]


@pytest.mark.slow
def test_images_that_changed_between_two_commands_are_other_data(home, chest, tmp_path):
    root, change = changing(chest, tmp_path, StageReused)
    run(root, SCRATCH)
    run(root, SCRATCH, show=change)
    assert again(root, SCRATCH)[1] == ["finetune", "test"]
