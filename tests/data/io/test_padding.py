"""DICOM's padding is no part of the image: it is known whatever its sign, and counts in no statistic."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.dataelem import DataElement
from pydicom.uid import CTImageStorage
from support.made_up import ct_series, dicom, radiograph

from premed.config.image_processing import Preprocessing
from premed.data.inspection import Facts, Inspection, inspect
from premed.data.io.readers import read_image
from premed.data.preprocess import prepare

rng = np.random.default_rng(1)

VALUE, LIMIT = 0x00280120, 0x00280121
BODY = rng.integers(100, 301, (24, 20)).astype(np.uint16)
BODY[10, :2] = 100, 300
INSIDE = np.zeros(BODY.shape, bool)
INSIDE[5:-5, 4:-4] = True
INSIDE[10, :2] = True
BORDERED = np.where(INSIDE, BODY, 4095).astype(np.uint16)
"""A body of 100 to 300 in a border of 4095."""


def values_of(made) -> np.ndarray:
    ones = (1,) * (made.image.ndim - 1)
    return made.image.astype(np.float64) * made.scale.reshape(-1, *ones) + made.offset.reshape(-1, *ones)


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverted", [False, True])
def test_without_a_window_the_range_is_that_of_the_body(tmp_path, inverted):
    """Once: 0 to 13 of 255."""
    path = radiograph(tmp_path / "a.dcm", BORDERED, inverted, PixelPaddingValue=4095)
    expected = np.rint(255 * (BORDERED - 100.0) / 200)
    expected = np.where(INSIDE, 255 - expected if inverted else expected, 0)
    assert np.abs(read_image(path, shown=True)[0] - expected).max() <= inverted  # a half may be rounded either way
    assert not read_image(path, shown=True)[0][~INSIDE].any()


def test_a_picture_is_equalised_by_its_body(tmp_path):
    path = radiograph(tmp_path / "a.dcm", BORDERED, PixelPaddingValue=4095)
    made = prepare([path], None, Preprocessing(dims=2, equalize=True, normalise="grey"))
    shown = np.rint(255 * (BODY[INSIDE] - 100.0) / 200).astype(np.uint8)  # the body as a picture of its own
    expected = np.asarray(ImageOps.equalize(Image.fromarray(shown[None])))[0]
    np.testing.assert_array_equal(made.image[0][INSIDE], expected)
    assert (made.image[0][~INSIDE] == expected.min()).all()


NORMALISE = {
    "zscore": (Preprocessing(dims=2, normalise="zscore"), None),
    "percentiles": (Preprocessing(dims=2, normalise="zscore", percentiles=(5, 95)), (5, 95)),
}


@pytest.mark.parametrize("how", NORMALISE)
@pytest.mark.parametrize("size", [None, (24, 20)])
def test_a_picture_is_normalised_by_its_body(tmp_path, how, size):
    path = radiograph(tmp_path / "a.dcm", BORDERED, PixelPaddingValue=4095)
    preprocessing, percentiles = NORMALISE[how]
    made = prepare([path], None, preprocessing.model_copy(update={"size": size}))
    body = BODY[INSIDE].astype(np.float64)
    if percentiles:
        body = np.clip(body, *np.percentile(body, percentiles))
    expected = (body - body.mean()) / body.std()
    np.testing.assert_allclose(values_of(made)[0][INSIDE], expected, atol=1e-4)
    np.testing.assert_allclose(values_of(made)[0][~INSIDE], expected.min(), atol=1e-4)


def scanned(folder: Path, **fields) -> tuple[Path, np.ndarray, np.ndarray]:
    """A CT, its corners stored as -2000, wider from slice to slice; its values, and where they are no padding."""
    values = rng.integers(-1000, 1000, (12, 12, 6)).astype(np.int16)
    inside = np.ones(values.shape, bool)
    for number in range(6):
        inside[: number + 1, :2, number] = False
        values[6, 6, number] = -1000 + 10 * number  # each slice has a lowest value of its own
        values[..., number] = np.maximum(values[..., number], -1000 + 10 * number)
    ct_series(folder, np.where(inside, values, -3024), PixelPaddingValue=-2000, **fields)
    return folder, values.astype(np.float64), inside


VOLUMES = {
    "zscore": Preprocessing(dims=3, normalise="zscore"),
    "percentiles": Preprocessing(dims=3, normalise="zscore", percentiles=(5, 95)),
    "nonzero": Preprocessing(dims=3, normalise="zscore_nonzero"),
    "window": Preprocessing(dims=3, normalise="window", window=(-500, 500)),
}


@pytest.mark.parametrize("how", VOLUMES)
def test_a_series_is_normalised_by_what_is_no_padding(tmp_path, how):
    folder, values, inside = scanned(tmp_path / "s")
    made = prepare([folder], None, VOLUMES[how].model_copy(update={"orientation": "LPS"}))
    if how == "nonzero":
        inside &= values != 0
    body = values[inside]
    if how == "percentiles":
        body = np.clip(body, *np.percentile(body, (5, 95)))
    expected = np.clip((body + 500) / 1000, 0, 1) if how == "window" else (body - body.mean()) / body.std()
    np.testing.assert_allclose(values_of(made)[0][inside], expected, atol=2e-4)
    np.testing.assert_allclose(values_of(made)[0][~inside], 0 if how == "nonzero" else expected.min(), atol=2e-4)


def test_padding_of_a_series_takes_the_lowest_value_of_the_volume_and_not_of_its_slice(tmp_path):
    folder, values, inside = scanned(tmp_path / "s")
    read, _ = read_image(folder)
    np.testing.assert_array_equal(read[inside], values[inside])
    assert (read[~inside] == values[inside].min()).all()


def test_padding_goes_with_the_image_through_spacing_and_crop(tmp_path):
    """A resampled volume has the statistics of the same volume resampled, without the voxels in its padding."""
    from premed.data.io import geometry

    folder, _, _ = scanned(tmp_path / "s")
    spacing = (3.0, 3.0, 3.0)
    made = prepare([folder], None, Preprocessing(dims=3, normalise="zscore", spacing=spacing))
    read, affine = read_image(folder)
    padding = (scanned(tmp_path / "t")[2] == False).astype(np.uint8)  # noqa: E712
    values, mask, affine = geometry.reorient(read[None], padding, affine, "RAS")
    values, mask, _ = geometry.resample_to_spacing(values, mask, affine, spacing)
    body = values[0][mask == 0].astype(np.float64)
    np.testing.assert_allclose(values_of(made)[0][mask == 0], (body - body.mean()) / body.std(), atol=1e-4)


def test_padding_is_never_foreground(tmp_path):
    values = np.full((10, 10, 4), 50, np.int16)
    values[2:6, 3:8, 1:3] = 90
    outside = values == 50
    folder = ct_series(tmp_path / "s", np.where(outside, -3024, values), PixelPaddingValue=-2000)
    preprocessing = Preprocessing(dims=3, normalise="zscore", crop_foreground=True, orientation="LPS")
    assert prepare([folder], None, preprocessing).image.shape == (1, 4, 5, 2)
    assert inspect(Inspection(0, (folder,), None, preprocessing, ())).prepared == (4, 5, 2)


def test_a_picture_of_nothing_but_padding_is_a_note(tmp_path):
    path = radiograph(tmp_path / "a.dcm", np.full((8, 8), 4095, np.uint16), PixelPaddingValue=4095)
    for preprocessing in (VOLUMES["zscore"].model_copy(update={"dims": 2}), Preprocessing(dims=2, normalise="grey")):
        assert not prepare([path], None, preprocessing).image.any()
        facts: Facts = inspect(Inspection(0, (path,), None, preprocessing, ()))
        assert [each.what for each in facts.findings if "every pixel is padding" in each.what]


# The sign and the range of the value ---------------------------------------------------------------------------------

SIGNED, UNSIGNED = np.int16, np.uint16
SPELT = {
    "signed, as signed": (SIGNED, -2000, {VALUE: ("SS", -2000)}),
    "signed, as unsigned": (SIGNED, -2000, {VALUE: ("US", 63536)}),
    "unsigned, as unsigned": (UNSIGNED, 65535, {VALUE: ("US", 65535)}),
    "unsigned, as signed": (UNSIGNED, 65535, {VALUE: ("SS", -1)}),
    "a range, as unsigned": (SIGNED, -1500, {VALUE: ("US", 63536), LIMIT: ("US", 64512)}),  # -2000 to -1024
    "a range, upside down": (SIGNED, -1500, {VALUE: ("SS", -1024), LIMIT: ("SS", -2000)}),
    "a range, each its own way": (SIGNED, -1500, {VALUE: ("SS", -2000), LIMIT: ("US", 64512)}),
    "a range of an unsigned, as signed": (UNSIGNED, 65000, {VALUE: ("SS", -1), LIMIT: ("SS", -1000)}),
}


@pytest.mark.parametrize("how", SPELT)
def test_padding_is_known_by_its_bits(tmp_path, how):
    dtype, stored, tags = SPELT[how]
    pixels = np.where(INSIDE, BODY, stored).astype(dtype)
    elements = {f"x{tag}": DataElement(tag, *spelt) for tag, spelt in tags.items()}
    path = dicom(tmp_path / "a.dcm", pixels, CTImageStorage, **elements, BitsStored=16, HighBit=15)
    values, _ = read_image(path)
    np.testing.assert_array_equal(values, np.where(INSIDE, BODY, 100))
    np.testing.assert_array_equal(read_image(path, True)[0][INSIDE], np.rint(255 * (BODY[INSIDE] - 100.0) / 200))


def test_padding_that_the_stored_bits_cannot_hold_is_found_in_the_words_of_the_file(tmp_path):
    """12 bits, unsigned; the border is the word 63536, which decodes as 2096, and so is one pixel of the body."""
    words = np.where(INSIDE, BODY, 63536).astype(np.uint16)
    words[10, 0] = 63536 % 4096
    element = DataElement(VALUE, "US", 63536)
    path = dicom(tmp_path / "a.dcm", words, CTImageStorage, x=element)
    expected = np.where(INSIDE, words, words[INSIDE].min())
    assert expected[10, 0] == 2096
    np.testing.assert_array_equal(read_image(path)[0], expected)


@pytest.mark.parametrize("value", [-1.5, np.nan])
@pytest.mark.parametrize("lead", ["Float", "DoubleFloat"])
def test_padding_of_floating_point_pixels_has_tags_of_its_own(tmp_path, lead, value):
    dtype = "<f4" if lead == "Float" else "<f8"
    path = dicom(tmp_path / "a.dcm", BODY, CTImageStorage, BitsAllocated=8 * np.dtype(dtype).itemsize)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    setattr(dataset, f"{lead}PixelData", np.where(INSIDE, BODY, value).astype(dtype).tobytes())
    setattr(dataset, f"{lead}PixelPaddingValue", value)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_image(path)[0], np.where(INSIDE, BODY, 100))


def test_what_is_no_padding_by_its_bits_stays(tmp_path):
    pixels = BODY.copy()
    path = dicom(
        tmp_path / "a.dcm", pixels, CTImageStorage, x=DataElement(VALUE, "SS", -101), BitsStored=16, HighBit=15
    )
    np.testing.assert_array_equal(read_image(path)[0], BODY)
