"""Figures: each function writes one PNG and returns its path. The same input gives the same bytes.

Images are grey values [H, W], or volumes [X, Y, Z] in RAS order, of which one axial slice is shown in the radiological
convention: anterior up, the patient's right on the left. Colours are Okabe and Ito's, safe for the colour-blind, then
Paul Tol's if there are more classes. Names are cut or wrapped to the width that there
is, so that none touches another.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from premed.data.lettering import fitted, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
           "#882255", "#44AA99", "#DDCC77", "#332288", "#999933", "#FFAABB", "#661100", "#AA4499")  # fmt: skip
LINES = (4, 5, 2, 6, 0, 1, 7, 8)  # the colours most legible as thin lines on white, best first
HIDDEN = "#8792a5"  # bluish, so that a hidden patch does not look like tissue
INK, FAINT = "#222222", "#777777"
CASES = "premed.cases"
"""The text chunk of a PNG with the cases that it shows, as JSON: [[name, left, top, right, bottom], …] in pixels."""
WIDTH, LINE = 1.8, 0.137  # inches: of an image, and between the lines of findings


def reconstruction(path: Path, cases: Sequence[tuple], caption: str = "", steps: Sequence[int] = ()) -> Path:
    """A masked autoencoder's input and prediction, one row per case, as in figure 2 of He et al. 2022.

    A case is (name, original, masked, predicted) or (name, original, masked, predicted, mean patch), arrays of one
    shape. `masked` is NaN at hidden patches; `predicted` has the visible ones pasted back; the mean patch is the
    prediction without a network. Of a volume, the slice with the most varied hidden patches is shown, because the most
    varied slice may have none. A row shares the grey scale of its original. steps: the training steps after which
    each of several predictions was made.
    """
    predicted = [f"step {step:,}" for step in steps] or ["predicted"]
    titles = ["original", "masked", *predicted, "mean patch"][: max(len(case) for case in cases) - 1]
    slices = [_most_hidden_slice(case[1], case[2]) for case in cases]
    planes = [[_plane(array, at) for array in case[1:]] for case, at in zip(cases, slices, strict=True)]
    figure, axes = _grid(len(cases), len(titles), planes, top=0.3, bottom=0.28 if caption else 0.08)
    for row, case, images in zip(axes, cases, planes, strict=True):
        for axis, image in zip(row, images, strict=False):
            _show(axis, image, _window(images[0]))
        _name_row(row[0], case[0], volume=case[1].ndim == 3)
    _name_columns(axes[0], titles)
    if caption:
        figure.text(0.5, 0.06 / figure.get_figheight(), caption, fontsize=8, color=FAINT, ha="center", parse_math=False)
    return _save(figure, path)


def overlay(
    path: Path, cases: Sequence[tuple], classes: Sequence[str], scores: Sequence[float | None] | None = None
) -> Path:
    """Segmentations, one row per case: the image, the truth, the prediction with the truth's outline in white.

    A case is (name, image, truth, prediction); label i + 1 is `classes[i]`, 0 is background. Of a volume, the slice
    with the most classes of the truth, then the most labelled voxels, is shown. scores: a Dice per case, printed below.
    """
    slices = [_most_labelled_slice(truth if np.any(truth) else prediction) for _, _, truth, prediction in cases]
    planes = [[_plane(array, at) for array in case[1:]] for case, at in zip(cases, slices, strict=True)]
    shown = sorted({int(label) for _, *maps in planes for labels in maps for label in np.unique(labels) if label > 0})
    legend = 0.2 * len(shown) + 0.1 - 1.6 * len(cases)  # inches by which the legend may exceed the images
    figure, axes = _grid(len(cases), 3, planes, width=2.1, top=0.32, right=2.2, gap=0.25, bottom=max(0.25, legend))
    for number, (row, case, (image, truth, prediction)) in enumerate(zip(axes, cases, planes, strict=True)):
        for axis in row:
            _show(axis, image, _window(image))
        for axis, labels in zip(row[1:], (truth, prediction), strict=True):
            axis.imshow(_paint(labels), interpolation="nearest")
        for label in np.unique(truth[truth > 0]):
            row[2].contour(truth == label, levels=[0.5], colors="white", linewidths=0.7)
        _name_row(row[0], case[0], volume=case[1].ndim == 3)
        if scores is not None and scores[number] is not None:
            row[2].set_xlabel(f"Dice {scores[number]:.3f}", fontsize=8, color=INK, labelpad=3)
    _name_columns(axes[0], ("image", "truth", "prediction"))
    _legend(axes[0, 2], {classes[label - 1]: COLOURS[(label - 1) % len(COLOURS)] for label in shown})
    return _save(figure, path, [(case[0], _box(figure, row)) for case, row in zip(cases, axes, strict=True)])


def probabilities(path: Path, cases: Sequence[tuple[str, np.ndarray, Mapping[str, tuple[float, float]]]]) -> Path:
    """A grid of images with their true findings and the three most probable classes.

    A case is (name, image, {class: (truth, p)}), truth 1, 0 or NaN (not known). All true findings stand above the
    image. Bars of true findings are blue, others grey; a finding of unknown truth carries a question mark.
    """
    across, width = min(len(cases), 4), WIDTH
    planes = [[_plane(image, _most_varied_slice(image))] for _, image, _ in cases]
    true = [[finding for finding, (truth, _) in findings.items() if truth == 1] for _, _, findings in cases]
    lines = [wrapped(some, width, 8, bold=True) or [""] for some in true]
    heights = [0.22 + LINE * len(some) for some in lines]
    above = [max(heights[first : first + across]) for first in range(0, len(cases), across)]
    figure, axes = _grid(len(above), across, planes, top=0.06, bottom=0.68, left=0.08, gap=0.78, above=above)
    boxes = []
    for number, (axis, (image,), (name, _, findings)) in enumerate(zip(axes.ravel(), planes, cases, strict=False)):
        _show(axis, image, _window(image))
        nothing = "no finding" if any(truth == 0 for truth, _ in findings.values()) else "not known"
        present = "\n".join(lines[number]) or nothing
        style = {"color": COLOURS[4], "weight": "bold"} if true[number] else {"color": INK}
        _above(axis, present, 3, fontsize=8, linespacing=1.2, **style)
        _above(axis, fitted(name, width, 7), 5 + 72 * LINE * len(lines[number]), fontsize=7, color=FAINT)
        _bars(figure, axis, sorted(findings.items(), key=lambda item: -item[1][1])[:3])
        boxes.append((name, _box(figure, [axis], above=heights[number], below=0.62)))
    for axis in axes.ravel()[len(cases) :]:
        axis.set_visible(False)
    return _save(figure, path, boxes)


def thumbnail(
    image: np.ndarray, labels: np.ndarray | None = None, spacing: tuple[float, float] = (1.0, 1.0), edge: int = 176
) -> bytes:
    """Returns a PNG of one image and, beside it, of the image with its labels in colour, if there are any.

    Of a volume, the slice with the most classes is shown, else the most varied one. `spacing` (right, front) sets the
    aspect ratio; the longer side has `edge` pixels.
    """
    from io import BytesIO

    from PIL import Image

    at = _most_varied_slice(image) if labels is None or not labels.any() else _most_labelled_slice(labels)
    plane = _plane(image, at).astype(np.float64)
    low, high = _window(plane)
    grey = np.nan_to_num((plane - low) / (high - low)).clip(0, 1) * 255
    extent = np.array([plane.shape[1] * spacing[0], plane.shape[0] * spacing[1]])
    size = tuple(np.maximum(np.rint(extent / extent.max() * edge), 1).astype(int).tolist())
    picture = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGBA")
    sheet = Image.new("RGB", (size[0] * (1 if labels is None else 2), size[1]))
    sheet.paste(picture, (0, 0))
    if labels is not None:
        paint = Image.fromarray((_paint(_plane(labels, at), 0.5) * 255).astype(np.uint8))
        sheet.paste(Image.alpha_composite(picture, paint.resize(size, Image.Resampling.NEAREST)), (size[0], 0))
    sheet.save(file := BytesIO(), "PNG")
    return file.getvalue()


def _grid(
    rows: int,
    columns: int,
    planes: Sequence[Sequence[np.ndarray]],
    top: float,
    bottom: float,
    width: float = WIDTH,
    left: float = 0.3,
    right: float = 0.08,
    gap: float = 0.08,
    above: Sequence[float] = (),
) -> "tuple[Figure, np.ndarray]":
    """Axes [rows, columns] without ticks, with the aspect ratio of the tallest plane; lengths in inches.

    above: what each row needs above its axes, besides `top` and `gap`.
    """
    from matplotlib.figure import Figure

    between, above = 0.06, above or [0.0] * rows
    height = width * float(np.clip(max(image.shape[0] / image.shape[1] for image, *_ in planes), 0.4, 1.6))
    size = np.array(
        [left + columns * (width + between) - between + right, top + sum(above) + rows * (height + gap) - gap + bottom]
    )
    figure = Figure(figsize=tuple(size), dpi=DPI)
    axes = np.empty((rows, columns), object)
    for row, column in np.ndindex(rows, columns):
        lower = bottom + (rows - 1 - row) * (height + gap) + sum(above[row + 1 :])
        corner = np.array([left + column * (width + between), lower])
        axis = figure.add_axes((*(corner / size), *((width, height) / size)))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axes[row, column] = axis
    return figure, axes


def _save(figure: "Figure", path: Path, cases: Sequence[tuple[str, tuple[int, ...]]] = ()) -> Path:
    """Writes the PNG. cases: their names, and where in the picture they are: left, top, right, bottom."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunk = {CASES: json.dumps([[name, *box] for name, box in cases])} if cases else {}
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None} | chunk)
    return path


def _box(figure: "Figure", row: "Sequence[Axes]", above: float = 0.0, below: float = 0.0) -> tuple[int, ...]:
    """(left, top, right, bottom) in pixels of a row of axes and of so many inches above and below them."""
    size, first, last = figure.get_size_inches(), row[0].get_position(), row[-1].get_position()
    inches = first.x0 * size[0], (1 - first.y1) * size[1] - above, last.x1 * size[0], (1 - first.y0) * size[1] + below
    return tuple(max(0, round(DPI * each)) for each in inches)


def _most_varied_slice(volume: np.ndarray) -> int:
    """Index of the axial slice with the largest standard deviation in the middle half, where the organ is; 0 in 2D."""
    if volume.ndim == 2:
        return 0
    middle = _middle_half(volume)
    return middle.start + int(np.argmax(np.nanstd(volume[:, :, middle], axis=(0, 1))))


def _most_hidden_slice(volume: np.ndarray, masked: np.ndarray) -> int:
    """Index of the slice of the middle half whose hidden voxels deviate most from its mean."""
    if volume.ndim == 2:
        return 0
    middle = _middle_half(volume)
    image = volume[:, :, middle]
    deviation = np.where(np.isnan(masked[:, :, middle]), (image - image.mean(axis=(0, 1))) ** 2, 0).sum(axis=(0, 1))
    return middle.start + int(np.argmax(deviation)) if deviation.any() else _most_varied_slice(volume)


def _middle_half(volume: np.ndarray) -> slice:
    """The middle half of the axial slices, where the organ is; at least one slice."""
    depth = volume.shape[2]
    return slice(depth // 4, max(depth - depth // 4, depth // 4 + 1))


def _most_labelled_slice(labels: np.ndarray) -> int:
    """Index of the axial slice with the most classes, then the most labelled voxels; the middle one if none has any."""
    if labels.ndim == 2:
        return 0
    if not labels.any():
        return labels.shape[2] // 2
    present = [(len(np.unique(plane[plane > 0])), np.count_nonzero(plane)) for plane in np.moveaxis(labels, 2, 0)]
    return max(range(len(present)), key=present.__getitem__)


def _plane(image: np.ndarray, slice_: int) -> np.ndarray:
    """A 2D image [H, W], or the axial slice of a volume [X, Y, Z] in RAS order, anterior up, right on the left."""
    return image if image.ndim == 2 else image[::-1, ::-1, slice_].T


def _window(image: np.ndarray) -> tuple[float, float]:
    """The grey values of black and white: the 0.5th and the 99.5th percentile."""
    low, high = np.nanpercentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _show(axis: "Axes", image: np.ndarray, window: tuple[float, float]) -> None:
    from matplotlib import colormaps

    grey = colormaps["gray"].with_extremes(bad=HIDDEN)
    axis.imshow(np.ma.masked_invalid(image), cmap=grey, vmin=window[0], vmax=window[1], interpolation="nearest")


def _paint(labels: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """A label map [H, W] as RGBA colours [H, W, 4], background transparent."""
    from matplotlib.colors import to_rgba_array

    colours = to_rgba_array(COLOURS, alpha)
    return np.where(labels[..., None] > 0, colours[(labels.astype(int) - 1) % len(COLOURS)], 0.0)


def _name_row(axis: "Axes", name: str, volume: bool) -> None:
    axis.set_ylabel(fitted(name, axis.bbox.height / DPI, 8), fontsize=8, color=FAINT, labelpad=3, parse_math=False)
    if volume:
        behind = {"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5}
        axis.text(0.03, 0.5, "R", transform=axis.transAxes, fontsize=6, color="white", va="center", bbox=behind)


def _name_columns(axes: "Sequence[Axes]", titles: Sequence[str]) -> None:
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK, pad=4)


def _legend(axis: "Axes", colours: Mapping[str, str]) -> None:
    """A legend to the right of an axis, from its top down."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=fitted(name, 1.7, 9)) for name, colour in colours.items()]
    if patches:
        axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=9, frameon=False,
                    labelcolor=INK, handlelength=1)  # fmt: skip


def _bars(figure: "Figure", axis: "Axes", findings: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Horizontal bars of probability, 0 to 1, under an image."""
    place, inch = axis.get_position(), 1 / figure.get_figheight()
    bars = figure.add_axes((place.x0, place.y0 - 0.6 * inch, place.width, 0.56 * inch))
    bars.set(xlim=(0, 1), ylim=(2.5, -0.5), xticks=[], yticks=[])
    bars.spines[:].set_visible(False)
    for line, (name, (truth, probability)) in enumerate(findings):
        bars.barh(line, 1, height=0.86, color="#f3f3f3")
        bars.barh(line, probability, height=0.86, color="#9cc7e4" if truth == 1 else "#d0d0d0")
        known = "" if truth in (0, 1) else " ?"
        bars.text(0.02, line, fitted(name, 1.25, 7) + known, fontsize=7, color=INK, va="center", parse_math=False)
        bars.text(0.98, line, f"{probability:.2f}", fontsize=7, color=INK, va="center", ha="right")


def _above(axis: "Axes", text: str, points: float, **style: Any) -> None:
    """Writes a text so many points above an axis, from its left edge."""
    axis.annotate(text, (0, 1), (0, points), "axes fraction", textcoords="offset points", va="bottom",
                  parse_math=False, **style)  # fmt: skip


def short(text: str, most: int) -> str:
    """`text`, cut to `most` characters with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"
