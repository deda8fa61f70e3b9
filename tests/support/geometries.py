"""Affines and shapes of images, for property tests."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def affines(draw):
    """Any flip and permutation, voxels of 0.5 to 4 mm, tilted by up to 20 degrees, anywhere."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(np.deg2rad(draw(st.lists(st.floats(-11, 11), min_size=3, max_size=3)))).as_matrix()
    axes = np.eye(3)[:, draw(st.permutations(range(3)))] * draw(
        st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3)
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * draw(st.lists(st.floats(0.5, 4), min_size=3, max_size=3))
    affine[:3, 3] = draw(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
    return affine


shapes = st.tuples(*[st.integers(2, 9)] * 3)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
