"""What headers leave open is said where images are prepared, too: by each command that uses them, each kind once."""

import hashlib
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from support.checking import REST
from support.made_up import ct_series, nifti, radiograph

from premed.cli import app
from premed.config.image_processing import Preprocessing
from premed.config.spec import canonical
from premed.contracts import Case
from premed.data import datamodule
from premed.data.cache import VERSION, Cache
from premed.data.content import hash_file
from premed.data.datamodule import DataModule
from premed.data.prepared import write
from premed.data.preprocess import prepare
from premed.events import WarningIssued
from premed.tasks import images

rng = np.random.default_rng(1)

ZSCORE = Preprocessing(dims=3, normalise="zscore")
MM = {"sform": np.eye(4), "sform_code": 1, "xyzt_units": 2}
MICRON = {"sform": np.diag([1000, 1000, 1000, 1]), "sform_code": 1, "xyzt_units": 3, "pixdim": (1, 1000, 1000, 1000)}
OTHER = {"pixdim": (1, 1, 1, 8)}


def volume(path, **fields):
    return nifti(path, rng.integers(0, 99, (9, 8, 7)).astype(np.int16), **fields)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six volumes, two of each part: three in microns, of which one contradicts itself, and two more that do."""
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    rows = ["path,patient,part,sick"]
    for number, fields in enumerate([MICRON, MM, MM | OTHER, MICRON, MICRON | {"pixdim": (1, 1, 1, 8)}, MM | OTHER]):
        volume(tmp_path / "data" / f"{number}.nii", **fields)
        rows.append(f"{number}.nii,p{number},{('train', 'val', 'test')[number // 2]},{number % 2}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "data"


def config(root) -> dict:
    return {"root": str(root), "dims": 3, "roi": [8, 8, 8], "labels": ["sick"], "normalise": "zscore"}


def test_each_note_has_its_file(tmp_path):
    first, second, label = (
        volume(tmp_path / f"{name}.nii", **fields) for name, fields in zip("abl", (MM, OTHER | MM, MICRON), strict=True)
    )
    notes = prepare([first, second], label, ZSCORE.model_copy(update={"channels": 2})).notes
    assert [number for number, _ in notes] == [1, 2]
    assert "contradict" in notes[0][1].text and "micron" in notes[1][1].text


@pytest.mark.parametrize("when", ["computed", "found"])
def test_the_cache_says_them_of_images_that_it_computes_and_of_those_that_it_has(tmp_path, when):
    path = volume(tmp_path / "a.nii", **MICRON)
    cases, cache, messages = [Case("a", "a", (path,))], Cache(tmp_path / "cache"), []
    if when == "found":
        cache.prepare(cases, ZSCORE)
    cache.prepare(cases, ZSCORE, notify=lambda file, note: messages.append((file, note.text.partition(":")[0])))
    assert messages == [(path, "its unit of length is the micron")]


def test_stages_of_a_command_say_each_kind_once_with_the_first_file_and_their_number(folder):
    for _ in range(2):  # images that are in the cache are told of as well: by the next command
        shown = []
        data = DataModule(images.build(images.Config(**config(folder))), show=shown.append)
        lines = []
        for kind in ("pretrain", "finetune", "test"):
            data.fingerprint(kind)
            lines.append([event.text for event in shown if isinstance(event, WarningIssued)])
            shown.clear()
        units, contradiction = lines[0]
        assert units.startswith(f"{folder / '0.nii'}: its unit of length is the micron: its grid is converted to mm")
        assert units.endswith("(and so on, 2 files)")
        assert contradiction.startswith(
            f"{folder / '2.nii'}: sform and pixdim contradict each other: voxels of 1 × 1 × 1"
        )
        assert contradiction.endswith("correct the sform")
        assert lines[1:] == [[], []]


def test_a_command_prints_them(folder, monkeypatch, capsys):
    monkeypatch.setattr(app.stopping, "install", lambda: None)
    (folder / "a.yaml").write_text(yaml.safe_dump({"task": {"name": "images", **config(folder)}, **REST}))
    monkeypatch.setattr(sys, "argv", ["premed", "data", "prepare", str(folder / "a.yaml")])
    with pytest.raises(SystemExit) as end:
        app.main()
    printed = capsys.readouterr().err
    assert not end.value.code
    assert (
        printed.count("WARNING") == printed.count("its unit of length is the micron") + printed.count("contradict") == 2
    )


def test_stages_of_images_with_notes_are_not_those_of_an_earlier_reading_and_others_are(folder, monkeypatch):
    def fingerprint():
        return DataModule(images.build(images.Config(**config(folder)))).fingerprint("finetune")

    noted = fingerprint()
    assert noted == fingerprint()
    monkeypatch.setattr(datamodule, "READING", 1)
    assert fingerprint() != noted
    for number in range(4):
        volume(folder / f"{number}.nii", **MM)
    plain = fingerprint()
    monkeypatch.setattr(datamodule, "READING", 2)
    assert fingerprint() == plain


def test_text_in_a_picture_is_told_and_changes_no_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    rows = ["path,patient,part,sick"]
    for number, part in enumerate(("train", "val", "test")):
        pixels = rng.integers(0, 4096, (12, 10)).astype(np.uint16)
        radiograph(tmp_path / "data" / f"{number}.dcm", pixels, BurnedInAnnotation="YES")
        rows.append(f"{number}.dcm,p{number},{part},{number % 2}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    shown = []

    def fingerprint():
        config = images.Config(root=tmp_path / "data", roi=(8, 8), labels=("sick",))
        return DataModule(images.build(config), show=shown.append).fingerprint("finetune")

    as_now = fingerprint()
    assert any("BurnedInAnnotation is YES" in event.text for event in shown if isinstance(event, WarningIssued))
    monkeypatch.setattr(datamodule, "READING", 1)
    assert fingerprint() == as_now


def test_a_file_that_was_prepared_before_there_were_notes_does_not_decide_on_the_fingerprint(folder, tmp_path):
    """By the path of the second version's files: a hash of this number, the files' hashes, `has_map`, preprocessing."""

    def fingerprint():
        return DataModule(images.build(images.Config(**config(folder)))).fingerprint("test")

    expected, task = fingerprint(), images.build(images.Config(**config(folder)))
    shutil.rmtree(tmp_path / "home")
    for case in task.split("test"):
        key = [2, [hash_file(file).hash for file in case.files], False, task.preprocessing]
        name = hashlib.sha256(canonical(key).encode()).hexdigest()[:40]
        silent = replace(prepare(case.image, None, task.preprocessing), notes=())
        write(tmp_path / "home" / "cache" / name[:2] / f"{name}.safetensors", silent)
    assert fingerprint() == expected


def test_hashes_that_finished_pre_trainings_recorded_are_still_compared():
    assert VERSION == "2.1"


def test_padding_and_a_grid_that_is_straightened_are_noted(tmp_path):
    values = np.full((6, 5, 8), 100, np.int16)
    values[0] = -2000
    tilted = ct_series(tmp_path / "tilted", values, tilt=0.8, PixelPaddingValue=-976)  # as stored
    kinds = [note.text for _, note in prepare([tilted], None, ZSCORE.model_copy(update={"spacing": (1, 1, 1)})).notes]
    assert any("are padding" in note for note in kinds) and any("resampled to right angles" in note for note in kinds)
