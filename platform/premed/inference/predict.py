"""`premed predict`: applies a trained network to new images, one at a time.

Writes segmentations as NIfTI on each input's grid, and class probabilities as a CSV. An image that cannot be predicted,
for any reason, is reported and skipped.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch

from premed.config.settings import Train
from premed.contracts import Forward, Sample
from premed.data.io.geometry import corner_gap
from premed.data.io.readers import read_header
from premed.data.prepared import PreparedFile
from premed.errors import StageFailed, UserError, first_line, printable
from premed.events import EventHandler, ImageSkipped, ImagesPredicted, WarningIssued
from premed.inference.inputs import Input, find_images, join_channels, nothing_left, prepare_sample
from premed.inference.load import open_trained
from premed.inference.probabilities import TABLE, probability_table, replaced, writing
from premed.models.network import Network, finite
from premed.tasks.common.segmentation import Segmentation
from premed.training.device import device_of, precision_of

DESCRIPTION_PREFIX = b"premed"  # in the header of label maps, which may then be overwritten
GRID = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GRID += ("sform_code", "srow_x", "srow_y", "srow_z")
"""The fields of an image's header that its label map has, too, besides shape, spacing and units."""
QUATERNION_ERROR = 0.01  # of a voxel's shortest edge: where a corner is further from the affine, a qform has code 0


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
            raise nothing_left(failed)
        forward, outputs, noted = make_forward(network, train), [], set[str]()
        with open_predictor(task, forward, out, wanted, trained.card["digest"], masks) as predict_image:
            earlier = predict_image if isinstance(predict_image, LabelMaps) else None
            note = earlier.others_stay(wanted) if earlier else replaced(out / TABLE, [each.path for each in wanted])
            if note:
                show(WarningIssued(note))
            if trained.scored and trained.scored.warning:  # what was refused is one line, so not before
                show(WarningIssued(trained.scored.warning))
            for number, each in enumerate(wanted, start=1):
                try:
                    with prepare_sample(each.path, task.preprocessing, each.more) as sample:
                        assert isinstance(sample.prepared, PreparedFile)
                        for _, (note, _) in sample.prepared.notes:
                            if (kind := note.partition(":")[0]) not in noted:
                                noted.add(kind)  # one line for all images whose headers leave the same open
                                show(WarningIssued(f"{each.path}: {note}"))
                        if has_one_value(sample.prepared):
                            what = "has one value everywhere, as it is prepared: the answer says nothing of it"
                            show(WarningIssued(f"{each.path}: {what}"))
                        outputs.append({"path": str(each.path)} | predict_image(each, sample))
                except StageFailed:  # the disk is full: no other image could be written, either
                    raise
                except Exception as error:  # libraries may raise anything; the other images are still to be predicted
                    stays = earlier.stays(each) if earlier else ""
                    failed.append({"path": str(each.path), "why": describe_error(each.path, error) + stays})
                    show(ImageSkipped(failed[-1]["why"]))
                show(ImagesPredicted(number, len(wanted)))
    if not outputs:
        raise nothing_left(failed)
    about = {"run_id": trained.run_id, "task": task.name, "answer": trained.card["answer"], "folder": str(out)}
    about["model"] = trained.scored and trained.scored.entry
    return about | {"outputs": outputs, "failed": failed}


def has_one_value(prepared: PreparedFile) -> bool:
    """Whether each channel has one value everywhere: a blank image, or one far outside the task's window."""
    return all((channel == channel.flat[0]).all() for channel in prepared.stored())


def describe_error(path: Path, error: Exception) -> str:
    """Returns the line that says why an image is skipped; it begins with the image's path."""
    image = printable(path)
    if isinstance(error, UserError):
        return str(error) if str(error).startswith(image) else f"{image}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"{image}: does not fit in memory; make it smaller or use a larger machine"
    kind, why = type(error).__name__, first_line(error)
    why = printable(kind if why == kind else f"{kind}: {why}")
    return f"{image}: cannot be predicted ({why}); leave it out, or convert it anew"


def make_forward(network: Network, train: Train) -> Forward:
    """Returns the function from images to logits, both on the CPU, as in a test stage."""
    device, precision = device_of(train), precision_of(train)
    network.to(device)

    @torch.no_grad()
    def forward(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return finite(network(image.to(device)).float(), "look at the image's values, or leave it out").cpu()

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


class LabelMaps:
    """Writes predictions as NIfTI, uint8, on the file's grid: with its shape, its affine and its header's codes."""

    def __init__(self, task: Any, forward: Forward, out: Path, digest: str, masks: bool):
        self.task, self.forward, self.out = task, forward, out
        self.description = f"premed {digest[:16]}"
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
                if may_write(self.out / name) is False:
                    raise UserError(f"{self.out / name}: already exists and is not from premed; name another folder")

    def others_stay(self, wanted: Sequence[Input]) -> str:
        """What of other networks stays in the folder beside the label maps of this one; empty if nothing does."""
        written = {self.out / name for each in wanted for name in self.names(each)}
        others = []
        for path in sorted({*self.out.rglob("[!.]*.nii.gz")} - written):
            with suppress(UserError):  # it cannot be read, so it is nobody's answer
                description = bytes(read_header(path)["descrip"])
                if description.startswith(DESCRIPTION_PREFIX) and not description.startswith(self.description.encode()):
                    others.append(path)
        if not others:
            return ""
        named = f"{others[0].relative_to(self.out)}{', …' * (len(others) > 1)}"
        what = f"{len(others)} label map(s) of another network stay in it, beside those of this one ({named})"
        return f"{self.out}: {what}; --out with another folder keeps them apart"

    def stays(self, each: Input) -> str:
        """What is said of an image that is skipped and has label maps of an earlier call; empty if it has none."""
        for path in (self.out / name for name in self.names(each)):
            if os.path.exists(path) and may_write(path):
                return f"; {path} is of an earlier call and stays"
        return ""

    def __call__(self, each: Input, sample: Sample) -> dict[str, Any]:
        for path in (self.out / name for name in self.names(each)):
            if may_write(path) is None:
                raise UserError(
                    f"{each.path}: {path} is there and cannot be read, so it may be another's; move it away"
                )
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
        image = nifti(voxels, source, affine, self.description)
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(image, temporary)
                temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def nifti(voxels: np.ndarray, source: Path, affine: Any, description: str) -> Any:
    """Returns labels as NIfTI, uint8, on the grid of `source`: a NIfTI file, or a folder of DICOM slices with `affine`.

    The header is a new one, with what `source` says about the grid. Nothing else is taken over: other fields and
    extensions may hold names, dates and comments.
    """
    given = None if source.is_dir() else read_header(source)
    kind = nibabel.Nifti2Image if isinstance(given, nibabel.Nifti2Header) else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(voxels.shape)
    header.set_slope_inter(1, 0)
    header.set_intent("label")
    header["descrip"] = description
    if given is None:
        header.set_xyzt_units("mm")
        header.set_sform(affine, "scanner")
        header.set_qform(affine, "scanner")
        quaternion = header
    else:
        header["xyzt_units"] = given["xyzt_units"]
        header["pixdim"][:4] = given["pixdim"][:4]
        for name in GRID:
            header[name] = given[name]
        affine, quaternion = given.get_best_affine(), nibabel.Nifti2Header()  # not in mm: in the image's units
        quaternion.set_qform(affine)  # in float64: how far the file rounds its own is its business
    edge = np.linalg.norm(affine[:3, :3], axis=0).min()
    if corner_gap(affine, cast(np.ndarray, quaternion.get_qform()), voxels.shape) > QUATERNION_ERROR * edge:
        header["qform_code"] = 0  # a quaternion has no shear: the sform alone says where the voxels are
    return kind(voxels, header.get_best_affine(), header)


def may_write(path: Path) -> bool | None:
    """Returns whether premed may write a file: none is there, or one of its label maps; None if it cannot be read."""
    if not os.path.exists(path):  # unlike Path.exists, it raises nothing where the name is too long
        return True
    try:
        return bytes(read_header(path)["descrip"]).startswith(DESCRIPTION_PREFIX)
    except UserError:
        return None
