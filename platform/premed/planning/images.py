"""Chooses how images are prepared and what the network sees at once: spacing, roi, window, normalisation."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from premed.data.survey import Survey
from premed.planning.choices import Choice, Choices, times
from premed.planning.machine import Machine

HOUNSFIELD = -200  # CT in Hounsfield units has air, of -1000; rescaled CT has no such value
AIR = -900  # the lowest value of no MRI
SOFT_TISSUE, CHEST = (-175, 250), (-1000, 400)  # windows
LUNG = 0.08  # the share of lung above which a CT is one of the chest
STRIPPED = 0.3  # the share of exact zeros from which on the background was removed
MIXED = 1.5  # the factor between spacings that is noted
SMALL_GPU = 12  # GiB
COVERS = (1.0, 0.75, 0.5)
"""The shares of an image's edges that a roi has; the first that can be afforded."""
PICTURE, PICTURE_GPU = 96, 224  # pixels of a picture's edge
TOKENS = 8  # patches along a picture's edge
MOST_TOKENS = 320  # of a classified volume


@dataclass
class Grid:
    """The grid that a network sees."""

    roi: tuple[int, ...]
    patch: int
    size: tuple[float, ...]
    """Of a median image as it is prepared."""
    choices: Choices = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return math.prod(edge // self.patch for edge in self.roi)

    @property
    def covers(self) -> float:
        """The smallest share of an edge of the image that the roi has."""
        return min(edge / size for edge, size in zip(self.roi, self.size, strict=True))


def affordable_voxels(machine: Machine, dense: bool) -> int:
    """Returns the voxels of a roi. dense: a decoder answers for each voxel, which costs far more than the encoder."""
    if machine.gpus:
        return 64**3 if min(machine.gpus) < SMALL_GPU else 96**3
    return (64_000 if machine.cores < 8 else 128_000) * (1 if dense else 4)


# Volumes -------------------------------------------------------------------------------------------------------------


def volume_grid(found: Survey, machine: Machine, dense: bool, own: Sequence[float] | None = None) -> Grid:
    """Returns the grid for volumes. dense: the task is a segmentation. own: the spacing of the task's papers, which
    holds unless images are far coarser.

    The roi has the whole image at the median spacing if that can be afforded, else three quarters or half of each edge
    (a classification: all of it); where not even that can be, voxels become larger, the smallest edges first.
    """
    spacings, shapes = found.spacings, found.shapes
    median, extent = np.median(spacings, axis=0), np.median(spacings * shapes, axis=0)
    is_own = own is not None and bool((np.array(own) >= median / 2).all())
    median = np.array(own, float) if is_own else median
    most, covers = affordable_voxels(machine, dense), COVERS if dense else COVERS[:1]
    finest = edge = float(median.min())
    while True:
        spacing = np.maximum(median, edge)
        size = extent / spacing
        for cover in covers:
            # a decoder wants fine tokens; without one, some three hundred say enough and attention stays cheap
            patch = 16 if machine.gpus and min(size * cover) >= 56 else 8
            patch = 16 if not dense and math.prod(size / 8) > MOST_TOKENS else patch
            roi = [max(patch, patch * round(n * cover / patch)) for n in size]
            if math.prod(roi) <= most:
                grid = Grid(tuple(roi), patch, tuple(size.tolist()))
                explain_volumes(grid, found, spacing, median, is_own, edge > finest)
                return grid
        edge *= 1.05


def explain_volumes(
    grid: Grid, found: Survey, spacing: np.ndarray, median: np.ndarray, is_own: bool, is_coarse: bool
) -> None:
    """Adds the choices and notes of a grid."""
    low, high = found.spacings.min(axis=0), found.spacings.max(axis=0)
    why = "mm; the task's own" if is_own else f"mm; the median of {len(found.spacings)} images"
    if not is_own and (high > 1.01 * low).any():
        why += f", whose spacings are {times(low)} to {times(high)}"
    if is_coarse:
        why = f"mm; coarser than {times(median)}: so the roi sees enough on this machine"
    chosen = [float(f"{each:.3g}") if is_coarse else float(f"{each:.6g}") for each in spacing]
    why_roi = f"what the network sees at once: {covered(grid)}; patches of {grid.patch}"
    grid.choices |= {"roi": Choice([*grid.roi], why_roi), "spacing": Choice(chosen, why)}
    if (high > MIXED * low).any():
        axis = int((high / low).argmax())
        grid.notes.append(
            f"spacings are mixed: {low[axis]:.3g} to {high[axis]:.3g} mm along {'RAS'[axis]}; "
            f"all are resampled to {times(chosen)} mm"
        )
    sizes = found.shapes * found.spacings / chosen
    missing = np.array(grid.roi) - np.round(sizes)
    if small := int((missing > 0).any(axis=1).sum()):
        most = f"by {missing.max():.0f} voxels at most: an edge is a whole number of patches of {grid.patch}"
        grid.notes.append(
            f"{small} of {len(sizes)} images are smaller than the roi {[*grid.roi]} along some edge, {most}; they are "
            "padded there"
        )


def covered(grid: Grid) -> str:
    """How much of the median image's edges the roi has, in words: above 100 % the image is padded."""
    shares = [round(100 * edge / size) for edge, size in zip(grid.roi, grid.size, strict=True)]
    share = f"{min(shares)} %" if min(shares) == max(shares) else f"{min(shares)} to {max(shares)} %"
    padded = " (it is padded to more than 100 %)" if max(shares) > 100 else ""
    return f"{share} of the edges of the median image, {times(np.round(grid.size))} voxels at this spacing{padded}"


def volume_values(found: Survey, channels: Sequence[str], num_channels: int) -> tuple[Choices, list[str]]:
    """Returns window, percentiles and normalisation of volumes, and notes. channels: what the layout calls them."""
    values = found.values
    words = {word for name in channels for word in re.split(r"[^a-z]+", name.lower())}
    called = bool(words & {"ct", "cta", "ncct", "cect", "cbct"}) or found.modalities.most_common(1)[:1] == [
        ("CT", sum(found.modalities.values()))
    ]
    measured = values is not None and values.percentiles[0] <= HOUNSFIELD
    notes = []
    if values and called and not measured:
        low, _, _, _, high = values.percentiles
        notes.append(f"called CT, but values are {low:.0f} to {high:.0f}, no Hounsfield units: no window is set")
    if measured and values and not called and values.percentiles[0] <= AIR:
        notes.append("values reach below -900, as air does in CT: taken as Hounsfield units")
        called = True
    if called and measured and num_channels > 1:
        notes.append("CT is one of several channels, and a window would cut all of them: percentiles are used")
    if called and measured and num_channels == 1:
        window = hounsfield_window(found)
        choices = {"window": window, "percentiles": Choice(None, "the window cuts"), "normalise": Choice("window")}
        return choices | {"normalise": Choice("window", "the window becomes 0 to 1")}, notes
    range_read = ""
    if values:
        range_read = (
            f"; {values.num} images were read: {times(values.percentiles[:1])} to {times(values.percentiles[-1:])}"
        )
    choices = {"percentiles": Choice([0.5, 99.5], f"cuts outliers of each image{range_read}")}
    if found.zero_share > STRIPPED:
        why = f"{100 * found.zero_share:.0f} % of each image or more is 0, background that was removed: it stays 0"
        choices |= {"normalise": Choice("zscore_nonzero", why)}
        return choices | {"crop_foreground": Choice(True, "leaves out the empty border")}, notes
    return choices | {
        "normalise": Choice("zscore", "each image has its own scale, as MRI does: mean 0, deviation 1")
    }, notes


def hounsfield_window(found: Survey) -> Choice:
    """Returns a window of CT: of what is labelled, as nnU-Net has it, else by whether it shows lungs."""
    if found.labelled:
        _, low, _, high, _ = found.labelled.percentiles
        wider = max(0.1 * (high - low), 10)
        window = [5 * math.floor((low - wider) / 5), 5 * math.ceil((high + wider) / 5)]
        why = f"0.5 and 99.5 % of what is labelled in {found.labelled.num} images, {low:.0f} and {high:.0f}"
        return Choice(window, f"Hounsfield units: {why}, a tenth wider")
    if found.lung_share > LUNG:
        return Choice([*CHEST], "Hounsfield units of a chest, lungs included; soft tissue alone: [-175, 250]")
    return Choice(
        [*SOFT_TISSUE], "Hounsfield units of soft tissue; lungs: [-1000, 400], brain: [0, 80], bone: [-500, 1300]"
    )


# Pictures ------------------------------------------------------------------------------------------------------------


def picture_grid(found: Survey, machine: Machine) -> Grid:
    """Returns the grid for pictures, in the shape of the median one."""
    size = np.median(found.shapes, axis=0)
    longest, most = float(size.max()), PICTURE_GPU if machine.gpus else PICTURE
    edge = min(most, 4 * max(4, round(longest / 4)))
    patch = 16 if machine.gpus and edge >= PICTURE_GPU else 4 * max(1, edge // TOKENS // 4)
    edge = patch * max(2, round(edge / patch))
    square = 0.8 <= float(size[0] / size[1]) <= 1.25
    roi = (edge, edge) if square else tuple(patch * max(1, round(edge * n / longest / patch)) for n in size.tolist())
    original = f"{times(size)} pixels in the median"
    why = f"pixels that the network sees; the pictures have {original}"
    if longest > edge * 1.1:
        why += ", and fine detail is lost" + ("" if machine.gpus else ": [224, 224] and encoder.patch 16 on a GPU")
    grid = Grid(roi, patch, tuple(map(float, roi)), {"roi": Choice([*roi], why)})
    if machine.gpus and min(size) >= 256 and roi == (PICTURE_GPU, PICTURE_GPU):
        grid.choices["stored"] = Choice([256, 256], "pictures are kept at this size, and the roi cut out of it")
    if small := int((found.shapes < roi).any(axis=1).sum()):
        grid.notes.append(
            f"{small} of {len(found.shapes)} pictures are smaller than the roi {[*roi]}: they are enlarged"
        )
    shapes = found.shapes[:, 0] / found.shapes[:, 1]
    if shapes.max() > 1.25 * shapes.min():
        grid.notes.append(
            f"pictures are {shapes.min():.2f} to {shapes.max():.2f} times as high as wide, and are stretched to the roi"
        )
    return grid


def picture_values(found: Survey) -> tuple[Choices, list[str]]:
    """Returns channels and normalisation of pictures, and notes."""
    stored = any(header.channels == 3 for header in found.headers)
    choices: Choices = {}
    if found.colour or (stored and found.values is None):
        choices = {"channels": Choice(3, "the pictures have colours" if found.colour else "as they are stored")}
    if found.bits > 8:
        choices |= {
            "normalise": Choice("zscore", "some pictures have 16 bits: mean 0 and deviation 1 each"),
            "percentiles": Choice([0.5, 99.5], "cuts outliers of each picture"),
        }
    elif not choices and stored and found.values:
        return choices, [f"pictures are stored in colour and are grey (of {found.values.num} that were read)"]
    return choices, []
