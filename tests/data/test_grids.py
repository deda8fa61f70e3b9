"""What is done to grids unasked is told: enlarged and squeezed pictures, volumes of mixed spacings."""

from types import SimpleNamespace

import numpy as np
import pytest

from premed.config.image_processing import Preprocessing
from premed.data.datamodule import DataModule
from premed.data.grids import grid_warnings


@pytest.fixture
def images(tmp_path):
    """Prepared images of these shapes or spacings; what they are read from is another test's matter."""
    (tmp_path / "a").touch()

    def make(shapes=(), spacings=()):
        pictures = [SimpleNamespace(path=tmp_path / "a", native_shape=shape) for shape in shapes]
        return pictures + [SimpleNamespace(path=tmp_path / "a", native_affine=np.diag([*s, 1.0])) for s in spacings]

    return make


PICTURES = Preprocessing(dims=2, size=(64, 64), normalise="grey")
VOLUMES = Preprocessing(dims=3, normalise="zscore")


def test_pictures_that_are_enlarged_are_told_with_the_remedy(images):
    (warning,) = grid_warnings(images([(28, 28)] * 5 + [(200, 200)]), PICTURES)
    assert warning.startswith("pictures of 28 × 28 pixels are enlarged to 64 × 64") and "set task.roi" in warning
    assert grid_warnings(images([(1024, 1000)] * 3), PICTURES) == []
    assert grid_warnings(images([(28, 28)]), Preprocessing(dims=2, normalise="grey")) == []


def test_pictures_that_are_squeezed_are_told(images):
    (warning,) = grid_warnings(images([(100, 300)]), PICTURES)
    assert warning.startswith("pictures are squeezed 3 times to 64 × 64; give task.roi")


def test_volumes_of_mixed_spacings_are_told_unless_they_are_resampled(images):
    mixed = images(spacings=[(1, 1, 1), (1, 1.1, 5), (1, 1, 3)])
    (warning,) = grid_warnings(mixed, VOLUMES)
    assert "task.spacing is null: voxels are of 1 × 1 × 1 to 5 mm" in warning and "median [1, 1, 3]" in warning
    assert grid_warnings(mixed, Preprocessing(dims=3, spacing=(1.0, 1.0, 1.0), normalise="zscore")) == []
    assert grid_warnings(images(spacings=[(1, 1, 3), (1, 1, 3.1)]), VOLUMES) == []


def test_the_same_voxels_in_another_order_of_axes_are_not_mixed(images):
    turned = images(spacings=[(1, 1, 3)])
    turned[0].native_affine = np.array([[0, 0, 3, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    assert grid_warnings(images(spacings=[(3, 1, 1)]) + turned, VOLUMES) == []


def test_a_data_set_says_it_once_for_all_its_stages(tmp_path):
    events = []
    data = DataModule(SimpleNamespace(name="chest"), map, events.append)
    data.warn(["a", "a"])
    data.warn(["a", "b"])
    assert [event.text for event in events] == ["chest: a", "chest: b"]
