"""What the network sees of a prepared image: the right shape, a pure function of the draw, and where to look."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case
from premed.data import views
from premed.data.cache import Cache
from premed.rng import SampleRng, key

SHAPE = (20, 24, 18)
WARPS = Augmentation(flip=0.5, rotate=0.5, intensity=0.5)
PICTURES = [
    Augmentation(),
    Augmentation(flip=1.0),
    Augmentation(scale=(0.3, 0.9), flip=0.5),
    Augmentation(rand="rand-m9-mstd0.5-inc1"),
]
VOLUMES = [
    Augmentation(),
    WARPS,
    Augmentation(shift=3),
    Augmentation(positive=1.0),
    Augmentation(flip=1.0, flip_axes=(0,)),
]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """An entry of 48 × 40 pixels, all different along each axis."""
    folder = tmp_path_factory.mktemp("picture")
    Image.fromarray((np.add.outer(np.arange(48) * 2, np.arange(40) * 3)).astype(np.uint8)).save(folder / "a.png")
    case = Case("a", "p", (folder / "a.png",))
    return Cache(folder / "cache").prepare([case], Preprocessing(dims=2, normalise="grey", orientation="RAS"))[0]


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """An entry of SHAPE voxels numbered from 1, with one labelled voxel at (15, 4, 9)."""
    folder = tmp_path_factory.mktemp("volume")
    label = np.zeros(SHAPE, np.uint8)
    label[15, 4, 9] = 1
    nib.save(
        nib.Nifti1Image(np.arange(1, np.prod(SHAPE) + 1, dtype=np.float32).reshape(SHAPE), np.eye(4)), folder / "a.nii"
    )
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "b.nii")
    case = Case("a", "p", (folder / "a.nii",), folder / "b.nii")
    preprocessing = Preprocessing(dims=3, window=(0, float(np.prod(SHAPE))), normalise="window", orientation="RAS")
    return Cache(folder / "cache").prepare([case], preprocessing)[0]


@pytest.mark.parametrize("augment", PICTURES)
def test_a_picture_s_view_is_a_pure_function_of_its_draw(picture, augment):
    drawn = [views.picture(picture, (32, 24), augment, SampleRng(key("view", i))) for i in (0, 1, 2, 3, 0)]
    assert all(view.shape == (1, 32, 24) and view.dtype == np.float32 for view in drawn)
    assert np.array_equal(drawn[0], drawn[4])


@pytest.mark.parametrize("augment", VOLUMES)
@pytest.mark.parametrize("roi", [(8, 8, 8), (32, 16, 32)])
def test_a_volume_s_view_is_a_pure_function_of_its_draw(volume, augment, roi):
    drawn = [views.volume(volume, roi, augment, SampleRng(key("view", i)), True) for i in (0, 1, 0)]
    assert all(image.shape == (1, *roi) and image.dtype == np.float32 for image, _ in drawn)
    assert all(label is not None and label.shape == roi for _, label in drawn)
    assert np.array_equal(drawn[0][0], drawn[2][0])
    assert not np.array_equal(drawn[0][0], drawn[1][0]) or roi != (8, 8, 8) or augment.positive


def test_without_augmentation_a_picture_s_view_is_its_middle(picture):
    view = views.picture(picture, (32, 24), Augmentation(), SampleRng(0))
    assert np.array_equal(view, picture.image((8, 8), (32, 24)))
    assert np.array_equal(view, views.centre(picture, (32, 24)))


def test_a_certain_flip_is_left_to_right(picture):
    flipped = views.picture(picture, (32, 24), Augmentation(flip=1.0), SampleRng(0))
    assert np.array_equal(flipped[..., ::-1], views.centre(picture, (32, 24)))


def test_flips_keep_to_their_axes(volume):
    flipped, _ = views.volume(volume, SHAPE, Augmentation(flip=1.0, flip_axes=(1,)), SampleRng(0))
    assert np.array_equal(flipped[:, :, ::-1], volume.image())


@given(st.integers(0, 10_000))
def test_balanced_crops_hold_the_label_and_others_need_not_look(volume, seed):
    _, label = views.volume(volume, (8, 8, 8), Augmentation(positive=1.0), SampleRng(seed), with_label=True)
    assert label is not None and label.sum() == 1
    assert views.volume(volume, (8, 8, 8), Augmentation(), SampleRng(seed))[1] is None


@given(st.integers(0, 10_000))
def test_image_and_label_move_together(volume, seed):
    image, label = views.volume(
        volume, (12, 12, 12), Augmentation(positive=1.0, flip=0.5, rotate=0.5), SampleRng(seed), True
    )
    assert label is not None
    number = 15 * 24 * 18 + 4 * 18 + 9 + 1
    assert (image[0][label == 1] * np.prod(SHAPE)).tolist() == [pytest.approx(number, abs=0.5)]


@given(st.integers(0, 10_000))
def test_shifted_crops_stay_near_the_middle(volume, seed):
    image, _ = views.volume(volume, (8, 8, 8), Augmentation(shift=2), SampleRng(seed))
    first = np.unravel_index(round(float(image[0, 0, 0, 0]) * np.prod(SHAPE)) - 1, SHAPE)
    assert all(abs(at - (n - 8) // 2) <= 2 for at, n in zip(first, SHAPE, strict=True))


def test_tiles_lie_side_by_side_without_overlap_from_the_middle_out(volume):
    tiles = views.tiles(volume, (10, 8, 9))
    assert len(tiles) == views.MOST_TILES < 2 * 3 * 2, "the image has room for twelve"
    seen = np.concatenate([tile.ravel() for tile in tiles])
    assert len(np.unique(np.rint(seen * np.prod(SHAPE)))) == len(seen)
    assert all(np.array_equal(a, b) for a, b in zip(tiles, views.tiles(volume, (10, 8, 9)), strict=True))


def test_an_image_smaller_than_the_roi_is_one_padded_tile(volume):
    (tile,) = views.tiles(volume, (32, 32, 32))
    assert tile.shape == (1, 32, 32, 32)
    assert np.array_equal(tile[:, 6:26, 4:28, 7:25], volume.image())
