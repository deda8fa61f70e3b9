"""Affines and shapes of images, for property tests."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def shears(draw):
    """Upper triangular matrices whose columns have length 1 and are not at right angles."""
    slant = st.one_of(st.floats(0.02, 0.4), st.floats(-0.4, -0.02))
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = draw(slant), draw(slant), draw(slant)
    return shear / np.linalg.norm(shear, axis=0)


@st.composite
def affines(draw, sheared: bool = False):
    """Any flip and permutation, voxels of 0.5 to 4 mm, tilted by up to 20 degrees, anywhere.

    sheared: the angles between its axes are 45 to 89 degrees, or more than 91.
    """
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(np.deg2rad(draw(st.lists(st.floats(-11, 11), min_size=3, max_size=3)))).as_matrix()
    axes = np.eye(3)[:, draw(st.permutations(range(3)))] * draw(
        st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3)
    )
    if sheared:
        turn = turn @ draw(shears())
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * draw(st.lists(st.floats(0.5, 4), min_size=3, max_size=3))
    affine[:3, 3] = draw(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
    return affine


shapes = st.tuples(*[st.integers(2, 9)] * 3)


def gantry_tilt(spacing: tuple[float, float, float], degrees: float) -> np.ndarray:
    """The affine of CT slices that a gantry tilted by so many degrees has scanned: the table moves along z."""
    angle, affine = np.deg2rad(degrees), np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, np.cos(angle), 0], [0, np.sin(angle), 1]]) * spacing
    return affine


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
