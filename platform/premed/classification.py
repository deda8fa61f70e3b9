"""What every classification task shares: views, loss, scores. A task file adds where its images and labels are."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from premed import measure, sampling
from premed.contracts import Augment, Case, Finding, Forward, Part, Row, Sample, missing
from premed.images import Recipe
from premed.randomness import Draw

CHUNK = 64  # images per forward when scoring


class Classification:
    """Several yes-or-no labels per image; NaN where an answer is not known."""

    dims: int
    roi: tuple[int, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    lenient = False
    recipe: Recipe
    score = "mauc"

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`; a task with listings of its own has more to tell."""
        parts: tuple[Part, ...] = ("train", "val", "test") if test else ("train", "val")
        for part in parts:
            yield from missing(self.split(part))

    def split(self, part: Part) -> list[Case]:
        raise NotImplementedError

    def view(self, sample: Sample, augment: Augment, draw: Draw) -> tuple[np.ndarray, np.ndarray | None]:
        label = None if sample.case.label is None else np.asarray(sample.case.label, np.float32)
        if self.dims == 2:
            return sampling.picture(sample.entry, self.roi, augment, draw), label
        return sampling.volume(sample.entry, self.roi, augment, draw)[0], label

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return sampling.tiles(sample.entry, self.roi)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Binary cross-entropy over the known labels."""
        known = ~label.isnan()
        losses = F.binary_cross_entropy_with_logits(logits.float(), label.nan_to_num(), reduction="none")
        return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Rows with `y/<class>` (0, 1 or NaN) and `p/<class>` (probability)."""
        rows: list[Row] = []
        for start in range(0, len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            image = torch.from_numpy(np.stack([sampling.centre(sample.entry, self.roi) for sample in chunk]))
            rows += [self.row(sample, p) for sample, p in zip(chunk, forward(image).sigmoid().tolist(), strict=True)]
        return rows

    def row(self, sample: Sample, probabilities: Sequence[float]) -> Row:
        assert isinstance(sample.case.label, tuple), f"{sample.case.name} has no label"
        truth = {f"y/{name}": float(y) for name, y in zip(self.classes, sample.case.label, strict=True)}
        answer = {f"p/{name}": float(p) for name, p in zip(self.classes, probabilities, strict=True)}
        return {"case": sample.case.name, "patient": sample.case.patient} | truth | answer

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """`mauc`, the mean over the classes whose AUC is defined, and `auc/<class>`."""
        return measure.auc_summary(rows, self.classes)

    def constant(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """The classes' frequencies in `train`, for every image: an AUC of one half."""
        labels = np.array([sample.case.label for sample in train], float)
        known = ~np.isnan(labels)
        frequencies = np.where(known, labels, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return [self.row(sample, frequencies) for sample in samples]

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        from premed.figures import probabilities

        if self.dims != 2:
            return []
        found = sorted(samples, key=lambda sample: -np.nansum(np.array(sample.case.label, float)))[:12]
        cases = []
        for sample, row in zip(found, self.measure(forward, found), strict=True):
            answers = {name: (row[f"y/{name}"], row[f"p/{name}"]) for name in self.classes}
            cases.append((row["case"], sampling.centre(sample.entry, self.roi)[0], answers))
        return [probabilities(folder / "probabilities.png", cases)]
