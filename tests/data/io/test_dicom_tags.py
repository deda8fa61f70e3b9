"""DICOM tags that are empty, absent beside their pair, or of no use: a default and a note, or refused by their name."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from support.made_up import ct_series, radiograph
from support.readers import refused

from premed.config.image_processing import Preprocessing
from premed.data.inspection import Inspection, inspect
from premed.data.io.readers import read_file, read_image

rng = np.random.default_rng(1)

PIXELS = rng.integers(0, 4096, (20, 30)).astype(np.uint16)
PIXELS[0, :2] = 0, 4095
WHOLE = np.rint(255.0 * PIXELS / 4095)
CT = rng.integers(-1000, 1000, (6, 5, 7)).astype(np.int16)


def written(path: Path, **fields) -> Path:
    """A picture; fields that are None are there without a value, those that are "absent" are not."""
    there = {name: value for name, value in fields.items() if not isinstance(value, str) or value != "absent"}
    return radiograph(path, PIXELS, **there)


# Slope and intercept -------------------------------------------------------------------------------------------------

RESCALE = {
    "both": ((2, -1024), 2, -1024, 0),
    "neither": (("absent", "absent"), 1, 0, 0),
    "both empty": ((None, None), 1, 0, 0),
    "no slope": (("absent", -1024), 1, -1024, 1),
    "an empty slope": ((None, -1024), 1, -1024, 1),
    "no intercept": ((2, "absent"), 2, 0, 1),
    "an empty intercept": ((2, None), 2, 0, 1),
}


@pytest.mark.parametrize("how", RESCALE)
@pytest.mark.parametrize("inverted", [False, True])
def test_slope_and_intercept_have_their_defaults_each_by_itself(tmp_path, how, inverted):
    """Once: water of 1024 HU, where the slope was empty."""
    (slope, intercept), by, plus, num_notes = RESCALE[how]
    fields = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    path = written(tmp_path / "a.dcm", **fields, **({"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}))
    stored = 4095.0 - PIXELS if inverted else PIXELS.astype(float)
    np.testing.assert_array_equal(read_image(path)[0], stored * by + plus)
    shown = 255 - np.rint(255.0 * PIXELS / 4095) if inverted else WHOLE
    assert np.abs(read_image(path, shown=True)[0] - shown).max() <= 1
    notes = [note.text for note in read_file(path).notes]
    assert len(notes) == num_notes and all("is absent or empty" in note and "is taken" in note for note in notes)


@pytest.mark.parametrize("how", RESCALE)
def test_a_series_has_them_too_and_says_it_once(tmp_path, how):
    (slope, intercept), by, plus, num_notes = RESCALE[how]
    folder = ct_series(tmp_path / "s", CT)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            setattr(dataset, name, None if value == "absent" else value)
            if value == "absent":
                delattr(dataset, name)
        dataset.save_as(path)
    values, _ = read_image(folder)
    np.testing.assert_array_equal(values, (CT + 1024.0) * by + plus)
    assert len(read_file(folder).notes) == num_notes


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_a_slice_that_lacks_what_the_others_have_is_refused_by_name(tmp_path, name):
    folder = ct_series(tmp_path / "s", CT)
    dataset = pydicom.dcmread(folder / "slice003.dcm")
    setattr(dataset, name, None)
    dataset.save_as(folder / "slice003.dcm")
    refused_in(folder, f"slice003.dcm: {name} is not that of slice000.dcm")


def refused_in(folder: Path, *words: str) -> None:
    """A series is refused by the name of a slice."""
    from premed.errors import UserError

    with pytest.raises(UserError) as caught:
        read_image(folder)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# Windows -------------------------------------------------------------------------------------------------------------

NO_WINDOW = {
    "narrower than 1": {"WindowWidth": 0.5},
    "negative": {"WindowWidth": -100},
    "0": {"WindowWidth": 0},
    "0, exact": {"WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
    "negative, sigmoid": {"WindowWidth": -5, "VOILUTFunction": "SIGMOID"},
    "empty width": {"WindowWidth": None},
    "no width": {"WindowWidth": "absent"},
    "empty centre": {"WindowCenter": None, "WindowWidth": 100},
    "the first of two": {"WindowCenter": [2000, 40], "WindowWidth": [0, 400]},
}


@pytest.mark.parametrize("how", NO_WINDOW)
def test_a_window_that_cannot_be_used_is_noted_and_the_whole_range_shown(tmp_path, how):
    path = written(tmp_path / "a.dcm", **{"WindowCenter": 2000} | NO_WINDOW[how])
    np.testing.assert_array_equal(read_image(path, shown=True)[0], WHOLE)
    ((note, _),) = read_file(path, shown=True).notes
    assert "the whole range is shown" in note and note.startswith("Window")
    assert read_file(path).notes == ()  # measured values do not go through it
    facts = inspect(Inspection(0, (path,), None, Preprocessing(dims=2, normalise="grey"), ()))
    assert [(each.severity, each.what) for each in facts.findings] == [("note", note)]


FUNCTIONS = {
    "absent": lambda x, c, w: (x - (c - 0.5)) / (w - 1) + 0.5,
    None: lambda x, c, w: (x - (c - 0.5)) / (w - 1) + 0.5,
    "linear": lambda x, c, w: (x - (c - 0.5)) / (w - 1) + 0.5,
    "LINEAR_EXACT": lambda x, c, w: (x - c) / w + 0.5,
    "SIGMOID": lambda x, c, w: 1 / (1 + np.exp(-4 * (x - c) / w)),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [0.5, 1500])
def test_a_window_s_function_is_the_standard_s(tmp_path, function, width):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3; an empty function is the default, LINEAR, and that one needs a width of 1."""
    if width < 1 and function not in ("LINEAR_EXACT", "SIGMOID"):
        return
    path = written(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=width, VOILUTFunction=function)
    with np.errstate(over="ignore"):
        expected = np.rint(255 * np.clip(FUNCTIONS[function](PIXELS.astype(float), 2000, width), 0, 1))
    np.testing.assert_array_equal(read_image(path, shown=True)[0], expected)
    assert read_file(path, shown=True).notes == ()


# Refused by name -----------------------------------------------------------------------------------------------------


def table(**fields) -> list[Dataset]:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return [item]


LUT = {"LUTData": np.arange(9).astype("<u2").tobytes()}
REFUSED = {
    "a slope of 0": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    "two slopes": (
        {"RescaleSlope": [1, 2], "RescaleIntercept": 0},
        "RescaleSlope cannot be used (2 numbers, 1 expected)",
    ),
    "an unknown function": (
        {"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "CURVED"},
        "VOILUTFunction 'CURVED' is none of LINEAR, LINEAR_EXACT, SIGMOID",
    ),
    "a table without data": ({"VOILUTSequence": table(LUTDescriptor=[9, 0, 16])}, "VOILUTSequence cannot be used"),
    "a table of 3 bits": (
        {"VOILUTSequence": table(LUTDescriptor=[9, 0, 3], **LUT)},
        "VOILUTSequence cannot be used ('3' bits",
    ),
    "a modality table without data": (
        {"ModalityLUTSequence": table(LUTDescriptor=[9, 0, 16])},
        "ModalityLUTSequence or RescaleSlope or RescaleIntercept cannot be used",
    ),
    "padding of bytes": ({"x": DataElement(0x00280120, "OB", b"\1\2\3\4")}, "PixelPaddingValue cannot be used"),
    "padding of two": ({"PixelPaddingValue": [1, 2]}, "PixelPaddingValue cannot be used (2 numbers, 1 expected)"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_tag_that_cannot_be_used_is_refused_by_its_name(tmp_path, how):
    fields, words = REFUSED[how]
    refused(written(tmp_path / "a.dcm", **fields), words, "dcmodify", shown=True)


@pytest.mark.parametrize("name", ["WindowWidth", "WindowCenter", "RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("text", [b"a,b ", b"NaN ", b"inf "])
def test_a_number_that_is_none_is_refused_by_its_name(tmp_path, name, text):
    fields = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 1000, "WindowWidth": 1000} | {
        name: -1.5
    }  # no UID, which are random, has a minus
    path = written(tmp_path / "a.dcm", **fields)
    content = path.read_bytes()
    assert content.count(b"-1.5") == 1
    path.write_bytes(content.replace(b"-1.5", text))
    refused(path, f"{name} cannot be used", "dcmodify", shown=True)


SLICES = {
    "no pixels' size": ({"PixelSpacing": [0, 1]}, "PixelSpacing 0, 1 is not above 0"),
    "three sizes": ({"PixelSpacing": [1, 1, 1]}, "PixelSpacing cannot be used (3 numbers, 2 expected)"),
    "no direction": ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient is no pair of unit vectors"),
    "one direction": (
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        "ImageOrientationPatient is no pair of unit vectors",
    ),
}


@pytest.mark.parametrize("how", SLICES)
def test_a_series_without_a_grid_is_refused_by_the_tag(tmp_path, how):
    fields, words = SLICES[how]
    refused_in(ct_series(tmp_path / "s", CT, **fields), words)


# Places of slices ----------------------------------------------------------------------------------------------------


def placed(folder: Path, places: list[list[float]], **fields) -> Path:
    """A series with these positions."""
    values = rng.integers(-1000, 1000, (6, 5, len(places))).astype(np.int16)
    ct_series(folder, values, **fields)
    for number, place in enumerate(places):
        dataset = pydicom.dcmread(folder / f"slice{number:03d}.dcm")
        dataset.ImagePositionPatient = place
        dataset.save_as(folder / f"slice{number:03d}.dcm")
    return folder


def rounded(step: np.ndarray, num: int, start: float = 7.03, decimals: int = 1) -> list[list[float]]:
    return [[round(float(x), decimals) for x in start + number * step] for number in range(num)]


OBLIQUE = np.array([0.31, 0.0, 0.95])


@pytest.mark.parametrize("step", [[0, 0, 0.625], [0, 0, 1.25], [0, 0, 0.7], OBLIQUE.tolist()])
def test_positions_rounded_to_a_tenth_are_even(tmp_path, step):
    """Once: a slice missing."""
    places = rounded(np.array(step), 21)
    _, affine = read_image(placed(tmp_path / "s", places))
    np.testing.assert_allclose(affine[:3, 2] * [-1, -1, 1], step, atol=0.1 / 20)
    np.testing.assert_allclose(affine[:3, 3] * [-1, -1, 1], places[0])


@pytest.mark.parametrize("num", [3, 4, 9])  # of four, a slice may lie a third of a distance from even ones
@pytest.mark.parametrize("step", [[0, 0, 0.625], [0, 0, 0.3], OBLIQUE.tolist()])
def test_a_missing_slice_is_refused_whatever_the_rounding(tmp_path, num, step):
    for missing in {1, num // 2, num - 1}:
        places = rounded(np.array(step), num + 1)
        del places[missing]
        refused_in(placed(tmp_path / str(missing), places), "is missing or out of place")


def test_a_slice_out_of_place_is_refused_although_positions_are_round(tmp_path):
    places = rounded(np.array([0, 0, 0.625]), 11)
    places[5][2] += 0.3
    refused_in(placed(tmp_path / "s", places), "a slice is missing or out of place")


def test_a_distance_that_the_positions_contradict_is_noted(tmp_path):
    """As where every second slice is missing."""
    assert read_file(ct_series(tmp_path / "s", CT, SpacingBetweenSlices=3.0)).notes == ()
    assert read_file(ct_series(tmp_path / "t", CT, SpacingBetweenSlices=-3.0)).notes == ()
    ((note, _),) = read_file(ct_series(tmp_path / "u", CT, SpacingBetweenSlices=1.5)).notes
    assert note.startswith(
        "SpacingBetweenSlices and the positions of the slices contradict each other: 1.5 mm against 3 mm"
    )


@pytest.mark.parametrize(
    ("size", "by", "same"),
    [((6, 5), 9e-4, True), ((512, 2), 9e-4, False), ((512, 2), 2e-4, True), ((6, 5), 0.2, False)],
)
def test_pixel_sizes_of_slices_are_compared_at_the_far_corner(tmp_path, size, by, same):
    """Of 2 mm pixels; once, .0009 mm apart was the same over 512 of them."""
    folder = ct_series(tmp_path / "s", np.zeros((*size, 3), np.int16))
    dataset = pydicom.dcmread(folder / "slice001.dcm")
    dataset.PixelSpacing = [2.5, 2.0 + by]
    dataset.save_as(folder / "slice001.dcm")
    if same:
        read_image(folder)
    else:
        refused_in(folder, "slice001.dcm: PixelSpacing is not that of slice000.dcm")


def test_a_slice_that_is_turned_is_refused_by_its_orientation(tmp_path):
    folder = ct_series(tmp_path / "s", np.zeros((200, 200, 3), np.int16))
    dataset = pydicom.dcmread(folder / "slice001.dcm")
    dataset.ImageOrientationPatient = [0.99999, 0.004, 0, -0.004, 0.99999, 0]
    dataset.save_as(folder / "slice001.dcm")
    refused_in(folder, "slice001.dcm: ImageOrientationPatient is not that of slice000.dcm")


def test_a_negative_among_positives_is_refused(tmp_path):
    folder = ct_series(tmp_path / "s", CT)
    dicom_of = pydicom.dcmread(folder / "slice002.dcm")
    dicom_of.PhotometricInterpretation = "MONOCHROME1"
    dicom_of.save_as(folder / "slice002.dcm")
    refused_in(folder, "slice002.dcm: PhotometricInterpretation is not that of slice000.dcm")


def test_hounsfield_units_are_what_they_are_however_they_are_to_be_shown(tmp_path):
    """Once, air had +999 and bone was below water, without a word: windows in Hounsfield units cut out nonsense."""
    plain, negative = (
        ct_series(tmp_path / name, CT, PhotometricInterpretation=name) for name in ("MONOCHROME2", "MONOCHROME1")
    )
    assert np.array_equal(read_image(negative)[0], read_image(plain)[0])
    (note,) = read_file(negative).notes
    assert note.text.startswith("MONOCHROME1 says") and note.reading and read_file(plain).notes == ()


@pytest.mark.parametrize("tags", [{"Modality": "PT"}, {"Modality": "CT"}, {"RescaleType": "HU"}])
def test_a_picture_of_values_with_a_unit_keeps_them_and_is_shown_as_a_negative(tmp_path, tags):
    path = written(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_array_equal(read_image(path)[0], PIXELS)
    assert np.abs(read_image(path, shown=True)[0] - (255 - np.rint(255.0 * PIXELS / 4095))).max() <= 1
