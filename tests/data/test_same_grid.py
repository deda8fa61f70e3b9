"""Whether two files have the same grid: by how far apart it puts their corners, in mm, wherever two are compared."""

from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from support.geometries import affines, shapes
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.data.inspection import Inspection, inspect
from premed.data.io.geometry import corner_gap
from premed.data.preprocess import prepare
from premed.errors import UserError

LONG, SLICE = (500, 3, 4), (40, 30, 1)


def by(*sizes: float, x: float = 0.0) -> np.ndarray:
    affine = np.diag([*sizes, 1.0])
    affine[0, 3] = x
    return affine


def turned(degrees: float) -> np.ndarray:
    affine, angle = np.eye(4), np.deg2rad(degrees)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


GRIDS = {
    "shifted by .002 mm": (LONG, by(1, 1, 1), by(1, 1, 1, x=0.002), 0.002, True),
    "shifted by .3 mm": (LONG, by(1, 1, 1), by(1, 1, 1, x=0.3), 0.3, False),
    "spacing rounded to three decimals": (LONG, by(0.9765625, 1, 1), by(0.977, 1, 1), 0.22, True),
    "spacing rounded to four decimals": (LONG, by(0.97656, 1, 1), by(0.9766, 1, 1), 0.02, True),
    "scaled by 3e-4, .4 mm at voxel 500": (LONG, by(2.667, 2, 2), by(2.6678, 2, 2), 0.4, False),
    "turned by .02°": (LONG, by(1, 1, 1), turned(0.02), 0.17, True),
    "turned by .05°": (LONG, by(1, 1, 1), turned(0.05), 0.44, False),
    "fine voxels, shifted by a third": (LONG, by(0.03, 0.03, 0.03), by(0.03, 0.03, 0.03, x=0.01), 0.01, False),
    "fine voxels, shifted by a fifth": (LONG, by(0.03, 0.03, 0.03), by(0.03, 0.03, 0.03, x=0.006), 0.006, True),
    "a slice of another thickness": (SLICE, by(1, 1, 3), by(1, 1, 5), 2.0, False),
}


def nifti(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Path:
    values = np.zeros(shape, np.uint8)
    values[0] = 1
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("how", GRIDS)
@pytest.mark.parametrize("what", ["label", "channel"])
def test_grids_are_compared_in_mm_at_the_far_corner(tmp_path, how, what):
    shape, affine, other, gap, same = GRIDS[how]
    first, second = nifti(tmp_path / "1.nii.gz", shape, affine), nifti(tmp_path / "2.nii.gz", shape, other)
    images, label = ((first,), second) if what == "label" else ((first, second), None)
    preprocessing = Preprocessing(dims=3, channels=len(images), normalise="zscore")
    facts = inspect(Inspection(0, images, label, preprocessing, ()))
    (found,) = [each for each in facts.findings if "affine" in each.what]
    assert found.where == str(second) and corner_gap(affine, other, shape) == pytest.approx(gap, rel=0.05)
    if same:
        assert found.severity == "note" and "taken as the same" in found.what
        prepare(images, label, preprocessing)
    else:
        assert found.severity == "error" and f"{corner_gap(affine, other, shape):.3g} mm apart" in found.what
        with pytest.raises(UserError, match=f"{second}: its affine is not .* mm apart at the far corner"):
            prepare(images, label, preprocessing)


@settings(max_examples=examples(100))
@given(affines(), affines(), shapes)
def test_the_gap_is_that_of_the_farthest_corner(affine, other, shape):
    corners = [np.array([*corner, 1.0]) for corner in product(*((0, n) for n in shape))]
    farthest = max(np.linalg.norm((affine @ corner - other @ corner)[:3]) for corner in corners)
    assert corner_gap(affine, other, shape) == pytest.approx(farthest)
