"""nnU-Net's raw data: files, folds, who is in which part; what is refused and how."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from support.nnunet import ABOUT, BRATS, EVERY, FOLDS, change, findings_of, folds, parts, raw, task
from support.task_fixtures import brain
from support.tasks import PARTS, check_parts, names, refused, samples

from premed.config.experiment import Experiment
from premed.data.check import listings
from premed.data.phantoms.writers import write_msd, write_nnunet
from premed.errors import UserError
from premed.tasks import brats, msd, nnunet
from premed.tasks.common.segmentation import Regions, Segmentation

# The layout ----------------------------------------------------------------------------------------------------------


def test_channels_are_files_in_the_order_of_their_numbers_and_labels_are_called_by_the_case(tmp_path):
    found = task(raw(tmp_path / "Dataset005_Prostate"))
    case = found.labelled["case_03"]
    assert [str(path.relative_to(found.root)) for path in case.files] == [
        "imagesTr/case_03_0000.nii.gz",
        "imagesTr/case_03_0001.nii.gz",
        "labelsTr/case_03.nii.gz",
    ]
    assert (found.name, found.channels, found.classes) == ("Dataset005_Prostate", 2, ("background", "PZ", "TZ"))
    assert isinstance(found, Segmentation) and not isinstance(found, Regions) and list(found.check()) == []


def test_the_channels_values_are_those_of_their_files(tmp_path):
    root, voxels = raw(tmp_path, test=0), np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    for name, values in (("imagesTr/case_00_0000", voxels), ("imagesTr/case_00_0001", 500 - 2 * voxels)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image((voxels % 3).astype(np.uint8), np.eye(4)), root / "labelsTr/case_00.nii.gz")
    found = task(root, window=(0, 500), percentiles=None, normalise="window", split={"train": ("case_00",)})
    (sample,) = samples(found, found.split("train"), tmp_path / "cache")
    np.testing.assert_allclose(sample.prepared.image(), np.stack([voxels, 500 - 2 * voxels]) / 500, atol=1e-6)
    assert np.array_equal(sample.prepared.label(), voxels % 3)


def test_version_1_is_read_too(tmp_path):
    entries = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in EVERY]
    root = raw(tmp_path)
    old = {"modality": ABOUT["channel_names"], "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (root / "dataset.json").write_text(json.dumps(old | {"numTraining": 10, "training": entries, "test": []}))
    found = task(root)
    assert (found.channels, found.classes, list(found.check())) == (2, ("background", "PZ", "TZ"), [])
    assert sorted(sum(parts(found).values(), [])) == EVERY
    refused(lambda: msd.build(msd.Config(root=root)), "dataset.json", "nnU-Net's raw layout", "set task.name=nnunet")


def test_a_dataset_entry_names_the_files_of_each_case(tmp_path, monkeypatch):
    monkeypatch.setenv("RAW", "scans")
    root = raw(tmp_path / "all" / "Dataset005", channels=1, test=0, channel_names={"0": "T2"})
    (root / "imagesTr").rename(tmp_path / "all" / "scans")
    entries = {n: {"images": [f"../${{RAW}}/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in EVERY}
    change(root, dataset=entries)
    wider = {"root": tmp_path / "all", "listing": "Dataset005/dataset.json"}
    found = nnunet.build(nnunet.Config(**wider, roi=(16, 16, 16)))
    assert sorted(sum(parts(found).values(), [])) == EVERY and list(found.check()) == []
    assert found.split("val")[0].image[0].parent == tmp_path / "all" / "scans" and found.name == "Dataset005"
    refused(lambda: task(root).split("val"), "scans/case_00_0000.nii.gz leads out of the folder", "task.listing")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"images": ["a.nii.gz", "b.nii.gz"]}, "`dataset` x must be {images: [one per channel], label: …}"),
        ({"images": ["a.nii.gz"], "label": "c.nii.gz"}, "`dataset` x lists 1 image(s), and there are 2 channels"),
        ({"images": ["i\\a.nii.gz", "b.nii.gz"], "label": "c.nii.gz"}, "i\\a.nii.gz has a backslash"),
    ],
)
def test_a_wrong_dataset_entry_is_named(tmp_path, entry, words):
    root = raw(tmp_path)
    change(root, dataset={"x": entry})
    assert [words in text for severity, text in findings_of(task(root, partial=True)) if severity == "error"] == [True]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_phantoms_are_as_nnunet_writes_them(tmp_path, ending):
    root = write_nnunet(tmp_path / "phantoms", 7, seed=1, num_unlabelled=2, shape=(12, 14, 12))
    if ending == ".nii":
        for path in [*root.rglob("*.nii.gz")]:
            nibabel.save(nibabel.nifti1.load(path), str(path).removesuffix(".gz"))
            path.unlink()
        change(root, file_ending=".nii")
    found = task(root)
    check_parts(found)
    assert list(found.check()) == [] and found.split("val")[0].image[0].name.endswith(f"_0000{ending}")


def test_real_hippocampi_are_prepared_as_msd_prepares_them(real, tmp_path):
    root, source = raw(tmp_path / "data", channels=1, test=0, channel_names={"0": "MRI"}), real("Task04_Hippocampus")
    listed = json.loads((source / "dataset.json").read_text())["training"][:10]
    for name, entry in zip(EVERY, listed, strict=True):
        shutil.copy(source / entry["image"], root / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copy(source / entry["label"], root / "labelsTr" / f"{name}.nii.gz")
    ours = samples(task(root), [*task(root).labelled.values()][:3], tmp_path / "ours")
    by_name = {case.name: case for case in brain(source).cases}
    theirs = [by_name[entry["image"].rpartition("/")[2].removesuffix(".nii.gz")] for entry in listed[:3]]
    for one, other in zip(ours, samples(brain(source), theirs, tmp_path / "theirs"), strict=True):
        assert np.array_equal(one.prepared.image(), other.prepared.image())
        assert np.array_equal(one.prepared.label(), other.prepared.label())


# Parts ---------------------------------------------------------------------------------------------------------------


def test_without_folds_cases_are_dealt_by_the_seed_and_unlabelled_ones_serve_pretraining(tmp_path):
    root = raw(tmp_path)
    dealt = [parts(task(root, split_seed=seed)) for seed in (0, 0, 1)]
    assert [len(dealt[0][part]) for part in PARTS] == [6, 2, 2] and dealt[0] == dealt[1] != dealt[2]
    check_parts(task(root))
    assert names(task(root).images()) == [*dealt[0]["train"], "case_10", "case_11"]


@pytest.mark.parametrize("fold", range(5))
def test_a_fold_s_val_is_the_test_part_and_val_is_carved_from_its_train(tmp_path, fold):
    root = folds(raw(tmp_path))
    found = task(root, fold=fold)
    dealt = parts(found)
    assert dealt["test"] == FOLDS[fold]["val"] and sorted(dealt["train"] + dealt["val"]) == FOLDS[fold]["train"]
    assert len(dealt["val"]) == 1 and list(found.check()) == [] and found.num_folds == len(FOLDS)
    check_parts(found)
    assert len(parts(task(root, fold=fold, val_share=0.5))["val"]) == 4


def test_where_test_images_have_labels_they_are_the_test_part_and_the_fold_is_train_and_val(tmp_path):
    found = task(folds(raw(tmp_path, test=4, held_out=2)), fold=1)
    assert parts(found) == {"train": FOLDS[1]["train"], "val": FOLDS[1]["val"], "test": ["case_10", "case_11"]}
    assert names(found.images()) == [*FOLDS[1]["train"], "case_12", "case_13"]
    check_parts(found)
    assert found.num_folds is None
    without = parts(task(raw(tmp_path / "no folds", test=4, held_out=2)))
    assert without["test"] == ["case_10", "case_11"] and (len(without["train"]), len(without["val"])) == (8, 2)


def test_a_listed_split_takes_the_folds_place(tmp_path):
    root = folds(raw(tmp_path, held_out=1))
    split = {"train": ("case_05", "case_01"), "val": ("case_02",), "test": ("case_10", "case_07")}
    found = task(root, split=split)
    assert {part: tuple(some) for part, some in parts(found).items()} == split
    assert names(found.images()) == ["case_05", "case_01", "case_11"]
    assert {text.partition(":")[2] for _, text in findings_of(found)} == {" is in no part and is not used"}


def test_the_folds_may_lie_elsewhere_below_the_root(tmp_path):
    raw(tmp_path / "nnUNet_raw" / "Dataset005")
    folds(tmp_path, name="nnUNet_preprocessed/Dataset005/splits_final.json")
    where = {"listing": "nnUNet_raw/Dataset005/dataset.json"}
    found = task(tmp_path, **where, splits="nnUNet_preprocessed/Dataset005/splits_final.json", fold=2)
    assert parts(found)["test"] == FOLDS[2]["val"]
    refused(lambda: task(tmp_path, **where, splits="x.json").split("val"), "x.json is missing: set task.splits")
    refused(
        lambda: task(tmp_path / "nnUNet_raw", listing="Dataset005/dataset.json", splits="../s").split("val"),
        "task.splits: ",
    )
    refused(lambda: task(tmp_path, **where, fold=2).split("val"), "task.fold: is 2", "splits_final.json is missing")


WRONG_FOLDS = {
    "no list": ({}, "must be a list of folds"),
    "empty": ([], "must be a list of folds"),
    "no val": ([{"train": EVERY}], "must be a list of folds"),
    "in both": ([{"train": EVERY, "val": EVERY[:1]}], "fold 0 has case_00 in train and in val; keep it in one"),
    "unknown": ([{"train": EVERY[:9], "val": ["x"]}], "fold 0 lists x, and imagesTr has no such case; fix the name"),
    "too few": (FOLDS[:1], "task.fold: is 1, and"),
}


@pytest.mark.parametrize("what", WRONG_FOLDS)
def test_wrong_folds_are_one_line(tmp_path, what):
    content, words = WRONG_FOLDS[what]
    refused(
        lambda: task(folds(raw(tmp_path), content), fold=int(what == "too few")).split("train"),
        "splits_final.json",
        words,
    )


def test_unlabelled_images_of_imagestr_serve_pretraining_and_never_those_of_val_or_test(tmp_path):
    """Nor a patient's of val or test, nor a case that a fold's val waits for, which `partial` forgives."""
    root = raw(tmp_path / "raw", numTraining=8)
    for name in ("case_02", "case_07"):
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    assert any("is missing, and case_02 needs it" in text for _, text in findings_of(task(root)))
    free = task(root, unlabelled=True)
    assert [severity for severity, _ in findings_of(free) if severity == "error"] == []
    assert names(free.images()) == [*parts(free)["train"], "case_02", "case_07", "case_10", "case_11"]
    assert not {"case_02", "case_07"} & {name for some in parts(free).values() for name in some}
    assert all(case.label is None for case in free.images())

    folds(root)  # the first fold's val is case_00 and case_01, the second's case_02 and case_03
    held = task(root, unlabelled=True, partial=True, fold=1)
    assert "case_02" not in names(held.images()) and "case_02" not in parts(held)["test"]
    with pytest.raises(UserError, match="fold 1 lists case_02"):
        task(root, unlabelled=True, fold=1).split("train")

    (root / "splits_final.json").unlink()
    pairs = task(root, unlabelled=True, patient="case_0?([0-9])[0-9]?")  # case_10 and case_11 are patient 1's
    owners = {case.patient: part for part in ("train", "val", "test") for case in pairs.split(part)}
    assert all(owners.get(case.patient, "train") == "train" for case in pairs.images())


def test_entries_of_a_dataset_without_a_label_are_unlabelled_only_if_that_is_said(tmp_path):
    root = raw(tmp_path / "raw", channels=1, channel_names={"0": "T2"}, numTraining=9)
    listed = {
        f"case_{n:02d}": {"images": [f"imagesTr/case_{n:02d}_0000.nii.gz"], "label": f"labelsTr/case_{n:02d}.nii.gz"}
        for n in range(10)
    }
    del listed["case_04"]["label"]
    change(root, dataset=listed)
    assert any("`dataset` case_04 must be" in text for _, text in findings_of(task(root)))
    assert "case_04" in names(task(root, unlabelled=True).images())
    (root / "labelsTr/case_05.nii.gz").unlink()  # its entry names it: it is missing
    errors = [text for severity, text in findings_of(task(root, unlabelled=True)) if severity == "error"]
    assert len(errors) == 1 and errors[0].startswith("labelsTr/case_05.nii.gz: is missing, and case_05 needs it")


@pytest.mark.parametrize("number", [10, None])
def test_a_label_that_is_a_link_to_nothing_is_missing_and_moves_nobody(tmp_path, number):
    """As git-annex leaves files that were not fetched. `partial` forgives it, and deals the others as before."""
    root = raw(tmp_path / "raw", numTraining=number)
    before = parts(task(root, unlabelled=True))
    gone = ["labelsTr/case_02.nii.gz", "labelsTr/case_07.nii.gz"]
    for name in gone:
        (root / name).unlink()
        (root / name).symlink_to("../.git/annex/objects/away")
    found = task(root, unlabelled=True)
    errors = [text.partition(":")[0] for severity, text in findings_of(found) if severity == "error"]
    assert errors == gone and found.parts() == before
    assert "is a link to a file that is not there, and case_02 needs it" in str(findings_of(found))
    found = task(root, unlabelled=True, partial=True)
    assert not {"case_02", "case_07"} & {*names(found.images())}
    assert parts(found) == {part: [n for n in some if n[-1] not in "27"] for part, some in before.items()}


def test_a_label_of_imagests_that_is_a_link_to_nothing_keeps_its_image_in_test(tmp_path):
    root = raw(tmp_path / "raw", test=4, held_out=2)
    (root / "labelsTs/case_10.nii.gz").unlink()
    (root / "labelsTs/case_10.nii.gz").symlink_to("away")
    found = task(root)
    assert parts(found)["test"] == ["case_10", "case_11"] and "case_10" not in names(found.images())
    assert [text.partition(":")[0] for _, text in findings_of(found)] == ["labelsTs/case_10.nii.gz"]


def test_labels_that_num_training_counts_are_missing_even_where_images_without_one_are_allowed(tmp_path):
    root = raw(tmp_path / "raw")
    (root / "labelsTr/case_02.nii.gz").unlink()
    for settings in ({}, {"partial": True}):
        errors = [t for severity, t in findings_of(task(root, unlabelled=True, **settings)) if severity == "error"]
        assert len(errors) == 1 and errors[0].startswith("dataset.json: `numTraining` is 10, and 9 of the 10 training")
        assert errors[0].endswith("copy the missing labels to labelsTr, or, if there are none, set it to 9")
        refused(lambda: task(root, unlabelled=True, **settings).images(), "`numTraining` is 10")  # noqa: B023
    change(root, numTraining=9)
    assert [f for f in findings_of(task(root, unlabelled=True)) if f[0] == "error"] == []


def test_partial_leaves_out_what_is_missing_and_moves_nobody(tmp_path):
    root = folds(raw(tmp_path))
    before = parts(task(root))
    gone = before["train"][0], before["train"][1], before["test"][0], "case_10"
    for name, file in zip(
        gone, ("imagesTr/{}_0001", "labelsTr/{}", "imagesTr/{}_0000", "imagesTs/{}_0001"), strict=True
    ):
        (root / f"{file.format(name)}.nii.gz").unlink()
    assert [severity for severity, _ in findings_of(task(root))] == ["error"] * 4
    assert any(
        f"imagesTr/{gone[0]}_0001.nii.gz: is missing, and {gone[0]} needs it" in text
        for _, text in findings_of(task(root))
    )
    assert [severity for severity, _ in findings_of(task(root, partial=True))] == ["note"] * 4
    assert len(findings_of(task(root), test=False)) == 3  # the test part is not looked at
    after = parts(task(root, partial=True))
    assert after == {part: [name for name in before[part] if name not in gone] for part in PARTS}
    assert names(task(root, partial=True).images()) == [*after["train"], "case_11"]
    (root / "imagesTr" / f"{gone[2]}_0001.nii.gz").unlink()  # nothing of the case is left but its label
    assert any("numTraining` is 10, and 9 are there" in text for _, text in findings_of(task(root)))
    assert {severity for severity, _ in findings_of(task(root, partial=True))} == {"note"}


def test_images_without_a_label_alone_can_be_pretrained_on(tmp_path):
    root = raw(tmp_path, numTraining=0)
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(root / folder)
    assert names(task(root).images()) == ["case_10", "case_11"]
    refused(lambda: task(root).split("train"), "imagesTr: holds no CASE_0000.nii.gz", "only be pre-trained on")
    assert {finding.severity for finding in listings(task(root), test=True)} == {"note"}


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_one_layout_taken_for_the_other_names_the_right_task(tmp_path):
    ours = raw(tmp_path / "nnunet", **BRATS)
    for other in (lambda: msd.build(msd.Config(root=ours)), lambda: brats.build(brats.Config(root=ours)).split("val")):
        refused(other, "dataset.json: is of nnU-Net's raw layout", "CASE_0000.nii.gz", "set task.name=nnunet")
    theirs = write_msd(tmp_path / "msd", 8, seed=1, shape=(12, 16, 14))
    refused(lambda: task(theirs), "dataset.json: is of the Medical Segmentation Decathlon's layout", "task.name=msd")
    about = json.loads((theirs / "dataset.json").read_text())
    for entry in about["training"]:
        for kind, file in entry.items():
            entry[kind] = file.replace("hippocampus_", "hippocampus_0")  # four digits, as channels have
            (theirs / file).rename(theirs / entry[kind])
    (theirs / "dataset.json").write_text(json.dumps(about))
    refused(lambda: task(theirs), "Decathlon's layout", "task.name=msd")
    assert len(brain(theirs).split("train")) == 5


SPOILT = {
    "nothing": (lambda r: (r / "dataset.json").unlink(), ["dataset.json is missing", "Dataset004_Hippocampus"]),
    "a list": (lambda r: (r / "dataset.json").write_text("[]"), ["dataset.json: must be an object"]),
    "channels": (lambda r: change(r, channel_names=["T2"]), ["`channel_names` must number each channel from 0 on"]),
    "gap": (lambda r: change(r, channel_names={"0": "a", "2": "b"}), ["`channel_names` must number each channel"]),
    "pictures": (lambda r: change(r, file_ending=".png"), ["`file_ending` '.png' is not read", ".nii.gz or .nii"]),
    "no dot": (lambda r: change(r, file_ending="nii.gz"), ["`file_ending` 'nii.gz' is not read"]),
    "nrrd": (
        lambda r: change(r, file_ending=".nrrd"),
        ["`file_ending` .nrrd is not read", "[:-5] + '.nii.gz'", "'*.nrrd'"],
    ),
    "mha": (
        lambda r: change(r, file_ending=".mha"),
        ["`file_ending` .mha is not read", "[:-4] + '.nii.gz'", "'*.mha'"],
    ),
    "number": (lambda r: change(r, numTraining=12), ["`numTraining` is 12, and 10 are there; complete the copy"]),
    "channel": (
        lambda r: (r / "imagesTr" / "case_01_0004.nii.gz").touch(),
        ["case_01_0004.nii.gz: is channel 4, and dataset.json names 0 to 1"],
    ),
    "in both": (
        lambda r: [(r / "imagesTs" / f"case_01_000{i}.nii.gz").touch() for i in range(2)],
        ["imagesTs/case_01_0000.nii.gz: case_01 is a training case, too"],
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_is_one_line_that_names_the_file_and_the_mend(tmp_path, what):
    spoil, words = SPOILT[what]
    root = raw(tmp_path)
    spoil(root)
    refused(lambda: task(root).split("train"), *words)


def test_files_of_another_kind_in_the_folder_are_named_with_their_conversion(tmp_path):
    change(raw(tmp_path, ending=".mha"), file_ending=".nii.gz")
    refused(lambda: task(tmp_path).split("train"), "imagesTr: holds .mha files", "'*.mha'")


def test_files_that_belong_to_no_case_are_notes(tmp_path):
    root = raw(tmp_path)
    for file in (
        "imagesTr/case_03.nii.gz",
        "imagesTr/case_04_0001.NII.GZ",
        "labelsTr/case_33.nii.gz",
        "labelsTs/x.nii.gz",
    ):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).touch()
    (root / "imagesTr" / "._case_03_0000.nii.gz").touch()
    (root / "imagesTr" / "readme.txt").touch()
    assert [(severity, text.partition(":")[0]) for severity, text in findings_of(task(root))] == [
        ("note", "imagesTr/case_03.nii.gz"),
        ("note", "imagesTr/case_04_0001.NII.GZ"),
        ("note", "labelsTr/case_33.nii.gz"),
        ("note", "labelsTs/x.nii.gz"),
    ]


def test_an_experiment_of_msd_serves_for_nnunet(tmp_path):
    """The fields are the same, so that `task.name=nnunet` in front of a YAML for msd is enough."""
    assert set(msd.Config.model_fields) <= set(nnunet.Config.model_fields)
    experiment = Experiment.model_validate(
        {"task": {"name": "nnunet", "folder": "x", "roi": [32, 48, 32]}, "encoder": {"name": "vit", "size": "base"}}
        | {"pretext": "none", "finetune": {"epochs": 1, "batch": 1, "lr": 1e-3, "head": "unetr"}}
    )
    assert isinstance(experiment.task, nnunet.Config)
