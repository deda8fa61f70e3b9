"""Batches of images that stay on the device are those of images that are read from files, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from premed.config.image_processing import Augmentation
from premed.contracts import BatchIndices, Case, DataSet, Sample
from premed.data import gathering
from premed.data.loader import PreparedLoader
from premed.data.prepared import PreparedFile, write
from premed.data.preprocess import Prepared
from premed.data.resident import ResidentLoader
from premed.pretext.common.slices import SlicedTask
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Segmentation


class Pictures(Classification):
    dims, channels, roi, classes = 2, 1, (24, 20), ("a", "b", "c")


class Scans(Classification):
    """Volumes with one label for all of each."""

    dims, channels, roi, classes = 3, 1, (8, 8, 6), ("a", "b", "c")


class Volumes(Segmentation):
    dims, channels, roi, classes, ignore = 3, 2, (12, 12, 8), ("background", "a", "b"), 3


MOVED = Augmentation(flip=0.5, rotate=0.5, intensity=0.5)
OF_VOLUMES = {
    "crop": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "flip-of-one-axis": Augmentation(flip=0.5, flip_axes=(2,)),
    "rotate": Augmentation(rotate=1.0),
    "rotate-in-a-plane": Augmentation(rotate=1.0, rotate_plane=(1, 0)),
    "intensity": Augmentation(intensity=0.7),
    "shift": Augmentation(shift=9),
    "positive": Augmentation(positive=0.5),
    "all": MOVED.model_copy(update={"positive": 0.7, "crops": 3}),
}
OF_PICTURES = {
    "centre": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "scale": Augmentation(scale=(0.05, 1)),
    "all": Augmentation(scale=(0.3, 0.9), flip=0.5, crops=2),
}


def samples(task, folder, num=5, dtypes=(np.uint8, np.int16), smallest=6, largest=40, data_set=0, seed=0):
    """Images of any sizes, some smaller than the roi; labels are maps for a Segmentation, else one number a class."""
    made, random = [], np.random.default_rng(seed)
    for i in range(num):
        shape = tuple(random.integers(smallest, largest, task.dims).tolist())
        dtype = dtypes[i % len(dtypes)]
        low = 0 if dtype == np.uint8 else -3000
        image = random.integers(low, 256 if dtype == np.uint8 else 3000, (task.channels, *shape)).astype(dtype)
        scale, offset = random.normal(0, 0.01, (2, task.channels)).astype(np.float32)
        label = None
        if isinstance(task, Segmentation):
            label = random.choice(4, shape, p=[0.9, 0.04, 0.04, 0.02]).astype(np.uint8)
        path = folder / f"{type(task).__name__} {i}"
        write(path, Prepared(image, scale, offset, label, np.eye(4), np.eye(4), shape))
        known = (float(i % 2), 1.0, float("nan")) if label is None else path
        made.append(Sample(Case(f"case {i}", f"p{i}", (), known), PreparedFile(path), data_set))
    return made


def both(data_sets, images, num_loaders=0):
    """Loaders of the same views: from files, and from the device."""
    more = {"seed": 3, "stage": "pretrain", "device": torch.device("cpu")}
    return PreparedLoader(data_sets, images, **more), ResidentLoader(data_sets, images, num_loaders=num_loaders, **more)


def assert_same(ours, theirs):
    """Batches, bit for bit."""
    assert ours.keys.tolist() == theirs.keys.tolist()
    assert (ours.names, ours.weight) == (theirs.names, theirs.weight)
    for one, other in ((ours.image, theirs.image), (ours.label, theirs.label), (ours.data_set, theirs.data_set)):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype and other.is_contiguous()
            np.testing.assert_array_equal(one.numpy(), other.numpy())


STEPS = [BatchIndices(epoch, np.array(some), 0.5) for epoch in range(8) for some in ([3, 0, 2, 4], [1, 1], [4])]


def compare(data_sets, images, steps=STEPS, **more):
    files, resident = both(data_sets, images, **more)
    for ours, theirs in zip(files.batches(steps), resident.batches(steps), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", OF_VOLUMES)
@pytest.mark.parametrize("of", [Volumes, Scans])
def test_each_augmentation_of_volumes_is_what_it_is_from_files(of, name, tmp_path):
    augment = OF_VOLUMES[name].model_copy(update={} if of is Volumes else {"positive": None})
    compare([DataSet(of(), "", augment)], samples(of(), tmp_path))


@pytest.mark.parametrize("name", OF_PICTURES)
def test_each_augmentation_of_pictures_is_what_it_is_from_files(name, tmp_path):
    compare([DataSet(Pictures(), "", OF_PICTURES[name])], samples(Pictures(), tmp_path, dtypes=[np.uint8]))


@given(
    roi=st.tuples(*[st.integers(1, 12)] * 3),
    square=st.booleans(),
    positive=st.none() | st.floats(0, 1),
    shift=st.none() | st.integers(0, 30),
    axes=st.none() | st.sets(st.integers(0, 2)).map(tuple),
    seed=st.integers(0, 2**31),
)
def test_any_volume_and_any_roi_give_the_same_views(tmp_path_factory, roi, square, positive, shift, axes, seed):
    task = Volumes()
    task.roi = roi[:1] * 2 + roi[2:] if square else roi
    update = {"positive": positive, "shift": shift, "flip_axes": axes, "crops": 2}
    images = samples(task, tmp_path_factory.mktemp("any"), smallest=1, largest=15, seed=seed)
    compare([DataSet(task, "", MOVED.model_copy(update=update))], images, [BatchIndices(seed, np.arange(5))])


@given(roi=st.tuples(st.integers(2, 40), st.integers(2, 40)), low=st.floats(0.01, 1), seed=st.integers(0, 2**31))
def test_any_picture_and_any_roi_give_the_same_views(tmp_path_factory, roi, low, seed):
    task = Pictures()
    task.roi = roi
    images = samples(task, tmp_path_factory.mktemp("any"), dtypes=[np.uint8], smallest=4, largest=70, seed=seed)
    augment = Augmentation(scale=(low, 1), flip=0.5)
    compare([DataSet(task, "", augment)], images, [BatchIndices(seed, np.arange(5))])


def test_a_batch_may_have_slices_of_volumes_and_pictures_of_several_data_sets(tmp_path):
    volumes, pictures = Volumes(), Pictures()
    volumes.roi = (24, 20, 5)
    data_sets = [
        DataSet(pictures, "", Augmentation(scale=(0.5, 1))),
        DataSet(SlicedTask(volumes, 1), "", MOVED),  # type: ignore[arg-type]
    ]
    images = samples(pictures, tmp_path, 2, [np.uint8]) + samples(volumes, tmp_path, 3, data_set=1)
    unlabelled = [each._replace(case=Case(each.case.name, "p", ())) for each in images]
    compare(data_sets, unlabelled, [BatchIndices(epoch, np.array([4, 0, 2, 1, 3])) for epoch in range(9)])


def test_loader_processes_draw_and_change_nothing(tmp_path):
    compare([DataSet(Volumes(), "", OF_VOLUMES["all"])], samples(Volumes(), tmp_path), num_loaders=2)


def test_a_batch_that_is_made_in_parts_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "CHUNK", 1)
    compare([DataSet(Volumes(), "", MOVED)], samples(Volumes(), tmp_path))
    compare([DataSet(Pictures(), "", OF_PICTURES["all"])], samples(Pictures(), tmp_path, dtypes=[np.uint8]))


def test_reading_goes_on_from_any_step(tmp_path):
    """As a training that resumes within an epoch asks for it."""
    _, resident = both([DataSet(Volumes(), "", OF_VOLUMES["all"])], samples(Volumes(), tmp_path))
    whole = list(resident.batches(STEPS))
    for ours, theirs in zip(whole[5:], resident.batches(STEPS[5:]), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("task", "augment"), [(Volumes(), OF_VOLUMES["all"]), (Scans(), MOVED), (Pictures(), OF_PICTURES["all"])]
)
def test_all_is_computed_on_the_device_and_no_value_of_it_is_waited_for(task, augment, tmp_path):
    """The device `meta` has no values, and refuses operations that would read one or mix devices."""
    images, device = samples(task, tmp_path, dtypes=[np.uint8]), torch.device("meta")
    resident = ResidentLoader([DataSet(task, "", augment)], images, seed=0, stage="pretrain", device=device)
    for step, batch in zip(STEPS, resident.batches(STEPS), strict=True):
        num = len(step.samples) * augment.crops
        assert batch.image.shape == (num, task.channels, *task.roi) and batch.image.dtype == torch.float32
        assert {each.device for each in (batch.image, batch.label, batch.keys)} == {device}


def test_files_are_read_once_before_the_first_batch(tmp_path, monkeypatch):
    images, held, hold = samples(Volumes(), tmp_path), [], ResidentLoader.hold
    monkeypatch.setattr(ResidentLoader, "hold", lambda self, *of: (held.append(of[0].case.name), hold(self, *of)))
    _, resident = both([DataSet(Volumes(), "", MOVED)], images * 2)
    assert held == [each.case.name for each in images]
    voxels = [int(np.prod(each.prepared.shape)) for each in images]
    assert resident.num_bytes == sum(n * (2 * (1 + i % 2) + 1) for i, n in enumerate(voxels))

    def read_again(path, array):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("premed.data.prepared._map", read_again)
    assert len(list(resident.batches(STEPS))) == len(STEPS)
