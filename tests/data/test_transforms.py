"""Views: crops, flips, turns and intensities, each a function of its draw."""

import random

import numpy as np
import pytest
from PIL import Image
from support.geometries import noise

from premed.data import transforms
from premed.rng import SampleRng

# Views ---------------------------------------------------------------------------------------------------------------


class Located:
    shape = (20, 20, 20)
    counts = {0: 7000, 2: 900, 3: 100}

    def locations(self, label):
        return np.full((5, 3), [0, 10, 4 * label])


@pytest.mark.parametrize("seed", range(5))
def test_the_same_draw_gives_the_same_view(seed):
    picture, volume = noise(1, 40, 40).astype(np.uint8), noise(2, 6, 6, 4)

    def all_views():
        draw = SampleRng(seed)
        yield transforms.random_resized_crop(picture, (32, 32), draw)
        yield transforms.rand_augment(picture, draw)
        yield transforms.horizontal_flip(picture, draw)
        yield flip_rotate(volume, None, draw)[0]
        yield scale_shift_intensity(volume, draw, chance=0.5)

    for first, second, dtype in zip(all_views(), all_views(), ["u1"] * 3 + ["f4"] * 2, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.flags.c_contiguous and min(first.strides) > 0 and first.dtype == dtype


def flip_rotate(image, label, draw, *chances):
    return transforms.flip_rotate(image, label, transforms.draw_moves(image.shape[1:], draw, *chances))


def scale_shift_intensity(image, draw, amount=0.1, chance=0.1):
    return transforms.scale_shift_intensity(image, *transforms.draw_intensity(draw, amount, chance))


def test_boxes_stay_inside_and_small_images_are_padded_alike():
    starts = np.array([transforms.random_start((30, 9, 10), (10, 9, 16), SampleRng(i)) for i in range(400)])
    assert set(starts[:, 0]) == set(range(21)) and set(starts[:, 1]) == {0} and set(starts[:, 2]) == {-3}
    assert transforms.centre_start((30, 9, 10), (10, 9, 16)) == (10, 0, -3)


def test_shifts_reach_as_far_as_they_may_on_both_sides():
    shifted = np.array([transforms.shifted_start((30, 9), (10, 9), 2, SampleRng(i)) for i in range(200)])
    assert set(shifted[:, 0]) == {8, 9, 10, 11, 12} and set(shifted[:, 1]) == {-2, -1, 0, 1, 2}


def test_half_of_the_balanced_crops_are_around_a_label_by_its_share_of_voxels():
    starts = np.array([transforms.balanced_start(Located(), (2, 2, 2), SampleRng(i)) for i in range(2000)])
    shares = [(starts[:, 2] == at).mean() for at in (0, 7, 11)]  # labels 0, 2 and 3 lie at 0, 8 and 12
    np.testing.assert_allclose(shares, [0.5, 0.45, 0.05], atol=0.03)


def test_balanced_crops_stay_inside_or_in_the_middle():
    starts = {transforms.balanced_start(Located(), (8, 8, 24), SampleRng(i)) for i in range(50)}
    assert starts == {(0, 6, -2)}


def test_a_turned_label_stays_on_its_image():
    for seed in range(60):
        image = noise(1, 6, 6, 6, seed=seed)
        turned, label = flip_rotate(image, (image[0] > 100).astype(np.uint8), SampleRng(seed), 0.5, 0.5)
        np.testing.assert_array_equal(turned[0] > 100, label)


def test_only_equal_sides_are_turned_into_each_other():
    shapes = {flip_rotate(noise(1, 4, 6, 4), None, SampleRng(i), 0, 1)[0].shape for i in range(30)}
    turned = [flip_rotate(noise(1, 4, 6, 4), None, SampleRng(i), 0, 1)[0] for i in range(30)]
    assert shapes == {(1, 4, 6, 4)} and len({view.tobytes() for view in turned}) == 3


def test_a_plane_may_be_given_and_no_other_is_turned():
    image = noise(1, 4, 4, 4)
    turned = {flip_rotate(image, None, SampleRng(i), 0, 1, (1, 0))[0].tobytes() for i in range(40)}
    assert turned == {np.rot90(image, quarters, (1, 2)).tobytes() for quarters in (1, 2, 3)}
    assert transforms.turning_planes((4, 6, 4), (0, 1)) == [] and transforms.turning_planes((4, 6, 4)) == [(0, 2)]


def test_a_flip_may_be_asked_for_axis_by_axis():
    image = noise(1, 4, 5, 6)
    np.testing.assert_array_equal(flip_rotate(image, None, SampleRng(1), (1, 0, 0), 0)[0], image[:, ::-1])


def test_intensities_move_by_at_most_the_amount():
    image = np.ones((1, 2, 2, 2), np.float32)
    moved = np.array([scale_shift_intensity(image, SampleRng(i), 0.1, 1.0)[0, 0, 0, 0] for i in range(300)])
    assert 0.8 <= moved.min() < 0.85 and 1.15 < moved.max() <= 1.2


def test_resized_crops_follow_torchvisions_rule():
    boxes = np.array([transforms.draw_box((100, 120), SampleRng(i), (0.08, 1.0), (3 / 4, 4 / 3)) for i in range(2000)])
    top, left, height, width = boxes.T
    area, aspect = height * width / 12000, width / height
    assert (top + height <= 100).all() and (left + width <= 120).all() and (top >= 0).all() and (left >= 0).all()
    assert 0.07 < area.min() < 0.1 and area.max() > 0.9 and aspect.min() > 0.7 and aspect.max() < 1.4
    assert transforms.draw_box((10, 1000), SampleRng(0), (0.5, 1.0), (3 / 4, 4 / 3)) == (0, 493, 10, 13)


def test_rand_augment_s_strongest_step_leaves_a_black_picture():
    policy = transforms._augment("rand-m10-inc1", 24)
    posterize = next(op for op in policy.ops if "Posterize" in op.name)
    assert not np.asarray(posterize.aug_fn(Image.new("RGB", (24, 24), "white"), *posterize.level_fn(10, {}))).any()


def test_rand_augment_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist()
    made = {transforms.rand_augment(noise(1, 24, 24).astype(np.uint8), SampleRng(i)).tobytes() for i in range(10)}
    assert before == (random.getstate(), np.random.get_state()[1].tolist()) and len(made) > 5
