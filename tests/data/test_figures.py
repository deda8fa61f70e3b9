"""figures.py: pictures are written, show what they should, and are the same bytes for the same input."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from premed.data import figures

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
