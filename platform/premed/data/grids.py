"""What is done to the grids of images without being asked for: told once, before it is trained on."""

from collections.abc import Sequence

import numpy as np
from nibabel.orientations import io_orientation

from premed.config.image_processing import Preprocessing
from premed.contracts import PreparedImage

MOST = 200  # images that are looked at, evenly spread: thousands of headers would take seconds
UNEVEN = 1.5  # between the finest and the coarsest voxels along an axis, or the sides of a picture


def grid_warnings(images: Sequence[PreparedImage], preprocessing: Preprocessing) -> list[str]:
    """A line for pictures that are enlarged or squeezed to the network's size, and volumes whose spacings stay mixed.

    Images that another node prepared in its own cache are not looked at.
    """
    chosen = sorted({*np.linspace(0, len(images) - 1, min(MOST, len(images))).astype(int)})
    there = [images[number] for number in chosen if images[number].path.is_file()]
    if not there:
        return []
    if preprocessing.dims == 2:
        return picture_warnings(np.array([each.native_shape for each in there]), preprocessing.size)
    if preprocessing.spacing is not None:
        return []
    spacings = np.array([spacing(each.native_affine) for each in there])
    least, most = spacings.min(axis=0), spacings.max(axis=0)
    if (most / least).max() < UNEVEN:
        return []
    ranges = zip(least, most, strict=True)
    sizes = " × ".join(f"{a:.3g}" if b < UNEVEN * a else f"{a:.3g} to {b:.3g}" for a, b in ranges)
    median = ", ".join(f"{size:.2g}" for size in np.median(spacings, axis=0))
    what = "and stay so, so that one crop shows more of a body than another"
    return [f"task.spacing is null: voxels are of {sizes} mm, {what}; set it, to the median [{median}] for example"]


def spacing(affine: np.ndarray) -> np.ndarray:
    """Voxel sizes in mm along the axes right, front, top, in whichever order a file has them."""
    sizes = np.zeros(3)
    sizes[io_orientation(affine)[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return sizes


def picture_warnings(shapes: np.ndarray, size: tuple[int, int] | None) -> list[str]:
    """shapes: height and width of each picture. size: what they are scaled to; None: they stay as they are."""
    if size is None:
        return []
    scale, warnings = np.array(size) / shapes, []
    if np.median(scale.min(axis=1)) > 1:
        median = " × ".join(f"{n:g}" for n in np.median(shapes, axis=0))
        warnings.append(
            f"pictures of {median} pixels are enlarged to {size[0]} × {size[1]}, which adds nothing but cost; "
            "set task.roi (and task.stored) to their size"
        )
    squeezed = float(np.median(np.maximum(scale[:, 0] / scale[:, 1], scale[:, 1] / scale[:, 0])))
    if squeezed > UNEVEN:
        warnings.append(
            f"pictures are squeezed {squeezed:.2g} times to {size[0]} × {size[1]}; "
            "give task.roi (and task.stored) the shape that they have"
        )
    return warnings
