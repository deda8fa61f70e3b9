"""A pre-training on other data sets sees nothing that the task keeps for val or test: any folder, any format."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.experiments import SCRATCH, runs_of, tree
from support.image_tables import listed, names

from premed.config.compose import validate_experiment
from premed.data import content
from premed.data.cache import Cache
from premed.data.datamodule import DataModule, Tasks
from premed.data.leakage import refuse_leaks
from premed.data.phantoms.thorax import write_images
from premed.data.phantoms.writers import write_msd, write_nnunet
from premed.errors import UserError
from premed.events import ImagesCompared, TrainingStarted, WarningIssued
from premed.execution import runner
from premed.execution.preflight import learns_from_itself
from premed.tasks import chestxray14, images, msd, nnunet

pytest_plugins = ["support.experiment_fixtures"]

CHILDREN = {"name": "images", "labels": ["pneumonia"], "roi": [16, 16]}
PARTS = ("val", "test")


def compared(task, other, folder, test=True):
    """What comparing says; empty if nothing is wrong."""
    try:
        refuse_leaks(task, other, test, Cache(folder / "cache"), map, lambda done, total: None)
    except UserError as error:
        return str(error)
    return ""


def leaked(own, other, number=lambda case: case.name):
    """The cases of `other` that the task keeps: of those it trains on in val or test, of those it validates on in test.

    number: what two cases of the same image have in common.
    """
    held = {part: {number(case) for case in own.split(part)} for part in PARTS}
    shown = [case for case in other.images() if number(case) in held["val"] | held["test"]]
    return shown + [case for case in other.split("val") if number(case) in held["test"]]


def refused(chest, change):
    """Runs the tiny experiment; returns why it is refused. Nothing was trained."""
    events: list = []
    with pytest.raises(UserError) as error:
        runner.run(validate_experiment(tree(chest, change)), events.append)
    assert not [event for event in events if isinstance(event, TrainingStarted)]
    return str(error.value)


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "children", 24, 0, size=16)


@pytest.fixture
def own(chest):
    return chestxray14.build(chestxray14.Config(root=chest))


@pytest.fixture
def reads(monkeypatch):
    """The files that are hashed."""
    files: list = []

    def watch(name):
        function = getattr(content, name)
        monkeypatch.setattr(content, name, lambda file, *args: (files.append(file), function(file, *args))[1])

    watch("hash_file")
    watch("hash_image")
    return files


# ---- other roots


def test_a_copied_folder_with_another_split_is_refused_by_its_content(chest, own, home, tmp_path):
    copy = shutil.copytree(chest, tmp_path / "another name")
    alike, other = (chestxray14.build(chestxray14.Config(root=copy, split_seed=seed)) for seed in (0, 1))
    source = {"task": {**tree(chest)["task"], "root": str(copy), "split_seed": 1}}
    message, found = refused(chest, {"pretrain": {"sources": [source]}}), leaked(own, other)
    first = found[0].name
    assert message.startswith(f"pretrain.sources: {other.name} ({copy}) shows {len(found)} images ")
    assert f"which the task keeps for val or test: {first} is {first} (" in message and len(found) > 3
    assert message.endswith(f" and {len(found) - 3} more; leave them out of its list, or split both in the same way")
    assert runs_of(home, "experiment") == [] and "\n" not in message
    assert compared(own, alike, tmp_path) == ""


def test_a_list_of_all_images_by_another_task_is_refused(chest, home, tmp_path):
    root = shutil.copytree(chest, tmp_path / "chest")
    own = chestxray14.build(chestxray14.Config(root=root))
    listed(root / "images", own, "train", *PARTS)
    source = {"task": {"name": "images", "root": str(root / "images"), "labels": ["sick"], "roi": [16, 16]}}
    message, held = refused(root, {"pretrain": {"sources": [source]}}), names(own, *PARTS)
    assert f"images ({root}/images) shows {len(held)} images which the task keeps" in message
    first = min(held)
    assert f": {first} is {first} ({'test' if first in names(own, 'test') else 'val'})" in message


def test_the_task_s_own_training_images_elsewhere_are_welcome(chest, own, tmp_path):
    other = listed(tmp_path / "train", own, "train", chest=chest)
    assert compared(own, other, tmp_path) == ""
    stray, last = min(names(own, "test")), other.images()[-1]
    shutil.copy(chest / "images" / stray, last.image[0])
    message = f"shows 1 image which the task keeps for val or test: {last.name} is {stray} (test); leave"
    assert message in compared(own, other, tmp_path)


def test_an_image_that_the_task_trains_on_itself_is_no_leak_of_another_data_set(chest, tmp_path):
    root = shutil.copytree(chest, tmp_path / "chest")
    own = chestxray14.build(chestxray14.Config(root=root))
    other = listed(tmp_path / "train", own, "train", chest=root)
    twice = other.images()[0].name
    shutil.copy(root / "images" / twice, root / "images" / min(names(own, "val")))
    assert twice in names(own, "train") and compared(own, other, tmp_path) == ""


# ---- other formats


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_pictures_are_compared_across_formats(children, tmp_path, kind):
    """The same patients drawn into DICOM files, or into PNG written anew in colour."""
    other_root = write_images(tmp_path / "other", 24, 0, kind, size=16)
    for path in other_root.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    config = {key: value for key, value in CHILDREN.items() if key != "name"}
    folders = (children, 0), (other_root, 0), (other_root, 1)
    own, alike, other = (images.build(images.Config(root=root, split_seed=seed, **config)) for root, seed in folders)
    number = {case.name: i for task in (own, other) for i, case in enumerate(task.cases)}  # both in the same order
    found = leaked(own, other, lambda case: number[case.name])
    assert compared(own, alike, tmp_path) == "" and found
    assert f"shows {len(found)} images which" in compared(own, other, tmp_path)


def from_0_to_1(image):
    values = image.get_fdata()
    return nib.nifti1.Nifti1Image(((values - values.min()) / np.ptp(values)).astype(np.float32), image.affine)


SAVED = {
    "unpacked": lambda image: image,
    "turned": lambda image: image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "L"))),
    "float64": lambda image: nib.nifti1.Nifti1Image(image.get_fdata(), image.affine),
    "from 0 to 1": from_0_to_1,
    "moved": lambda image: nib.nifti1.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3) * 7),
}


@pytest.mark.parametrize("how", SAVED)
def test_volumes_are_compared_across_formats(tmp_path, how):
    root = write_msd(tmp_path / "mri", 8, 0, shape=(16, 20, 16))
    other_root = shutil.copytree(root, tmp_path / "elsewhere")
    for path in sorted((other_root / "imagesTr").iterdir()):
        nib.nifti1.save(SAVED[how](nib.nifti1.load(path)), path.with_suffix(""))
        path.unlink()
    listing = other_root / "dataset.json"
    listing.write_text(re.sub(r"(imagesTr/\w+\.nii)\.gz", r"\1", listing.read_text()))
    folders = (root, 0), (other_root, 0), (other_root, 3)
    own, alike, other = (msd.build(msd.Config(root=where, split_seed=seed)) for where, seed in folders)
    found = leaked(own, other)
    assert found and compared(own, alike, tmp_path) == ""
    message = compared(own, other, tmp_path)
    assert f"shows {len(found)} image" in message and f": {found[0].name} is {found[0].name} (" in message


# ---- what is read


def test_label_maps_are_never_opened_and_images_of_test_only_for_another_data_set(tmp_path, reads):
    root = write_msd(tmp_path / "mri", 8, 0, shape=(16, 20, 16))
    other_root = write_msd(tmp_path / "other", 6, 1, shape=(16, 20, 16))
    own, other = (msd.build(msd.Config(root=where)) for where in (root, other_root))
    assert compared(own, other, tmp_path, test=False) == ""
    val, test = ({case.image[0] for case in own.split(part)} for part in PARTS)
    assert val <= set(reads) and test.isdisjoint(reads)
    assert compared(own, other, tmp_path) == ""
    assert test <= set(reads) and not [file for file in reads if "labels" in str(file)]
    del reads[:]
    assert compared(own, other, tmp_path) == "" and reads == []  # all hashes are kept
    coarse = msd.build(msd.Config(root=root, spacing=(2, 2, 2)))
    assert compared(own, coarse, tmp_path / "new") == "" and reads == []  # the same folder, split alike


def test_a_test_part_that_is_not_opened_is_compared_when_it_is(chest, own, tmp_path, reads):
    held, other = names(own, "test"), listed(tmp_path / "leak", own, "test", chest=chest)
    assert compared(own, other, tmp_path, test=False) == ""
    assert not [file for file in reads if file.parent == chest / "images" and file.name in held]
    assert f"shows {len(held)} images" in compared(own, other, tmp_path)


def test_val_of_another_data_set_which_picks_the_weights_is_not_the_task_s_test(chest, own, children, tmp_path):
    root = shutil.copytree(children, tmp_path / "children")
    other = images.build(images.Config(root=root, labels=("pneumonia",), roi=(16, 16)))
    (first, *_), stray, val = other.split("val"), min(names(own, "test")), min(names(own, "val"))
    shutil.copy(chest / "images" / stray, first.image[0])
    message = f"shows 1 image which the task keeps for val or test: {first.name} (its val) is {stray} (test)"
    assert message in compared(own, other, tmp_path)
    shutil.copy(chest / "images" / val, first.image[0])
    assert compared(own, other, tmp_path) == ""  # a pre-training on the task itself is validated on it, too


def test_two_data_sets_are_compared_once_in_a_command_before_anything_starts(chest, children, home, monkeypatch):
    calls: list = []
    monkeypatch.setattr("premed.execution.session.refuse_leaks", lambda *a: (calls.append(a[:2]), refuse_leaks(*a)))
    copy = shutil.copytree(chest, home / "copy")

    def experiment(task, seed):
        change = {"pretrain": {"sources": [{"task": task}]}, "finetune": {"seed": seed}}
        return validate_experiment(tree(chest, change))

    fine = [experiment(CHILDREN | {"root": str(children)}, seed) for seed in (0, 1)]
    leaky = experiment({**tree(chest)["task"], "root": str(copy), "split_seed": 1}, 0)
    events: list = []
    with pytest.raises(UserError, match="which the task keeps for val or test"):
        runner.run_all([*fine, leaky], events.append)
    assert {type(event) for event in events} == {ImagesCompared} and runs_of(home, "experiment") == []
    assert len(calls) == 2  # of three experiments


# ---- the task's own unlabelled images


def on_volumes(root, **changes):
    """A tiny experiment on volumes in nnU-Net's layout."""
    training = {"epochs": 1, "batch": 2, "lr": 1e-3}
    return validate_experiment(
        {
            "task": {"name": "nnunet", "root": str(root), "roi": [16, 16, 16]},
            "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
            "pretext": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
            "pretrain": training,
            "finetune": training | {"head": "unetr"},
            "train": {"workers": 0},
        }
        | changes
    )


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("folder", ["imagesTr", "imagesTs"])
def test_an_unlabelled_image_of_the_task_that_it_keeps_for_val_or_test_is_refused(home, tmp_path, folder, part):
    """Before anything is trained, as an image of another data set; `premed data check` names it, too."""
    root = write_nnunet(tmp_path / "mri", 8, 0, num_unlabelled=1, shape=(16, 20, 16))
    task = nnunet.build(nnunet.Config(root=root, roi=(16, 16, 16)))
    held, *_ = task.split(part)
    copy = root / folder / f"copy_0000{''.join(held.image[0].suffixes)}"
    shutil.copy(held.image[0], copy)
    experiment = on_volumes(root, task={"name": "nnunet", "root": str(root), "roi": [16, 16, 16], "unlabelled": True})
    events: list = []
    with pytest.raises(UserError) as error:
        runner.run(experiment, events.append)
    assert {type(event) for event in events} == {ImagesCompared} and runs_of(home, "experiment") == []
    words = f"1 image which the task keeps for val or test: copy is {held.name} ({part}); remove one of each two"
    assert str(error.value).startswith(f"task: mri ({root}) has among the unlabelled images") and "\n" not in str(
        error.value
    )
    assert str(error.value).endswith(words)
    ((where, what),) = findings(experiment)[0]
    assert where == str(copy) and what.startswith(f"(unlabelled) holds the same image as {held.image[0]} ({part})")


def test_a_copy_of_a_training_image_and_a_strategy_that_pre_trains_on_nothing_of_the_task_are_no_leak(
    tmp_path, children
):
    root = write_nnunet(tmp_path / "mri", 8, 0, num_unlabelled=1, shape=(16, 20, 16))
    task = nnunet.build(nnunet.Config(root=root, roi=(16, 16, 16)))
    (learnt, *_), (held, *_) = task.split("train"), task.split("test")
    shutil.copy(learnt.image[0], root / "imagesTs" / f"copy_0000{''.join(held.image[0].suffixes)}")
    fresh = nnunet.build(nnunet.Config(root=root, roi=(16, 16, 16)))
    assert "copy" in {case.name for case in fresh.images()}
    assert compared(fresh, fresh, tmp_path) == ""
    elsewhere = {"task": {"name": "unlabelled", "root": str(children), "dims": 3, "roi": [16, 16, 16]}}
    training = {"epochs": 1, "batch": 2, "lr": 1e-3}
    assert learns_from_itself(on_volumes(root))
    assert not learns_from_itself(on_volumes(root, pretext="none"))
    assert not learns_from_itself(on_volumes(root, pretrain=training | {"sources": [elsewhere]}))


# ---- within one data set


def test_an_image_in_two_parts_of_one_data_set_is_told_by_training(chest, own, home, tmp_path):
    root = shutil.copytree(chest, tmp_path / "chest")
    train, val, test = (sorted(names(own, part)) for part in ("train", "val", "test"))
    for copied, place in ((train[0], val[0]), (train[1], val[1]), (val[2], test[0])):
        shutil.copy(root / "images" / copied, root / "images" / place)
    events: list = []
    outcome = runner.run(validate_experiment(tree(root, SCRATCH, {"finetune": {"epochs": 1}})), events.append)
    assert [stage["kind"] for stage in outcome["stages"]] == ["finetune", "test"]
    assert [event.text for event in events if isinstance(event, WarningIssued)] == [
        f"chestxray14: 2 images of val are in train, too ({train[0]} and {val[0]}): scores on val flatter; "
        "premed data check lists them",
        f"chestxray14: 1 image of test is in val, too ({val[2]} and {test[0]}): scores on test flatter; "
        "premed data check lists them",
    ]


def test_an_unlabelled_image_that_a_pre_training_learns_from_counts_as_train(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    root = write_msd(tmp_path / "mri", 8, 0, num_unlabelled=1, shape=(16, 20, 16))
    task, events = Tasks()(msd.Config(root=root)), []
    (unlabelled,) = [case for case in task.images() if case.name not in names(task, "train")]
    (held, *_) = task.split("val")
    shutil.copy(held.image[0], unlabelled.image[0])
    data = DataModule(task, show=events.append)
    for kind in ("pretrain", "finetune", "pretrain"):
        data.fingerprint(kind)
    (messages,) = [event.text for event in events if isinstance(event, WarningIssued)]
    assert messages.startswith(f"mri: 1 image of val is in train, too ({unlabelled.name} and {held.name})")


# ---- premed data check


def findings(experiment):
    """The errors that `premed data check` finds: of the task, and of each source."""
    outcome = runner.check(experiment, lambda event: None)
    return [
        [(each["where"], each["what"]) for each in some["findings"] if each["severity"] == "error"]
        for some in (outcome, *outcome.get("sources", ()))
    ]


def test_the_check_finds_the_images_of_a_source_that_the_task_keeps(chest, own, tmp_path):
    copy = shutil.copytree(chest, tmp_path / "copy")
    for path in (copy / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    other = chestxray14.build(chestxray14.Config(root=copy, split_seed=1))
    source = {"task": {**tree(chest)["task"], "root": str(copy), "split_seed": 1}}
    change = {"pretrain": {"sources": [source]}}
    mine, theirs = findings(validate_experiment(tree(chest, change)))
    assert mine == [] and sorted(where for where, _ in theirs) == sorted(str(c.image[0]) for c in leaked(own, other))
    name = leaked(own, other)[0].name
    (what,) = [what for where, what in theirs if where == str(copy / "images" / name)]
    assert f") is the same image as {chest}/images/{name}, which the task keeps for " in what
    val_only = findings(validate_experiment(tree(chest, change, {"test": False})))[1]
    assert {where for where, _ in val_only} == {str(copy / "images" / name) for name in names(own, "val")} & {
        str(case.image[0]) for case in other.images()
    }


def test_the_check_finds_an_image_in_two_parts_in_any_format_and_notes_it_within_one(tmp_path):
    root = write_msd(tmp_path / "mri", 8, 0, num_unlabelled=2, shape=(16, 20, 16))
    task = msd.build(msd.Config(root=root))
    train, (val, *_) = task.split("train"), task.split("val")
    free = [case for case in task.images() if case.name not in names(task, "train")]
    for source, target in ((val, free[0]), (train[0], free[1])):
        image = nib.nifti1.load(source.image[0])
        image = nib.nifti1.Nifti1Image(image.get_fdata(), image.affine)
        nib.nifti1.save(image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "L"))), target.image[0])
    tree = {"task": {"name": "msd", "root": str(root), "roi": [16, 16, 16]}, "encoder": {"name": "vit", "patch": 8}}
    tree |= {"pretext": "none", "finetune": {"head": "unetr", "epochs": 1, "batch": 2, "lr": 1e-3}}
    found = runner.check(validate_experiment(tree | {"train": {"workers": 0}}), lambda event: None)["findings"]
    same = [(each["severity"], each["where"], each["what"]) for each in found if "same image" in each["what"]]
    assert same == [
        (
            "error",
            str(free[0].image[0]),
            f"(unlabelled) holds the same image as {val.image[0]} (val); keep one of them",
        ),
        (
            "note",
            str(free[1].image[0]),
            f"(unlabelled) holds the same image as {train[0].image[0]} (train); keep one of them",
        ),
    ]
