"""What a NIfTI header leaves open: the unit of length, sform against qform and pixdim, codes, scl_slope."""

from pathlib import Path

import numpy as np
import pytest
from support.checking import IMAGE, MSD, at, errors, notes
from support.made_up import nifti
from support.readers import refused

from premed.config.image_processing import Preprocessing
from premed.data.io.readers import read_file, read_image
from premed.data.preprocess import prepare
from premed.errors import UserError

rng = np.random.default_rng(1)

pytest_plugins = ["support.checking"]

STORED = rng.integers(-50, 200, (12, 10, 8)).astype(np.int16)
SFORM = np.array([[-1.5, 0, 0, 90], [0, 1.5, 0, -120], [0, 0, 4, 33], [0, 0, 0, 1]])
PIXDIM = (1, 1.5, 1.5, 4)
QFORM = {
    "qform_code": 1,
    "quatern_c": 1,
    "qoffset_x": 90,
    "qoffset_y": -120,
    "qoffset_z": 33,
    "pixdim": (-1, *PIXDIM[1:]),
}
"""The same as SFORM: a half turn about y, and qfac -1."""
HALVED = dict.fromkeys(("quatern_c", "qoffset_x", "qoffset_y", "qoffset_z"), 0)


def notes_of(path: Path) -> list[str]:
    """The notes on a file, up to their colons."""
    return [note.text.partition(":")[0] for note in read_file(path).notes]


# Units of length -----------------------------------------------------------------------------------------------------

MM = {1: 1000.0, 3: 0.001, 2: 1.0, 0: 1.0}
"""Millimetres in a unit of xyzt_units; 0 is unknown."""


@pytest.mark.parametrize("unit", MM)
@pytest.mark.parametrize("seconds", [0, 8])
@pytest.mark.parametrize("form", ["sform", "qform", "pixdim"])
def test_a_grid_is_in_millimetres_whatever_its_unit(tmp_path, unit, seconds, form):
    in_unit = np.diag([1 / MM[unit]] * 3 + [1])
    fields: dict = {"xyzt_units": unit + seconds, "pixdim": (1, *(size / MM[unit] for size in PIXDIM[1:]))}
    if form == "sform":
        fields |= {"sform": in_unit @ SFORM, "sform_code": 1}
    elif form == "qform":
        offsets = {name: QFORM[name] / MM[unit] for name in ("qoffset_x", "qoffset_y", "qoffset_z")}
        fields |= {"qform_code": 1, "quatern_c": 1, **offsets, "pixdim": (-1, *fields["pixdim"][1:])}
    values, affine = read_image(nifti(tmp_path / "a.nii", STORED, **fields))
    expected = SFORM.copy()
    if form == "pixdim":  # nibabel's rule: the first axis runs to the left, the middle is the origin
        expected[:3, 3] = [1.5 * 5.5, -1.5 * 4.5, -4 * 3.5]
    np.testing.assert_allclose(affine, expected, rtol=1e-5)
    np.testing.assert_array_equal(values, STORED)
    units = [note.text for note in read_file(tmp_path / "a.nii").notes if "unit of length" in note.text]
    assert len(units) == (unit in (1, 3)) and all("1.5 × 1.5 × 4 mm" in note for note in units)


def test_an_image_in_metres_is_prepared_as_the_same_in_millimetres(tmp_path):
    """Once: a spacing of 2 mm made one voxel of it."""
    preprocessing = Preprocessing(dims=3, normalise="zscore", spacing=(2, 2, 2))
    made = []
    for unit, size in (("metre", 0.001), ("mm", 1.0), ("micron", 1000.0)):
        sform = np.diag([size, size, size, 1]) @ SFORM
        code = {"metre": 1, "mm": 2, "micron": 3}[unit]
        path = nifti(tmp_path / f"{unit}.nii", STORED, sform=sform, sform_code=1, xyzt_units=code)
        made.append(prepare([path], None, preprocessing))
    for other in made:
        assert other.image.shape == made[1].image.shape == (1, 9, 8, 15)
        np.testing.assert_allclose(other.image, made[1].image, atol=1)
        np.testing.assert_allclose(other.native_affine, SFORM, rtol=1e-5)


def test_a_label_in_another_unit_than_its_image_is_compared_in_millimetres(tmp_path):
    micron = np.diag([1000, 1000, 1000, 1]) @ SFORM
    image = nifti(tmp_path / "i.nii", STORED, sform=SFORM, sform_code=1, xyzt_units=2, pixdim=PIXDIM)
    fine = nifti(tmp_path / "l.nii", (STORED > 0).astype(np.uint8), sform=micron, sform_code=1, xyzt_units=3)
    preprocessing = Preprocessing(dims=3, normalise="zscore")
    assert prepare([image], fine, preprocessing).label is not None
    lost = nifti(tmp_path / "x.nii", (STORED > 0).astype(np.uint8), sform=micron, sform_code=1)
    with pytest.raises(UserError, match="its affine is not its image's"):
        prepare([image], lost, preprocessing)


def test_a_code_that_is_no_unit_is_mm_and_a_note(tmp_path):
    path = nifti(tmp_path / "a.nii", STORED, sform=SFORM, sform_code=1, xyzt_units=6, pixdim=PIXDIM)
    assert notes_of(path) == ["xyzt_units 6 has no unit of length"]
    np.testing.assert_array_equal(read_image(path)[1], SFORM)


# sform, qform, pixdim ------------------------------------------------------------------------------------------------

turned = np.deg2rad(5) / 2
CONTRADICTIONS = {
    "as the cardiac sets": (
        {"pixdim": (-1, 1.5, 1.5, 8)},
        "voxels of 1.5 × 1.5 × 4 against 1.5 × 1.5 × 8 mm; the sform",
    ),
    "another orientation": (QFORM | {"quatern_c": 0, "pixdim": PIXDIM}, "axes LAS against RAS; the sform is used"),
    "turned by 5°": (QFORM | {"quatern_b": np.sin(turned), "quatern_c": np.cos(turned)}, "axes 5° apart; the sform"),
    "another origin": (
        QFORM | {"qoffset_y": -108},
        ": first voxels 12 mm apart; the sform is used; if the qform is right",
    ),
    "all of it": (QFORM | HALVED | {"pixdim": (1, 1, 1, 1)}, "voxels of 1.5 × 1.5 × 4 against 1 × 1 × 1 mm, axes LAS"),
    "pixdim alone": (
        QFORM | {"qform_code": 0, "pixdim": (1, 1.5, 1.5, 8)},
        "sform and pixdim contradict each other: voxels",
    ),
    "no rotation": (QFORM | {"quatern_b": 1}, "its qform (code 1) cannot be used: the sform is used"),
}


@pytest.mark.parametrize("how", CONTRADICTIONS)
def test_a_header_that_contradicts_itself_is_noted_and_the_sform_used(tmp_path, how):
    fields, words = CONTRADICTIONS[how]
    path = nifti(tmp_path / "a.nii", STORED, sform=SFORM, sform_code=1, xyzt_units=2, **QFORM | fields)
    ((note, _),) = read_file(path).notes
    assert words in note, note
    np.testing.assert_array_equal(read_image(path)[1], SFORM)


AGREEING = {
    "the same": QFORM,
    "pixdim alone": {"qform_code": 0, "pixdim": PIXDIM},
    "no pixdim": {"pixdim": (1, 0, 0, 0)},
    "an unused qform": {"qform_code": 0, "quatern_c": 0.5, "pixdim": PIXDIM},
    "rounded": QFORM | {"pixdim": (-1, 1.5001, 1.5001, 4.0004), "qoffset_x": 90.01},
    "an unused sform": QFORM | {"sform_code": 0, "sform": 7 * SFORM},
}


@pytest.mark.parametrize("how", AGREEING)
def test_a_header_that_says_the_same_twice_or_once_is_not_noted(tmp_path, how):
    path = nifti(tmp_path / "a.nii", STORED, **{"sform": SFORM, "sform_code": 1, "xyzt_units": 2} | AGREEING[how])
    assert read_file(path).notes == ()
    np.testing.assert_allclose(read_image(path)[1], SFORM, atol=1e-5)


def test_after_the_mend_that_the_note_names_the_qform_is_used(tmp_path):
    fields = {"sform": SFORM, "xyzt_units": 2, **QFORM, "pixdim": (-1, 1.5, 1.5, 8)}
    assert notes_of(nifti(tmp_path / "a.nii", STORED, sform_code=1, **fields))
    mended = nifti(tmp_path / "b.nii", STORED, sform_code=0, **fields)
    np.testing.assert_allclose(read_image(mended)[1], SFORM @ np.diag([1, 1, 2, 1]), atol=1e-5)
    assert notes_of(mended) == []


def test_a_header_without_orientation_is_noted(tmp_path):
    path = nifti(tmp_path / "a.nii", STORED, pixdim=PIXDIM)
    assert notes_of(path) == ["it has neither sform nor qform, so that left and right are not known"]


CORRECTED = {
    "sform_code 9": (QFORM | {"sform_code": 9, "sform": 3 * SFORM}, "sform_code 9 is not one of NIfTI's, 0 to 5"),
    "a negative length": (QFORM | {"pixdim": (-1, 1.5, -1.5, 4)}, "pixdim has lengths that are not above 0"),
    "a length of 0": (QFORM | {"pixdim": (-1, 1.5, 0, 4)}, "pixdim has lengths that are not above 0"),
}


@pytest.mark.parametrize("what", CORRECTED)
def test_what_nibabel_corrects_silently_is_noted(tmp_path, what):
    fields, words = CORRECTED[what]
    assert notes_of(nifti(tmp_path / "a.nii", STORED, **fields)) == [words]


def test_a_qform_that_is_used_and_is_no_rotation_is_refused_by_name(tmp_path):
    path = nifti(tmp_path / "a.nii", STORED, **QFORM | {"quatern_b": 1})
    refused(path, "its qform cannot be used", "fix the header")


# Slope and intercept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "inter"), [(0, 0), (np.nan, np.nan), (np.nan, 0), (0, np.nan), (0, -1024), (np.nan, 7)]
)
def test_without_a_slope_voxels_are_as_stored_and_an_intercept_is_noted(tmp_path, slope, inter):
    fields = {"sform": SFORM, "sform_code": 1, "pixdim": PIXDIM, "scl_slope": slope, "scl_inter": inter}
    path = nifti(tmp_path / "a.nii", STORED, **fields)
    np.testing.assert_array_equal(read_image(path)[0], STORED)
    assert ["scl_inter" in note.text for note in read_file(path).notes] == [True] * (inter in (-1024, 7))


def test_a_slope_without_an_intercept_is_refused_by_name(tmp_path):
    path = nifti(tmp_path / "a.nii", STORED, pixdim=PIXDIM, scl_slope=2, scl_inter=np.nan)
    refused(path, "its scl_slope is 2 and its scl_inter nan; fix the header")


def test_nan_is_refused_with_the_mend(tmp_path):
    values = STORED.astype(np.float32)
    values[:3] = np.nan
    path = nifti(tmp_path / "a.nii", values, pixdim=PIXDIM)
    refused(path, "240 values are NaN or infinite", "write its value in their place", "nan=-1000")


# The check of a data set ---------------------------------------------------------------------------------------------


def rewritten(path: Path, **fields) -> None:
    """The header of a file with other fields."""
    import nibabel

    image = nibabel.nifti1.load(path)
    values, header = np.asarray(image.dataobj), image.header
    kept = {"sform": image.affine, "sform_code": 1, "pixdim": header["pixdim"][:4], "xyzt_units": 2}
    path.unlink()
    nifti(path, values, **kept | fields)


UNITS = {"metre": (1, 0.001), "micron": (3, 1000.0)}


@pytest.mark.parametrize("unit", UNITS)
def test_the_check_notes_a_unit_and_compares_spacings_in_mm(hippocampi, copied, found, unit):
    root, (code, size) = copied(hippocampi), UNITS[unit]
    for part in ("imagesTr", "labelsTr"):
        sform = np.diag([size, size, size, 1]) @ read_image(at(root, part, 1))[1]
        rewritten(at(root, part, 1), sform=sform, xyzt_units=code, pixdim=(1, size, size, size))
    findings = found(MSD, root)
    assert errors(findings) == [] and len(findings) == 2  # the image and its label
    image = at(root, "imagesTr", 1)
    (text,) = notes(findings, IMAGE.replace("{1}", image.name))
    assert f"its unit of length is the {unit}: its grid is converted to mm, voxels are 1 × 1 × 1 mm" in text


def test_the_check_notes_a_header_that_contradicts_itself(hippocampi, copied, found):
    root = copied(hippocampi)
    image = at(root, "imagesTr", 1)
    rewritten(image, qform_code=1, pixdim=(1, 1.5, 1.5, 8))
    findings = found(MSD, root)
    (text,) = notes(findings, "contradict each other")
    assert errors(findings) == [] and str(image) in text
    assert "voxels of 1 × 1 × 1 against 1.5 × 1.5 × 8 mm" in text and "set sform_code to 0" in text
