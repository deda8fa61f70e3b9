"""What counts as the same image: formats, orientations, dtypes and scales do not matter, and what does is listed."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.geometries import affines, noise, shapes
from support.made_up import ct_series, radiograph
from support.suite import examples

from premed.data.content import MOST_LEVELS, hash_channels, hash_image

ORIENTATIONS = ["".join(axes) for ends in product("RL", "AP", "SI") for axes in permutations(ends)]
GREY = np.random.default_rng(0).integers(0, 256, (12, 10), np.uint8)
VOLUME = np.random.default_rng(1).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)
RAS = np.diag([1.0, 2, 3, 1])


def nifti(path, values, affine=RAS, orientation=None, scale=None):
    """Writes NIfTI. scale: (slope, intercept) of the header; the stored numbers are `values`."""
    image = nib.nifti1.Nifti1Image(values, affine, dtype=values.dtype)
    if orientation:
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(orientation))
        )
        image = image.as_reoriented(turn.tolist())
    if scale:
        image.header.set_slope_inter(*scale)
    nib.nifti1.save(image, path)
    if scale:  # nibabel scales what it saves: put the numbers as they are
        plain = nib.nifti1.Nifti1Image(np.asarray(image.dataobj), image.affine, dtype=values.dtype)
        plain.header.set_slope_inter(1, 0)
        nib.nifti1.save(plain, path)
        content = bytearray(path.read_bytes())
        content[112:120] = np.array(scale, "<f4").tobytes()
        path.write_bytes(content)
    return path


def png(path, values):
    Image.fromarray(values).save(path)
    return path


# ---- the same


@settings(max_examples=examples(60), deadline=None)
@given(
    affines(),
    shapes,
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([np.int16, np.float32, np.float64, np.dtype(">i2")]),
    st.sampled_from([None, (1, -1024), (0.1, 0), (1 / 3, 7), (2.5e-3, -1)]),
)
def test_a_volume_is_the_same_in_any_orientation_dtype_and_scale(
    tmp_path_factory, affine, shape, orientation, dtype, scale
):
    folder = tmp_path_factory.mktemp("volumes")
    values = np.random.default_rng(0).permutation(np.arange(np.prod(shape))).reshape(shape).astype(np.int16)
    plain = nifti(folder / "plain.nii.gz", values, affine)
    other = nifti(folder / "other.nii", values.astype(dtype), affine, orientation, scale)
    assert hash_image(plain, 3) == hash_image(other, 3) != ()
    one_more = values.copy()
    one_more[0, 0, 0] = values.max() + 1
    if values[0, 0, 0] < values.max():  # the order changes
        assert hash_image(nifti(folder / "changed.nii", one_more, affine), 3) != hash_image(plain, 3)


def test_a_series_of_dicom_slices_is_the_same_as_its_nifti(tmp_path):
    series = ct_series(tmp_path / "series", VOLUME, spacing=(1, 2, 3))
    lps = np.diag([-1.0, -2, 3, 1])  # DICOM's axes grow to the left and the back
    assert hash_image(series, 3) == hash_image(nifti(tmp_path / "a.nii.gz", VOLUME.astype(np.float32), lps), 3)


def test_a_picture_is_the_same_in_8_and_16_bits_in_colour_and_as_dicom(tmp_path):
    same = [
        png(tmp_path / "8.png", GREY),
        png(tmp_path / "16.png", GREY.astype(np.uint16) * 257),
        png(tmp_path / "colour.png", np.stack([GREY] * 3, axis=-1)),
        radiograph(tmp_path / "measured.dcm", GREY.astype(np.uint16) * 13 + 5),
        radiograph(tmp_path / "inverted.dcm", 4000 - GREY.astype(np.uint16) * 13, inverted=True),
    ]
    assert len({frozenset(hash_image(path, 2)) for path in same}) == 1


def test_a_dicom_picture_is_the_same_as_what_is_displayed_of_it_and_as_what_was_measured(tmp_path):
    raw = np.random.default_rng(2).integers(0, 4096, (12, 10), np.uint16)
    file = radiograph(tmp_path / "a.dcm", raw, WindowCenter=2000, WindowWidth=2000)
    displayed = np.rint(255 * np.clip((raw - 1999.5) / 1999 + 0.5, 0, 1)).astype(np.uint8)  # DICOM PS3.3 C.11.2.1.2
    of_file = set(hash_image(file, 2))
    assert len(of_file) == 2
    assert of_file == {
        *hash_image(png(tmp_path / "8.png", displayed), 2),
        *hash_image(png(tmp_path / "16.png", raw), 2),
    }


def test_channels_in_one_file_and_in_several_are_the_same(tmp_path):
    two = np.stack([VOLUME, VOLUME[::-1]], axis=-1)
    both = hash_image(nifti(tmp_path / "both.nii.gz", two), 3)
    each = [hash_image(nifti(tmp_path / f"{i}.nii.gz", two[..., i]), 3) for i in (0, 1)]
    assert len(both) == 2 and both == (*each[0], *each[1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_more_levels_than_16_bits_hold_are_compared_as_float32(order):
    values = np.asarray(noise(50, 45, 40), order=order)
    assert len(np.unique(values)) > MOST_LEVELS
    assert hash_channels(values, RAS, 3) == hash_channels(values.astype(np.float64), RAS, 3) != ()
    flipped = np.diag([-1.0, 2, 3, 1])
    assert hash_channels(values[::-1], flipped, 3) == hash_channels(values, RAS, 3)
    changed = values.copy()
    changed[-1, -1, -1] += 1
    assert hash_channels(changed, RAS, 3) != hash_channels(values, RAS, 3)


# ---- not the same

CHANGES = {
    "mirrored": lambda values: values[:, ::-1],
    "turned": lambda values: values.T,
    "cropped": lambda values: values[1:],
    "padded": lambda values: np.pad(values, 1),
    "resampled": lambda values: np.asarray(Image.fromarray(values).resize((20, 24))),
    "clipped": lambda values: values.clip(20, 230),
    "rounded": lambda values: values // 2,
    "inverted": lambda values: 255 - values,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_that_was_changed_is_another_as_the_documentation_says(tmp_path, change):
    one, other = png(tmp_path / "a.png", GREY), png(tmp_path / "b.png", np.ascontiguousarray(CHANGES[change](GREY)))
    assert {*hash_image(one, 2)}.isdisjoint(hash_image(other, 2))


def test_a_jpeg_of_a_picture_is_another(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    assert {*hash_image(tmp_path / "a.jpg", 2)}.isdisjoint(hash_image(png(tmp_path / "a.png", GREY), 2))


def test_one_value_everywhere_is_no_image():
    empty = np.zeros((4, 5, 6), np.float32)
    assert hash_channels(empty, RAS, 3) == ()
    assert hash_channels(np.stack([empty, VOLUME[:4, :5, :1].repeat(6, axis=2)], axis=-1), RAS, 3) != ()
    assert hash_channels(np.full((4, 5), np.nan, np.float32), np.eye(4), 2) == ()


def test_not_a_number_has_a_place_of_its_own():
    values = VOLUME.astype(np.float32)
    values[1, 2, 3] = np.nan
    again = values.copy()
    assert hash_channels(values, RAS, 3) == hash_channels(again, RAS, 3) != hash_channels(VOLUME, RAS, 3)
