"""`premed predict`: applies a trained network to new images, one at a time.

Writes segmentations as NIfTI on each input's grid, and class probabilities as a CSV. An image that cannot be read is
reported and skipped.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.imageglobals import LoggingOutputSuppressor

from premed.config.settings import Train
from premed.contracts import Forward, Sample
from premed.errors import StageFailed, UserError
from premed.events import EventHandler, ImageSkipped, ImagesPredicted
from premed.inference.inputs import Input, find_images, join_channels, no_image_error, prepare_sample
from premed.inference.load import open_trained
from premed.models.network import Network
from premed.tasks.common.segmentation import Segmentation
from premed.training.device import device_of, precision_of

TABLE = "predictions.csv"
DESCRIPTION_PREFIX = b"premed"  # in the header of label maps, which may then be overwritten


def run(
    reference: str,
    images: Sequence[Path],
    out: Path,
    show: EventHandler,
    *,
    masks: bool = False,
    train: Train = Train(),  # noqa: B008 - it is frozen
) -> dict[str, Any]:
    """Predicts `images` (files and folders) into the folder `out`; returns the content of `--json`.

    masks: also write a mask of each region. train: the device (`gpu`) and precision. Raises UserError if no image could
    be predicted.
    """
    with open_trained(reference) as trained:
        network, task = trained.network()
        wanted, failed = find_images(images, task.dims, out)
        wanted, incomplete = join_channels(wanted, task)
        failed += incomplete
        for each in failed:
            show(ImageSkipped(each["why"]))
        if not wanted:
            raise no_image_error(failed)
        forward, outputs = make_forward(network, train), []
        with open_predictor(task, forward, out, wanted, trained.card["digest"], masks) as predict_image:
            for number, each in enumerate(wanted, start=1):
                try:
                    with prepare_sample(each.path, task.preprocessing, each.more) as sample:
                        outputs.append({"path": str(each.path)} | predict_image(each, sample))
                except UserError as error:
                    failed.append({"path": str(each.path), "why": str(error)})
                    show(ImageSkipped(str(error)))
                show(ImagesPredicted(number, len(wanted)))
    if not outputs:
        raise no_image_error(failed)
    about = {"run_id": trained.run_id, "task": task.name, "answer": trained.card["answer"], "folder": str(out)}
    return about | {"outputs": outputs, "failed": failed}


def make_forward(network: Network, train: Train) -> Forward:
    """Returns the function from images to logits, both on the CPU, as in a test stage."""
    device, precision = device_of(train), precision_of(train)
    network.to(device)

    @torch.no_grad()
    def forward(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return network(image.to(device)).float().cpu()

    return forward


PredictImage = Callable[[Input, Sample], dict[str, Any]]


@contextmanager
def open_predictor(
    task: Any, forward: Forward, out: Path, wanted: Sequence[Input], digest: str, masks: bool
) -> Iterator[PredictImage]:
    """Yields the function that predicts an image, writes the result below `out` and returns its entry of `--json`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created ({error.strerror}); name another folder") from None
    if isinstance(task, Segmentation):
        if task.dims == 2:
            raise UserError(f"{out}: this run segments pictures, and NIfTI is for volumes; use `premed export`")
        maps = LabelMaps(task, forward, out, digest, masks)
        maps.refuse_conflicts(wanted)
        yield maps
    else:
        with probability_table(out / TABLE, task.classes) as add:
            yield lambda each, sample: add(each, task.probabilities(forward, [sample])[0])


@contextmanager
def probability_table(
    path: Path, classes: Sequence[str]
) -> Iterator[Callable[[Input, Sequence[float]], dict[str, Any]]]:
    """Yields the function that adds an image's path and probabilities to a CSV; each row is flushed at once."""
    header = ["path", *classes]
    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            if next(csv.reader(file), header) != header:
                raise UserError(f"{path}: already exists with other columns; name another folder")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)

        def add(each: Input, probabilities: Sequence[float]) -> dict[str, Any]:
            rows.writerow([str(each.path), *(f"{p:.9g}" for p in probabilities)])
            file.flush()
            return {"probabilities": dict(zip(classes, probabilities, strict=True))}

        yield add


class LabelMaps:
    """Writes predictions as NIfTI, uint8, on the file's grid: with its shape, its affine and its header's codes."""

    def __init__(self, task: Any, forward: Forward, out: Path, digest: str, masks: bool):
        self.task, self.forward, self.out, self.digest = task, forward, out, digest
        self.has_label_map = getattr(task, "nesting", ()) is not None  # regions that are not nested have masks only
        self.regions = tuple(task.regions) if masks or not self.has_label_map else ()

    def names(self, each: Input) -> list[str]:
        """Returns the names of all files that are written for an image."""
        regions = (re.sub(r"[^-.\w]+", "_", region) for region in self.regions)
        return [f"{each.name}.nii.gz"] * self.has_label_map + [f"{each.name}.{region}.nii.gz" for region in regions]

    def refuse_conflicts(self, wanted: Sequence[Input]) -> None:
        """Raises UserError if one file would overwrite another, or one that premed has not written."""
        inputs_by_name: dict[str, Input] = {}
        for each in wanted:
            for name in self.names(each):
                if name in inputs_by_name:
                    both = f"{inputs_by_name[name].path} and {each.path} would both become {self.out / name}"
                    raise UserError(f"{both}; predict them into two folders")
                inputs_by_name[name] = each
                if (self.out / name).exists() and not is_from_premed(self.out / name):
                    raise UserError(f"{self.out / name}: already exists and is not from premed; name another folder")

    def __call__(self, each: Input, sample: Sample) -> dict[str, Any]:
        prediction = self.task.predict(self.forward, sample)
        masks = self.task.masks(prediction)
        maps = [self.task.label_map(prediction)] if self.has_label_map else []
        files = []
        for name, voxels in zip(self.names(each), [*maps, *(masks[name] for name in self.regions)], strict=True):
            self.write(self.out / name, voxels.astype(np.uint8), each.path, sample.prepared.native_affine)
            files.append(name)
        return {"files": files, "voxels": {name: int(mask.sum()) for name, mask in masks.items()}}

    def write(self, path: Path, voxels: np.ndarray, source: Path, affine: np.ndarray) -> None:
        """Writes a label map atomically."""
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nifti(voxels, source, affine, f"premed {self.digest[:16]}"), temporary)
            temporary.replace(path)
        except OSError as error:
            raise StageFailed(
                f"{path}: cannot be written ({error.strerror or error}); free space and start again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def nifti(voxels: np.ndarray, source: Path, affine: np.ndarray, description: str) -> Any:
    """Returns labels in `source`'s kind of NIfTI, with its header's orientation; in scanner coordinates for DICOM."""
    if source.is_dir():
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_qform(affine, "scanner")
        image.set_sform(affine, "scanner")
        image.header.set_xyzt_units("mm")
    else:
        with LoggingOutputSuppressor():
            like: Any = nibabel.load(source)
        header = like.header.copy()
        header.extensions.clear()  # they may contain the patient's name
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 0
        image = type(like)(voxels, like.affine, header)
    image.header.set_intent("label")
    image.header["descrip"] = description
    return image


def is_from_premed(path: Path) -> bool:
    """True if premed has written this label map."""
    try:
        return bytes(nibabel.load(path).header["descrip"]).startswith(DESCRIPTION_PREFIX)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a damaged file may raise anything, and must not be overwritten
        return False
