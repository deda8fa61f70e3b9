"""Where batches come from. `Mapped` reads prepared, memory-mapped files in loader processes."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from premed.contracts import Batch, Domain, Picks, Sample
from premed.errors import UserError
from premed.rng import Draw, fold, sample_keys


class Mapped:
    """A Source over memory-mapped files: only the views that are asked for are read.

    samples: of one domain after the other. num_loaders: processes that read ahead (0: none). stage: names the draws,
    with `seed`.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        samples: Sequence[Sample],
        *,
        seed: int,
        stage: str,
        device: torch.device,
        num_loaders: int = 0,
    ):
        self.views = Views(list(domains), list(samples), seed, stage)
        self.device, self.num_loaders = device, num_loaders

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
            for image, label, keys, domain, names, weight in loader:
                yield Batch(
                    image=image.to(self.device, non_blocking=True),
                    keys=keys.to(self.device, non_blocking=True),
                    names=tuple(names),
                    label=None if label is None else label.to(self.device, non_blocking=True),
                    weight=weight,
                    domain=None if domain is None else domain.to(self.device, non_blocking=True),
                )
        except UserError as error:
            # a loader process wraps a message in its traceback, of which it is the last line
            prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
            raise UserError(error.args[0].strip().splitlines()[-1].removeprefix(prefix)) from None


class Views(Dataset):
    """Picks to the arrays of a batch; a pure function of (seed, stage, epoch, samples)."""

    def __init__(self, domains: list[Domain], samples: list[Sample], seed: int, stage: str):
        self.domains, self.samples, self.seed, self.stage = domains, samples, seed, stage
        self.numbers = np.array([sample.domain for sample in samples])
        assert (np.diff(self.numbers) >= 0).all(), "the samples of a domain follow each other"
        self.begins = np.searchsorted(self.numbers, np.arange(len(domains)))

    def __getitem__(self, picks: Picks):  # type: ignore[override]
        images, labels, view_keys, numbers, names = [], [], [], [], []
        for place, of in zip(picks.samples.tolist(), self.keys(picks).tolist(), strict=True):
            sample = self.samples[place]
            task, _, augment = self.domains[sample.domain]
            for crop in range(augment.crops):
                draw = Draw(of).child(crop)
                image, label = task.view(sample, augment, draw)
                images.append(image)
                labels.append(label)
                view_keys.append(int(draw.key))
                numbers.append(sample.domain)
                names.append(sample.case.name)
        label = None if labels[0] is None else torch.from_numpy(np.stack(labels))
        image = torch.from_numpy(np.stack(images))
        domain = torch.tensor(numbers) if len(self.domains) > 1 else None
        return image, label, torch.tensor(view_keys), domain, names, picks.weight

    def keys(self, picks: Picks) -> np.ndarray:
        """The samples' keys [n]: by their data set and their number in it, however large the other data sets are."""
        numbers = self.numbers[picks.samples]
        keys = sample_keys(self.seed, self.stage, picks.epoch, picks.samples - self.begins[numbers])
        return np.where(numbers, fold(fold(keys, "domain"), numbers), keys)
