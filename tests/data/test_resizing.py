"""Pictures are resized in whole numbers as torchvision resizes them on CPUs, pixel for pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode, functional

from premed.data import resizing

EDGES = st.integers(1, 90)


def ours(pictures, boxes, to, mirrored=((),)):
    """Boxes (top, left, height, width), one of each picture [C, H, W] uint8, resized at once."""
    store = torch.from_numpy(np.concatenate([each.reshape(-1) for each in pictures]))
    begins, first = [], 0
    for picture, (top, left, *_) in zip(pictures, boxes, strict=True):
        channels, height, width = picture.shape
        begins.append(first + height * width * np.arange(channels) + top * width + left)
        first += picture.size
    found = resizing.boxes_of(
        np.stack(begins), [each.shape[2] for each in pictures], [box[2:] for box in boxes], to, mirrored
    )
    lines, columns = (resizing.Lines(*map(torch.from_numpy, each)) for each in (found.lines, found.columns))
    return resizing.resize(
        store, resizing.Boxes(torch.from_numpy(found.begins), torch.from_numpy(found.rows), lines, columns)
    ).numpy()


def torchvision_s(picture, box, to):
    top, left, height, width = box
    cut = torch.from_numpy(np.ascontiguousarray(picture[:, top : top + height, left : left + width]))
    return functional.resize(cut, list(to), interpolation=InterpolationMode.BICUBIC, antialias=True).numpy()


@given(height=EDGES, width=EDGES, to=st.tuples(st.integers(2, 64), st.integers(2, 64)), seed=st.integers(0, 2**32 - 1))
def test_any_box_of_any_picture_is_resized_as_torchvision_does(height, width, to, seed):
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (random.choice([1, 3]), height + 3, width + 5)).astype(np.uint8)
    picture = picture if seed % 2 else np.where(picture > 127, 255, 0).astype(np.uint8)  # the kernel overshoots
    box = random.integers(0, 4), random.integers(0, 6), height, width
    np.testing.assert_array_equal(ours([picture], [box], to)[0], torchvision_s(picture, box, to))


@pytest.mark.parametrize("to", [(224, 224), (96, 160)])
def test_boxes_of_a_batch_are_resized_at_once_whatever_their_sizes(to):
    random, pictures, boxes = np.random.default_rng(0), [], []
    for height, width in ((256, 256), (300, 180), (17, 500), (224, 224)):
        pictures.append(random.integers(0, 256, (1, height, width)).astype(np.uint8))
        tall, wide = random.integers(9, height), random.integers(9, width)
        boxes.append((random.integers(0, height - tall), random.integers(0, width - wide), tall, wide))
    axes = [(), (1,), (0, 1), (0,)]
    found = ours(pictures, boxes, to, axes)
    for each, picture, box, mirrored in zip(found, pictures, boxes, axes, strict=True):
        wanted = torchvision_s(picture, box, to)
        np.testing.assert_array_equal(each, np.flip(wanted, [1 + axis for axis in mirrored]))


@given(num=st.integers(1, 4000), size=st.integers(2, 512))
def test_sums_of_grey_levels_times_weights_fit_in_32_bits(num, size):
    _, weights, bits = resizing.taps(num, size)
    assert np.abs(weights.astype(np.int64)).sum(axis=1).max() * 255 + 2 ** (bits - 1) < 2**31
    assert weights.dtype == np.int16 and np.abs(weights.sum(axis=1, dtype=np.int64) - 2**bits).max() <= weights.shape[1]
