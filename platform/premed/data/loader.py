"""`PreparedLoader` reads batches from prepared, memory-mapped files, in loader processes.

A loader process hands its batches over in shared memory (/dev/shm, of which a container has 64 MB unless told
otherwise), or, where that has no room for them, through a pipe: slower, and the same numbers. torch (2.15) by itself
waits for ever for a batch that found no room.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from premed.contracts import Batch, BatchIndices, DataSet, Sample
from premed.errors import UserError
from premed.rng import SampleRng, fold, sample_keys

SHARED = "/dev/shm"
AHEAD = 2  # batches that each loader process prepares ahead
SPARE = 2  # times the room that the loaders of all workers of this machine can need at once


class PreparedLoader:
    """A BatchLoader over memory-mapped files, of which it reads only the crops it needs.

    samples: those of a data set are contiguous. num_loaders: processes that read ahead (0: none). seed, stage:
    determine the random views.
    """

    def __init__(
        self,
        data_sets: Sequence[DataSet],
        samples: Sequence[Sample],
        *,
        seed: int,
        stage: str,
        device: torch.device,
        num_loaders: int = 0,
    ):
        self.views = Views(list(data_sets), list(samples), seed, stage, num_loaders)
        self.device, self.num_loaders = device, num_loaders

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """See `BatchLoader.batches`."""
        # each item of the sampler is one batch, so the DataLoader keeps their order
        loader = DataLoader(
            self.views,
            sampler=indices,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_loaders,
            prefetch_factor=AHEAD if self.num_loaders else None,
            collate_fn=unchanged,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_ctrl_c,
        )
        try:
            yield from map(self.batch, loader)
        except UserError as error:
            # a loader process sends its traceback as the message; the last line is the original message
            prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
            raise UserError(error.args[0].strip().splitlines()[-1].removeprefix(prefix)) from None

    def batch(self, made: Any) -> Batch:
        """The Batch of what `views` made."""
        arrays, names, weight = made
        image, label, keys, data_set = (
            None if each is None else torch.as_tensor(each).to(self.device, non_blocking=True) for each in arrays
        )
        assert image is not None and keys is not None
        return Batch(image, keys, tuple(names), label=label, weight=weight, data_set=data_set)


def ignore_ctrl_c(worker: int) -> None:
    """In a loader process: a terminal sends Ctrl-C to it, too, but the training needs it until its last checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Views(Dataset):
    """Maps BatchIndices to the arrays of a batch; a pure function of (seed, stage, epoch, samples)."""

    def __init__(self, data_sets: list[DataSet], samples: list[Sample], seed: int, stage: str, num_loaders: int = 0):
        self.data_sets, self.samples, self.seed, self.stage = data_sets, samples, seed, stage
        self.num_loaders = num_loaders
        self.numbers = np.array([sample.data_set for sample in samples])
        assert (np.diff(self.numbers) >= 0).all(), "the samples of a data set are contiguous"
        self.begins = np.searchsorted(self.numbers, np.arange(len(data_sets)))

    def __getitem__(self, indices: BatchIndices) -> Any:  # type: ignore[override]
        drawn = list(self.drawn(indices))
        image, label = stacked((self.view(i, draw) for i, draw in drawn), len(drawn))
        keys, data_set, names = self.about(drawn)
        return self.handed_over((image, label, keys, data_set)), names, indices.weight

    def view(self, i: int, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        """A view of the sample with the number `i`."""
        sample = self.samples[i]
        task, _, augment = self.data_sets[sample.data_set]
        return task.view(sample, augment, draw)

    def drawn(self, indices: BatchIndices) -> Iterator[tuple[int, SampleRng]]:
        """The number of the sample of each view of a batch, and the view's draws."""
        for i, key in zip(indices.samples.tolist(), self.keys(indices).tolist(), strict=True):
            for crop in range(self.data_sets[self.samples[i].data_set].augment.crops):
                yield i, SampleRng(key).child(crop)

    def about(self, drawn: Sequence[tuple[int, SampleRng]]) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """The keys of a batch's views, the numbers of their data sets (None: there is one), and their cases' names."""
        samples = [self.samples[i] for i, _ in drawn]
        data_set = np.array([sample.data_set for sample in samples], np.int64) if len(self.data_sets) > 1 else None
        return np.array([int(draw.key) for _, draw in drawn], np.int64), data_set, [each.case.name for each in samples]

    def handed_over(self, arrays: Sequence[np.ndarray | None]) -> list[Any]:
        """The arrays as tensors, which go to another process in shared memory; as they are, where that has no room."""
        num_bytes = sum(array.nbytes for array in arrays if array is not None)
        num_ahead = self.num_loaders * AHEAD * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.num_loaders and free_shared_memory() < num_bytes * num_ahead * SPARE:
            return list(arrays)
        return [None if array is None else torch.from_numpy(array) for array in arrays]

    def keys(self, indices: BatchIndices) -> np.ndarray:
        """The samples' random keys [n], from data set and index within it; other data sets' sizes do not matter."""
        numbers = self.numbers[indices.samples]
        keys = sample_keys(self.seed, self.stage, indices.epoch, indices.samples - self.begins[numbers])
        return np.where(numbers, fold(fold(keys, "domain"), numbers), keys)


def stacked(views: Iterable[tuple[np.ndarray, np.ndarray | None]], n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The images [n, ...] and labels [n, ...] (None: there are none) of `n` views. Raises ValueError if shapes differ.

    Each is copied as soon as it is made: the processor has it in its caches still, and its memory is the next one's.
    """
    images, labels = np.empty(0), None
    for row, (image, label) in enumerate(views):
        if row == 0:
            images, labels = room(image, n), None if label is None else room(label, n)
        put(images, row, image)
        if labels is not None:
            put(labels, row, label)
    return images, labels


def room(view: Any, n: int) -> np.ndarray:
    view = np.asarray(view)
    return np.empty((n, *view.shape), view.dtype)


def put(batch: np.ndarray, row: int, view: Any) -> None:
    view = np.asarray(view)
    if (view.shape, view.dtype) != (batch.shape[1:], batch.dtype):
        raise ValueError(f"views of one batch differ: {batch.dtype} {batch.shape[1:]}, then {view.dtype} {view.shape}")
    batch[row] = view


def unchanged(batch: Any) -> Any:
    """A DataLoader's own would make tensors of arrays."""
    return batch


def free_shared_memory() -> float:
    """Bytes; infinite where there is no such file system."""
    try:
        state = os.statvfs(SHARED)
    except OSError:
        return float("inf")
    return state.f_bavail * state.f_frsize
