"""figures.py: pictures are written, show what they should, and are the same bytes for the same input."""

import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from premed.data import figures
from premed.data.lettering import fitted

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
VOLUME = np.random.default_rng(0).normal(size=(24, 32, 20))
LABELS = np.zeros(VOLUME.shape, int)
LABELS[4:12, 4:12, 5:10] = 1
LABELS[12:20, 4:12, 8] = 2


def hide(image):
    hidden = image.copy()
    hidden[: len(image) // 2] = np.nan
    return hidden


DRAWINGS = {
    "reconstruction": lambda path: figures.reconstruction(path, [("a", RAMP, hide(RAMP), RAMP)], "what it is"),
    "reconstruction 3D": lambda path: figures.reconstruction(path, [("a", VOLUME, hide(VOLUME), VOLUME, VOLUME)] * 2),
    "overlay": lambda path: figures.overlay(path, [("a", RAMP, RAMP > 0.5, RAMP > 0.6)], ["bright"], [0.9]),
    "overlay 3D": lambda path: figures.overlay(path, [("a", VOLUME, LABELS, LABELS)] * 2, ["a", "b"], [0.9, None]),
    "probabilities": lambda path: figures.probabilities(path, [("a", RAMP, {"x": (1, 0.9), "y": (np.nan, 0.2)})] * 5),
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), float)


def holds(path: Path, colour: str) -> bool:
    """Is there a pixel of this colour?"""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(path) == wanted).all(-1).any())


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_written_where_it_was_asked_for_and_is_not_blank(name, tmp_path):
    path = tmp_path / "new" / "picture.png"
    assert DRAWINGS[name](path) == path
    height, width, _ = pixels(path).shape
    assert 150 < height < 1500 and 150 < width < 1500
    assert pixels(path).std() > 10


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_input_gives_the_same_bytes(name, tmp_path):
    first, second = (DRAWINGS[name](tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second


def test_a_users_matplotlib_style_and_figures_are_left_alone(tmp_path):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    for name, draw in DRAWINGS.items():
        draw(tmp_path / f"{name}.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_hidden_patches_have_a_colour_that_no_tissue_has(tmp_path):
    hidden = figures.reconstruction(tmp_path / "a.png", [("a", RAMP, hide(RAMP), RAMP)])
    visible = figures.reconstruction(tmp_path / "b.png", [("a", RAMP, RAMP, RAMP)])
    assert holds(hidden, figures.HIDDEN)
    assert not holds(visible, figures.HIDDEN)


def test_a_mean_patch_makes_a_fourth_column(tmp_path):
    three = figures.reconstruction(tmp_path / "a.png", [("a", RAMP, RAMP, RAMP)])
    four = figures.reconstruction(tmp_path / "b.png", [("a", RAMP, RAMP, RAMP, RAMP)])
    assert pixels(four).shape[1] > pixels(three).shape[1]


def test_a_prediction_for_each_step_stands_between_the_masked_and_the_mean_patch(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "_name_columns", lambda axes, names: titles.extend(names))
    figures.reconstruction(tmp_path / "a.png", [("a", RAMP, hide(RAMP), RAMP, RAMP, RAMP)], "what", [500, 1000])
    assert titles == ["original", "masked", "step 500", "step 1,000", "mean patch"]


def test_a_volume_is_shown_as_radiologists_do():
    volume = np.zeros((4, 5, 3))  # left to right, posterior to anterior, bottom to top
    volume[3, 4, 1] = 1
    plane = figures._plane(volume, 1)
    assert plane.shape == (5, 4)
    assert plane[0, 0] == 1  # right anterior: top left


def test_the_slice_shown_is_the_one_with_most_classes_then_most_of_them():
    assert figures._most_labelled_slice(LABELS) == 8
    assert figures._most_labelled_slice(np.minimum(LABELS, 1)) == 8
    assert figures._most_labelled_slice(np.zeros((4, 4, 9))) == 4


def test_the_slice_shown_without_labels_is_the_most_varied_of_the_middle_half():
    volume = np.zeros((8, 8, 12))
    volume[:4, :, 0], volume[:4, :, 7] = 9, 1
    assert figures._most_varied_slice(volume) == 7
    assert figures._most_varied_slice(np.zeros((8, 8, 1))) == 0


def test_of_a_few_hidden_patches_the_slice_shown_holds_some():
    volume, masked = np.random.default_rng(0).normal(size=(8, 8, 16)), np.zeros((8, 8, 16))
    volume[..., 9] *= 9
    masked[:4, :4, 4:6] = np.nan
    assert figures._most_hidden_slice(volume, masked) in (4, 5)
    assert figures._most_hidden_slice(volume, np.zeros((8, 8, 16))) == 9


def test_a_legend_names_the_classes_that_are_there_and_no_others(tmp_path):
    path = figures.overlay(tmp_path / "a.png", [("a", VOLUME, LABELS, LABELS)], ["a", "b", "c"])
    assert [holds(path, colour) for colour in figures.COLOURS[:3]] == [True, True, False]


def test_a_case_without_labels_and_more_classes_than_colours_are_drawn(tmp_path):
    many = np.arange(20 * 20).reshape(20, 20) // 20 + 1
    nothing = np.zeros((20, 20), int)
    cases = [("none", RAMP[:20, :20], nothing, nothing), ("many", RAMP[:20, :20], many, nothing)]
    assert figures.overlay(tmp_path / "a.png", cases, [f"class {i}" for i in range(20)]).stat().st_size > 0


# ---- names


FINDINGS = ("Atelectasis", "Cardiomegaly", "Pleural_Thickening", "Consolidation", "Infiltration", "Pneumothorax")
LONG = "patient0000001/study1/a_series_without_an_end/view1_frontal.png"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which are not written."""
    figures_drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: figures_drawn.append(figure))
    return figures_drawn


def texts(figure):
    """The texts of a figure with the boxes that they take, in pixels."""
    (canvas := FigureCanvasAgg(figure)).draw()  # which moves labels to their places
    renderer = canvas.get_renderer()
    some = [text for axis in figure.axes if axis.get_visible() for text in (*axis.texts, axis.title, axis.yaxis.label)]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in some if text.get_text()]


def require_apart(figure):
    placed = texts(figure)
    touching = [(a, b) for (a, one), (b, other) in combinations(placed, 2) if one.overlaps(other)]
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in placed if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    assert (touching, outside) == ([], [])


def test_every_true_finding_stands_above_its_image_in_full(drawn):
    found = [FINDINGS, FINDINGS[2:3], (), FINDINGS[:3], FINDINGS]
    cases = [(LONG, RAMP, {name: (float(name in some), 0.5) for name in FINDINGS}) for some in found]
    figures.probabilities(Path(), cases)
    result = [axis.texts[0].get_text().replace("\n", " ") for axis in drawn[0].axes[:5]]
    assert result == [", ".join(some) or "no finding" for some in found]
    require_apart(drawn[0])


@pytest.mark.parametrize("shape", [(24, 60), (24, 32, 20)])
def test_names_do_not_touch_however_long_they_are(drawn, shape):
    image = np.random.default_rng(0).normal(size=shape)
    figures.probabilities(Path(), [(LONG, image, {LONG: (1, 0.9), "y": (np.nan, 0.2)})] * 5)
    figures.overlay(Path(), [(LONG, image, image > 1, image > 1)] * 3, [LONG])
    figures.reconstruction(Path(), [(LONG, image, image, *[image] * 5)] * 3, "", [5_000, 10_000, 15_000, 200_000])
    for figure in drawn:
        require_apart(figure)


def test_a_name_that_is_too_long_keeps_both_its_ends():
    cut = fitted(LONG, 1.8, 7)
    assert cut.startswith("patient") and cut.endswith("frontal.png") and "…" in cut
    assert fitted("a.png", 1.8, 7) == "a.png"


def test_a_picture_tells_where_its_cases_are(tmp_path):
    dark = np.zeros((20, 20))
    dark[:2] = 1
    cases = [(name, image, {"x": (1, 0.9)}) for name, image in (("dark", dark), ("light", 1 - dark))]
    path = figures.probabilities(tmp_path / "a.png", cases)
    with Image.open(path) as picture:
        boxes = {name: box for name, *box in json.loads(picture.text[figures.CASES])}
        middles = [picture.convert("L").crop(boxes[name]).resize((3, 3)).getpixel((1, 1)) for name in ("dark", "light")]
    assert middles[0] < 100 < 150 < middles[1]


def test_real_chest_x_rays_with_their_findings(real, tmp_path):
    folder = real("chestxray14")
    with open(folder / "Data_Entry_2017_v2020.csv") as file:
        rows = list(csv.DictReader(file))
    images = {path.name: path for path in (folder / "images").iterdir()}
    picked = [row for row in rows if row["Image Index"] in images][:4]
    cases = [
        (
            row["Image Index"],
            np.asarray(Image.open(images[row["Image Index"]]).convert("L")),
            {name: (float(name in row["Finding Labels"]), 0.5) for name in ("Cardiomegaly", "Effusion", "Mass")},
        )
        for row in picked
    ]
    assert pixels(figures.probabilities(tmp_path / "a.png", cases)).std() > 30


def test_a_real_hippocampus(real, tmp_path):
    from nibabel.nifti1 import Nifti1Image

    folder = real("Task04_Hippocampus")
    label = min((folder / "labelsTr").glob("hippo*.nii.gz"))
    image, truth = (
        np.asarray(Nifti1Image.from_filename(path).dataobj) for path in (folder / "imagesTr" / label.name, label)
    )
    path = figures.overlay(tmp_path / "a.png", [(label.name, image, truth, truth)], ["anterior", "posterior"], [1.0])
    assert [holds(path, colour) for colour in figures.COLOURS[:2]] == [True, True]
