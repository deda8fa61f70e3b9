"""The base classes of segmentation tasks: views, loss, sliding windows, scores on the native grid, overlays.

`Segmentation` has one label per voxel. `Regions` has overlapping regions with a sigmoid each: it overrides what depends
on the meaning of a logit (loss, native, masks, class_masks, threshold_atlas, …). Both have integer label maps on disk
and in the cache; a task's `regions` map each region to the labels that it unites.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case, Forward, Part, PreparedImage, Row, Sample
from premed.data import views
from premed.data.io.geometry import regions_to_native, to_native, voxel_edges
from premed.data.splits import missing_files
from premed.data.transforms import centre_start
from premed.errors import Finding
from premed.rng import SampleRng
from premed.tasks.common import losses, metrics, resamples
from premed.tasks.common.description import description
from premed.tasks.common.label_maps import ATLAS, patch_means, read_labels, sample_atlas
from premed.tasks.common.sliding_window import sliding_window


class Segmentation:
    """One label per voxel: `classes` are the background (0) and the labels 1, 2, …"""

    dims: int
    roi: tuple[int, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    exclusive = True
    ignore: int | None = None
    """The value, in label maps, of voxels about which nothing is known: they count in neither loss nor scores."""
    overlap: float = 0.5
    window_batch: int = 4
    num_folds: int | None = None
    lenient = False
    score = "dice"

    @property
    def labels(self) -> tuple[int, ...]:
        """The values that label maps may contain, `ignore` included."""
        return (*range(len(self.classes)), *(() if self.ignore is None else (self.ignore,)))

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The scored regions: name to the labels that it unites."""
        return {name: (label,) for label, name in enumerate(self.classes) if label}

    @property
    def label_meaning(self) -> dict[str, Any] | None:
        """What the values of label maps mean where only a data set's file says it: part of the data's fingerprint."""
        return None if self.ignore is None else {"ignore": self.ignore}

    def check(self, test: bool = True) -> Iterator[Finding]:
        """See `Task.check`; tasks with listings override it."""
        parts: tuple[Part, ...] = ("train", "val", "test") if test else ("train", "val")
        for part in parts:
            yield from missing_files(self.split(part))

    def split(self, part: Part) -> list[Case]:
        raise NotImplementedError

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        return views.volume(sample.prepared, self.roi, augment, draw, sample.case.label is not None, self.ignore)

    def view_params(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> views.ViewParams:
        with_label = sample.case.label is not None
        return views.volume_params(sample.prepared, self.roi, augment, draw, with_label, self.ignore)

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        return views.tiles(sample.prepared, self.roi)

    def label_fractions(self, sample: Sample, patch: Sequence[int]) -> list[np.ndarray]:
        starts = views.tile_starts(sample.prepared.shape, self.roi)
        return [self.patch_fractions(sample.prepared.label(start, self.roi), patch) for start in starts]

    def patch_fractions(self, labels: np.ndarray, patch: Sequence[int]) -> np.ndarray:
        """Returns class fractions [classes, *grid] of a label map's patches, over the voxels whose label is known; NaN
        where a patch has none."""
        fractions = np.stack([patch_means(mask, patch) for mask in self.class_masks(labels)])
        if self.ignore is None:
            return fractions
        known = patch_means(labels != self.ignore, patch)
        return np.divide(fractions, known, out=np.full_like(fractions, np.nan), where=known > 0)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Returns Dice + cross-entropy as in SelfMedMAE's BTCV, the mean over samples and classes."""
        return losses.dice_ce(logits, label, self.ignore)

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Returns rows with `dice/`, `hd95/` (mm) and `state/` of each region, on the image's native grid."""
        return [self.row(sample, self.predict(forward, sample)) for sample in samples]

    def predict(self, forward: Forward, sample: Sample) -> np.ndarray:
        """Returns the prediction on the image's native grid (see `native`)."""
        return self.native(self.logits(forward, sample), sample.prepared)

    def native(self, prediction: np.ndarray, prepared: PreparedImage) -> np.ndarray:
        """Resamples logits [K, *S] or labels [*S] on the prepared grid to labels [*S] uint8 on the native one."""
        return to_native(prediction, prepared.affine, prepared.native_affine, prepared.native_shape)

    def logits(self, forward: Forward, sample: Sample) -> np.ndarray:
        """Returns logits [K, *S] on the prepared grid, by sliding windows.

        An image smaller than the roi is padded as in training, with its own air value (MONAI would pad with 0).
        """
        shape = sample.prepared.shape
        size = tuple(max(n, edge) for n, edge in zip(shape, self.roi, strict=True))
        start = centre_start(shape, size)
        image = torch.from_numpy(sample.prepared.image(start, size))
        logits = sliding_window(image, self.roi, forward, overlap=self.overlap, batch=self.window_batch)
        inside = tuple(slice(-first, n - first) for first, n in zip(start, shape, strict=True))
        return logits[(slice(None), *inside)].numpy()

    def example_rows(self) -> list[Row]:
        """Rows of made-up predictions, such that each number of `summary` is defined: they show which there are."""
        perfect = {"dice": 1.0, "hd95": 0.0, "state": "both"}
        return [{f"{name}/{region}": value for name, value in perfect.items() for region in self.regions}]

    def row(self, sample: Sample, prediction: np.ndarray) -> Row:
        """Returns the scores of a prediction on the native grid."""
        assert isinstance(sample.case.label, Path), f"{sample.case.name} has no label"
        labels = read_labels(sample.case.label, sample.label_hash)
        predicted, truth = self.known_masks(prediction, labels), self.region_masks(labels)
        scores = metrics.region_row(predicted, truth, voxel_edges(sample.prepared.native_affine))
        return {"case": sample.case.name, "patient": sample.case.patient} | scores

    def masks(self, prediction: np.ndarray) -> Mapping[str, np.ndarray]:
        """Returns the mask of each region of a prediction, as `native` or `decide` returns it."""
        return self.region_masks(prediction)

    def known_masks(self, prediction: np.ndarray, labels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Returns `masks` without the voxels that the true `labels` [*S] ignore."""
        masks = self.masks(prediction)
        if self.ignore is None:
            return masks
        known = labels != self.ignore
        return {name: mask & known for name, mask in masks.items()}

    def label_map(self, prediction: np.ndarray) -> np.ndarray | None:
        """Returns a prediction of `native` as a label map uint8 [*S]; None if a label map cannot represent it."""
        return prediction

    def region_masks(self, labels: np.ndarray) -> Mapping[str, np.ndarray]:
        """Returns the mask of each region of a label map."""
        return {name: metrics.mask_of(labels, values) for name, values in self.regions.items()}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns means over cases per region, and their means over regions."""
        return metrics.segmentation_summary(rows, tuple(self.regions))

    def resampled(self, rows: Sequence[Row], counts: np.ndarray) -> np.ndarray:
        return resamples.mean_dices(rows, tuple(self.regions), counts)

    def constant_baseline(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """Predicts the mean label map of `train`, scaled to each image, with the threshold that scores best on `train`.

        It is averaged on prepared grids, because their axes all point in the same directions.
        """
        atlas = self.atlas([sample.prepared.label() for sample in train])

        def score_row(sample: Sample, share: float) -> Row:
            prepared = sample.prepared
            places = np.ix_(*((2 * np.arange(size) + 1) * ATLAS // (2 * size) for size in prepared.shape))
            return self.row(sample, self.native(self.threshold_atlas(atlas, share)[(..., *places)], prepared))

        def score(share: float) -> float:
            return self.summary([score_row(sample, share) for sample in train[:8]])[self.score]

        share = max((0.1, 0.2, 0.3, 0.4, 0.5), key=score)
        return [score_row(sample, share) for sample in samples]

    def atlas(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean `atlas_frame` of label maps: at each point, of those that know its label (background if none
        does)."""
        if self.ignore is None:
            return np.mean([self.atlas_frame(labels) for labels in maps], axis=0)
        total, num_known = 0.0, 0
        for labels in maps:
            total, num_known = total + self.atlas_frame(labels), num_known + (sample_atlas(labels) != self.ignore)
        nowhere = self.atlas_frame(np.zeros_like(maps[0]))
        return np.where(num_known > 0, total / np.maximum(num_known, 1), nowhere)

    def atlas_frame(self, labels: np.ndarray) -> np.ndarray:
        """Returns the class masks [classes, ATLAS, …] of a label map, sampled to ATLAS points per axis."""
        return np.stack([*self.class_masks(sample_atlas(labels))])

    def class_masks(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the mask of each class of a label map, in the order of the logits."""
        return (labels == label for label in range(len(self.classes)))

    def threshold_atlas(self, atlas: np.ndarray, share: float) -> np.ndarray:
        """Returns the prediction where the atlas (the mean of `atlas_frame`s) is at least `share`."""
        foreground, best = 1 - atlas[0] >= share, 1 + atlas[1:].argmax(axis=0)
        return (foreground * best).astype(np.uint8)

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        from premed.data.figures import overlay

        cases = []
        for sample in samples[:4]:
            assert isinstance(sample.case.label, Path)
            prepared = sample.prepared
            labels = prepared.label()
            truth = self.region_masks(labels)
            prediction = self.known_masks(self.decide(self.logits(forward, sample)), labels)
            cases.append((sample.case.name, prepared.image()[0], self.paint(truth), self.paint(prediction)))
        return [overlay(folder / "overlay.png", cases, tuple(self.regions))]

    def describe(self) -> dict[str, Any]:
        return description(self, Segmentation, "labels")

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Returns the prediction of logits [K, *S], on their grid."""
        return logits.argmax(axis=0).astype(np.uint8)

    def paint(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns masks as one map uint8 for pictures: i + 1 is the i-th region; regions of fewer labels are on top."""
        numbers = {name: number for number, name in enumerate(self.regions, start=1)}
        picture = np.zeros(next(iter(masks.values())).shape, np.uint8)
        for name in sorted(self.regions, key=lambda name: -len(self.regions[name])):
            picture[masks[name]] = numbers[name]
        return picture


class Regions(Segmentation):
    """Regions that may overlap, a sigmoid each: `classes` are the regions' names, `regions` the labels they unite."""

    exclusive = False
    painted: Sequence[int] | None = None
    """The label that a label map has for each region, painted one over the other in this order (nnU-Net's
    `regions_class_order`); None: as `nesting` finds."""

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Returns the Dice loss as in SelfMedMAE's BraTS, the mean over samples and regions."""
        truth = torch.stack([torch.isin(label, label.new_tensor(values)) for values in self.regions.values()], dim=1)
        return losses.region_dice(logits, truth, None if self.ignore is None else label != self.ignore)

    def native(self, prediction: np.ndarray, prepared: PreparedImage) -> np.ndarray:
        """Resamples logits [K, *S] on the prepared grid to masks [K, *S] bool on the native one."""
        return regions_to_native(prediction, prepared.affine, prepared.native_affine, prepared.native_shape)

    def masks(self, prediction: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(self.regions, prediction, strict=True))

    def class_masks(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        return (metrics.mask_of(labels, values) for values in self.regions.values())

    def label_map(self, prediction: np.ndarray) -> np.ndarray | None:
        """Paints the regions as `nesting` lists them, an inner one over its outer ones; None if they are not nested."""
        if self.nesting is None:
            return None
        labels, masks = np.zeros(prediction.shape[1:], np.uint8), self.masks(prediction)
        for name, label in self.nesting:
            labels[masks[name]] = label
        return labels

    @property
    def nesting(self) -> list[tuple[str, int]] | None:
        """Regions and their labels as they are painted: those of `painted`; else from the outermost to the innermost,
        each with a label that no inner one has; None if they are not nested."""
        if self.painted is not None:
            return list(zip(self.regions, self.painted, strict=True))
        names = sorted(self.regions, key=lambda name: -len(self.regions[name]))
        sets = [*({*self.regions[name]} for name in names), set()]
        if not all(inner < outer for outer, inner in zip(sets, sets[1:], strict=False)):
            return None
        return [(name, min(outer - inner)) for name, outer, inner in zip(names, sets, sets[1:], strict=False)]

    def threshold_atlas(self, atlas: np.ndarray, share: float) -> np.ndarray:
        """Returns logits: above 0 where the atlas is at least `share`."""
        return atlas - (share - 1e-6)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits > 0

    def describe(self) -> dict[str, Any]:
        return description(self, Regions, "regions")
