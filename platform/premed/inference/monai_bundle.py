"""Writes a MONAI bundle that predicts as `premed predict` does, without premed: a graph, and MONAI's transforms.

The configuration uses MONAI alone: `python -m monai.bundle run --config_file configs/inference.json --bundle_root .
--dataset_dir DIR --output_dir DIR`. It requires MONAI, and nibabel or Pillow as the reader.
"""

import json
import logging
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from premed.config.image_processing import Preprocessing
from premed.data.io import nifti
from premed.data.io.geometry import SHEARED
from premed.errors import UserError
from premed.models.network import Network
from premed.tasks.common.segmentation import Segmentation

MODEL = "models/model.ts"
MM = {code: size for code, (_, size) in nifti.UNITS.items()}  # by a NIfTI's code of its unit of length; others are mm
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write(network: Network, task: Any, card: dict[str, Any], folder: Path) -> list[str]:
    """Writes all of the bundle but its graph (`models/model.ts`); returns remarks for its README."""
    refuse_unsupported(task)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    volumes = isinstance(task, Segmentation)
    config = base_config(task) | (segmentation_config(task) if volumes else classification_config(task))
    for name, content in (("metadata", metadata(task, card)), ("inference", config)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # the specification also requires the weights alone; they are the graph's, with the same names
    torch.save({name: value.contiguous() for name, value in network.state_dict().items()}, content := BytesIO())
    (folder / "models/model.pt").write_bytes(content.getbuffer())  # torch's own error of a full disk is no OSError
    remarks = ["`models/model.ts` is TorchScript and `models/model.pt` its weights (`weights_only=True` reads them)."]
    remarks.append(
        "It reads NIfTI, not DICOM. Values are not rounded to the 16 bits of premed's cache, and MONAI inverts the "
        "transforms one by one: single voxels at a border may differ from `premed predict`."
        if volumes
        else "It reads 8-bit PNG and JPEG, not DICOM. It converts colours to grey for a network with one channel; "
        "premed refuses these. The columns of predictions.csv are the file's path and the classes in their order."
    )
    precision = "It computes in float32; `premed predict` does so with `--precision fp32`, else in what is fast."
    return [*remarks, precision]


def verify(folder: Path) -> None:
    """Runs MONAI's check that the network's inputs and outputs are those of the metadata."""
    from monai.bundle.scripts import verify_net_in_out

    logging.disable(logging.INFO)  # it logs each of its arguments
    try:
        verify_net_in_out(
            net_id="network",
            meta_file=str(folder / "configs/metadata.json"),
            config_file=str(folder / "configs/inference.json"),
            device="cpu",
            bundle_root=str(folder),
        )
    finally:
        logging.disable(logging.NOTSET)


def refuse_unsupported(task: Any) -> None:
    """Raises UserError for what MONAI has no transform for."""
    preprocessing: Preprocessing = task.preprocessing
    remedy = "use --format onnx or safetensors"
    if preprocessing.normalise == "zscore_nonzero" and (preprocessing.window or preprocessing.percentiles):
        raise UserError(f"--format monai: MONAI cannot clip non-zero voxels alone, as {task.name} does; {remedy}")
    if not isinstance(task, Segmentation):
        if (
            task.dims == 3
            or not preprocessing.size
            or any(n >= 2 * size for n, size in zip(preprocessing.size, task.roi, strict=True))
        ):
            raise UserError(
                f"--format monai: MONAI cannot average over views of one image, as {task.name} does; {remedy}"
            )
        if preprocessing.channels not in (1, 3):
            raise UserError(
                f"--format monai: pictures of {preprocessing.channels} channels are not PNG or JPEG; {remedy}"
            )


# The configuration ---------------------------------------------------------------------------------------------------


def base_config(task: Any) -> dict[str, Any]:
    kinds = (".nii.gz", ".nii") if task.dims == 3 else (".png", ".jpg", ".jpeg")
    find = f"[p for p in glob.glob(os.path.join(glob.escape(@dataset_dir), '*')) if p.lower().endswith({kinds})]"
    return {
        "imports": [
            "$import glob",
            "$import os",
            "$import re",
            "$import torch",
            "$from monai.data import MetaTensor",
            *(["$import nibabel"] if task.dims == 3 else ["$from PIL import Image", "$from PIL import ImageOps"]),
        ],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "output_dir": "$os.path.join(@bundle_root, 'predictions')",
        "images": f"$sorted({find})",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network": f"$torch.jit.load(os.path.join(@bundle_root, '{MODEL}'), map_location=@device).eval()",
        "roi": list(task.roi),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [*reading_transforms(task), *intensity_transforms(task.preprocessing)],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': each} for each in @images]",
            "transform": "@preprocessing",
        },
    }


def transform(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, "keys": "image", **arguments}


def reading_transforms(task: Any) -> list[dict[str, Any]]:
    """Returns the transforms from a file to its prepared grid."""
    preprocessing: Preprocessing = task.preprocessing
    if preprocessing.dims == 2:
        modes = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA"), "L" if preprocessing.channels == 1 else "RGB")
        picture = f"(p if p.format == 'PNG' else ImageOps.exif_transpose(p)).convert({modes}[p.mode])"
        picture = f"ImageOps.equalize({picture})" if preprocessing.equalize else picture
        assert preprocessing.size
        picture = f"({picture}).resize(({preprocessing.size[1]}, {preprocessing.size[0]}), Image.Resampling.BILINEAR)"
        start = [(n - size) // 2 for n, size in zip(preprocessing.size, task.roi, strict=True)]
        end = [first + size for first, size in zip(start, task.roi, strict=True)]
        read = {"reader": "PILReader", "converter": f"$lambda p: {picture}", "reverse_indexing": False}
        return [
            transform("LoadImaged", ensure_channel_first=True, **read),
            transform("SpatialCropd", roi_start=start, roi_end=end),
        ]
    steps = [
        transform("LoadImaged", ensure_channel_first=True, reader="NibabelReader"),
        transform("Orientationd", axcodes=preprocessing.orientation),
    ]
    if preprocessing.spacing:
        # MONAI's Spacing moves the first voxel of an oblique image, so it gets an affine without rotation
        rows = ["RL".find, "AP".find, "SI".find]
        axes = [
            [1 - 2 * at if (at := find(letter)) >= 0 else 0 for letter in preprocessing.orientation] for find in rows
        ]
        # no @ for products: that is MONAI's sign for references
        edges = f"x.affine[:3, :3] * {MM}.get(int(x.meta['xyzt_units']) & 7, 1.0)"
        sheared = f"(a.T.mm(a) / a.norm(dim=0) / a.norm(dim=0)[:, None]).fill_diagonal_(0).abs().max() > {SHEARED}"
        turned_back = f"(lambda a: torch.linalg.cholesky(a.T.mm(a)).T if {sheared} else a.norm(dim=0).diag())({edges})"
        straight = f"torch.block_diag(torch.tensor({axes}).to(x.affine).mm({turned_back}), torch.ones(1, 1))"
        kept_metadata = "meta=x.meta, applied_operations=x.applied_operations"
        steps.append(transform("Lambdad", func=f"$lambda x: MetaTensor(x.as_tensor(), {straight}, {kept_metadata})"))
        steps.append(transform("Spacingd", pixdim=list(preprocessing.spacing), mode="bilinear", padding_mode="border"))
        # its weights have errors of 1e-16: 0 must stay 0, for boxes and averages that leave it out
        steps.append(transform("Lambdad", func="$lambda x: x * (x.abs() > 1e-10 * x.abs().max())"))
    if preprocessing.crop_foreground:
        low = preprocessing.window[0] if preprocessing.window else 0
        above = f"$lambda x: x > {low}"
        steps.append(transform("CropForegroundd", source_key="image", select_fn=above, allow_smaller=True))
    return steps


def intensity_transforms(preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """Returns the transforms of intensities to the network's input."""
    if preprocessing.normalise == "grey":
        mean, std = (
            [255 * preprocessing.mean] * preprocessing.channels,
            [255 * preprocessing.std] * preprocessing.channels,
        )
        return [transform("NormalizeIntensityd", subtrahend=mean, divisor=std, channel_wise=True)]
    steps = []
    if preprocessing.window:
        low, high = preprocessing.window
        to = (0.0, 1.0) if preprocessing.normalise == "window" else preprocessing.window
        scale = {"a_min": low, "a_max": high, "b_min": to[0], "b_max": to[1]}
        steps.append(transform("ScaleIntensityRanged", **scale, clip=True))
    if preprocessing.percentiles:
        low, high = preprocessing.percentiles
        steps.append(transform("ClipIntensityPercentilesd", lower=low, upper=high, channel_wise=True))
    if preprocessing.normalise != "window":
        nonzero = preprocessing.normalise == "zscore_nonzero"
        steps.append(transform("NormalizeIntensityd", nonzero=nonzero, channel_wise=True))
    return steps


def segmentation_config(task: Any) -> dict[str, Any]:
    """Returns the sliding windows over a padded image, the inversion to the file's grid, and the saving of labels."""
    air = "x.amin(dim=(1, 2, 3), keepdim=True)" if task.preprocessing.normalise == "zscore" else "0 * x[:, :1, :1, :1]"
    lack = "max(r - n, 0)"
    sides = f"[side for r, n in zip(@roi[::-1], x.shape[:0:-1]) for side in ({lack} - {lack} // 2, {lack} // 2)]"
    name = "re.sub('[.]nii([.]gz)?$', '', os.path.basename(meta['filename_or_obj']), flags=re.I) + '.nii.gz'"
    pred = "@postprocessing({'image': each['image'], 'pred': @answer(each['image'])})['pred']"
    return {
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@roi",
            "sw_batch_size": task.window_batch,
            "overlap": task.overlap,
            "mode": "constant",
        },
        "air": f"$lambda x: {air}",
        "sides": f"$lambda x: {sides}",
        "padded": "$lambda x, p: torch.nn.functional.pad(x - @air(x), p) + @air(x)",
        "cut": "$lambda y, p: y[:, p[4]:y.shape[1] - p[5], p[2]:y.shape[2] - p[3], p[0]:y.shape[3] - p[1]]",
        "logits": "$lambda x, p: @cut(@inferer(@padded(x, p)[None], @network)[0], p)",
        # Invertd ignores what is not a MetaTensor
        "answer": "$torch.no_grad()(lambda x: MetaTensor(@logits(x.as_tensor().to(@device), @sides(x)).cpu()))",
        "postprocessing": {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        "decided": f"$lambda x: {decision_expression(task)}",
        "label_map": "$lambda x, meta: nibabel.Nifti1Image(x.numpy().astype('uint8'), meta['original_affine'])",
        "in_units": "$lambda image, meta: image.header.__setitem__('xyzt_units', int(meta['xyzt_units']) & 7) or image",
        "path": f"$lambda meta: os.path.join(@output_dir, {name})",
        "save": "$lambda x, meta: nibabel.save(@in_units(@label_map(@decided(x), meta), meta), @path(meta))",
        "finish": f"$lambda each: @save({pred}.as_tensor(), each['image'].meta)",
        "run": ["$os.makedirs(@output_dir, exist_ok=True)", "$[@finish(each) for each in @dataset]"],
    }


def decision_expression(task: Any) -> str:
    """Returns an expression of logits `x` [K, *S] on the file's grid: a label map [*S], or masks [*S, K] if regions are
    not nested."""
    nesting = getattr(task, "nesting", ())
    if nesting == ():
        return "x.argmax(dim=0)"
    if nesting is None:
        return "(x > 0).movedim(0, -1)"
    label_map, names = "0", list(task.regions)
    for name, label in nesting:
        label_map = f"torch.where(x[{names.index(name)}] > 0, {label}, {label_map})"
    return label_map


def classification_config(task: Any) -> dict[str, Any]:
    answer = f"@network(x.as_tensor()[None].to(@device)).{'softmax(dim=1)' if task.exclusive else 'sigmoid()'}[0].cpu()"
    save = {"filename": "predictions.csv", "overwrite": True}
    return {
        "answer": f"$torch.no_grad()(lambda x: {answer})",
        "writer": {"_target_": "CSVSaver", "output_dir": "@output_dir", **save},
        "finish": "$lambda each: @writer.save(@answer(each['image']), each['image'].meta)",
        "run": ["$[@finish(each) for each in @dataset]", "$@writer.finalize()"],
    }


# The metadata --------------------------------------------------------------------------------------------------------


def metadata(task: Any, card: dict[str, Any]) -> dict[str, Any]:
    volumes = isinstance(task, Segmentation)
    kind = {"labels": "labels", "regions": "classes", "classes": "classes"}[card["answer"]]
    reads = "nibabel" if task.dims == 3 else "pillow"
    tensor = {"dtype": "float32", "value_range": [], "is_patch_data": volumes}
    channels = {str(number): f"channel {number}" for number in range(task.channels)}
    classes = {str(number): name for number, name in enumerate(task.classes)}
    image = {"type": "image", "format": "magnitude", "modality": "n/a"}
    image |= {"num_channels": task.channels, "spatial_shape": list(task.roi)}
    what = "segments" if volumes else "classifies"
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by premed {version('premed')}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {reads: version(reads)},
        "task": f"{task.name}: {what} {', '.join(task.regions or task.classes)}",
        "description": f"A network that premed fine-tuned (stage {card['digest'][:16]}); see docs/README.md.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_type": reads,
        "intended_use": "Research. Not for diagnosis.",
        "network_data_format": {
            "inputs": {"image": image | tensor | {"channel_def": channels}},
            "outputs": {
                "pred": {
                    "type": "image" if volumes else "probabilities",
                    "format": kind,
                    "num_channels": len(task.classes),
                    "spatial_shape": list(task.roi) if volumes else [],
                    **tensor,
                    "channel_def": classes,
                }
            },
        },
    }
