"""DICOM pictures and series: windows, padding, colours, slices in order; what cannot be read is refused by name."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from support.made_up import ct_series, dicom, radiograph
from support.readers import refused, refused_cheaply, rng, shipped

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data.cache import Cache
from premed.data.io import geometry
from premed.data.io.geometry import reorient
from premed.data.io.readers import read_image
from premed.data.preprocess import prepare
from premed.errors import UserError

# DICOM pictures ------------------------------------------------------------------------------------------------------


def test_measured_values_are_rescaled():
    path = shipped("CT_small.dcm")
    raw = pydicom.dcmread(path)
    values, _ = read_image(path)
    expected = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == np.float32 and values.min() < -800


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, to 0..255."""
    return np.rint(255 * np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


def test_a_shown_picture_goes_through_the_file_s_window():
    path = shipped("MR_small.dcm")
    raw = pydicom.dcmread(path)
    values, _ = read_image(path, shown=True)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, linear_window(raw.pixel_array, raw.WindowCenter, raw.WindowWidth))


def test_of_several_windows_the_first_counts_and_the_rescaled_value_goes_in(tmp_path):
    pixels = rng.integers(0, 4096, (20, 30)).astype(np.uint16)
    slope = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    path = radiograph(tmp_path / "a.dcm", pixels, WindowCenter=[1500, 0], WindowWidth=[2000, 9], **slope)
    np.testing.assert_array_equal(read_image(path, shown=True)[0], linear_window(2.0 * pixels - 1000, 1500, 2000))


def test_without_a_window_the_whole_range_is_shown(tmp_path):
    pixels = rng.integers(100, 900, (20, 30)).astype(np.uint16)
    values, _ = read_image(radiograph(tmp_path / "a.dcm", pixels), shown=True)
    np.testing.assert_array_equal(values, np.rint(255.0 * (pixels - pixels.min()) / np.ptp(pixels)))


def test_a_table_of_grey_values_comes_before_a_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 10], np.minimum(1023, np.arange(4096) // 2).astype("<u2").tobytes()
    pixels = rng.integers(0, 4096, (20, 30)).astype(np.uint16)
    path = radiograph(tmp_path / "a.dcm", pixels, VOILUTSequence=[table], WindowCenter=5, WindowWidth=9)
    np.testing.assert_array_equal(
        read_image(path, shown=True)[0], np.rint(255.0 * np.minimum(1023, pixels // 2) / 1023)
    )


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 1500}])
def test_monochrome1_is_the_negative_of_monochrome2(tmp_path, window):
    pixels = rng.integers(0, 4096, (20, 30)).astype(np.uint16)
    pixels[0, :2] = 0, 4095
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": 10}
    one = radiograph(tmp_path / "one.dcm", pixels, inverted=True, **rescale, **window)
    two = radiograph(tmp_path / "two.dcm", pixels, **rescale, **window)
    shown, negative = read_image(one, True)[0].astype(int), read_image(two, True)[0].astype(int)
    assert np.abs(shown - (255 - negative)).max() <= 1
    np.testing.assert_array_equal(read_image(one)[0] + read_image(two)[0], 2 * 10 + 0.5 * 4095)


def test_padding_is_as_dark_as_the_darkest_of_the_rest(tmp_path):
    pixels = rng.integers(1000, 2000, (20, 30)).astype(np.uint16)
    pixels[:5] = 4095
    for inverted in (True, False):
        path = radiograph(tmp_path / "a.dcm", pixels, inverted, PixelPaddingValue=4095)
        values, _ = read_image(path, shown=True)
        assert (values[:5] == values[5:].min()).all()


SAME = ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_bigendian", "MR_small_implicit", "MR_small_padded"]


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("shown", [True, False])
def test_the_same_picture_in_another_transfer_syntax_is_the_same(name, shown):
    first, other = (read_image(shipped(f"{name}.dcm"), shown)[0] for name in ("MR_small", name))
    assert first.dtype == other.dtype and np.array_equal(first, other)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_rle", "SC_rgb_rle_16bit"])
def test_colours_are_read_as_colours(name):
    values, _ = read_image(shipped(f"{name}.dcm"), shown=True)
    assert values.shape == (100, 100, 3) and values.dtype == np.uint8
    assert values[5, 50, 0] > 200 and values[5, 50, 1:].max() < 60  # the red bar on top


def test_a_palette_becomes_colours():
    path = shipped("examples_palette.dcm")
    raw = pydicom.dcmread(path)
    reds = np.frombuffer(raw.RedPaletteColorLookupTableData, "<u2")
    values, _ = read_image(path, shown=True)
    np.testing.assert_array_equal(values[..., 0], reds[raw.pixel_array] >> 8)


@pytest.mark.filterwarnings("error")
def test_whatever_pydicom_ships_is_read_or_refused_in_one_line(capfd):
    read = 0
    for path in shipped("CT_small.dcm").parent.rglob("*"):
        if not path.is_file() or path.suffix in (".json", ".txt", ".dump", ".icc", ".gz"):
            continue
        for shown in (True, False):
            try:
                values, _ = read_image(path, shown)
                assert values.dtype == (np.uint8 if shown else values.dtype) and np.isfinite(values).all()
                read += 1
            except UserError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert capfd.readouterr() == ("", "")
    assert read > 120


def test_dicom_without_a_suffix_is_known_by_its_mark(tmp_path):
    (tmp_path / "IM0001").write_bytes(shipped("MR_small.dcm").read_bytes())
    assert np.array_equal(read_image(tmp_path / "IM0001")[0], read_image(shipped("MR_small.dcm"))[0])
    (tmp_path / "IM0002").write_bytes(bytes(999))
    refused(tmp_path / "IM0002", "not a kind of image that can be read", ".png", ".nii.gz", ".dcm")


REFUSED = {
    "JPEG-lossy.dcm": ["JPEG Extended", "12-bit", "gdcmconv --raw"],
    "SC_rgb_jpeg_gdcm.dcm": ["compressed as JPEG Lossless", "gdcmconv --raw", "pylibjpeg"],
    "MR_small_jpeg_ls_lossless.dcm": ["compressed as JPEG-LS", "gdcmconv --raw"],
    "SC_rgb_rle_2frame.dcm": ["holds 2 frames", "dcm2niix"],
    "rtdose.dcm": ["holds 15 frames"],
    "MR_truncated.dcm": ["truncated", "copy it again"],
    "reportsi.dcm": ["holds no picture", "leave it out"],
    "rtplan_truncated.dcm": ["holds no picture"],
    "image_dfl.dcm": ["deflated", "dcmconv"],
    "no_meta.dcm": ["no DICM mark", "dcmconv"],
    "meta_missing_tsyntax.dcm": ["names no transfer syntax"],
    "badVR.dcm": ["NumberOfFrames cannot be used", "dcmodify"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_with_the_mend(name):
    refused(shipped(name), *REFUSED[name])


# DICOM series --------------------------------------------------------------------------------------------------------


VALUES = rng.integers(-1024, 2000, (6, 5, 8)).astype(np.int16)
OBLIQUE = (0.9848077, 0.1736482, 0.0, -0.1710101, 0.9698463, 0.1736482)


@pytest.mark.parametrize("along", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("tilt", [0.0, 0.7])
def test_a_series_is_the_volume_that_was_cut_up(tmp_path, along, tilt):
    order = rng.permutation(8).tolist()
    folder = ct_series(tmp_path / "series", VALUES, along=along, tilt=tilt, order=order)
    values, affine = read_image(folder)
    np.testing.assert_array_equal(values, VALUES)
    row, column = np.array(along).reshape(2, 3)
    step = 3.0 * np.cross(row, column) + tilt * column
    where = np.array([-50.0, -40.0, 7.0]) + 2 * 2.0 * row + 3 * 2.5 * column + 4 * step  # of the voxel (2, 3, 4), LPS
    np.testing.assert_allclose((affine @ [2, 3, 4, 1])[:3], where * [-1, -1, 1], atol=1e-4)


def test_a_real_series_and_a_made_one_agree_with_monai(tmp_path):
    from monai.data.image_reader import PydicomReader

    real = shipped("CT_small.dcm").parent / "dicomdirtests" / "98892001" / "CT5N"
    for folder in (real, ct_series(tmp_path / "series", VALUES, along=OBLIQUE)):
        reader = PydicomReader()
        theirs, about = reader.get_data(reader.read(str(folder)))
        values, affine = read_image(folder)  # MONAI goes by the slices' numbers, we by their places
        ours, theirs = (reorient(v[None], None, a, "RAS") for v, a in ((values, affine), (theirs, about["affine"])))
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[2], theirs[2], atol=1e-4)


REAL_FOLDERS = {
    "77654033/CT2": ["17136: lies 202 mm behind 17106, where 1.25 mm are usual", "a slice is missing"],
    "98892001/CT2N": ["6924: ImageOrientationPatient is not that of 6293", "one series in one folder"],
    "98892003/MR1": ["SeriesInstanceUID is not that of"],
    "TINY_ALPHA": ["holds 0 DICOM slice(s)"],
    "TINY_ALPHA/PT000000/ST000000/SE000000": ["holds no picture (CT Image Storage)"],
}


@pytest.mark.parametrize("name", REAL_FOLDERS)
def test_a_real_folder_that_is_no_even_series_is_refused(name):
    refused(shipped("CT_small.dcm").parent / "dicomdirtests" / name, *REAL_FOLDERS[name])


def test_a_series_is_prepared_as_the_same_nifti_would_be(tmp_path):
    folder = ct_series(tmp_path / "series", VALUES, along=OBLIQUE)
    values, affine = read_image(folder)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "same.nii.gz")
    preprocessing = Preprocessing(dims=3, normalise="window", window=(-1000, 400), spacing=(2, 2, 2))
    first, second = (prepare([path], None, preprocessing) for path in (folder, tmp_path / "same.nii.gz"))
    apart = np.abs(first.image.astype(int) - second.image.astype(int))  # NIfTI rounds the affine to float32
    assert apart.max() <= 1 and np.allclose(first.affine, second.affine, atol=1e-5)


def spoil_series(folder: Path, how: str) -> None:
    def change(name: str, **fields) -> None:
        dataset = pydicom.dcmread(folder / name)
        for field, value in fields.items():
            if value is None:
                delattr(dataset, field)
            else:
                setattr(dataset, field, value)
        dataset.save_as(folder / name)

    match how:
        case "a slice is missing":
            (folder / "slice004.dcm").unlink()
        case "two in one place":
            change("slice004.dcm", ImagePositionPatient=[-50, -40, 7 + 3 * 3.0])
        case "another series":
            change("slice004.dcm", SeriesInstanceUID="1.2.3")
        case "another size":
            dicom(folder / "slice004.dcm", VALUES[:3, :, 0].T, **as_slice(folder, SeriesInstanceUID=True))
        case "another spacing":
            change("slice004.dcm", PixelSpacing=[9, 9])
        case "no position":
            change("slice004.dcm", ImagePositionPatient=None)
        case "one slice":
            for path in sorted(folder.iterdir())[1:]:
                path.unlink()
        case "no slice":
            for path in folder.iterdir():
                path.rename(path.with_suffix(".txt"))
                path.with_suffix(".txt").write_text("hello")
        case "a report":
            (folder / "slice004.dcm").write_bytes(shipped("reportsi.dcm").read_bytes())
        case "a truncated slice":
            (folder / "slice004.dcm").write_bytes((folder / "slice004.dcm").read_bytes()[:-9])
        case "not DICOM":
            (folder / "slice004.dcm").write_text("hello")


def as_slice(folder: Path, **_: bool) -> dict:
    """The fields that make a slice of the series in the folder."""
    like = pydicom.dcmread(folder / "slice003.dcm")
    names = ("SeriesInstanceUID", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    return {
        "kind": like.SOPClassUID,
        "ImagePositionPatient": [-50, -40, 19],
        **{name: like[name].value for name in names},
    }


SPOILT = {
    "a slice is missing": ["slice005.dcm: lies 6 mm behind slice003.dcm, where 3 mm are usual", "missing"],
    "two in one place": ["lies where", "one phase or echo"],
    "another series": ["slice004.dcm: SeriesInstanceUID is not that of slice000.dcm", "one series in one folder"],
    "another size": ["slice004.dcm: Columns is not that of"],
    "another spacing": ["slice004.dcm: PixelSpacing is not that of"],
    "no position": ["slice004.dcm: has no ImagePositionPatient", "move it out"],
    "one slice": ["holds 1 DICOM slice(s)"],
    "no slice": ["holds 0 DICOM slice(s)", "put one whole series there"],
    "a report": ["slice004.dcm: holds no picture"],
    "a truncated slice": ["truncated"],
    "not DICOM": ["slice004.dcm: not DICOM"],
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_series_is_refused_by_the_slice_s_name(tmp_path, how):
    folder = ct_series(tmp_path / "series", VALUES)
    spoil_series(folder, how)
    with pytest.raises(UserError) as caught:
        read_image(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert [word for word in SPOILT[how] if word not in str(caught.value)] == [], str(caught.value)


def test_a_series_is_prepared_once_and_again_when_a_slice_changes(tmp_path):
    folder, cache, preprocessing = (
        ct_series(tmp_path / "s", VALUES),
        Cache(tmp_path / "c"),
        Preprocessing(dims=3, normalise="zscore"),
    )
    case = Case("s", "s", (folder,))
    first = cache.prepare([case], preprocessing)[0].path
    before = cache.fingerprint([case], labels=False)
    assert cache.open(case, preprocessing) is not None and cache.prepare([case], preprocessing)[0].path == first
    ct_series(folder, VALUES[::-1])
    assert cache.prepare([case], preprocessing)[0].path != first and cache.fingerprint([case], labels=False) != before


# Bombs ---------------------------------------------------------------------------------------------------------------


def test_a_series_of_an_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_VOXELS", 6 * 5 * 7)
    refused_cheaply(ct_series(tmp_path / "series", VALUES), "claim the shape (6, 5, 8)")
