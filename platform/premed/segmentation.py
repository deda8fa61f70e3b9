"""What every segmentation task shares: views, loss, sliding windows, scores on the native grid, overlays."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from premed import measure, sampling
from premed.contracts import Augment, Case, Finding, Forward, Part, Row, Sample, missing
from premed.grid import to_native
from premed.images import Recipe, read_image
from premed.randomness import Draw
from premed.views import centre_start

ATLAS = 32  # edge of the grid on which the constant predictor averages the training labels


class Segmentation:
    """One label per voxel: `classes` are the background (0) and the labels 1, 2, …"""

    dims: int
    roi: tuple[int, ...]
    classes: tuple[str, ...]
    recipe: Recipe
    overlap: float = 0.5
    window_batch: int = 4
    lenient = False
    score = "dice"

    @property
    def labels(self) -> tuple[int, ...]:
        """The values that its label maps may hold."""
        return tuple(range(len(self.classes)))

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """What is scored: name to the labels it unites."""
        return {name: (label,) for label, name in enumerate(self.classes) if label}

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`; a task with listings of its own has more to tell."""
        parts: tuple[Part, ...] = ("train", "val", "test") if test else ("train", "val")
        for part in parts:
            yield from missing(self.split(part))

    def split(self, part: Part) -> list[Case]:
        raise NotImplementedError

    def view(self, sample: Sample, augment: Augment, draw: Draw) -> tuple[np.ndarray, np.ndarray | None]:
        return sampling.volume(sample.entry, self.roi, augment, draw, with_label=sample.case.label is not None)

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return sampling.tiles(sample.entry, self.roi)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Dice + cross-entropy as SelfMedMAE sets it for BTCV; the mean over samples and classes."""
        from monai.losses import DiceCELoss

        combined = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
        return combined(logits.float(), label[:, None].long())

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Rows with `dice/`, `hd95/` (mm) and `state/` of each region, on the image's own grid."""
        return [self.row(sample, self.predict(forward, sample)) for sample in samples]

    def predict(self, forward: Forward, sample: Sample) -> np.ndarray:
        """Labels on the image's own grid."""
        entry = sample.entry
        return to_native(self.logits(forward, sample), entry.affine, entry.native_affine, entry.native_shape)

    def logits(self, forward: Forward, sample: Sample) -> np.ndarray:
        """Scores [K, *S] on the prepared grid, by sliding windows.

        An image smaller than the roi is padded as in training, with its own air (MONAI would pad with 0).
        """
        shape = sample.entry.shape
        size = tuple(max(n, edge) for n, edge in zip(shape, self.roi, strict=True))
        start = centre_start(shape, size)
        image = torch.from_numpy(sample.entry.image(start, size))
        logits = measure.sliding_window(image, self.roi, forward, overlap=self.overlap, batch=self.window_batch)
        inside = tuple(slice(-first, n - first) for first, n in zip(start, shape, strict=True))
        return logits[(slice(None), *inside)].numpy()

    def row(self, sample: Sample, prediction: np.ndarray) -> Row:
        assert isinstance(sample.case.label, Path), f"{sample.case.name} has no label"
        truth = read_labels(sample.case.label)
        spacing = np.linalg.norm(sample.entry.native_affine[:3, :3], axis=0)
        scores = measure.region_row(self.masks(prediction), self.masks(truth), tuple(spacing))
        return {"case": sample.case.name, "patient": sample.case.patient} | scores

    def masks(self, labels: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: np.isin(labels, united) for name, united in self.regions.items()}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Per case, then over cases per region, then over regions."""
        return measure.segmentation_summary(rows, tuple(self.regions))

    def constant(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """The mean label map of `train` in each image's frame, cut at the share that scores best on `train`.

        Laid out on the prepared grids, whose axes all point the same way.
        """
        atlas = np.mean([self.frame(sample.entry.label()) for sample in train], axis=0)

        def answer(sample: Sample, share: float) -> Row:
            entry = sample.entry
            places = np.ix_(*((2 * np.arange(size) + 1) * ATLAS // (2 * size) for size in entry.shape))
            some, best = 1 - atlas[0] >= share, 1 + atlas[1:].argmax(axis=0)
            labels = (some * best)[places].astype(np.uint8)
            return self.row(sample, to_native(labels, entry.affine, entry.native_affine, entry.native_shape))

        def score(share: float) -> float:
            return self.summary([answer(sample, share) for sample in train[:8]])[self.score]

        share = max((0.1, 0.2, 0.3, 0.4, 0.5), key=score)
        return [answer(sample, share) for sample in samples]

    def frame(self, labels: np.ndarray) -> np.ndarray:
        """One map per class, [classes, ATLAS, …], of a label map sampled on a fixed number of places."""
        places = np.ix_(*((2 * np.arange(ATLAS) + 1) * size // (2 * ATLAS) for size in labels.shape))
        return np.stack([labels[places] == label for label in range(len(self.classes))])

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        from premed.figures import overlay

        cases = []
        for sample in samples[:4]:
            assert isinstance(sample.case.label, Path)
            entry = sample.entry
            answer = self.logits(forward, sample).argmax(axis=0)
            cases.append((sample.case.name, entry.image()[0], entry.label(), answer))
        return [overlay(folder / "overlay.png", cases, self.classes[1:])]


def read_labels(path: Path) -> np.ndarray:
    """The label map [*S] uint8 on its own grid."""
    values = np.rint(read_image(path)[0]).astype(np.uint8)
    return values[..., 0] if values.ndim == 4 else values
