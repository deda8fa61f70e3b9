"""`premed predict`: a trained network's answers for images it has never seen, one image at a time.

Segmentations are NIfTI in each input's own grid, class probabilities a CSV. What is wrong with a file is said by its
name, and the others are done all the same.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from nibabel.imageglobals import LoggingOutputSuppressor

from premed.contracts import Case, Forward, Sample
from premed.device import device_of, precision_of
from premed.dicom import is_dicom, members
from premed.entry import Entry, write
from premed.experiment import Train
from premed.images import Recipe, prepare
from premed.readers import DICOM, PICTURES, VOLUMES
from premed.segmentation import Segmentation
from premed.spec import StageFailed, UserError
from premed.supervised import Network
from premed.trained import opened

TABLE = "predictions.csv"
OURS = b"premed"  # how the description in the header of a label map begins that may be written anew


class Input(NamedTuple):
    """An image to answer."""

    path: Path
    name: str  # what its label map is called, without the suffix; of what lies in a folder, its path there


def run(
    reference: str,
    images: Sequence[Path],
    out: Path,
    show: Callable[[dict[str, Any]], None],
    *,
    masks: bool = False,
    train: Train = Train(),  # noqa: B008 - it is frozen
) -> dict[str, Any]:
    """Answers for `images` (files and folders) in the folder `out`; returns what `--json` says.

    masks: a mask of each region beside its label map. train: on what (`gpu`) and how precisely to compute. Raises
    UserError where nothing at all could be answered.
    """
    with opened(reference) as trained:
        network, task = trained.network()
        wanted, failed = inputs(images, task.dims, out)
        for each in failed:
            show({"event": "skipped", "why": each["why"]})
        if not wanted:
            raise nothing(failed)
        forward, outputs = forward_of(network, train), []
        with answering(task, forward, out, wanted, trained.card["digest"], masks) as answer:
            for number, each in enumerate(wanted, start=1):
                try:
                    with sample_of(each.path, task.recipe) as sample:
                        outputs.append({"path": str(each.path)} | answer(each, sample))
                except UserError as error:
                    failed.append({"path": str(each.path), "why": str(error)})
                    show({"event": "skipped", "why": str(error)})
                show({"event": "predicted", "done": number, "total": len(wanted)})
    if not outputs:
        raise nothing(failed)
    about = {"run_id": trained.run_id, "task": task.name, "answer": trained.card["answer"], "folder": str(out)}
    return about | {"outputs": outputs, "failed": failed}


def nothing(failed: Sequence[dict[str, str]]) -> UserError:
    more = f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else ""
    return UserError(f"{failed[0]['why']}{more}")


def forward_of(network: Network, train: Train) -> Forward:
    """Images on the CPU to logits on the CPU, as a test stage computes them."""
    device, precision = device_of(train), precision_of(train)
    network.to(device)

    @torch.no_grad()
    def forward(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return network(image.to(device)).float().cpu()

    return forward


@contextmanager
def sample_of(path: Path, recipe: Recipe) -> Iterator[Sample]:
    """An image prepared as those it was trained on, for as long as the context lasts."""
    try:
        prepared = prepare([path], None, recipe)
    except MemoryError:
        raise UserError(f"{path}: does not fit in memory; make it smaller or take a larger machine") from None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "image.safetensors"
        write(file, prepared)
        del prepared  # from here on, what is looked at is read
        yield Sample(Case(str(path), str(path), (path,)), Entry(file))


# What to answer ------------------------------------------------------------------------------------------------------


def inputs(images: Sequence[Path], dims: int, out: Path) -> tuple[list[Input], list[dict[str, str]]]:
    """The images that are meant, each once and in order; and arguments that mean none, with the reason."""
    found: dict[Path, Input] = {}
    failed = []
    kind = "picture (.png, .jpg, DICOM)" if dims == 2 else "volume (.nii, .nii.gz, a folder of DICOM slices)"
    for path in images:
        if not path.exists():
            failed.append({"path": str(path), "why": f"{path}: there is no such file or folder"})
        elif path.is_dir():
            below = list(images_in(path, dims, out.absolute()))
            if not below:
                failed.append({"path": str(path), "why": f"{path}: holds no {kind}; name another folder"})
            for each in below:
                name = stem(each.relative_to(path)) if each != path else path.absolute().name
                found.setdefault(Path(os.path.abspath(each)), Input(each, name))
        else:
            found.setdefault(Path(os.path.abspath(path)), Input(path, stem(Path(path.name))))
    return list(found.values()), failed


def images_in(folder: Path, dims: int, out: Path) -> Iterator[Path]:
    """All images in a folder and below it, in alphabetical order; not what lies in `out`, which are answers."""
    if folder.absolute() == out:
        return
    if dims == 3 and any(path.name.lower().endswith(DICOM) or unmarked(path) for path in members(folder)):
        yield folder  # one volume
        return
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name[0] == ".":
            continue
        if path.is_dir():
            yield from images_in(path, dims, out)
        elif name.endswith(VOLUMES if dims == 3 else (*PICTURES, *DICOM)) or (dims == 2 and unmarked(path)):
            yield path


def unmarked(path: Path) -> bool:
    """Is it DICOM without a suffix?"""
    with suppress(OSError):
        return not path.suffix.strip(".0123456789") and is_dicom(path)
    return False


def stem(path: Path) -> str:
    """A path without the suffixes of images."""
    name = str(path)
    suffix = next(
        (end for end in (*sorted(VOLUMES, key=len, reverse=True), *PICTURES, *DICOM) if name.lower().endswith(end)), ""
    )
    return name[: len(name) - len(suffix)]


# Answers -------------------------------------------------------------------------------------------------------------

Answer = Callable[[Input, Sample], dict[str, Any]]


@contextmanager
def answering(
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
        with table(out / TABLE, task.classes) as add:
            yield lambda each, sample: add(each, task.probabilities(forward, [sample])[0])


@contextmanager
def table(path: Path, classes: Sequence[str]) -> Iterator[Callable[[Input, Sequence[float]], dict[str, Any]]]:
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
        self.whole = getattr(task, "nesting", ()) is not None  # else only masks can say it
        self.regions = tuple(task.regions) if masks or not self.whole else ()

    def names(self, each: Input) -> list[str]:
        """Of all files that are written for an image."""
        regions = (re.sub(r"[^-.\w]+", "_", region) for region in self.regions)
        return [f"{each.name}.nii.gz"] * self.whole + [f"{each.name}.{region}.nii.gz" for region in regions]

    def refuse(self, wanted: Sequence[Input]) -> None:
        """Raises UserError where one file would be written over another, or over what premed has not written."""
        owners: dict[str, Input] = {}
        for each in wanted:
            for name in self.names(each):
                if name in owners:
                    both = f"{owners[name].path} and {each.path} would both become {self.out / name}"
                    raise UserError(f"{both}; predict them into two folders")
                owners[name] = each
                if (self.out / name).exists() and not is_ours(self.out / name):
                    raise UserError(f"{self.out / name}: is there already, and not from premed; name another folder")

    def __call__(self, each: Input, sample: Sample) -> dict[str, Any]:
        answer = self.task.predict(self.forward, sample)
        masks = self.task.masks(answer)
        maps = [self.task.label_map(answer)] if self.whole else []
        files = []
        for name, voxels in zip(self.names(each), [*maps, *(masks[name] for name in self.regions)], strict=True):
            self.write(self.out / name, voxels.astype(np.uint8), each.path, sample.entry.native_affine)
            files.append(name)
        return {"files": files, "voxels": {name: int(mask.sum()) for name, mask in masks.items()}}

    def write(self, path: Path, voxels: np.ndarray, source: Path, affine: np.ndarray) -> None:
        """Whole, or not at all."""
        beside = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nifti(voxels, source, affine, f"premed {self.digest[:16]}"), beside)
            beside.replace(path)
        except OSError as error:
            raise StageFailed(
                f"{path}: cannot be written ({error.strerror or error}); make room and start again"
            ) from error
        finally:
            beside.unlink(missing_ok=True)


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


def is_ours(path: Path) -> bool:
    """Did premed write this label map?"""
    try:
        return bytes(nibabel.load(path).header["descrip"]).startswith(OURS)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a damaged file may raise anything, and is not ours to remove
        return False
