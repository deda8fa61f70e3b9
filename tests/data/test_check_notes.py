"""What the check of a data set notes without calling it an error."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.checking import (
    CHEST,
    FIRST,
    IMAGE,
    LABEL,
    MSD,
    TABLE,
    TRAINED,
    about,
    add,
    at,
    drawn,
    entry,
    errors,
    first,
    image,
    label,
    moved,
    notes,
    same,
    voxels,
)

from premed.tasks import msd

pytest_plugins = ["support.checking"]


# Notes ----------------------------------------------------------------------------------------------------------------


def test_whole_folders_are_clean(hippocampi, chests, found, checked):
    assert found(MSD, hippocampi) == []
    assert errors(found(CHEST, chests)) == []
    code, out, _ = checked(MSD, hippocampi)
    assert code == 0
    assert out == "Task04_Hippocampus: 12 images opened (7 train, 2 val, 3 test): 0 errors, 0 notes\n"


def reorient(path: Path, axes: str) -> None:
    image = nib.nifti1.load(path)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.nifti1.save(image.as_reoriented(turn.tolist()), path)


def both(change):
    def spoil(root: Path) -> None:
        for part in ("imagesTr", "labelsTr"):
            change(at(root, part, 1))

    return spoil


def scaled(by):
    return lambda path: voxels(path, same, lambda affine: affine @ np.diag([1, 1, by, 1]))


def all_but_one_class(root: Path) -> None:
    for number in (7, 8):
        voxels(at(root, "labelsTr", number), lambda v: np.minimum(v, 1))


MSD_NOTES = {
    "close affine": (label(lambda p: voxels(p, same, moved(0.002))), [LABEL, "is 0.002 mm apart", "taken as the same"]),
    "twice in a part": (
        lambda root: [shutil.copy(at(root, part, 2), at(root, part, 1)) for part in ("imagesTr", "labelsTr")],
        ["(train) holds the same image as", "(train)"],
    ),
    "turned": (both(lambda p: reorient(p, "LPS")), [IMAGE, "is stored as LPS, 11 of 12 as RAS"]),
    "thick slices": (both(scaled(5)), [IMAGE, "its spacing 1 × 1 × 5 mm is far from the set's 1 × 1 × 1 mm"]),
    "constant": (image(lambda p: voxels(p, lambda v: 0 * v + 3)), [IMAGE, "is 3 everywhere"]),
    "no label drawn": (label(lambda p: voxels(p, lambda v: 0 * v)), [LABEL, "nothing is labelled"]),
    "class empty": (all_but_one_class, ["class Posterior, part val: no label map holds it"]),
    "unlisted": (lambda r: shutil.copy(at(r, "imagesTr", 1), r / "imagesTr" / "x.nii.gz"), ["x.nii.gz", "in no entry"]),
    "test image absent": (about(test=["imagesTs/a.nii.gz"]), ["imagesTs/a.nii.gz", "it is left out"]),
    "unlabelled": (entry(lambda t: t[3].pop("label")), ["labelsTr/", "is in no entry of dataset.json"]),
}


@pytest.mark.parametrize("oddity", MSD_NOTES)
def test_an_oddity_of_a_decathlon_folder_is_a_note(hippocampi, copied, found, oddity):
    spoil, words = MSD_NOTES[oddity]
    root = copied(hippocampi)
    name = at(root, "imagesTr", 1).name
    spoil(root)
    findings = found(MSD, root)
    wanted = [word.replace("{1}", name) for word in words]
    assert errors(findings) == [] and [
        text for text in notes(findings, wanted[0]) if all(word in text for word in wanted)
    ], findings


CHEST_NOTES = {
    "listed twice": (add(TRAINED, "{first}"), ["train_val_list.txt, {first}: is listed 2 times: it is used once"]),
    "row twice": (add(TABLE, "{row}"), []),
    "row not listed": (add(TABLE, "x.png,Mass,0,1,"), [TABLE + ", x.png: is in neither list"]),
    "image without row": (lambda r: shutil.copy(first(r), r / "images" / "x.png"), ["images/x.png: has no row in"]),
    "constant": (drawn(lambda i: Image.new("L", i.size, 7)), [FIRST + ": is 7 everywhere"]),
}


@pytest.mark.parametrize("oddity", CHEST_NOTES)
def test_an_oddity_of_a_chest_folder_is_a_note(chests, copied, found, oddity):
    spoil, words = CHEST_NOTES[oddity]
    root = copied(chests)
    name, before = first(root).name, found(CHEST, root)
    spoil(root)
    findings = found(CHEST, root)
    assert errors(findings) == []
    fresh = [text for _, text in findings if text not in {text for _, text in before}]
    assert len(fresh) == len(words) and all(word.replace("{first}", name) in fresh[0] for word in words)


def test_mixed_orientations_are_one_note(hippocampi, copied, found):
    root = copied(hippocampi)
    for number in range(5):
        for part in ("imagesTr", "labelsTr"):
            reorient(at(root, part, number), "LPS")
    (only,) = found(MSD, root)
    assert only[0] == "note" and "orientations are mixed (7 RAS, 5 LPS)" in only[1]


def test_the_roi_is_compared_with_the_prepared_image(hippocampi, found):
    assert notes(found(MSD, hippocampi, "task.roi=[96,96,96]"), "12 of 12 images are smaller than [96, 96, 96]")
    assert not found(MSD, hippocampi, "task.roi=[96,96,96]", "task.spacing=[0.25,0.25,0.25]")
    assert notes(found(MSD, hippocampi, "task.spacing=[4,4,4]"), "task.roi")


def test_partial_makes_a_note_of_what_is_missing_and_leaves_it_out_of_its_own_part_alone(hippocampi, copied, found):
    root = copied(hippocampi)
    gone = [at(root, "imagesTr", 1), at(root, "labelsTr", 9)]
    whole = msd.build(msd.Config(root=root))
    before = {part: [case.name for case in whole.split(part)] for part in ("train", "val", "test")}
    for path in gone:
        path.unlink()
    findings = found(MSD, root, "task.partial=true")
    assert errors(findings) == [] and [len(notes(findings, str(path))) for path in gone] == [1, 1]
    task = msd.build(msd.Config(root=root, partial=True))
    left = {part: [case.name for case in task.split(part)] for part in before}
    names = {path.name.split(".")[0] for path in gone}
    assert left == {part: [name for name in cases if name not in names] for part, cases in before.items()}
    assert not names & {case.name for case in task.images()}
