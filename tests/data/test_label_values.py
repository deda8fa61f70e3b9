"""Label maps whose values are no labels: the message has the value, how many voxels, and the mend for its cause."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.data.inspection import Inspection, inspect
from premed.data.preprocess import label_fault, prepare
from premed.errors import UserError

PREPROCESSING = Preprocessing(dims=3, normalise="zscore")
SLOPE = "it was stored with a slope (scl_slope): round its values and save them as uint8, without one"
LINEAR = "it was interpolated: resample the original map with nearest neighbour, and save it as uint8"


def labels(*shape: int, highest: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.uint8)


def fault(folder: Path, image: nibabel.Nifti1Image) -> str:
    """What preparing says of a label map; the check of the data must say the same."""
    paths = folder / "image.nii.gz", folder / "label.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(1).random(image.shape).astype(np.float32), np.eye(4)), paths[0]
    )
    nibabel.save(image, paths[1])
    errors = [each.what for each in inspect(Inspection(0, paths[:1], paths[1], PREPROCESSING, ())).findings]
    try:
        prepared = prepare(paths[:1], paths[1], PREPROCESSING)
    except UserError as error:
        assert errors == [str(error).removeprefix(f"{paths[1]}: ")]
        return errors[0]
    assert errors == [] and prepared.label is not None
    return ""


def quantised(label: np.ndarray, highest: float) -> nibabel.Nifti1Image:
    """In 256 steps from 0 to `highest`, as converters store floating-point maps."""
    slope = highest / 255
    image = nibabel.Nifti1Image(np.rint(label / slope).astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    return image


def test_a_quantised_map_is_to_be_rounded(tmp_path):
    label = labels(8, 9, 10)
    message = fault(tmp_path, quantised(label, 2))
    num = (label == 1).sum()
    assert message == f"labels must be whole numbers in 0..255; {num} voxels are not, {num} of them 1.00392: {SLOPE}"


@settings(max_examples=examples(100))
@given(highest=st.integers(2, 25), seed=st.integers(0, 2**31))
def test_every_quantised_map_is_named_as_one_with_its_count(highest, seed):
    label = labels(6, 6, 6, highest=highest, seed=seed)
    slope = np.float32(highest / 255)
    values = np.rint(label / slope) * slope
    wrong = np.abs(values - np.rint(values)) > 1e-3
    message = label_fault(values)
    if not wrong.any():
        assert message == ""
        return
    usual = max(np.unique(values[wrong]), key=lambda value: (values == value).sum())
    times = (values == usual).sum()
    start = f"labels must be whole numbers in 0..255; {wrong.sum()} voxels are not, {times} of them {usual:g}: "
    assert message == start + SLOPE


@settings(max_examples=examples(60))
@given(highest=st.integers(1, 30), factor=st.floats(1.2, 3.0), seed=st.integers(0, 2**31))
def test_an_interpolated_map_is_to_be_resampled(highest, factor, seed):
    values = zoom(labels(6, 6, 6, highest=highest, seed=seed).astype(np.float32), factor, order=1)
    message = label_fault(values)
    num = (np.abs(values - np.rint(values)) > 1e-3).sum()
    assert message.startswith(f"labels must be whole numbers in 0..255; {num} voxels are not, ") and message.endswith(
        LINEAR
    )


@pytest.mark.parametrize(("value", "text"), [(-1.0, "-1"), (256.0, "256"), (1000.0, "1000")])
def test_numbers_that_are_no_labels_are_to_be_renumbered(tmp_path, value, text):
    label = labels(5, 5, 5).astype(np.float32)
    label[:2, 0, 0] = value
    message = fault(tmp_path, nibabel.Nifti1Image(label, np.eye(4)))
    mend = "give its labels numbers from 0 (background) on"
    assert message == f"labels must be whole numbers in 0..255; 2 voxels are not, 2 of them {text}: {mend}"


@pytest.mark.parametrize("off", [1e-4, -1e-4, 9e-4])
def test_what_float32_makes_of_a_label_is_that_label(tmp_path, off):
    label = labels(5, 5, 5).astype(np.float32)
    assert fault(tmp_path, nibabel.Nifti1Image(label + np.float32(off), np.eye(4))) == ""
    assert label_fault(np.array([off, 255 + off])) == ""
