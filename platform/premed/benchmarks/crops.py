"""Row crops-3d: batches of random crops from prepared files beside MONAI's CacheDataset, with equal voxels."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from premed.benchmarks import made_up
from premed.benchmarks.floors import copy_floor
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.config.image_processing import Augmentation
from premed.contracts import BatchIndices, DataSet, Sample
from premed.data import transforms, views
from premed.data.cache import Cache
from premed.data.loader import Views
from premed.rng import SampleRng

SHAPE = (202, 141, 180), (64, 64, 48)
ROI = (96, 96, 96), (32, 32, 32)
CROPS, POSITIVE = 4, 0.5
PLAIN = Augmentation(crops=CROPS, positive=POSITIVE)
MOVED = Augmentation(crops=CROPS, positive=POSITIVE, flip=0.2, rotate=0.2, rotate_plane=(0, 1), intensity=0.1)
TARGETS = {False: Target(7, 8), True: Target(5, 8)}  # by whether the peer knows where the foreground is


def crops(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    shape, roi = settings.size(*SHAPE), settings.size(*ROI)
    times = range(settings.size(4, 1))
    num_bytes = len(times) * CROPS * prod(roi) * (2 + 1 + 4 + 1)
    with TemporaryDirectory() as folder:
        case = made_up.write_ct(Path(folder), shape)
        (prepared,) = Cache(Path(folder) / "cache").prepare([case], made_up.PREPROCESSING)
        sample = Sample(case, prepared)
        for augment, known in product((PLAIN, MOVED), (False, True)):
            batches, peer_batches = premed_batches(sample, roi, augment), MonaiBatches(sample, roi, augment, known)
            same = same_batches(sample, roi, batches, peer_batches)
            yield Comparison(
                f"CacheDataset{' with FgBgToIndicesd' * known}{', augmented' * (augment is MOVED)}",
                partial(repeated, batches, times),
                partial(repeated, peer_batches, times),
                unit=f"{len(times)} batches" if len(times) > 1 else "a batch",
                sizes=f"{CROPS} crops of {roi[0]}³ with labels from one volume of {' × '.join(map(str, shape))}",
                same=same,
                floor=lambda: copy_floor(settings, num_bytes, "stored int16 and uint8 to float32 and uint8"),
                target=TARGETS[known],
            )


def repeated(batches: Any, times: range) -> None:
    for number in times:
        batches(number)


def premed_batches(sample: Sample, roi: tuple[int, ...], augment: Augmentation) -> Any:
    """A function of the epoch: the arrays of a batch, as a loader process makes them."""

    def view(sample: Sample, augment: Augmentation, draw: SampleRng) -> Any:
        return views.volume(sample.prepared, roi, augment, draw, with_label=True)

    task: Any = SimpleNamespace(view=view)
    source = Views([DataSet(task, "CT", augment)], [sample], seed=0, stage="bench")
    return lambda epoch: source[BatchIndices(epoch, np.zeros(1, np.int64))][0][:2]


class MonaiBatches:
    """The same by MONAI: the volume is cached as it is before the first random transform, SelfMedMAE's transforms."""

    def __init__(self, sample: Sample, roi: tuple[int, ...], augment: Augmentation, known: bool):
        from monai import transforms as ts
        from monai.data.dataset import CacheDataset
        from monai.data.utils import list_data_collate

        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)  # no DICOM is read
        (low, high), both = made_up.WINDOW, ["image", "label"]
        fixed = [
            ts.LoadImaged(both, reader="NibabelReader", ensure_channel_first=True),
            ts.Orientationd(both, axcodes="RAS", labels=None),
            ts.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
            *([ts.FgBgToIndicesd("label", image_key="image")] if known else []),
        ]
        where: Any = {"image_key": "image", "image_threshold": 0.0}
        if known:
            where = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
        crop: Any = ts.RandCropByPosNegLabeld(both, "label", roi, pos=1, neg=1, num_samples=CROPS, **where)
        moves = [ts.RandFlipd(both, augment.flip, axis) for axis in range(3)] if augment.flip else []
        if augment.flip:
            moves += [
                ts.RandRotate90d(both, augment.rotate, max_k=3),
                ts.RandScaleIntensityd("image", factors=0.1, prob=augment.intensity),
                ts.RandShiftIntensityd("image", offsets=0.1, prob=augment.intensity),
            ]
        files = {"image": str(sample.case.image[0]), "label": str(sample.case.label)}
        last = [*([ts.SelectItemsd(both)] if known else []), ts.ToTensord(both)]  # places are not for the batch
        self.dataset = CacheDataset(
            [files], ts.Compose([*fixed, crop, *moves, *last]), progress=False, num_workers=None
        )
        self.collate = list_data_collate

    def __call__(self, number: int) -> Any:
        return self.collate([self.dataset[0]])

    @property
    def cached(self) -> Any:
        return self.dataset._cache[0]


def same_batches(sample: Sample, roi: tuple[int, ...], batches: Any, peer: MonaiBatches) -> str:
    """Raises NotTheSame if batches are of other shapes, or premed's crops are not those of the peer's volume."""
    (images, labels), other = batches(0), peer(0)
    if images.shape != tuple(other["image"].shape) or labels.shape != tuple(
        other["label"].shape[:1] + other["label"].shape[2:]
    ):
        raise NotTheSame(f"batches of shape {images.shape} and {tuple(other['image'].shape)}")
    volume, label = (peer.cached[name][0].numpy() for name in ("image", "label"))
    apart = 0.0
    for number in range(CROPS):
        draw = SampleRng(number)
        start = transforms.balanced_start(sample.prepared, roi, draw, POSITIVE)
        image, own_label = views.volume(sample.prepared, roi, PLAIN, draw, with_label=True)
        place = tuple(slice(first, first + edge) for first, edge in zip(start, roi, strict=True))
        apart = max(apart, float(np.abs(image[0] - volume[place]).max()))
        if own_label is None or not (own_label == label[place]).all():
            raise NotTheSame("labels of a crop differ")
    if apart > 1e-3:
        raise NotTheSame(f"voxels of a crop differ by up to {apart:.1e}")
    return (
        f"batches of the same shapes; equal labels, and voxels (apart by {apart:.0e} of the window), at the same places"
    )
