"""What `premed init` takes a folder for: paths of tables, layouts of other tools, images that are not opened."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support import folders

from premed.config.expand import load_all
from premed.contracts import Case
from premed.data.io.headers import Header
from premed.data.phantoms.brain import write_brats
from premed.data.phantoms.writers import write_msd
from premed.data.survey import Survey, Values, survey
from premed.errors import UserError
from premed.planning import folder as planning
from premed.planning import images, init
from premed.planning.machine import Machine
from premed.tasks.common import image_folder, volume_pairs
from premed.tasks.common.recognised import OWN, Recognised

pytest_plugins = ["support.experiment_fixtures"]

SPELLINGS = {
    "plain": "images/{}.nii.gz",
    "below the folder": "./images/{}.nii.gz",
    "absolute": "{root}/images/{}.nii.gz",
    "absolute, past a link": "{real}/images/{}.nii.gz",
    "twice the slash": "images//{}.nii.gz",
    "up and down": "images/../images/{}.nii.gz",
}


def listed_volumes(root, spelling):
    """Volumes with a table that spells their paths so; returns the folder, by a link to it."""
    (root / "real").mkdir(parents=True)
    (root / "link").symlink_to("real")
    cells = [spelling.format(n, root=root / "link", real=root / "real") for n in range(8)]
    folders.table(root / "real/labels.csv", [["file", "bleeding"], *([cell, n % 2] for n, cell in enumerate(cells))])
    for number in range(8):
        folders.volume(root / f"real/images/{number}.nii.gz", np.ones((4, 4, 4), np.uint8))
    return root / "link"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_volumes_are_volumes_however_a_table_spells_their_paths(tmp_path, spelling):
    """And the task reads the table as it is: no listing is written for what it finds by itself."""
    found = image_folder.recognise(listed_volumes(tmp_path, SPELLINGS[spelling]))
    assert found.task["dims"] == 3 and (found.task["table"], found.listing) == ("labels.csv", None)
    assert not any("without a row" in note for note in found.notes)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_table_of_which_one_name_lacks_its_folder_is_written_anew_with_all_names_alike(tmp_path, spelling):
    root = listed_volumes(tmp_path, SPELLINGS[spelling])
    text = (root / "labels.csv").read_text()
    first = text.splitlines()[1].split(",")[0]
    (root / "labels.csv").write_text(text.replace(first, "0.nii.gz"))
    found = image_folder.recognise(root)
    lines = found.listing.text.splitlines()
    assert lines == ["file,bleeding", *(f"images/{n}.nii.gz,{n % 2}" for n in range(8))] and found.task["dims"] == 3


def test_a_cell_that_names_no_image_or_the_folder_itself_is_no_image(tmp_path):
    root = listed_volumes(tmp_path, "{}.nii.gz")
    where = image_folder.Paths(root, image_folder.find_images(root))
    assert where.names(["", ".", str(root), f"{root}/images", "../0.nii.gz", "9.nii.gz", os.sep]) == {}
    assert where.find("0.nii.gz") == where.find(f"{root}/images/0.nii.gz") == "images/0.nii.gz"


def cases_of(root, values):
    paths = [root / f"{n}.nii.gz" for n in range(len(values))]
    for path, each in zip(paths, values, strict=True):
        folders.volume(path, each)
    return [Case(path.name, path.name, (path,)) for path in paths]


def survey_of(cases):
    return survey(cases, 3, lambda done, total: None)


def test_images_of_nan_are_unreadable_as_a_training_finds_them_and_the_others_count(tmp_path):
    some = np.full((3, 4, 5), 7, np.float32)
    holed = some.copy()
    holed[0, 0, 0] = np.nan
    found = survey_of(cases_of(tmp_path, [some, np.full((3, 4, 5), np.nan, np.float32), holed]))
    assert found.values == Values((7, 7, 7, 7, 7), 1)
    assert [each.split(": ")[1].split(";")[0] for each in found.unreadable] == [
        "60 values are NaN or infinite",
        "1 values are NaN or infinite",
    ]


def test_where_all_images_are_of_nan_it_says_so_and_names_one(premed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases_of(tmp_path / "nan", [np.full((4, 4, 4), np.nan, np.float32)] * 8)
    folders.table(tmp_path / "nan/labels.csv", [["file", "ill"], *([f"{n}.nii.gz", n // 2 % 2] for n in range(8))])
    code, out, err = premed("init", tmp_path / "nan")
    assert (code, out) == (2, "") and "64 values are NaN or infinite" in err[-1]
    assert "none of the 8 images that were tried is read" in err[-1]


def test_where_all_images_are_large_it_plans_by_their_headers_and_says_so(tmp_path, monkeypatch):
    for module in ("data.survey", "planning.init"):
        monkeypatch.setattr(f"premed.{module}.LARGEST_SAMPLE", 63)
    monkeypatch.chdir(tmp_path)
    cases_of(tmp_path / "large", [np.full((4, 4, 4), n, np.int16) for n in range(8)])
    folders.table(tmp_path / "large/labels.csv", [["file", "ill"], *([f"{n}.nii.gz", n // 2 % 2] for n in range(8))])
    result = init.run(tmp_path / "large", machine=Machine(2, 16.0))
    assert "no image was opened for its values: the 8 that were tried have more than 63 voxels" in "".join(
        result["notes"]
    )
    assert "intensities" not in result["found"] and load_all([tmp_path / "large.yaml"])[0].task.normalise == "zscore"


def test_colour_pictures_of_which_none_was_opened_stay_in_colour():
    found = Survey(1, [Header((20000, 20000), (), 3)], too_large=1)
    choices, notes = images.picture_values(found)
    assert choices["channels"].value == 3 and notes == []


# What tasks answer --------------------------------------------------------------------------------------------------

OTHERS = {
    "a list": [{"image": "a.nii.gz"}],
    "a text": "mine",
    "of another tool": {"images": 8, "licence": "CC"},
    "a broken one of the decathlon": {"training": [], "labels": {"0": "background", "1": "a"}},
}
"""dataset.json as others write it."""


@pytest.mark.parametrize("what", OTHERS)
def test_a_dataset_json_of_another_tool_does_not_stand_in_a_table_s_way(tmp_path, what):
    """What the refusing task says is noted: the table may not be what the folder is."""
    root = listed_volumes(tmp_path, "images/{}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(OTHERS[what]))
    found = planning.recognise(root)
    assert found.task["name"] == "images" and found.task["table"] == "labels.csv"
    (note,) = found.notes
    assert note.startswith(f"not read as task msd: {root / 'dataset.json'}: ") and "traceback" not in note.lower()


@pytest.mark.parametrize("what", [name for name in OTHERS if "broken" not in name])
def test_nor_in_the_way_of_volumes_with_label_maps(tmp_path, what):
    for number in range(3):
        folders.scan(tmp_path / f"images/{number}.nii.gz", tmp_path / f"labels/{number}.nii.gz", number)
    (tmp_path / "dataset.json").write_text(json.dumps(OTHERS[what]))
    found = planning.recognise(tmp_path)
    assert found.task["name"] == "nnunet" and found.listing is not None


@pytest.mark.parametrize("what", OTHERS)
def test_where_no_task_answers_the_first_refusal_is_the_error(tmp_path, what):
    folders.picture(tmp_path / "a.png")
    (tmp_path / "dataset.json").write_text(json.dumps(OTHERS[what]))
    with pytest.raises(UserError, match="dataset.json: "):
        planning.recognise(tmp_path)


def test_grey_masks_do_not_stand_in_a_table_s_way(tmp_path):
    root = listed_volumes(tmp_path, "images/{}.nii.gz")
    for number in range(8):
        folders.volume(root / f"labels/{number}.nii.gz", np.arange(64).reshape(4, 4, 4).astype(np.int16))
    found = planning.recognise(root)
    assert found.task["name"] == "images"
    assert any("labels" in note and note.startswith("not read as task nnunet: ") for note in found.notes)


def test_a_data_set_s_own_task_is_asked_alone_once_it_is_sure(monkeypatch, tmp_path):
    own = Recognised("the own one", OWN, {"name": "brats"})
    asked = []
    for task in ("brats", "btcv", "chestxray14", "images", "msd", "nnunet"):
        answer = {"brats": UserError("broken"), "chestxray14": own}.get(task)

        def hook(folder, task=task, answer=answer):
            asked.append(task)
            if isinstance(answer, UserError):
                raise answer
            return answer

        monkeypatch.setattr(f"premed.tasks.{task}.recognise", hook)
    assert planning.recognise(tmp_path) == replace(own, notes=("not read as task brats: broken",))
    assert asked == ["brats", "btcv", "chestxray14"]


def test_of_images_without_labels_it_names_the_task_that_pretrains_on_them(tmp_path):
    folders.picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 picture and no labels, .* the task `unlabelled` pre-trains on them alone"):
        planning.recognise(tmp_path)


@pytest.mark.parametrize("other", ["masks", "scans"])
def test_two_label_maps_or_images_of_one_case_are_refused_by_name(tmp_path, other):
    """Else some cases would have tumours and others lungs as label 1."""
    folders.side_by_side(tmp_path)
    folders.volume(tmp_path / other / "case03.nii.gz", np.ones((18, 20, 16), np.uint8))
    kind = "label maps" if other == "masks" else "images"
    with pytest.raises(UserError, match=f"case03.nii.gz and .*case03.nii.gz are both {kind} of one case"):
        planning.recognise(tmp_path)


def test_a_scan_of_bids_has_the_label_map_of_its_own_run(tmp_path):
    folders.bids_masks(tmp_path)
    anat, masks = tmp_path / "sub-00/anat", tmp_path / "derivatives/manual/sub-00/anat"
    for run in (1, 2):
        shutil.copy(anat / "sub-00_T1w.nii.gz", anat / f"sub-00_run-{run}_T1w.nii.gz")
    (anat / "sub-00_T1w.nii.gz").unlink()
    (masks / "sub-00_label-lesion_mask.nii.gz").rename(masks / "sub-00_run-2_label-lesion_mask.nii.gz")
    listed = json.loads(planning.recognise(tmp_path).listing.text)["dataset"]
    assert listed["sub-00_run-2_T1w"]["label"].endswith("sub-00_run-2_label-lesion_mask.nii.gz")
    assert "sub-00_run-1_T1w" not in listed and len(listed) == 8
    (masks / "sub-00_run-2_label-lesion_mask.nii.gz").rename(masks / "sub-00_label-lesion_mask.nii.gz")
    listed = json.loads(planning.recognise(tmp_path).listing.text)["dataset"]
    assert "label" not in listed["sub-00_run-1_T1w"]  # nothing says whose it is


def test_the_images_folder_of_a_data_set_names_the_folder_above(tmp_path):
    folders.side_by_side(tmp_path)
    with pytest.raises(UserError, match=f"no labels, which are in the folder above: name {tmp_path}"):
        planning.recognise(tmp_path / "images")


# Label maps ---------------------------------------------------------------------------------------------------------


def label_maps(root, maps):
    """Volumes of images/ and their maps of labels/, which have these values; returns how they are read."""
    for number, values in enumerate(maps):
        folders.volume(root / f"images/{number:03d}.nii.gz", np.ones((4, 4, 4), np.uint8))
        folders.volume(root / f"labels/{number:03d}.nii.gz", np.resize(values, (4, 4, 4)))
    return volume_pairs.recognise(root)


def labels_of(recognised):
    return json.loads(recognised.listing.text)["labels"]


def test_labels_that_float32_took_a_little_off_whole_numbers_are_labels(tmp_path):
    """As preprocessing takes them."""
    found = label_maps(tmp_path, [np.array([0, 1 + 1e-6, 2 - 1e-4], np.float32)] * 2)
    assert labels_of(found) == {"background": 0, "label_1": 1, "label_2": 2}


LABEL_FAULTS = {
    "interpolated": (np.linspace(0, 2, 64).astype(np.float32), "was interpolated: resample the original map"),
    "below 0": (np.array([-1, 0, 1], np.int16), "labels must be whole numbers in 0..255"),
    "grey": (np.arange(64).astype(np.int16), "is named as a label map and holds 64 values"),
    "0 and 255": (np.array([0, 255], np.uint8), "holds the label 255: .* a mask of 0 and 255 as 0 and 1"),
}


@pytest.mark.parametrize("what", LABEL_FAULTS)
def test_what_is_no_label_is_refused_with_what_mends_it(tmp_path, what):
    values, words = LABEL_FAULTS[what]
    with pytest.raises(UserError, match=f"labels/001.nii.gz: .*{words}"):
        label_maps(tmp_path, [np.array([0, 1], np.int16), values])


def test_of_many_label_maps_twenty_are_opened_evenly_spread_and_the_note_says_so(tmp_path, monkeypatch):
    opened = []
    read = volume_pairs.read_values
    monkeypatch.setattr(volume_pairs, "read_values", lambda path: opened.append(int(path.name[:3])) or read(path))
    found = label_maps(tmp_path, [np.array([0, 1], np.uint8)] * 39)
    assert opened == [n * 39 // 20 for n in range(20)] and opened[-1] == 37
    (note,) = found.notes
    assert note == "20 of 39 label maps were opened for their values: add labels that only others have to the listing"


def test_maps_and_voxels_that_cannot_be_read_are_left_to_data_check(tmp_path):
    nan = np.array([np.nan], np.float32)
    found = label_maps(tmp_path, [np.array([0, np.nan, 1], np.float32), nan, np.array([0, 3], np.uint8)])
    assert labels_of(found) == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3}
    assert found.notes == ("labels 2 are in no label map: write the maps as 0, 1, 2, …",)


def test_linked_folders_that_are_not_looked_into_are_told(tmp_path):
    for name in ("a/cats", "a/dogs", "elsewhere"):
        for number in range(8):
            folders.picture(tmp_path / name / f"{number}.png", number)
    (tmp_path / "a/birds").symlink_to(tmp_path / "elsewhere")
    found = planning.recognise(tmp_path / "a")
    assert any(note.startswith("birds is a link to a folder, not followed") for note in found.notes)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no image that is read .*; images is a link to a folder, not followed"):
        planning.recognise(tmp_path / "b")


@pytest.mark.parametrize(
    ("write", "case"), [(write_msd, "hippocampus_002"), (partial(write_brats, shape=(24, 24, 16)), "BRATS_002")]
)
def test_an_image_whose_listed_label_is_not_there_is_told_to_be_left_out(tmp_path, monkeypatch, write, case):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "scans", 24, 0)
    (root / "labelsTr" / f"{case}.nii.gz").unlink()
    notes = init.run(root, machine=Machine(2, 16.0))["notes"]
    assert any("files that are listed are NOT there (1)" in note and case in note for note in notes), notes
