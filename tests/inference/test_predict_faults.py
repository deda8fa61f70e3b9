"""`premed predict` answers all that it can: no file's name, and no error of a library on one image, ends the rest."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from support.made_up import ct_series
from support.predictions import FP32, laid

from premed.inference import inputs, predict
from premed.models.network import Network
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Segmentation

pytest_plugins = ["support.trained_fixtures"]


def misnamed(path: Path, at: Path) -> Path:
    """A copy that is plain where its name says gzip, or gzip where it says plain."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    at.write_bytes(content if at.name.endswith(".gz") else gzip.compress(content))
    return at


def voxels(path: Path) -> np.ndarray:
    content = path.read_bytes()
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


@pytest.fixture
def organs(organ_run, at_home):
    """Two images of the run's test part."""
    return [case.image[0] for case in at_home(organ_run).task.split("test")]


@pytest.fixture
def predicted(premed, organ_run, tmp_path):
    """`premed predict` of images into the folder out: (exit code, content of --json, the lines on stderr)."""

    def call(*images):
        code, out, err = premed("predict", organ_run.run_id, *images, "--out", tmp_path / "out", "--json")
        assert not any("Traceback" in line for line in err)
        return code, json.loads(out), err

    return call


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_plain_file_named_gz_and_a_gzip_named_nii_are_answered(organs, predicted, tmp_path):
    names = {"plain.nii.gz": 0, "zipped.nii": 1, "CAPITALS.NII.GZ": 0}
    files = [misnamed(organs[number], tmp_path / name) for name, number in names.items()]
    code, result, err = predicted(files[0], organs[0], files[1], organs[1], files[2])
    assert (code, result["failed"]) == (0, []) and not any(line.startswith("skipped") for line in err)
    assert [output["files"] for output in result["outputs"]] == [
        ["plain.nii.gz"],
        [organs[0].name],
        ["zipped.nii.gz"],
        [organs[1].name],
        ["CAPITALS.nii.gz"],
    ]
    for name, like in (("plain", 0), ("zipped", 1), ("CAPITALS", 0)):
        made, expected = (tmp_path / "out" / file for file in (f"{name}.nii.gz", organs[like].name))
        assert np.array_equal(voxels(made), voxels(expected)) and voxels(made).any()
        assert np.array_equal(nib.load(made).affine, nib.nifti1.load(organs[like]).affine)


def test_a_misnamed_label_map_of_premed_s_is_written_over(organs, predicted, tmp_path):
    predicted(*organs)
    at = tmp_path / "out" / organs[0].name
    before = voxels(at)
    misnamed(at, at)  # as a browser leaves it
    assert at.read_bytes()[:2] != b"\x1f\x8b"
    code, result, _ = predicted(*organs)
    assert code == 0 and len(result["outputs"]) == 2 and np.array_equal(voxels(at), before)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b and no more", bytes(400), b"\x5c\x01\0\0" + bytes(344)])
def test_a_damaged_file_in_a_label_map_s_place_is_named_and_kept_and_the_rest_answered(
    organs, predicted, tmp_path, content
):
    (tmp_path / "out").mkdir()
    at = tmp_path / "out" / organs[0].name
    at.write_bytes(content)
    code, result, err = predicted(*organs)
    assert code == 1 and [output["path"] for output in result["outputs"]] == [str(organs[1])]
    (line,) = (line for line in err if line.startswith("skipped: "))
    assert line.startswith(f"skipped: {organs[0]}: {at} is there and cannot be read")
    assert at.read_bytes() == content


def test_label_maps_of_another_network_that_stay_in_the_folder_are_told(organs, predicted, tmp_path):
    def of_another(path):
        image = nib.nifti1.load(organs[0])
        image.header["descrip"] = b"premed 0123456789abcdef"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)

    of_another(tmp_path / "out" / organs[0].name)  # is written anew
    code, _, err = predicted(organs[0])
    assert code == 0 and not any("another network" in line for line in err)
    for name in ("other.nii.gz", f"more/{organs[0].name}"):
        of_another(tmp_path / "out" / name)
    shutil.copy(organs[1], tmp_path / "out" / "image.nii.gz")  # is none of premed's, and so none of its answers
    (tmp_path / "out" / "torn.nii.gz").write_bytes(b"no")
    code, _, err = predicted(organs[1])
    (line,) = (line for line in err if "another network" in line)
    assert code == 0 and f"{tmp_path / 'out'}: 2 label map(s) of another network stay" in line
    assert f"(more/{organs[0].name}, …)" in line and line.endswith("--out with another folder keeps them apart")


def test_a_skipped_image_s_earlier_label_map_is_told(organs, predicted, tmp_path):
    images = [
        Path(shutil.copy(organ, tmp_path / name)) for organ, name in zip(organs, ("a.nii.gz", "b.nii.gz"), strict=True)
    ]
    predicted(*images)
    images[0].write_bytes(b"torn")
    code, result, _ = predicted(*images)
    assert code == 1 and [each["path"] for each in result["failed"]] == [str(images[0])]
    assert result["failed"][0]["why"].endswith(f"; {tmp_path / 'out' / 'a.nii.gz'} is of an earlier call and stays")


# Any error -----------------------------------------------------------------------------------------------------------

ERRORS = {
    "a library's": (RuntimeError("expected scalar type Half\nbut found Float"), "RuntimeError: expected scalar type"),
    "one without words": (AssertionError(), "(AssertionError)"),
    "no memory": (MemoryError(), "does not fit in memory"),
    "the system's": (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_any_error_on_one_image_is_one_line_and_the_rest_is_answered(organs, predicted, monkeypatch, what):
    error, words = ERRORS[what]
    logits = Segmentation.logits

    def fail(self, forward, sample):
        if sample.case.image[0] == organs[0]:
            raise error
        return logits(self, forward, sample)

    monkeypatch.setattr(Segmentation, "logits", fail)
    code, result, err = predicted(*organs)
    assert code == 1 and [output["path"] for output in result["outputs"]] == [str(organs[1])]
    (line,) = (line for line in err if line.startswith("skipped: "))
    assert line.startswith(f"skipped: {organs[0]}: ") and words in line
    assert result["failed"] == [{"path": str(organs[0]), "why": line.removeprefix("skipped: ")}]


def test_an_error_on_one_picture_leaves_no_row_and_the_rest_is_answered(
    premed, chest_run, at_home, monkeypatch, tmp_path
):
    first, second = (case.image[0] for case in at_home(chest_run).task.split("test")[:2])
    probabilities = Classification.probabilities

    def fail(self, forward, samples):
        if samples[0].case.image[0] == first:
            raise ValueError("no")
        return probabilities(self, forward, samples)

    monkeypatch.setattr(Classification, "probabilities", fail)
    code, _, err = premed("predict", chest_run.run_id, first, second, "--out", tmp_path)
    assert code == 1 and any(line.startswith(f"skipped: {first}: ") for line in err)
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1].startswith(f"{second},")


def test_a_label_map_that_cannot_be_written_is_its_image_s_fault_alone(organs, predicted, tmp_path):
    long = tmp_path / f"{'n' * 249}.nii"
    shutil.copy(organs[0], tmp_path / "x.nii.gz")
    long.write_bytes(gzip.decompress(organs[0].read_bytes()))  # with .nii.gz, its name is too long
    code, result, err = predicted(long, tmp_path / "absent.nii", tmp_path / f"{'n' * 300}.nii", tmp_path / "x.nii.gz")
    assert code == 1 and [output["files"] for output in result["outputs"]] == [["x.nii.gz"]]
    assert len(result["failed"]) == 3 and any("File name too long" in line and str(long) in line for line in err)


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_answered(organs, predicted, tmp_path, monkeypatch):
    for name in ("closed", "open"):
        (tmp_path / "all" / name).mkdir(parents=True)
        shutil.copy(organs[0], tmp_path / "all" / name / "x.nii.gz")
    of = inputs.slice_files

    def slice_files(folder):  # root may read everything
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return of(folder)

    monkeypatch.setattr(inputs, "slice_files", slice_files)
    code, result, err = predicted(tmp_path / "all")
    assert code == 1 and [output["files"] for output in result["outputs"]] == [["open/x.nii.gz"]]
    assert any(line.startswith(f"skipped: {tmp_path}/all/closed: cannot be read (Permission denied)") for line in err)


def test_a_table_that_cannot_be_read_or_written_is_one_line(premed, chest_run, at_home, tmp_path):
    image = at_home(chest_run).task.split("test")[0].image[0]
    (tmp_path / "predictions.csv").mkdir()
    code, out, err = premed("predict", chest_run.run_id, image, "--out", tmp_path)
    assert (code, out, len(err)) == (2, "", 1) and "predictions.csv: already exists and cannot be read" in err[0]


def test_a_full_disk_ends_it_in_one_line(organs, premed, organ_run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict.nibabel, "save", full)
    code, _, err = premed("predict", organ_run.run_id, *organs, "--out", tmp_path / "out")
    assert code == 1 and "free space and start again" in err[-1] and not any("skipped" in line for line in err)


def test_a_disk_that_is_full_at_a_row_of_a_table_ends_it_in_one_line(premed, chest_run, at_home, tmp_path):
    image, out = at_home(chest_run).task.split("test")[0].image[0], tmp_path / "out"
    out.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", out]).returncode:
        pytest.skip("to mount a disk is root's, who is not allowed it everywhere")
    try:
        (out / "other").write_bytes(bytes(4096))
        code, _, err = premed("predict", chest_run.run_id, image, "--out", out)
    finally:
        subprocess.run(["umount", out], check=True)
    assert code == 1 and "free space and start again" in err[-1] and not any("skipped" in line for line in err)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_no_answer(organs, premed, organ_run, chest_run, at_home, tmp_path, value):
    """Finite weights can answer so to values far from those of training."""
    for run in (organ_run, chest_run):
        image = at_home(run).task.split("test")[0].image[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Network, "forward", lambda self, image, of=Network.forward: of(self, image) * value)
            code, out, err = premed("predict", run.run_id, image, "--out", tmp_path / run.task.name)
        assert code == 2 and out == "" and f"{image}: the network's answer is NaN or infinite; look at" in err[-1]
        assert not any((tmp_path / run.task.name).iterdir())


def test_where_every_image_fails_the_first_is_the_error(organs, premed, organ_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmentation, "logits", lambda *arguments: 1 / 0)
    code, out, err = premed("predict", organ_run.run_id, *organs, "--out", tmp_path / "out")
    assert code == 2 and out == "" and f"{organs[0]}: cannot be predicted (ZeroDivisionError" in err[-1]


# Sheared grids -------------------------------------------------------------------------------------------------------


def test_a_ball_is_answered_where_it_is_whether_the_gantry_is_tilted_or_not(organs, predicted, tmp_path, monkeypatch):
    """Scanned straight and with a gantry tilted by 20 degrees, and answered by whatever is bright."""
    for name, tilt in (("straight", 0.0), ("tilted", float(np.tan(np.deg2rad(20))))):
        x, y, z = np.indices((40, 50, 36))  # voxels of 1 mm
        inside = (x - 18) ** 2 + (y + tilt * z - 30) ** 2 + (z - 20) ** 2 < 9**2
        ct_series(tmp_path / name, np.where(inside, 800, -200).astype(np.int16), (1.0, 1.0, 1.0), tilt=tilt)

    def bright(self, forward, sample):
        image = sample.prepared.image()[0]
        return np.stack([0 * image, image - (image.min() + image.max()) / 2, 0 * image - 9])

    monkeypatch.setattr(Segmentation, "logits", bright)
    code, _, _ = predicted(tmp_path / "straight", tmp_path / "tilted")
    made = [nib.nifti1.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("straight", "tilted")]
    codes = [(int(map.header["qform_code"]), int(map.header["sform_code"])) for map in made]
    assert code == 0 and codes == [(1, 1), (0, 1)]  # a qform of the tilted one would be false
    for map in made:
        places = apply_affine(map.affine, np.argwhere(np.asarray(map.dataobj) == 1))
        assert places.mean(axis=0) == pytest.approx((50 - 18, 40 - 30, 7 + 20), abs=0.3)  # series begin at -50, -40, 7
        assert len(places) == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.1)  # on a grid of 3 mm
        assert np.linalg.norm(places - places.mean(axis=0), axis=1).max() < 9 + 1.5


def test_nothing_of_a_patient_gets_into_a_label_map(organs, organ_run, at_home, tmp_path):
    path = laid(organs[0], tmp_path / "named.nii.gz", "RAS")
    named = nib.nifti1.load(path)
    for text in ("db_name", "aux_file", "descrip", "intent_name"):
        named.header[text] = b"DOE^JANE"
    nib.save(named, tmp_path / "full.nii")
    predict.run(at_home(organ_run).run_id, [tmp_path / "full.nii"], tmp_path / "out", lambda event: None, train=FP32)
    assert b"DOE" in (tmp_path / "full.nii").read_bytes()
    assert b"DOE" not in gzip.decompress((tmp_path / "out" / "full.nii.gz").read_bytes())


def test_what_headers_leave_open_is_said_once_and_a_map_in_metres_lies_where_its_image_does(
    organs, predicted, tmp_path
):
    for number, source in enumerate(organs[:2]):
        image = nib.nifti1.load(source)
        affine = image.affine.copy()
        affine[:3] /= 1000
        made = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        made.header.set_xyzt_units("meter")
        made.to_filename(tmp_path / f"metres{number}.nii.gz")
    code, result, err = predicted(tmp_path / "metres0.nii.gz", tmp_path / "metres1.nii.gz", organs[0])
    result = [line for line in err if "its unit of length is the metre" in line]
    assert code == 0 and len(result) == 1 and "metres0.nii.gz" in result[0]
    first, same = (tmp_path / "out" / f"{name}.nii.gz" for name in ("metres0", organs[0].name.removesuffix(".nii.gz")))
    assert np.array_equal(voxels(first), voxels(same)) and voxels(first).any()
    assert np.array_equal(nib.nifti1.load(first).affine, nib.nifti1.load(tmp_path / "metres0.nii.gz").affine)
