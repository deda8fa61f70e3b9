"""HSSL on several data sets: what it takes of volumes, how often each is drawn from, and which do not go together."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.hssl import Images
from support.suite import REPOSITORY

from premed.config.compose import load
from premed.config.image_processing import Augmentation
from premed.config.settings import Pretrain
from premed.contracts import Case, DataSet
from premed.data.loader import PreparedLoader
from premed.data.splits import pretraining_cases
from premed.errors import UserError
from premed.models.encoders import unet
from premed.pretext import hssl
from premed.pretext.common.slices import SlicedTask
from premed.pretext.hssl import Config
from premed.rng import SampleRng
from premed.training.fit import feed

pytest_plugins = ["support.experiment_fixtures"]


# Several data sets ----------------------------------------------------------------------------------------------------


class Volumes:
    """A task whose views say where they are from: value = channel * 100 + slice, moved by the draw."""

    dims, name, channels, preprocessing = 3, "volumes", 4, "preprocessing"
    roi = (8, 16, 5)

    def view(self, sample, augment, draw):
        return self.tiles(sample)[0] + 1000 * int(draw.uniform("x")[0] < 0.5), np.zeros(self.roi, np.uint8)

    def tiles(self, sample):
        numbers = np.arange(self.channels)[:, None, None, None] * 100 + np.arange(self.roi[-1])
        return [np.broadcast_to(numbers, (self.channels, *self.roi)).astype(np.float32)]


def test_a_volume_s_view_is_one_drawn_slice_of_its_own_and_no_label():
    task, sliced = Volumes(), SlicedTask(Volumes(), 4)  # type: ignore[arg-type]
    assert (sliced.dims, sliced.roi, sliced.channels, sliced.preprocessing, sliced.name) == (
        2,
        (8, 16),
        4,
        "preprocessing",
        "volumes",
    )
    seen = Counter()
    for i in range(60):
        view, label = sliced.view(None, Augmentation(), SampleRng(i))  # type: ignore[arg-type]
        whole, _ = task.view(None, None, SampleRng(i))
        number = int(view[0, 0, 0]) % 1000
        assert label is None and np.array_equal(view, whole[..., number])
        seen[number] += 1
    assert set(seen) == set(range(5)) and min(seen.values()) >= 4
    assert np.array_equal(sliced.tiles(None)[0], task.tiles(None)[0][..., 2])  # type: ignore[arg-type]


def test_where_channels_are_too_many_one_is_drawn_and_tiles_show_the_first():
    sliced = SlicedTask(Volumes(), 1)  # type: ignore[arg-type]
    views = [sliced.view(None, Augmentation(), SampleRng(i))[0] for i in range(200)]  # type: ignore[arg-type]
    assert {view.shape for view in views} == {(1, 8, 16)}
    assert {int(view[0, 0, 0]) % 1000 for view in views} == {c * 100 + s for c in range(4) for s in range(5)}
    assert sliced.tiles(None)[0][0, 0, 0] == 2  # type: ignore[arg-type]


def task(dims=2, channels=1, roi=(8, 16), name="some") -> DataSet:
    return DataSet(SimpleNamespace(dims=dims, channels=channels, roi=roi, name=name), name, Augmentation())  # type: ignore[arg-type]


def test_volumes_become_slices_for_a_network_for_pictures_and_others_stay_as_they_are():
    picture, volume = task(), task(3, 4, (8, 16, 5))
    found = hssl.transform_data_sets(unet.Config(dims=2), [picture, volume])
    assert found[0] is picture and found[1].group == volume.group
    assert (found[1].task.dims, found[1].task.channels, found[1].task.roi) == (2, 1, (8, 16))
    assert (
        hssl.transform_data_sets(unet.Config(dims=3), [volume, volume])
        == [volume, volume]
        == hssl.transform_data_sets(unet.Config(), [volume] * 2)
    )


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (
            {"dims": 3},
            [task(3, 1, (8, 16, 5)), task(name="chests")],
            r"encoder\.dims: a 3D network cannot take the pictures of chests",
        ),
        ({}, [task(3, 1, (8, 16, 5)), task(name="chests")], r"encoder\.dims: .* set encoder\.dims: 2"),
        ({"dims": 2}, [task(channels=2), task(channels=4)], r"pretrain\.sources: the data sets have \[2, 4\] channels"),
        (
            {"dims": 2},
            [task(roi=(8, 8), name="a"), task(3, 1, (8, 16, 5), "b")],
            r"of one size \(a \[8, 8\], b \[8, 16\]\)",
        ),
    ],
)
def test_data_sets_that_do_not_go_together_are_refused_in_one_line(settings, given, message):
    with pytest.raises(UserError, match=message):
        hssl.transform_data_sets(unet.Config(**settings), given)


def test_a_data_set_with_ten_times_the_images_does_not_dominate():
    class Numbered(Images):
        def view(self, sample, augment, draw):
            return self.tiles(sample)[0], None

    some = [SimpleNamespace(number=0, data_set=int(i >= 100), case=SimpleNamespace(name=str(i))) for i in range(110)]
    given = [DataSet(Numbered((4, 4)), name, Augmentation()) for name in "ab"]  # type: ignore[arg-type]
    settings = Pretrain(epochs=1, steps=50, batch=7, lr=1)
    plan = hssl.plan(Config(), settings, (100, 10), "pretrain")
    source = PreparedLoader(given, some, seed=0, stage="pretrain", device=torch.device("cpu"))  # type: ignore[arg-type]
    counts, images = Counter(), Counter()
    for _, (one,) in feed(plan, source, 0, 1):
        assert one.label is None
        counts.update(one.data_set.tolist())
        images.update(one.names)
    assert counts == {0: 175, 1: 175}
    small = [images[str(i)] for i in range(100, 110)]
    assert min(small) == 17 and max(small) == 18 and max(images[str(i)] for i in range(100)) == 2


class Listed:
    """Images, and parts: a number of cases, or why there are none."""

    def __init__(self, images: int, **parts: int | str):
        self.parts, self.cases = parts, [Case(f"case{i}", f"patient{i}", (), (1.0,)) for i in range(images)]

    def images(self):
        return self.cases

    def split(self, part):
        if isinstance(found := self.parts[part], str):
            raise UserError(found)
        return self.cases[:found]


def test_a_data_set_of_which_no_image_has_a_label_keeps_some_patients_for_validation():
    train, val = pretraining_cases(Listed(3, train="no label", val="no label"))  # type: ignore[arg-type]
    assert len(train) == 2 and len(val) == 1
    _, val = pretraining_cases(Listed(3, train=2, val=1))  # type: ignore[arg-type]
    assert [case.label for case in val] == [None]
    for fault in (Listed(3, train=3, val="none left"), Listed(3, train="x", val="y"), Listed(0, train="x", val="x")):
        with pytest.raises(UserError):
            pretraining_cases(fault)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [(), ("small",)])
def test_the_experiments_of_two_tasks_share_one_joint_pre_training_and_none_of_their_own(more):
    def digest(task: str, *files: str) -> str:
        folder = REPOSITORY / "experiments" / task
        return next(load([folder / f"{file}.yaml" for file in files]).stages(lambda kind: kind)).digest()

    joint = {digest(task, "hssl", *more) for task in ("hippocampus", "chestxray14")}
    own = {digest(task, "hssl", *more, "own") for task in ("hippocampus", "chestxray14")}
    assert (len(joint), len(own), len(joint | own)) == (1, 2, 3)
