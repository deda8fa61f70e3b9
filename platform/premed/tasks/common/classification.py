"""The base class of classification tasks: views, loss, scores. A task file adds where its images and labels are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case, Forward, Part, Row, Sample
from premed.data import views
from premed.data.splits import missing_files
from premed.errors import Finding
from premed.rng import SampleRng
from premed.tasks.common import metrics, resamples
from premed.tasks.common.description import description

MOST_PICTURES = 12


class Classification:
    """Multi-label classification, NaN for unknown labels; or one class per image, if the classes are `exclusive`.

    A label has one number per class in both cases: an image of the second of three exclusive classes has (0, 1, 0).
    """

    dims: int
    roi: tuple[int, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...] = ()
    ignore: int | None = None
    regions: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    num_folds: int | None = None
    lenient = False
    preprocessing: Preprocessing
    score: str = "mauc"
    exclusive: bool = False
    """One class per image: softmax, cross-entropy, and `accuracy` beside the AUCs."""

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`; tasks with listings override it."""
        parts: tuple[Part, ...] = ("train", "val", "test") if test else ("train", "val")
        for part in parts:
            yield from missing_files(self.split(part))

    def split(self, part: Part) -> list[Case]:
        raise NotImplementedError

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        label = None if sample.case.label is None else np.asarray(sample.case.label, np.float32)
        if self.dims == 2:
            return views.picture(sample.prepared, self.roi, augment, draw), label
        return views.volume(sample.prepared, self.roi, augment, draw)[0], label

    def view_params(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> views.ViewParams:
        label = None if sample.case.label is None else np.asarray(sample.case.label, np.float32)
        params = views.picture_params if self.dims == 2 else views.volume_params
        return params(sample.prepared, self.roi, augment, draw, label=label)

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return views.tiles(sample.prepared, self.roi)

    def label_fractions(self, sample: Sample, patch: Sequence[int]) -> list[np.ndarray]:
        """Returns the image's label for each of its tiles."""
        return [np.array(sample.case.label, float)] * len(views.tile_starts(sample.prepared.shape, self.roi))

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Returns the cross-entropy of the true class if exclusive, else the binary one over known labels."""
        if self.exclusive:
            return F.cross_entropy(logits.float(), label)
        known = ~label.isnan()
        losses = F.binary_cross_entropy_with_logits(logits.float(), label.nan_to_num(), reduction="none")
        return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Returns rows with `y/<class>` (0, 1 or NaN) and `p/<class>` (see `probabilities`)."""
        probabilities = self.probabilities(forward, samples)
        return [self.row(sample, p) for sample, p in zip(samples, probabilities, strict=True)]

    def probabilities(self, forward: Forward, samples: Sequence[Sample]) -> list[list[float]]:
        """Returns one probability per class for each sample: the mean over the image's fixed views.

        A picture has one such view, its centre, unless it is stored at twice the roi; a large volume has several.
        """
        means: list[list[float]] = []
        for chunk in views.chunks(samples, self.roi):
            tiles_of = [self.tiles(sample) for sample in chunk]
            logits = forward(torch.from_numpy(np.stack(list(chain(*tiles_of)))))
            by_view = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
            means += [p.mean(dim=0).tolist() for p in by_view.split([len(tiles) for tiles in tiles_of])]
        return means

    def row(self, sample: Sample, probabilities: Sequence[float]) -> Row:
        assert isinstance(sample.case.label, tuple), f"{sample.case.name} has no label"
        truth = {f"y/{name}": float(y) for name, y in zip(self.classes, sample.case.label, strict=True)}
        predicted = {f"p/{name}": float(p) for name, p in zip(self.classes, probabilities, strict=True)}
        return {"case": sample.case.name, "patient": sample.case.patient} | truth | predicted

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `auc/<class>`, `mauc` (the mean over classes with a defined AUC) and, if exclusive, `accuracy`."""
        accuracy = metrics.accuracy_summary(rows, self.classes) if self.exclusive else {}
        return accuracy | metrics.auc_summary(rows, self.classes)

    def resampled(self, rows: Sequence[Row], counts: np.ndarray) -> np.ndarray:
        score = resamples.accuracies if self.score == "accuracy" else resamples.mean_aucs
        return score(rows, self.classes, counts)

    def constant_baseline(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """Predicts the class frequencies of `train` for every image: AUC 0.5, accuracy of the most frequent class; of
        exclusive classes that are as frequent, the one that is the more frequent in `samples`: the best such answer."""
        labels = np.array([sample.case.label for sample in train], float)
        known = ~np.isnan(labels)
        frequencies = np.where(known, labels, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        if self.exclusive:
            counts = np.nansum(np.array([sample.case.label for sample in samples], float), axis=0)
            best = np.lexsort((counts, frequencies))[-1]
            frequencies[best] = np.nextafter(frequencies[best], 2)
        return [self.row(sample, frequencies) for sample in samples]

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        from premed.data.figures import probabilities

        shown = of_each_class(samples, MOST_PICTURES)
        cases = []
        for sample, row in zip(shown, self.measure(forward, shown), strict=True):
            labels = {name: (row[f"y/{name}"], row[f"p/{name}"]) for name in self.classes}
            cases.append((row["case"], views.centre(sample.prepared, self.roi)[0], labels))
        return [probabilities(folder / "probabilities.png", cases)]

    def example_rows(self) -> list[Row]:
        """Rows of made-up predictions, such that each number of `summary` is defined: they show which there are."""
        truths = self.classes if self.exclusive else (*self.classes, None)
        each = [{name: float(name == truth) for name in self.classes} for truth in truths]
        return [{f"y/{c}": y for c, y in row.items()} | {f"p/{c}": y for c, y in row.items()} for row in each]

    def describe(self) -> dict[str, Any]:
        return description(self, Classification, "classes")


def of_each_class(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` labelled samples: of each class in turn that with the most labels, then any."""
    labels = np.nan_to_num(np.array([sample.case.label for sample in samples], float))
    order = np.argsort(-labels.sum(axis=1), kind="stable")
    of_class = [[i for i in order if labels[i, number]] for number in range(labels.shape[1])]
    in_turn = [i for turn in zip_longest(*of_class) for i in turn if i is not None]
    return [samples[i] for i in list(dict.fromkeys([*in_turn, *order]))[:most]]
