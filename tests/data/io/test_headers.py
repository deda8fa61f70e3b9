"""A header says what reading the whole file says, of every kind of image."""

import nibabel
import numpy as np
import pytest
from PIL import Image
from support.made_up import ct_series, radiograph

from premed.data.io import geometry
from premed.data.io.headers import read_header
from premed.data.io.readers import read_image
from premed.errors import UserError

rng = np.random.default_rng(0)


def as_ras(values, affine):
    oriented, _, turned = geometry.reorient(values[None], None, affine, "RAS")
    return oriented.shape[1:], np.linalg.norm(turned[:3, :3], axis=0)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "ASR"])
def test_a_volume_s_shape_and_spacing_are_along_r_a_and_s(tmp_path, axes):
    image = nibabel.Nifti1Image(rng.integers(0, 9, (4, 5, 6)).astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    assert header.shape == (4, 5, 6) and header.spacing == pytest.approx((1, 2, 3)) and header.orientation == axes


def test_channels_of_a_volume_are_counted(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert (read_header(tmp_path / "a.nii").shape, read_header(tmp_path / "a.nii").channels) == ((4, 5, 6), 3)


def test_a_series_has_the_grid_of_its_volume_its_modality_and_patient(tmp_path):
    values = rng.integers(-1000, 400, (7, 6, 5)).astype(np.int16)
    folder = ct_series(tmp_path / "series", values, Modality="CT", PatientID="P7")
    header, (read, affine) = read_header(folder), read_image(folder)
    shape, spacing = as_ras(read, affine)
    assert header.shape == shape and header.spacing == pytest.approx(spacing)
    assert (header.modality, header.patient) == ("CT", "P7")


def test_pictures_have_height_and_width(tmp_path):
    Image.fromarray(rng.integers(0, 255, (20, 30)).astype(np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(tmp_path / "colour.jpg")
    radiograph(tmp_path / "x.dcm", rng.integers(0, 4096, (20, 30)).astype(np.uint16), Modality="DX")
    found = [read_header(tmp_path / name) for name in ("grey.png", "colour.jpg", "x.dcm")]
    assert [(each.shape, each.channels, each.spacing) for each in found] == [
        ((20, 30), 1, ()),
        ((20, 30), 3, ()),
        ((20, 30), 1, ()),
    ]
    assert found[2].modality == "DX"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png", "a.dcm"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of an image" * 30)
    with pytest.raises(UserError, match=name):
        read_header(tmp_path / name)
