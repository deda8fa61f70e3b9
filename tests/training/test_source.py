"""Where a training's batches come from: what stays on the device, the warnings where it does not, and that nothing else
changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.stages import jobs, outcome, run
from support.tasks import ask_for_too_much_memory, refused

from premed.config.image_processing import Augmentation
from premed.config.settings import Pretrain, Train
from premed.contracts import Case, DataSet, Sample
from premed.data.loader import PreparedLoader
from premed.data.phantoms.writers import write_chestxray14
from premed.data.prepared import PreparedFile, write
from premed.data.preprocess import Prepared
from premed.data.resident import ResidentLoader
from premed.pretext.common.slices import SlicedTask
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Segmentation
from premed.training import source
from premed.training.device import explain_out_of_memory
from premed.training.source import naming_resident, source_of

CROPS = Augmentation(scale=(0.5, 1), flip=0.5)


class Pictures(Classification):
    name, dims, channels, roi, classes = "pictures", 2, 1, (8, 8), ("a", "b")


class Volumes(Segmentation):
    name, dims, channels, roi, classes = "volumes", 3, 1, (4, 4, 4), ("background", "a")


class Darker(Pictures):
    """A task that changes its views."""

    def view(self, sample, augment, draw):
        image, label = super().view(sample, augment, draw)
        return image / 2, label


class Described(Darker):
    """One that says how, too."""

    def view(self, sample, augment, draw):
        return super().view(sample, augment, draw)

    def view_params(self, sample, augment, draw):
        return super().view_params(sample, augment, draw)


def chosen(folder, resident=True, task=None, augment=CROPS, dtype=np.uint8):
    """The loader of a training on three images, and its warnings."""
    task, warnings, samples = task or Pictures(), [], []
    folder.mkdir(exist_ok=True)
    for i in range(3):
        image, ones = np.random.default_rng(i).integers(0, 256, (1, *(12,) * task.dims)).astype(dtype), np.ones(1)
        label = None if task.dims == 2 else image[0] % 2
        write(folder / f"{i}", Prepared(image, ones, ones, label, np.eye(4), np.eye(4), (12,) * task.dims))
        samples.append(Sample(Case(f"{i}", "p", (), (0.0, 1.0)), PreparedFile(folder / f"{i}")))
    job = SimpleNamespace(
        stage=SimpleNamespace(training=Pretrain(epochs=1, batch=2, lr=1e-3), draws="pretrain"),
        train=Train(resident=resident),
    )
    setup = SimpleNamespace(data_sets=[DataSet(task, "", augment)], train=samples, device=torch.device("cpu"))
    return source_of(job, setup, warnings.append), warnings  # type: ignore[arg-type]


def test_images_stay_on_a_cpu_only_where_that_is_asked_for(tmp_path):
    assert [type(chosen(tmp_path, each)[0]) for each in ("auto", False)] == [PreparedLoader] * 2
    for task in (Pictures(), Volumes()):
        kept, warnings = chosen(tmp_path / task.name, True, task, Augmentation(flip=0.5))
        assert isinstance(kept, ResidentLoader) and warnings == []


def streamed(words, **how):
    """Images are read from files, and one warning has these words."""
    loader, (line,) = chosen(**how)
    assert type(loader) is PreparedLoader
    assert line.startswith("train.resident: ") and line.endswith("they are read from files for each step")
    assert [word for word in words if word not in line] == [] and "\n" not in line, line


def test_what_works_on_cpus_alone_is_told_and_read_from_files(tmp_path):
    rand = Augmentation(rand="rand-m9-mstd0.5-inc1")
    streamed(["RandAugment", "pictures: augment.rand"], folder=tmp_path, augment=rand)
    streamed(["random resized crops", "more than 8 bits"], folder=tmp_path, dtype=np.int16)
    streamed(["pictures cuts its views in its own way"], folder=tmp_path, task=Darker())
    bare = SimpleNamespace(name="bare", roi=(8, 8), dims=2, view=Pictures().view)
    streamed(["bare cuts its views in its own way"], folder=tmp_path, task=bare)


def test_a_task_that_is_wrapped_answers_for_its_views_itself():
    assert source.has_params(SlicedTask(Volumes(), 1)) and source.has_params(Described())  # type: ignore[arg-type]
    assert not source.has_params(SlicedTask(Darker(), 1))  # type: ignore[arg-type]


def test_images_that_do_not_fit_are_read_from_files_and_told_with_the_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "free_memory", lambda device: 2 * 3 * 144)
    assert isinstance(chosen(tmp_path)[0], ResidentLoader)
    monkeypatch.setattr(source, "free_memory", lambda device: 2 * 3 * 144 - 1)
    streamed(["images take 4.02e-07 GiB", "half of what is free in this machine's memory"], folder=tmp_path)


def test_memory_that_ends_while_images_are_held_is_told_and_other_errors_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(ResidentLoader, "hold", lambda *_: ask_for_too_much_memory())
    streamed(["this machine's memory does not hold the images"], folder=tmp_path)

    def fail(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(ResidentLoader, "hold", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        chosen(tmp_path)


@pytest.mark.parametrize("wrong", ["image", "label"])
def test_a_device_on_which_views_come_out_otherwise_is_told_and_not_used(wrong, tmp_path, monkeypatch):
    right = ResidentLoader.batch

    def batch(self, made):
        found = right(self, made)
        setattr(found, wrong, getattr(found, wrong) + 1e-6)
        return found

    monkeypatch.setattr(ResidentLoader, "batch", batch)
    streamed(["views made on cpu differ here from those that CPUs make"], folder=tmp_path)
    streamed(["views made on cpu differ"], folder=tmp_path, task=Described())


def test_a_step_that_does_not_fit_beside_the_images_is_told_with_both_mends(tmp_path):
    kept, _ = chosen(tmp_path)

    def step(loader):
        with naming_resident(loader), explain_out_of_memory(torch.device("cpu"), [64], False):
            ask_for_too_much_memory()

    def views(loader):
        with naming_resident(loader):
            ask_for_too_much_memory()

    refused(lambda: step(kept), "set train.accumulate=2,", "or set train.resident=false", "4.02e-07 GiB of images")
    refused(lambda: views(kept), "train.resident: this machine's memory", "set train.resident=false")
    with pytest.raises(Exception, match="train.accumulate") as caught:
        step(chosen(tmp_path, False)[0])
    assert "resident" not in str(caught.value)
    with pytest.raises(ValueError, match="a mistake"), naming_resident(kept):
        raise ValueError("a mistake")


# ---- whole stages


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chest")
    write_chestxray14(folder / "chest", num_patients=16, seed=1, size=32, prevalence=0.6)
    return folder / "chest"


def read_from_files(*_):
    raise AssertionError("read from files")


@pytest.mark.parametrize("kind", ["pretrain", pytest.param("finetune", marks=pytest.mark.slow)])
def test_a_training_that_is_killed_goes_on_with_images_on_the_device_as_one_that_read_files_all_along(
    kind, chest, tmp_path, monkeypatch
):
    changes = {} if kind == "pretrain" else {"pretext": {"name": "none"}}
    files = jobs(chest, tmp_path / "files", **changes)[kind]
    assert run(files) == [0]
    resident = jobs(chest, tmp_path / "resident", train={"resident": True}, **changes)[kind]
    monkeypatch.setattr(source, "same_views", lambda *_: True)  # the processes below are forks of this one
    monkeypatch.setattr(PreparedLoader, "batch", read_from_files)
    assert run(resident, kill="saved 6") == [-9]  # in the middle of the second epoch, of 28 images in steps of 8
    assert run(resident) == [0]
    assert outcome(resident) == outcome(files)


@pytest.mark.slow
def test_two_workers_hold_images_each_and_train_as_two_that_read_files(chest, tmp_path):
    found = [
        jobs(chest, tmp_path / f"{each}", train={"resident": each, "loaders": 1})["pretrain"] for each in (True, False)
    ]
    assert [run(job, 2) for job in found] == [[0, 0]] * 2
    assert outcome(found[0]) == outcome(found[1])
