"""Folders of images without labels: what is found in them, whose it is, and what of it validates a pre-training."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_tables import rows
from support.made_up import ct_series, radiograph
from support.suite import examples
from support.tasks import refused

from premed.data import splits
from premed.data.cache import Cache
from premed.data.check import listings, refuse
from premed.data.io.readers import read_image
from premed.data.phantoms.writers import write_msd, write_nnunet
from premed.rng import SampleRng, key
from premed.tasks import images, msd, nnunet, unlabelled

pytest_plugins = ["support.image_tables"]
rng = np.random.default_rng(0)


def hounsfield(*shape: int) -> np.ndarray:
    return rng.integers(-1000, 400, shape).astype(np.int16)


def task(root: Path, **settings) -> unlabelled.Unlabelled:
    roi = (8,) * settings.get("dims", 2)
    return unlabelled.build(unlabelled.Config(root=root, **{"roi": roi} | settings))


def whose(some) -> dict[str, str]:
    return {case.name: case.patient for case in some.images()}


def findings_of(some, severity: str) -> list[str]:
    return [f"{each.where}: {each.what}" for each in some.check() if each.severity == severity]


# ---- DICOM


def test_each_folder_of_slices_is_a_volume_of_the_patient_that_dicom_names(tmp_path):
    for name, who in (("a/ct/1", "A"), ("a/ct/2", "A"), ("b/1", "B"), ("c", "")):
        ct_series(tmp_path / name, hounsfield(8, 9, 4), PatientID=who)
    (tmp_path / "a" / "readme.txt").write_text("not an image")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    some = task(tmp_path, dims=3)
    assert whose(some) == {"a/ct/1": "A", "a/ct/2": "A", "b/1": "B", "c": "c"}
    assert findings_of(some, "error") == []


def test_several_series_in_a_folder_are_as_many_volumes(tmp_path):
    """In any order of names, without suffixes: each voxel is where its own folder would have it."""
    alone, together = tmp_path / "alone", tmp_path / "together" / "study"
    together.mkdir(parents=True)
    values = [hounsfield(8, 9, 4), hounsfield(8, 9, 6), hounsfield(7, 9, 4)]
    for number, each in enumerate(values):
        for slice_ in sorted(ct_series(alone / str(number), each, PatientID="P").iterdir()):
            shutil.copy(slice_, together / f"IM{slice_.stem[-3:]}{number}")
    some = task(tmp_path / "together", dims=3, patient="(study).*")
    entries = Cache(tmp_path / "cache").prepare(some.images(), some.preprocessing)
    assert len(entries) == 3
    found = sorted((read_image(case.image[0]) for case in some.images()), key=lambda image: image[0].shape)
    expected = sorted((read_image(alone / str(number)) for number in range(3)), key=lambda image: image[0].shape)
    for (one, place), (other, its) in zip(found, expected, strict=True):
        assert np.array_equal(one, other) and np.allclose(place, its)
    hashes = Cache(tmp_path / "cache").image_hashes(some.images(), 3)
    assert len(set().union(*hashes)) == 3
    late = together / "IM9999"  # a slice of a fourth series
    ct_series(tmp_path / "more", hounsfield(8, 9, 1))
    shutil.copy(next((tmp_path / "more").iterdir()), late)
    again = task(tmp_path / "together", dims=3, patient="(study).*")
    assert len(again.images()) == 3 and "one slice" in findings_of(again, "note")[0]


def test_what_is_no_volume_is_left_out_and_told(tmp_path):
    for number in range(3):
        ct_series(tmp_path / f"p{number}", hounsfield(8, 9, 4), PatientID=f"P{number}")
    ct_series(tmp_path / "scout", hounsfield(8, 9, 3), PatientID="P0", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    ct_series(tmp_path / "one", hounsfield(8, 9, 1), PatientID="P0")
    Image.new("L", (9, 9)).save(tmp_path / "key.png")
    some = task(tmp_path, dims=3)
    assert set(whose(some)) == {"p0", "p1", "p2"}
    notes = "\n".join(findings_of(some, "note"))
    assert "scout: is a localiser" in notes and "one: holds one slice" in notes and "1 pictures are not used" in notes


def with_scout(root: Path, at: int) -> Path:
    """Two patients' folders; among the first one's slices, as number `at`, lies a scout."""
    for who, depth in (("A", 9), ("B", 5)):
        ct_series(root / who, hounsfield(8, 9, depth), PatientID=who)
    ct_series(root / "s", hounsfield(8, 12, 1), PatientID="A")
    slices = sorted((root / "A").iterdir())
    (scout,) = (root / "s").iterdir()
    for number, path in enumerate([*slices[:at], scout, *slices[at:]]):
        path.rename(root / "A" / f"IM{number:04d}")
    (root / "s").rmdir()
    return root


@pytest.mark.parametrize("at", range(10))
def test_a_stray_file_among_slices_is_left_out_by_its_name_wherever_it_is(tmp_path, at):
    some = task(with_scout(tmp_path, at), dims=3, exclude=(f"A/IM{at:04d}",))
    first, second = some.images()
    assert findings_of(some, "error") == [] and (first.patient, second.name, second.patient) == ("A", "B", "B")
    assert read_image(first.image[0])[0].shape == (8, 9, 9) and read_image(second.image[0])[0].shape == (8, 9, 5)
    Cache(tmp_path / "c").prepare(some.images(), some.preprocessing)


@pytest.mark.parametrize("at", [0, 4, 9])
def test_all_files_of_a_folder_may_be_left_out_by_their_names(tmp_path, at):
    ct_series(tmp_path / "C", hounsfield(8, 9, 4), PatientID="C")
    assert set(whose(task(with_scout(tmp_path, at), dims=3, exclude=("A/IM*",)))) == {"B", "C"}


@pytest.mark.parametrize("which", ["IM0001", "IM0000", "IM000[0-7]"])
def test_some_slices_of_a_volume_cannot_be_left_out_and_the_others_be_trained_on(tmp_path, which):
    for who in "ABC":
        for path in ct_series(tmp_path / who, hounsfield(8, 9, 9), PatientID=who).iterdir():
            path.rename(path.with_name(f"IM{int(path.stem[-3:]):04d}"))
    num = 8 if "[" in which else 1
    some = task(tmp_path, dims=3, exclude=(f"A/{which}",))
    assert {case.name for case in some.images()} == {"B", "C"}
    refused(
        lambda: refuse(some, False, True),
        f"{tmp_path}/A/series-",
        f"task.exclude names {num} of its 9 slices ({which[:5]}",
        "which are one volume; move these out of the folder, or name all of them",
    )


def test_a_picture_of_a_folder_is_left_out_by_its_name(tmp_path):
    for number in range(4):
        radiograph(tmp_path / f"IM{number}", rng.integers(0, 4096, (12, 10)).astype(np.uint16), PatientID=f"P{number}")
    assert set(whose(task(tmp_path, exclude=("*IM1",)))) == {"IM0", "IM2", "IM3"}


def test_a_file_of_several_frames_is_no_single_slice_and_refused_by_name(tmp_path):
    for number in range(2):
        ct_series(tmp_path / f"p{number}", hounsfield(8, 9, 4), PatientID=f"P{number}")
    ct_series(tmp_path / "enhanced", hounsfield(8, 9, 1), PatientID="P3", NumberOfFrames=40)
    some = task(tmp_path, dims=3)
    refused(lambda: Cache(tmp_path / "c").prepare(some.images(), some.preprocessing), "enhanced")


def test_dicom_pictures_belong_to_the_patient_that_dicom_names(tmp_path):
    for number in range(4):
        pixels = rng.integers(0, 4096, (12, 10)).astype(np.uint16)
        radiograph(tmp_path / f"IM{number}", pixels, PatientID=f"P{number // 2}")
    assert sorted(whose(task(tmp_path)).values()) == ["P0", "P0", "P1", "P1"]


# ---- other files


@pytest.fixture
def pictures(tmp_path) -> Path:
    for number in range(12):
        path = tmp_path / "x" / f"p{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 10), np.uint8)).save(path)
    return tmp_path / "x"


def test_pictures_are_found_and_left_out_by_their_paths(pictures):
    assert len(task(pictures).images()) == 12
    assert {name.split("/")[0] for name in whose(task(pictures, exclude=("p0/*", "*/3.png")))} == {
        "p1", "p2", "p3", "p4", "p5",
    }  # fmt: skip
    assert len(task(pictures, exclude=("p0/*", "*/3.png")).images()) == 9
    assert set(whose(task(pictures, patient="([^/]+)/.*")).values()) == {f"p{number}" for number in range(6)}


def test_nifti_is_found_and_label_maps_are_not_taken_for_images(tmp_path):
    for number in range(3):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / part).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(hounsfield(8, 8, 8), np.eye(4)), tmp_path / part / f"p{number}.nii.gz")
    some = task(tmp_path, dims=3)
    refused(lambda: refuse(some, False, True), "labelsTr: is called as folders of label maps are", "task.exclude")
    some = task(tmp_path, dims=3, exclude=("labelsTr/*",))
    refuse(some, False, True)
    assert set(whose(some)) == {f"imagesTr/p{number}.nii.gz" for number in range(3)}


def test_what_cannot_be_pre_trained_on_is_refused_in_one_line(tmp_path, pictures):
    refused(lambda: refuse(task(pictures, dims=3), False, True), "holds no volume", "12 pictures are not used")
    one = task(pictures, patient=".*(x?)")
    refused(lambda: refuse(one, False, True), "task.patient")
    refused(lambda: refuse(task(pictures, patient="(p).*"), False, True), "all 12 images are of one patient, 'p'")
    refused(lambda: refuse(task(pictures), True), "have no labels", "pretrain.sources")
    (pictures / "p0" / "linked").symlink_to(tmp_path)
    assert any("is a link to a folder" in note for note in findings_of(task(pictures), "note"))


# ---- val


def test_val_is_a_share_of_the_patients_and_of_no_other(pictures):
    some = task(pictures, patient="([^/]+)/.*")
    train, val = splits.pretraining_cases(some)
    assert {case.patient for case in train}.isdisjoint(case.patient for case in val) and train and val
    assert len(train) + len(val) == 12 and {case.label for case in (*train, *val)} == {None}


def drawn(who: str) -> float:
    return float(SampleRng(key("unlabelled", who)).uniform("val")[0])


NAMES = st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=60)


@settings(max_examples=examples(200))
@given(NAMES, NAMES)
def test_patients_that_are_added_move_no_others(there, more):
    """A name below a tenth is in val and no other is, whoever else there is; one at least is on each side."""
    below = {who for who in there if drawn(who) < 0.1}
    val = splits.unlabelled_val(there)
    if below and below != there:
        assert val == below and splits.unlabelled_val(there | more) & there == below
    else:
        assert len(val) == (len(there) - 1 if below else 1) and max(map(drawn, val)) <= min(map(drawn, there - val))


def test_about_a_tenth_is_val():
    val = splits.unlabelled_val(str(number) for number in range(5000))
    assert 0.08 < len(val) / 5000 < 0.12  # ± 4.7 standard deviations


def test_a_table_without_a_label_serves_pre_training(folder):
    blind = [row | {"kind": "", "a": "", "b": "", "both": ""} for row in rows()]
    for asked in ({"labels": ("a", "b")}, {"label": "kind"}, {"label": "both", "separator": "|"}):
        some = images.build(images.Config(root=folder([{**row, "part": ""} for row in blind]), roi=(8, 8), **asked))
        refuse(some, False, True)
        train, val = splits.pretraining_cases(some)
        assert {case.patient for case in train}.isdisjoint(case.patient for case in val)
        assert val and len(train) + len(val) == len(blind)
        refused(lambda some=some: refuse(some, True), "no image has a label; fill in", "leave finetune out")
        assert [each.severity for each in listings(some, True) if "no image has a label" in each.what] == ["note"]


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_other_layouts_without_a_label_keep_a_val_too(tmp_path, layout):
    write, plugin = (write_msd, msd) if layout == "msd" else (write_nnunet, nnunet)
    root = write(tmp_path / "mri", 0, 0, num_unlabelled=4, shape=(16, 20, 16))
    train, val = splits.pretraining_cases(plugin.build(plugin.Config(root=root, roi=(8, 8, 8))))
    assert train and val and len(train) + len(val) == 4
