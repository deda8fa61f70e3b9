"""`PreparedLoader` reads batches from prepared, memory-mapped files, in loader processes."""

import signal
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from premed.contracts import Batch, BatchIndices, DataSet, Sample
from premed.errors import UserError
from premed.rng import SampleRng, fold, sample_keys


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
        self.views = Views(list(data_sets), list(samples), seed, stage)
        self.device, self.num_loaders = device, num_loaders

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """See `BatchLoader.batches`."""
        # each item of the sampler is one batch, so the DataLoader keeps their order
        loader = DataLoader(
            self.views,
            sampler=indices,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_loaders,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_ctrl_c,
        )
        try:
            for image, label, keys, data_set, names, weight in loader:
                yield Batch(
                    image=image.to(self.device, non_blocking=True),
                    keys=keys.to(self.device, non_blocking=True),
                    names=tuple(names),
                    label=None if label is None else label.to(self.device, non_blocking=True),
                    weight=weight,
                    data_set=None if data_set is None else data_set.to(self.device, non_blocking=True),
                )
        except UserError as error:
            # a loader process sends its traceback as the message; the last line is the original message
            prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
            raise UserError(error.args[0].strip().splitlines()[-1].removeprefix(prefix)) from None


def ignore_ctrl_c(worker: int) -> None:
    """In a loader process: a terminal sends Ctrl-C to it, too, but the training needs it until its last checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Views(Dataset):
    """Maps BatchIndices to the arrays of a batch; a pure function of (seed, stage, epoch, samples)."""

    def __init__(self, data_sets: list[DataSet], samples: list[Sample], seed: int, stage: str):
        self.data_sets, self.samples, self.seed, self.stage = data_sets, samples, seed, stage
        self.numbers = np.array([sample.data_set for sample in samples])
        assert (np.diff(self.numbers) >= 0).all(), "the samples of a data set are contiguous"
        self.begins = np.searchsorted(self.numbers, np.arange(len(data_sets)))

    def __getitem__(self, indices: BatchIndices):  # type: ignore[override]
        images, labels, view_keys, numbers, names = [], [], [], [], []
        for i, key in zip(indices.samples.tolist(), self.keys(indices).tolist(), strict=True):
            sample = self.samples[i]
            task, _, augment = self.data_sets[sample.data_set]
            for crop in range(augment.crops):
                draw = SampleRng(key).child(crop)
                image, label = task.view(sample, augment, draw)
                images.append(image)
                labels.append(label)
                view_keys.append(int(draw.key))
                numbers.append(sample.data_set)
                names.append(sample.case.name)
        label = None if labels[0] is None else torch.from_numpy(np.stack(labels))
        image = torch.from_numpy(np.stack(images))
        data_set = torch.tensor(numbers) if len(self.data_sets) > 1 else None
        return image, label, torch.tensor(view_keys), data_set, names, indices.weight

    def keys(self, indices: BatchIndices) -> np.ndarray:
        """The samples' random keys [n], from data set and index within it; other data sets' sizes do not matter."""
        numbers = self.numbers[indices.samples]
        keys = sample_keys(self.seed, self.stage, indices.epoch, indices.samples - self.begins[numbers])
        return np.where(numbers, fold(fold(keys, "domain"), numbers), keys)
