"""What every segmentation task shares: views, loss, sliding windows, scores on the native grid, overlays.

`Segmentation` is one label per voxel. `Regions` is overlapping regions, a sigmoid each: it differs in what a logit
means (loss, native, masks, layers, cut) and in nothing else. Label maps on disk and in the cache hold whole numbers for
both; a task's `regions` say which of them each region unites.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premed.config.transforms import Augmentation, Preprocessing
from premed.contracts import Case, Forward, Part, PreparedImage, Row, Sample
from premed.data import views
from premed.data.io.geometry import regions_to_native, to_native
from premed.data.io.readers import read_image
from premed.data.splits import missing_files
from premed.data.transforms import centre_start
from premed.errors import Finding
from premed.rng import SampleRng
from premed.tasks.common import metrics
from premed.tasks.common.description import description

ATLAS = 32  # edge of the grid on which the constant predictor averages the training labels


class Segmentation:
    """One label per voxel: `classes` are the background (0) and the labels 1, 2, …"""

    dims: int
    roi: tuple[int, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    exclusive = True
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
            yield from missing_files(self.split(part))

    def split(self, part: Part) -> list[Case]:
        raise NotImplementedError

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        return views.volume(sample.entry, self.roi, augment, draw, with_label=sample.case.label is not None)

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return views.tiles(sample.entry, self.roi)

    def label_fractions(self, sample: Sample, patch: Sequence[int]) -> list[np.ndarray]:
        starts = views.tile_starts(sample.entry.shape, self.roi)
        labels = [sample.entry.label(start, self.roi) for start in starts]
        return [np.stack([patch_means(mask, patch) for mask in self.class_masks(some)]) for some in labels]

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Dice + cross-entropy as SelfMedMAE sets it for BTCV; the mean over samples and classes."""
        from monai.losses import DiceCELoss

        combined = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
        return combined(logits.float(), label[:, None].long())

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Rows with `dice/`, `hd95/` (mm) and `state/` of each region, on the image's own grid."""
        return [self.row(sample, self.predict(forward, sample)) for sample in samples]

    def predict(self, forward: Forward, sample: Sample) -> np.ndarray:
        """The answer on the image's own grid, as `native` gives it."""
        return self.native(self.logits(forward, sample), sample.entry)

    def native(self, answer: np.ndarray, entry: PreparedImage) -> np.ndarray:
        """Labels [*S] uint8 on the image's own grid, of scores [K, *S] or labels [*S] on the prepared one."""
        return to_native(answer, entry.affine, entry.native_affine, entry.native_shape)

    def logits(self, forward: Forward, sample: Sample) -> np.ndarray:
        """Scores [K, *S] on the prepared grid, by sliding windows.

        An image smaller than the roi is padded as in training, with its own air (MONAI would pad with 0).
        """
        shape = sample.entry.shape
        size = tuple(max(n, edge) for n, edge in zip(shape, self.roi, strict=True))
        start = centre_start(shape, size)
        image = torch.from_numpy(sample.entry.image(start, size))
        logits = metrics.sliding_window(image, self.roi, forward, overlap=self.overlap, batch=self.window_batch)
        inside = tuple(slice(-first, n - first) for first, n in zip(start, shape, strict=True))
        return logits[(slice(None), *inside)].numpy()

    def row(self, sample: Sample, answer: np.ndarray) -> Row:
        """The scores of an answer on the image's own grid."""
        assert isinstance(sample.case.label, Path), f"{sample.case.name} has no label"
        truth = self.region_masks(read_labels(sample.case.label))
        spacing = np.linalg.norm(sample.entry.native_affine[:3, :3], axis=0)
        scores = metrics.region_row(self.masks(answer), truth, tuple(spacing))
        return {"case": sample.case.name, "patient": sample.case.patient} | scores

    def masks(self, answer: np.ndarray) -> Mapping[str, np.ndarray]:
        """Each region of an answer, as `native` or `cut` gives it."""
        return self.region_masks(answer)

    def label_map(self, answer: np.ndarray) -> np.ndarray | None:
        """An answer, as `native` gives it, with the values of the task's label maps: uint8 [*S]."""
        return answer

    def region_masks(self, labels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Each region of a label map."""
        return {name: np.isin(labels, region_masks) for name, region_masks in self.regions.items()}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Per case, then over cases per region, then over regions."""
        return metrics.segmentation_summary(rows, tuple(self.regions))

    def constant_baseline(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """The mean label map of `train` in each image's frame, cut at the share that scores best on `train`.

        Laid out on the prepared grids, whose axes all point the same way.
        """
        atlas = np.mean([self.atlas_frame(sample.entry.label()) for sample in train], axis=0)

        def answer(sample: Sample, share: float) -> Row:
            entry = sample.entry
            places = np.ix_(*((2 * np.arange(size) + 1) * ATLAS // (2 * size) for size in entry.shape))
            return self.row(sample, self.native(self.threshold_atlas(atlas, share)[(..., *places)], entry))

        def score(share: float) -> float:
            return self.summary([answer(sample, share) for sample in train[:8]])[self.score]

        share = max((0.1, 0.2, 0.3, 0.4, 0.5), key=score)
        return [answer(sample, share) for sample in samples]

    def atlas_frame(self, labels: np.ndarray) -> np.ndarray:
        """One map per class, [classes, ATLAS, …], of a label map sampled on a fixed number of places."""
        return np.stack([*self.class_masks(sample_atlas(labels))])

    def class_masks(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Each class of a label map, as its logits have them, one mask after the other."""
        return (labels == label for label in self.labels)

    def threshold_atlas(self, atlas: np.ndarray, share: float) -> np.ndarray:
        """The answer where an atlas (a mean of `frame`s) holds at least `share`, on its own grid."""
        some, best = 1 - atlas[0] >= share, 1 + atlas[1:].argmax(axis=0)
        return (some * best).astype(np.uint8)

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        from premed.data.figures import overlay

        cases = []
        for sample in samples[:4]:
            assert isinstance(sample.case.label, Path)
            entry = sample.entry
            truth, answer = self.region_masks(entry.label()), self.masks(self.decide(self.logits(forward, sample)))
            cases.append((sample.case.name, entry.image()[0], self.paint(truth), self.paint(answer)))
        return [overlay(folder / "overlay.png", cases, tuple(self.regions))]

    def describe(self) -> dict[str, Any]:
        return description(self, Segmentation, "labels")

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """What logits [K, *S] answer, on their own grid."""
        return logits.argmax(axis=0).astype(np.uint8)

    def paint(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Masks as one map uint8 for the eye: i + 1 is the i-th region; those of fewer labels lie on top."""
        numbers = {name: number for number, name in enumerate(self.regions, start=1)}
        paint = np.zeros(next(iter(masks.values())).shape, np.uint8)
        for name in sorted(self.regions, key=lambda name: -len(self.regions[name])):
            paint[masks[name]] = numbers[name]
        return paint


class Regions(Segmentation):
    """Regions that may overlap, one sigmoid each: `classes` are the regions' names, `regions` the labels they unite."""

    exclusive = False

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Dice as SelfMedMAE sets it for BraTS; the mean over samples and regions."""
        from monai.losses import DiceLoss

        truth = torch.stack(
            [torch.isin(label, label.new_tensor(region_masks)) for region_masks in self.regions.values()], dim=1
        )
        dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
        return dice(logits.float(), truth.float())

    def native(self, answer: np.ndarray, entry: PreparedImage) -> np.ndarray:
        """Masks [K, *S] bool on the image's own grid, of scores [K, *S] on the prepared one."""
        return regions_to_native(answer, entry.affine, entry.native_affine, entry.native_shape)

    def masks(self, answer: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(self.regions, answer, strict=True))

    def class_masks(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        return (np.isin(labels, region_masks) for region_masks in self.regions.values())

    def label_map(self, answer: np.ndarray) -> np.ndarray | None:
        """Painted from the outermost region to the innermost; None where the regions do not lie in each other.

        A voxel that is answered to lie in an inner region lies in the outer ones then, whatever they say of it.
        """
        if self.nesting is None:
            return None
        paint, masks = np.zeros(answer.shape[1:], np.uint8), self.masks(answer)
        for name, label in self.nesting:
            paint[masks[name]] = label
        return paint

    @property
    def nesting(self) -> list[tuple[str, int]] | None:
        """Regions from the outermost to the innermost, each with a label that no region inside it has."""
        names = sorted(self.regions, key=lambda name: -len(self.regions[name]))
        sets = [*({*self.regions[name]} for name in names), set()]
        if not all(inner < outer for outer, inner in zip(sets, sets[1:], strict=False)):
            return None
        return [(name, min(outer - inner)) for name, outer, inner in zip(names, sets, sets[1:], strict=False)]

    def threshold_atlas(self, atlas: np.ndarray, share: float) -> np.ndarray:
        """Scores: above 0 where the atlas holds at least `share`."""
        return atlas - (share - 1e-6)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits > 0

    def describe(self) -> dict[str, Any]:
        return description(self, Regions, "regions")


def sample_atlas(labels: np.ndarray) -> np.ndarray:
    """A label map on ATLAS places along each axis."""
    return labels[np.ix_(*((2 * np.arange(ATLAS) + 1) * size // (2 * ATLAS) for size in labels.shape))]


def patch_means(mask: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """The mean [*grid] of each patch of a mask [*S]."""
    pairs = [(size // edge, edge) for size, edge in zip(mask.shape, patch, strict=True)]
    return mask.reshape([n for pair in pairs for n in pair]).mean(axis=tuple(range(1, 2 * mask.ndim, 2)))


def read_labels(path: Path) -> np.ndarray:
    """The label map [*S] uint8 on its own grid."""
    values = np.rint(read_image(path)[0]).astype(np.uint8)
    return values[..., 0] if values.ndim == 4 else values
