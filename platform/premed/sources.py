"""Where batches come from. `Mapped` reads prepared, memory-mapped files in loader processes."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from premed.contracts import Augment, Batch, Picks, Sample, Task
from premed.randomness import Draw, sample_keys
from premed.spec import UserError


class Mapped:
    """A Source over memory-mapped files: only the views that are asked for are read.

    num_loaders: processes that read ahead (0: none). stage: names the draws, with `seed`.
    """

    def __init__(
        self,
        task: Task,
        samples: Sequence[Sample],
        augment: Augment,
        *,
        seed: int,
        stage: str,
        device: torch.device,
        num_loaders: int = 0,
    ):
        self.views = Views(task, list(samples), augment, seed, stage)
        self.device, self.num_loaders = device, num_loaders

    def __len__(self) -> int:
        return len(self.views.samples)

    def batches(self, picks: Iterable[Picks]) -> Iterator[Batch]:
        """See `Source.batches`."""
        # the picks are the sampler: one pick, one batch, so that the loader keeps their order
        loader = DataLoader(
            self.views,
            sampler=picks,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_loaders,
            pin_memory=self.device.type == "cuda",
        )
        try:
            for image, label, keys, names, weight, source in loader:
                yield Batch(
                    image=image.to(self.device, non_blocking=True),
                    keys=keys.to(self.device, non_blocking=True),
                    names=tuple(names),
                    label=None if label is None else label.to(self.device, non_blocking=True),
                    weight=weight,
                    source=source,
                )
        except UserError as error:
            # a loader process wraps a message in its traceback, of which it is the last line
            raise UserError(error.args[0].strip().splitlines()[-1].removeprefix("premed.spec.UserError: ")) from None


class Views(Dataset):
    """Picks to the arrays of a batch; a pure function of (seed, stage, epoch, samples)."""

    def __init__(self, task: Task, samples: list[Sample], augment: Augment, seed: int, stage: str):
        self.task, self.samples, self.augment, self.seed, self.stage = task, samples, augment, seed, stage

    def __getitem__(self, picks: Picks):  # type: ignore[override]
        keys = sample_keys(self.seed, self.stage, picks.epoch, picks.samples)
        images, labels, view_keys, names = [], [], [], []
        for number, of in zip(picks.samples.tolist(), keys.tolist(), strict=True):
            sample = self.samples[number]
            for crop in range(self.augment.crops):
                draw = Draw(of).child(crop)
                image, label = self.task.view(sample, self.augment, draw)
                images.append(image)
                labels.append(label)
                view_keys.append(int(draw.key))
                names.append(sample.case.name)
        label = None if labels[0] is None else torch.from_numpy(np.stack(labels))
        image = torch.from_numpy(np.stack(images))
        return image, label, torch.tensor(view_keys), names, picks.weight, picks.source
