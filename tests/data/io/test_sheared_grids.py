"""Grids whose axes are not at right angles, as a tilted gantry leaves them: straightened, carried back, noted."""

from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.geometries import affines, gantry_tilt, shapes
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.data.inspection import Inspection, inspect
from premed.data.io import geometry
from premed.data.preprocess import prepare

spacings = st.tuples(*[st.floats(0.5, 3)] * 3)


def cosines(affine: np.ndarray) -> np.ndarray:
    """Of the angles between the three axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.abs((axes.T @ axes)[np.triu_indices(3, 1)])


def places(affine: np.ndarray, shape) -> np.ndarray:
    """The place of each voxel in mm, [*shape, 3]."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def index(affine: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The voxel indices of places in mm."""
    return (where - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T


@settings(max_examples=examples(60), deadline=None)
@given(affines(sheared=True), shapes, spacings)
def test_a_sheared_grid_becomes_a_box_with_right_angles_around_it(affine, shape, spacing):
    where = places(affine, shape)  # each voxel's value says where it is
    image = np.moveaxis(where, -1, 0).astype(np.float32)
    labels = np.arange(np.prod(shape)).reshape(shape) % 251
    made, label, straight = geometry.resample_to_spacing(image, labels.astype(np.uint8), affine, spacing)
    assert cosines(affine).max() > 0.01 and cosines(straight).max() < 1e-9
    assert np.linalg.norm(straight[:3, :3], axis=0) == pytest.approx(spacing)
    corners = index(straight, np.array([where[at] for at in product(*((0, n - 1) for n in shape))]))
    assert corners.min(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)  # it begins and ends with the image
    assert np.abs(corners.max(axis=0) - np.subtract(label.shape, 1)).max() <= 0.5 + 1e-6
    claimed = places(straight, label.shape)
    old = index(affine, claimed)
    nearest = np.clip(old, 0, np.subtract(shape, 1)) @ affine[:3, :3].T + affine[:3, 3]  # outside: the border's value
    np.testing.assert_allclose(np.moveaxis(made, 0, -1), nearest, atol=2e-3)
    sure = (np.abs(old % 1 - 0.5) > 1e-6).all(axis=-1)  # not half way between two voxels
    at = np.clip(np.rint(old).astype(int), 0, np.subtract(shape, 1))
    assert np.array_equal(label[sure], labels[tuple(at[sure].T)])
    mask = geometry.resample_to_spacing(image, labels > 99, affine, spacing)[1]
    assert mask.dtype == bool and np.array_equal(mask, label > 99)


@pytest.mark.parametrize("degrees", [20, 7])
def test_a_straightened_grid_is_monai_s(degrees):
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    affine, spacing = gantry_tilt((0.8, 0.8, 2.0), degrees), (1.5, 1.5, 2.0)
    image = np.random.default_rng(0).uniform(1, 9, (1, 20, 17, 12)).astype(np.float32)
    made, _, straight = geometry.resample_to_spacing(image, None, affine, spacing)
    theirs = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border", dtype=np.float64)(
        MetaTensor(torch.from_numpy(image), torch.from_numpy(affine))
    )
    np.testing.assert_allclose(straight, theirs.affine.numpy(), atol=1e-9)
    np.testing.assert_allclose(made, theirs.numpy(), atol=1e-4)


def tilted_ball(folder: Path, affine: np.ndarray, shape, radius: float) -> tuple[Path, Path, np.ndarray]:
    """The files of a ball (a ball in mm, not in voxels) of water in air, and of its label; and the label map."""
    where = places(affine, shape)
    ball = np.linalg.norm(where - where.reshape(-1, 3).mean(axis=0), axis=-1) <= radius
    for name, voxels in (("i.nii", np.where(ball, 0, -1000).astype(np.int16)), ("l.nii", ball.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name)
    return folder / "i.nii", folder / "l.nii", ball


def test_a_ball_in_a_tilted_ct_is_a_ball_to_the_network_and_comes_back(tmp_path):
    image, label, ball = tilted_ball(tmp_path, gantry_tilt((1.0, 1.0, 2.5), 20), (60, 60, 24), radius=18)
    preprocessing = Preprocessing(dims=3, normalise="window", window=(-1000, 0), spacing=(1.0, 1.0, 1.0))
    made = prepare([image], label, preprocessing)
    at = np.argwhere(made.label)
    moments = np.linalg.eigvalsh(np.cov(at.T))  # alike in all directions: the ball was not sheared
    assert moments.max() / moments.min() == pytest.approx(1, abs=0.03)
    assert moments.mean() == pytest.approx(18**2 / 5, rel=0.03)  # of a ball of radius r, r² / 5 along each axis
    assert ((made.image[0] > made.image.max() / 2) == (made.label == 1)).mean() > 0.99
    back = geometry.to_native(made.label, made.affine, made.native_affine, made.native_shape)
    assert (back == ball).mean() > 0.995
    scores = np.stack([made.label == 0, made.label == 1]).astype(np.float32)
    assert (geometry.to_native(scores, made.affine, made.native_affine, made.native_shape) == ball).mean() > 0.995


@settings(max_examples=examples(40), deadline=None)
@given(affines(sheared=True), shapes, st.sampled_from(["RAS", "LPS", "SAR"]), st.booleans(), st.integers(0, 99))
def test_without_spacing_a_sheared_grid_stays_and_its_label_comes_back_identical(
    affine, shape, orientation, crop, seed
):
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    image, label, kept = geometry.reorient(labels[None].astype(np.float32), labels, affine, orientation)
    if crop:
        image, label, kept = geometry.crop_to_foreground(image, label, kept, 0)
    np.testing.assert_array_equal(geometry.to_native(label, kept, affine, shape), labels)


@settings(max_examples=examples(60), deadline=None)
@given(affines(), shapes, spacings)
def test_axes_at_right_angles_are_resampled_one_by_one_as_ever(affine, shape, spacing):
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    made, _, moved = geometry.resample_to_spacing(image, None, affine.astype(np.float32).astype(float), spacing)
    step = spacing / np.linalg.norm(affine[:3, :3], axis=0)
    step[np.abs(step - 1) < 1e-3] = 1
    assert made.shape[1:] == tuple(round((n - 1) / by + 1) for n, by in zip(shape, step, strict=True))
    np.testing.assert_allclose(moved, affine @ np.diag([*step, 1]), atol=1e-4)
    assert (made[0, 0, 0, 0], geometry.voxel_edges(affine).shape) == (image[0, 0, 0, 0], (3,))


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_the_check_notes_a_sheared_grid_and_says_its_prepared_shape(tmp_path, spacing):
    image, label, _ = tilted_ball(tmp_path, gantry_tilt((1.0, 1.0, 2.5), 20), (30, 30, 12), radius=9)
    preprocessing = Preprocessing(dims=3, normalise="zscore", spacing=spacing)
    facts = inspect(Inspection(0, (image,), label, preprocessing, (0, 1)))
    (note,) = facts.findings
    assert note.severity == "note" and note.where == str(image) and "20 degrees off right angles" in note.what
    assert ("resampled to right angles" if spacing else "set task.spacing") in note.what
    assert facts.spacing == pytest.approx((1, 1, 2.5))
    assert facts.prepared == prepare([image], None, preprocessing).image.shape[1:]


def test_a_header_s_rounding_is_no_shear(tmp_path):
    image, _, _ = tilted_ball(tmp_path, np.diag([0.7, 0.7, 2.0, 1.0]), (8, 8, 8), radius=5)
    written = nibabel.nifti1.load(image)
    turned = written.affine.copy()
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] * (0.7, 0.7, 2.0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(written.dataobj).copy(), turned), image)
    assert inspect(Inspection(0, (image,), None, Preprocessing(dims=3, normalise="zscore"), ())).findings == []
    read = nibabel.nifti1.load(image).affine
    assert 0 < cosines(read).max() < 1e-6 and geometry.voxel_edges(read).shape == (3,)


def test_a_sheared_grid_that_would_be_too_large_is_refused():
    from premed.errors import UserError

    affine = gantry_tilt((1.0, 1.0, 2.5), 20)
    with pytest.raises(UserError, match="take a coarser one"):
        geometry.resample_to_spacing(np.zeros((1, 9, 9, 9), np.float32), None, affine, (0.001, 0.001, 0.01))
