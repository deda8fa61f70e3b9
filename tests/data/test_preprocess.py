"""Reading, the recipe's grid and numbers, the way back, and the random views."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from PIL import Image
from pydantic import ValidationError
from support.geometries import affines, noise, shapes
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.data.io import geometry
from premed.data.preprocess import Prepared, prepare
from premed.errors import UserError

CT = Preprocessing(dims=3, normalise="window", window=(-175, 250))
ZSCORE = Preprocessing(dims=3, normalise="zscore")
GREY = Preprocessing(dims=2, normalise="grey", size=(32, 48))


def nifti(path: Path, values, affine=None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def png(path: Path, values) -> Path:
    Image.fromarray(values).save(path)
    return path


def values_of(prepared: Prepared) -> np.ndarray:
    ones = (1,) * (prepared.image.ndim - 1)
    return prepared.image * prepared.scale.reshape(-1, *ones) + prepared.offset.reshape(-1, *ones)


# The grid ------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(60), deadline=None)
@given(affines(), shapes, st.booleans(), st.sampled_from(["RAS", "LPS", "SAR"]), st.integers(0, 99))
def test_a_label_comes_back_identical_where_the_spacing_is_kept(
    tmp_path_factory, affine, shape, crop, orientation, seed
):
    folder = tmp_path_factory.mktemp("case")
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    image = nifti(folder / "i.nii", labels.astype(np.float32), affine)  # foreground is where the label is
    preprocessing = Preprocessing(dims=3, normalise="zscore", crop_foreground=crop, orientation=orientation)
    made = prepare([image], nifti(folder / "l.nii", labels, affine), preprocessing)
    back = [made.label, np.eye(4, dtype=np.float32)[made.label].transpose(3, 0, 1, 2)]
    for answer in back:
        np.testing.assert_array_equal(
            geometry.to_native(answer, made.affine, made.native_affine, made.native_shape), labels
        )


@settings(max_examples=examples(40), deadline=None)
@given(affines(), shapes, st.booleans())
def test_every_voxel_keeps_its_place_in_the_world(affine, shape, respace):
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]  # each voxel says where it is
    values = np.moveaxis(places, -1, 0).astype(np.float32)
    made, _, moved = geometry.reorient(values, None, affine, "RAS")
    if respace:
        made, _, moved = geometry.resample_to_spacing(made, None, moved, (1.0, 1.5, 2.0))
    claimed = np.moveaxis(np.indices(made.shape[1:]), 0, -1) @ moved[:3, :3].T + moved[:3, 3]
    inside = tuple(slice(0, max(1, n - 1)) for n in made.shape[1:])  # the last one may lie half a voxel outside
    np.testing.assert_allclose(np.moveaxis(made, 0, -1)[inside], claimed[inside], atol=2e-3)


def test_numbers_grow_to_the_right_the_front_and_the_top(tmp_path):
    values = np.zeros((4, 5, 6), np.float32)
    values[0, 0, 0] = 1  # LPI-stored: the file's first voxel is right, front, bottom
    made = prepare([nifti(tmp_path / "i.nii", values, np.diag([-1.0, -1, 1, 1]))], None, ZSCORE)
    assert np.unravel_index(made.image[0].argmax(), values.shape) == (3, 4, 0)
    assert orientations.aff2axcodes(made.affine) == ("R", "A", "S")


def test_spacing_agrees_with_monai(real):
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing

    path = real("btcv") / "img" / "img0005.nii.gz"
    preprocessing = Preprocessing(dims=3, normalise="window", window=(-175, 250), spacing=(4.0, 5.0, 2.0))
    steps = [LoadImage(), EnsureChannelFirst(), Orientation(axcodes="RAS", labels=None)]
    theirs = Compose([*steps, Spacing(pixdim=preprocessing.spacing, mode="bilinear", dtype=np.float64)])(path)
    made = prepare([path], None, preprocessing)
    np.testing.assert_allclose(made.affine, theirs.affine.numpy(), atol=1e-6)
    expected = (np.clip(theirs.numpy(), -175, 250) + 175) / 425
    np.testing.assert_allclose(values_of(made), expected, atol=2e-4)


def test_respaced_labels_come_back_almost_whole(real):
    folder = real("btcv")
    preprocessing = Preprocessing(
        dims=3, normalise="window", window=(-175, 250), spacing=(1.5, 1.5, 2.0), crop_foreground=True
    )
    made = prepare([folder / "img/img0005.nii.gz"], folder / "label/label0005.nii.gz", preprocessing)
    native = np.asarray(nibabel.load(folder / "label/label0005.nii.gz").dataobj)
    back = geometry.to_native(made.label, made.affine, made.native_affine, made.native_shape)
    assert (back == native).mean() > 0.995
    scores = np.eye(14, dtype=np.float16)[made.label].transpose(3, 0, 1, 2)
    assert (geometry.to_native(scores, made.affine, made.native_affine, made.native_shape) == native).mean() > 0.995


def test_scores_are_interpolated_before_the_highest_wins():
    line = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1)
    answer = geometry.to_native(
        np.stack([np.full_like(line, 0.6), line]), np.diag([10.0, 1, 1, 1]), np.eye(4), (11, 1, 1)
    )
    np.testing.assert_array_equal(answer.ravel(), [0] * 7 + [1] * 4)  # i / 10 > 0.6


def test_a_tilted_grid_is_carried_over_too():
    from scipy.spatial.transform import Rotation

    tilted = np.eye(4)
    tilted[:3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    tilted[:3, 3] = [10, -10, 0]
    z, y, x = np.indices((40, 40, 10))
    ball = ((np.stack([z, y, x], -1) @ tilted[:3, :3].T + tilted[:3, 3] - [20, 20, 5]) ** 2).sum(-1) < 16
    for answer in (ball.astype(np.uint8), np.stack([~ball, ball]).astype(np.float32)):
        back = geometry.to_native(answer, tilted, np.eye(4), (40, 40, 10))
        native = ((np.indices((40, 40, 10)) - np.array([20, 20, 5]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 16
        assert (back == native).mean() > 0.99 and back.sum() == pytest.approx(native.sum(), rel=0.1)


def test_outside_the_prepared_grid_is_background():
    affine = np.eye(4)
    affine[:3, 3] = 2  # a crop of the native grid, and half as fine
    answer = np.ones((2, 2, 2), np.uint8)
    exact = geometry.to_native(answer, affine, np.eye(4), (6, 6, 6))
    assert exact.sum() == 8 and exact[2:4, 2:4, 2:4].all()
    coarse = geometry.to_native(
        np.stack([answer * 0.0, answer * 1.0]), affine @ np.diag([1.5, 1.5, 1.5, 1]), np.eye(4), (9, 9, 9)
    )
    assert coarse[2:4, 2:4, 2:4].all() and not coarse[:1].any() and not coarse[5:].any()


def test_the_foreground_box_is_seen_in_the_image_alone(tmp_path):
    values = np.zeros((9, 9, 9), np.float32)
    values[2:5, 3:7, 4] = 50
    label = np.ones((9, 9, 9), np.uint8)
    preprocessing = Preprocessing(dims=3, normalise="zscore", crop_foreground=True)
    made = prepare([nifti(tmp_path / "i.nii", values)], nifti(tmp_path / "l.nii", label), preprocessing)
    assert made.image.shape == (1, 3, 4, 1) and made.label.shape == (3, 4, 1)
    np.testing.assert_array_equal(made.affine[:3, 3], [2, 3, 4])


# The numbers ---------------------------------------------------------------------------------------------------------


def test_a_window_is_clipped_and_scaled_to_one(real):
    path = real("btcv") / "img" / "img0005.nii.gz"
    raw = np.asarray(nibabel.load(path).dataobj, np.float64)
    made = prepare([path], None, CT)
    np.testing.assert_allclose(values_of(made)[0], np.clip((raw + 175) / 425, 0, 1), atol=1e-6)
    assert made.image.dtype == np.int16 and values_of(made).dtype == np.float32 and values_of(made).min() == 0


def test_zscore_within_percentiles_is_the_formula(real):
    path = real("Task04_Hippocampus") / "imagesTr" / "hippocampus_004.nii.gz"
    raw = np.asarray(nibabel.load(path).dataobj, np.float64)
    raw = np.clip(raw, *np.percentile(raw, [0.5, 99.5]))
    made = prepare([path], None, Preprocessing(dims=3, normalise="zscore", percentiles=(0.5, 99.5)))
    np.testing.assert_allclose(values_of(made)[0], (raw - raw.mean()) / raw.std(), atol=2e-4)


@pytest.mark.slow
def test_four_channels_are_normalised_each_over_what_is_not_zero(real):
    path = real("Task01_BrainTumour") / "imagesTr" / "BRATS_001.nii.gz"
    made = prepare([path], None, Preprocessing(dims=3, channels=4, normalise="zscore_nonzero"))
    assert made.image.shape == (4, 240, 240, 155) and made.image.dtype == np.int16
    for number in range(4):
        raw = nibabel.load(path).dataobj[..., number].astype(np.float64)
        some, ours = raw[raw != 0], (made.image[number] * made.scale[number])
        np.testing.assert_allclose(ours[raw != 0], (some - some.mean()) / some.std(), atol=3e-4)
        assert not ours[raw == 0].any() and not made.offset.any()


def test_grey_pictures_stay_eight_bit(real):
    path = next((real("chestxray14") / "images").glob("*.png"))
    made = prepare([path], None, Preprocessing(dims=2, normalise="grey"))
    raw = np.asarray(Image.open(path), np.float64)
    assert made.image.dtype == np.uint8
    np.testing.assert_allclose(values_of(made)[0], (raw / 255 - 0.5) / 0.225, atol=1e-6)


def test_pictures_are_equalised_then_resized(tmp_path):
    picture = png(tmp_path / "p.png", noise(64, 96).astype(np.uint8))
    made = prepare([picture], None, GREY.model_copy(update={"equalize": True}))
    from PIL import ImageOps

    expected = ImageOps.equalize(Image.open(picture)).resize((48, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(made.image[0], np.asarray(expected))
    np.testing.assert_allclose(made.affine @ [-0.5, -0.5, 0, 1], [-0.5, -0.5, 0, 1])  # corner stays on corner


def test_grey_saved_as_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = np.repeat(noise(8, 8).astype(np.uint8)[..., None], 4, axis=2)
    grey[..., 3] = 255
    preprocessing = Preprocessing(dims=2, normalise="grey")
    np.testing.assert_array_equal(prepare([png(tmp_path / "g.png", grey)], None, preprocessing).image[0], grey[..., 0])
    with pytest.raises(UserError, match=r"c\.png: 3 channel"):
        prepare([png(tmp_path / "c.png", noise(8, 8, 3).astype(np.uint8))], None, preprocessing)


@pytest.mark.parametrize("value", [0, 7, 0.5, -3.25])
@pytest.mark.parametrize("normalise", ["zscore", "zscore_nonzero", "window"])
def test_a_constant_image_gives_finite_numbers(tmp_path, value, normalise):
    path = nifti(tmp_path / "i.nii", np.full((3, 4, 5), value, np.float32))
    made = prepare([path], None, Preprocessing(dims=3, normalise=normalise, window=(-1, 1)))
    assert np.isfinite(values_of(made)).all()


@settings(max_examples=examples(30), deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(0, 99))
def test_storing_loses_less_than_a_ten_thousandth_of_the_range(tmp_path_factory, low, reach, seed):
    raw = (low + reach * np.random.default_rng(seed).random((4, 5, 6))).astype(np.float32)
    made = values_of(prepare([nifti(tmp_path_factory.mktemp("case") / "i.nii", raw)], None, ZSCORE))[0]
    exact = raw.astype(np.float64)
    expected = (exact - exact.mean()) / exact.std()
    assert np.abs(made - expected).max() < 1e-4 * np.ptp(expected) + 1e-2 * np.abs(exact).max() * 1e-5 / exact.std()


# What users get wrong ------------------------------------------------------------------------------------------------


def broken(folder: Path, how: str) -> tuple[list[Path], Path | None, Preprocessing]:
    good = nifti(folder / "good.nii.gz", noise(12, 12, 12))
    bad, picture = folder / "bad.nii.gz", folder / "bad.png"
    values = noise(12, 12, 12)
    match how:
        case "missing":
            return [bad], None, ZSCORE
        case "empty":
            bad.touch()
            return [bad], None, ZSCORE
        case "truncated":
            bad.write_bytes(good.read_bytes()[:1500])
            return [bad], None, ZSCORE
        case "not an image":
            bad.write_text("<html>404</html>")
            return [bad], None, ZSCORE
        case "absurd header":
            plain = nifti(folder / "bad.nii", values)
            header = bytearray(plain.read_bytes())
            header[40:56] = np.array([4, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
            plain.write_bytes(header)
            return [plain], None, ZSCORE
        case "NaN":
            values[0, 0, 0] = np.nan
            return [nifti(bad, values)], None, ZSCORE
        case "channels":
            return [nifti(bad, noise(6, 6, 6, 2))], None, ZSCORE
        case "axes":
            return [nifti(bad, noise(6, 6))], None, ZSCORE
        case "other shape":
            return [good, nifti(bad, noise(6, 6, 6))], None, ZSCORE.model_copy(update={"channels": 2})
        case "other affine":
            return [good], nifti(bad, np.zeros((12, 12, 12), np.uint8), np.diag([1, 1, 1.1, 1])), ZSCORE
        case "label shape":
            return [good], nifti(bad, np.zeros((12, 12, 11), np.uint8)), ZSCORE
        case "label fractions":
            return [good], nifti(bad, values), ZSCORE
        case "label negative":
            return [good], nifti(bad, np.full((12, 12, 12), -1, np.int16)), ZSCORE
        case "label large":
            return [good], nifti(bad, np.full((12, 12, 12), 256, np.int16)), ZSCORE
        case "singular affine":
            image = nibabel.Nifti1Image(values, None)
            image.header["srow_x"], image.header["sform_code"] = [0, 0, 0, 0], 1
            image.header["pixdim"][1] = 0
            nibabel.save(image, bad)
            return [bad], None, ZSCORE
        case "truncated png":
            whole = png(folder / "whole.png", noise(64, 64).astype(np.uint8)).read_bytes()
            picture.write_bytes(whole[:900])
            return [picture], None, GREY
        case "not a png":
            picture.write_text("hello")
            return [picture], None, GREY
        case "16 bit":
            return [png(picture, noise(8, 8).astype(np.uint16))], None, GREY
        case _:
            other = folder / "bad.txt"
            other.write_text("x")
            return [other], None, GREY


HOW = ["missing", "empty", "truncated", "not an image", "absurd header", "NaN", "channels", "axes", "other shape"]
HOW += ["other affine", "label shape", "label fractions", "label negative", "label large", "singular affine"]
HOW += ["truncated png", "not a png", "16 bit", "unknown kind"]


@pytest.mark.parametrize("how", HOW)
def test_a_bad_file_is_named_in_one_line_with_the_mend(tmp_path, how):
    images, label, preprocessing = broken(tmp_path, how)
    with pytest.raises(UserError, match=r"bad\.(nii|nii\.gz|png|txt): .*") as caught:
        prepare(images, label, preprocessing)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_be_meant_is_refused():
    for wrong in (
        {"dims": 3, "normalise": "window"},
        {"dims": 3, "normalise": "grey"},
        {"dims": 2, "normalise": "grey", "spacing": (1, 1, 1)},
        {"dims": 3, "normalise": "zscore", "orientation": "RRS"},
        {"dims": 3, "normalise": "window", "window": (5, 5)},
        {"dims": 3, "normalise": "zscore", "percentiles": (5, 101)},
    ):
        with pytest.raises(ValidationError):
            Preprocessing(**wrong)
