"""`premed predict`: a trained network's answers for images it has never seen, one image at a time.

Segmentations are NIfTI in each input's own grid, class probabilities a CSV. What is wrong with a file is said by its
name, and the others are done all the same.
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
from premed.inference.inputs import Input, find_images, no_image_error, prepare_sample
from premed.inference.load import open_trained
from premed.models.network import Network
from premed.tasks.common.segmentation import Segmentation
from premed.training.device import device_of, precision_of

TABLE = "predictions.csv"
DESCRIPTION_PREFIX = b"premed"  # how the description in the header of a label map begins that may be written anew


def run(
    reference: str,
    images: Sequence[Path],
    out: Path,
    show: EventHandler,
    *,
    masks: bool = False,
    train: Train = Train(),  # noqa: B008 - it is frozen
) -> dict[str, Any]:
    """Answers for `images` (files and folders) in the folder `out`; returns what `--json` says.

    masks: a mask of each region beside its label map. train: on what (`gpu`) and how precisely to compute. Raises
    UserError where nothing at all could be answered.
    """
    with open_trained(reference) as trained:
        network, task = trained.network()
        wanted, failed = find_images(images, task.dims, out)
        for each in failed:
            show(ImageSkipped(each["why"]))
        if not wanted:
            raise no_image_error(failed)
        forward, outputs = make_forward(network, train), []
        with open_predictor(task, forward, out, wanted, trained.card["digest"], masks) as answer:
            for number, each in enumerate(wanted, start=1):
                try:
                    with prepare_sample(each.path, task.preprocessing) as sample:
                        outputs.append({"path": str(each.path)} | answer(each, sample))
                except UserError as error:
                    failed.append({"path": str(each.path), "why": str(error)})
                    show(ImageSkipped(str(error)))
                show(ImagesPredicted(number, len(wanted)))
    if not outputs:
        raise no_image_error(failed)
    about = {"run_id": trained.run_id, "task": task.name, "answer": trained.card["answer"], "folder": str(out)}
    return about | {"outputs": outputs, "failed": failed}


def make_forward(network: Network, train: Train) -> Forward:
    """Images on the CPU to logits on the CPU, as a test stage computes them."""
    device, precision = device_of(train), precision_of(train)
    network.to(device)

    @torch.no_grad()
    def forward(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return network(image.to(device)).float().cpu()

    return forward


Answer = Callable[[Input, Sample], dict[str, Any]]


@contextmanager
def open_predictor(
    task: Any, forward: Forward, out: Path, wanted: Sequence[Input], digest: str, masks: bool
) -> Iterator[Answer]:
    """What answers an image, writes it below `out` and returns what is said of it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); name another folder") from None
    if isinstance(task, Segmentation):
        if task.dims == 2:
            raise UserError(f"{out}: this run segments pictures, and NIfTI is for volumes; use `premed export`")
        maps = LabelMaps(task, forward, out, digest, masks)
        maps.refuse(wanted)
        yield maps
    else:
        with probability_table(out / TABLE, task.classes) as add:
            yield lambda each, sample: add(each, task.probabilities(forward, [sample])[0])


@contextmanager
def probability_table(
    path: Path, classes: Sequence[str]
) -> Iterator[Callable[[Input, Sequence[float]], dict[str, Any]]]:
    """A CSV with a row for each image, its probabilities behind its path; what is done stays if it is stopped."""
    header = ["path", *classes]
    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            if next(csv.reader(file), header) != header:
                raise UserError(f"{path}: is there already and is another table; name another folder")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)

        def add(each: Input, probabilities: Sequence[float]) -> dict[str, Any]:
            rows.writerow([str(each.path), *(f"{p:.9g}" for p in probabilities)])
            file.flush()
            return {"probabilities": dict(zip(classes, probabilities, strict=True))}

        yield add


class LabelMaps:
    """Answers as NIfTI, uint8, on the file's own grid: its shape, its affine, and the codes of its header."""

    def __init__(self, task: Any, forward: Forward, out: Path, digest: str, masks: bool):
        self.task, self.forward, self.out, self.digest = task, forward, out, digest
        self.has_label_map = getattr(task, "nesting", ()) is not None  # else only masks can say it
        self.regions = tuple(task.regions) if masks or not self.has_label_map else ()

    def names(self, each: Input) -> list[str]:
        """Of all files that are written for an image."""
        regions = (re.sub(r"[^-.\w]+", "_", region) for region in self.regions)
        return [f"{each.name}.nii.gz"] * self.has_label_map + [f"{each.name}.{region}.nii.gz" for region in regions]

    def refuse(self, wanted: Sequence[Input]) -> None:
        """Raises UserError where one file would be written over another, or over what premed has not written."""
        owners: dict[str, Input] = {}
        for each in wanted:
            for name in self.names(each):
                if name in owners:
                    both = f"{owners[name].path} and {each.path} would both become {self.out / name}"
                    raise UserError(f"{both}; predict them into two folders")
                owners[name] = each
                if (self.out / name).exists() and not is_from_premed(self.out / name):
                    raise UserError(f"{self.out / name}: is there already, and not from premed; name another folder")

    def __call__(self, each: Input, sample: Sample) -> dict[str, Any]:
        answer = self.task.predict(self.forward, sample)
        masks = self.task.masks(answer)
        maps = [self.task.label_map(answer)] if self.has_label_map else []
        files = []
        for name, voxels in zip(self.names(each), [*maps, *(masks[name] for name in self.regions)], strict=True):
            self.write(self.out / name, voxels.astype(np.uint8), each.path, sample.entry.native_affine)
            files.append(name)
        return {"files": files, "voxels": {name: int(mask.sum()) for name, mask in masks.items()}}

    def write(self, path: Path, voxels: np.ndarray, source: Path, affine: np.ndarray) -> None:
        """Whole, or not at all."""
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nifti(voxels, source, affine, f"premed {self.digest[:16]}"), temporary)
            temporary.replace(path)
        except OSError as error:
            raise StageFailed(
                f"{path}: cannot be written ({error.strerror or error}); make room and start again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def nifti(voxels: np.ndarray, source: Path, affine: np.ndarray, description: str) -> Any:
    """Labels as the kind of NIfTI that `source` is, with its orientation as it says it; scanner's axes for DICOM."""
    if source.is_dir():
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_qform(affine, "scanner")
        image.set_sform(affine, "scanner")
        image.header.set_xyzt_units("mm")
    else:
        with LoggingOutputSuppressor():
            like: Any = nibabel.load(source)
        header = like.header.copy()
        header.extensions.clear()  # they may hold the patient's name
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 0
        image = type(like)(voxels, like.affine, header)
    image.header.set_intent("label")
    image.header["descrip"] = description
    return image


def is_from_premed(path: Path) -> bool:
    """Did premed write this label map?"""
    try:
        return bytes(nibabel.load(path).header["descrip"]).startswith(DESCRIPTION_PREFIX)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a damaged file may raise anything, and is not ours to remove
        return False
