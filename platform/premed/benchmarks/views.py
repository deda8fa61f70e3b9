"""Row views-2d: random views of pictures from prepared files beside PIL and torchvision, with equal pixels."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from premed.benchmarks.floors import copy_floor
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case, Sample
from premed.data import transforms, views
from premed.data.cache import Cache
from premed.data.phantoms.chest import chest
from premed.data.phantoms.writers import save_png
from premed.rng import SampleRng, key

STORED, ROI = 256, (224, 224)
NUM_PICTURES, NUM_VIEWS = 16, (256, 32)
SCALE = (0.5, 1.0)
AUGMENT = Augmentation(scale=SCALE, flip=0.5)
PREPROCESSING = Preprocessing(dims=2, normalise="grey")
MEAN, STD = PREPROCESSING.mean, PREPROCESSING.std
Transform = Callable[[Path], Any]
"""Returns the view of a file."""


def pictures(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    with TemporaryDirectory() as folder:
        samples = write_pictures(Path(folder), settings.size(NUM_PICTURES, 4))
        num = settings.size(*NUM_VIEWS)
        num_bytes = num * (STORED**2 + 4 * ROI[0] * ROI[1])
        files = [sample.case.image[0] for sample in samples]
        same = same_pixels(samples[0])
        for name, transform in peers().items():
            yield Comparison(
                name,
                partial(premed_views, samples, num),
                partial(peer_views, files, transform, num),
                unit=f"{num} views",
                sizes=f"{STORED} × {STORED} grey to {ROI[0]} × {ROI[1]}, area of 0.5 to 1, mirrored by half",
                same=same,
                floor=lambda: copy_floor(settings, num_bytes, "stored uint8 to float32"),
                target=Target(6, 8),
            )


def write_pictures(folder: Path, num: int) -> list[Sample]:
    """Made-up chests as PNG of 256 pixels, and prepared."""
    cases = []
    for number in range(num):
        path = folder / f"{number}.png"
        save_png(chest(SampleRng(key("bench", "chest", number)), STORED)[0], path)
        cases.append(Case(path.stem, path.stem, (path,)))
    prepared = Cache(folder / "cache").prepare(cases, PREPROCESSING)
    return [Sample(*pair) for pair in zip(cases, prepared, strict=True)]


def premed_views(samples: list[Sample], num: int) -> None:
    for number in range(num):
        sample = samples[number % len(samples)]
        torch.from_numpy(views.picture(sample.prepared, ROI, AUGMENT, SampleRng(key("view", number))))


def peer_views(files: list[Path], transform: Transform, num: int) -> None:
    for number in range(num):
        transform(files[number % len(files)])


def peers() -> dict[str, Transform]:
    """Transforms from a file to a view: PIL's pictures by torchvision's first transforms and by its second."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    cubic, scale = v1.InterpolationMode.BICUBIC, SCALE
    crop: Any = v1.RandomResizedCrop(ROI, scale, interpolation=cubic)
    old = v1.Compose([crop, v1.RandomHorizontalFlip(AUGMENT.flip), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    new = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(ROI, scale, interpolation=cubic, antialias=True),
            v2.RandomHorizontalFlip(AUGMENT.flip),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([MEAN], [STD]),
        ]
    )
    return {
        "PIL, grey": lambda file: old(Image.open(file)),
        "PIL, RGB": lambda file: old(Image.open(file).convert("RGB")),
        "torchvision v2, grey": lambda file: new(Image.open(file)),
    }


def same_pixels(sample: Sample) -> str:
    """Raises NotTheSame if views of premed's boxes are not what PIL makes of them, but for rounding to grey levels."""
    worst = 0.0
    for number in range(8):
        draw = SampleRng(key("view", number))
        view = views.picture(sample.prepared, ROI, AUGMENT, draw)
        top, left, height, width = transforms.draw_box((STORED, STORED), draw, SCALE, (3 / 4, 4 / 3))
        box = (left, top, left + width, top + height)
        picture = Image.open(sample.case.image[0]).resize((ROI[1], ROI[0]), Image.Resampling.BICUBIC, box)
        grey = np.asarray(picture, np.float32)
        grey = grey[:, ::-1] if draw.chance("mirror", AUGMENT.flip) else grey
        worst = max(worst, float(np.abs((view[0] * STD + MEAN) * 255 - grey).max()))
    if worst > 2.5:
        raise NotTheSame(f"pixels differ by up to {worst:.1f} grey levels")
    return f"equal pixels of equal boxes (apart by at most {worst:.0f} of 255 grey levels)"
