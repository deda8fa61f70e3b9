"""Views are pure functions of (seed, stage, epoch, sample), whoever makes them and in whatever company."""

import re
import sys

import numpy as np
import pytest
import torch
from support.commands import in_namespace

from premed.config.image_processing import Augmentation
from premed.contracts import BatchIndices, Case, DataSet, Sample
from premed.data import loader
from premed.data.loader import PreparedLoader
from premed.errors import UserError


class Noise:
    """A task whose views are nothing but draws, and whose label is the case's number."""

    def view(self, sample, augment, draw):
        if isinstance(sample.prepared, str):
            raise UserError(f"{sample.case.name}: damaged; remove it")
        return draw.uniform("image", 12, -1, 1).reshape(1, 3, 4), None if sample.prepared is None else sample.prepared


def source(num=9, seed=0, stage="pretrain", crops=1, loaders=0, entry=None):
    samples = [Sample(Case(f"case {i}", "p", ()), np.full((3, 4), i) if entry is None else entry) for i in range(num)]
    where = {"seed": seed, "stage": stage, "device": torch.device("cpu"), "num_loaders": loaders}
    return PreparedLoader([DataSet(Noise(), "", Augmentation(crops=crops))], samples, **where)


STEPS = [
    BatchIndices(0, np.array([3, 1, 4])),
    BatchIndices(0, np.array([5, 8]), 0.5),
    BatchIndices(1, np.array([3]), 1.5),
]


def same(ours, theirs):
    assert (ours.names, ours.weight, ours.data_set) == (theirs.names, theirs.weight, theirs.data_set)
    for one, other in ((ours.image, theirs.image), (ours.keys, theirs.keys), (ours.label, theirs.label)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("room", [2, 1e15])
def test_loader_processes_change_nothing_however_they_hand_over(room, monkeypatch):
    monkeypatch.setattr(loader, "SPARE", room)  # 1e15: no shared memory is large enough
    for ours, theirs in zip(source().batches(STEPS), source(loaders=2).batches(iter(STEPS)), strict=True):
        same(ours, theirs)


PROGRAM = """
import numpy as np, torch
from premed.config.image_processing import Augmentation
from premed.contracts import BatchIndices, Case, DataSet, Sample
from premed.data.loader import PreparedLoader
class Noise:
    def view(self, sample, augment, draw):
        return draw.uniform("image", 500_000, -1, 1).reshape(1, 1000, 500), None
samples = [Sample(Case(f"case {i}", "p", ()), None) for i in range(8)]
def hashes(loaders):
    more = dict(seed=0, stage="pretrain", device=torch.device("cpu"), num_loaders=loaders)
    steps = [BatchIndices(0, np.array([step, step + 1])) for step in range(7)]
    loader = PreparedLoader([DataSet(Noise(), "", Augmentation())], samples, **more)
    return [float(batch.image.double().sum()) for batch in loader.batches(iter(steps))]
assert hashes(2) == hashes(0)
"""


@pytest.mark.slow
def test_a_container_s_shared_memory_may_be_too_small_for_the_batches():
    mount = "mount -t tmpfs -o size=1m none /dev/shm; "  # a batch has 4 MB
    code, _, err = in_namespace(f"{mount} exec {sys.executable} -c '{PROGRAM}'")
    assert (code, err) == (0, "")


def test_a_batch_carries_what_its_picks_say():
    first, second, third = source().batches(STEPS)
    assert first.names == ("case 3", "case 1", "case 4")
    assert (first.image.shape, first.image.dtype, first.keys.dtype) == ((3, 1, 3, 4), torch.float32, torch.int64)
    assert first.label[:, 0, 0].tolist() == [3, 1, 4]
    assert [batch.weight for batch in (first, second, third)] == [1.0, 0.5, 1.5]
    assert first.data_set is None


def views(samples, epoch=0, **of):
    (batch,) = source(**of).batches([BatchIndices(epoch, np.array(samples))])
    return {name: (image, key) for name, image, key in zip(batch.names, batch.image, batch.keys, strict=True)}


def test_a_view_does_not_depend_on_the_batch_it_is_in():
    alone, together = views([4]), views([7, 4, 2])
    assert torch.equal(alone["case 4"][0], together["case 4"][0])
    assert torch.equal(alone["case 4"][1], together["case 4"][1])


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}, {"stage": "finetune"}])
def test_each_epoch_seed_and_stage_draws_anew(other):
    ours, theirs = views([4])["case 4"], views([4], **other)["case 4"]
    assert not torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[1], theirs[1])
    assert torch.equal(theirs[0], views([4], **other)["case 4"][0])


def test_two_crops_of_an_image_are_two_views_with_keys_of_their_own():
    (batch,) = source(crops=2).batches([BatchIndices(0, np.array([3, 1]))])
    assert batch.names == ("case 3", "case 3", "case 1", "case 1")
    assert len(set(batch.keys.tolist())) == len(batch.image.flatten(1).unique(dim=0)) == 4
    assert torch.equal(batch.image[0], views([3])["case 3"][0])  # the first crop is what one crop would be


def test_images_without_labels_give_batches_without():
    bare = source()
    bare.views.samples = [sample._replace(prepared=None) for sample in bare.views.samples]
    assert next(bare.batches(STEPS)).label is None


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_damaged_image_is_one_line_from_a_loader_process_too(loaders):
    with pytest.raises(UserError, match=f"^{re.escape('case 3: damaged; remove it')}$"):
        next(source(loaders=loaders, entry="damaged").batches(STEPS))


def test_reading_ahead_never_goes_back_in_the_plan():
    asked = []

    def indices():
        for step in range(6):
            asked.append(step)
            yield BatchIndices(step, np.array([step]))

    names = [batch.names[0] for batch in source(loaders=1).batches(indices())]
    assert names == [f"case {step}" for step in range(6)]
    assert asked == list(range(6))


@pytest.mark.parametrize(
    "second",
    [(np.zeros((1, 3), "f4"), None), (np.zeros((1, 2, 3), "f4"), np.zeros(3)), (np.zeros((1, 2, 3), "f8"),) * 2],
)
def test_views_of_other_shapes_or_kinds_make_no_batch(second):
    """Copied into the first one's places they would be repeated, or rounded, without a word."""
    first = np.zeros((1, 2, 3), "f4"), np.zeros((2, 3), "u1")
    with pytest.raises(ValueError, match=r"^views of one batch differ: "):
        loader.stacked(iter([first, second]), 2)
