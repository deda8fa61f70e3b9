"""Files to numbers: equal to what Pillow, nibabel, MONAI and DICOM's own formulas give, or refused in one line."""

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from support.made_up import ct_series, dicom, radiograph
from support.suite import examples

from premed.config.transforms import Preprocessing
from premed.contracts import Case
from premed.data.cache import Cache
from premed.data.io import dicom as dicom_module
from premed.data.io.geometry import reorient
from premed.data.io.readers import read_image
from premed.data.preprocess import prepare
from premed.errors import UserError

rng = np.random.default_rng(0)
GREY = Preprocessing(dims=2, normalise="grey")


def shipped(name: str) -> Path:
    """One of pydicom's own test files, of those that come with the package."""
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(path)


def refused(path: Path, *words: str, shown: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        read_image(path, shown)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def png(path: Path, values: np.ndarray, kind: int) -> Path:
    """A 16-bit PNG of the colour type `kind`, byte by byte: Pillow cannot write these."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# Pictures ------------------------------------------------------------------------------------------------------------

COLOURS = rng.integers(0, 256, (9, 7, 4), np.uint8)
PICTURES = {
    "L.png": Image.fromarray(COLOURS[..., 0]),
    "RGB.png": Image.fromarray(COLOURS[..., :3]),
    "RGBA.png": Image.fromarray(COLOURS),
    "LA.png": Image.fromarray(COLOURS[..., 0]).convert("LA"),
    "P.png": Image.fromarray(COLOURS[..., :3]).quantize(16),
    "1.png": Image.fromarray(COLOURS[..., 0]).convert("1"),
    "L.jpg": Image.fromarray(COLOURS[..., 0]),
    "RGB.jpeg": Image.fromarray(COLOURS[..., :3]),
    "CMYK.JPG": Image.fromarray(COLOURS[..., :3]).convert("CMYK"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_what_pillow_shows(tmp_path, name):
    PICTURES[name].save(tmp_path / name)
    values, affine = read_image(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        expected = np.asarray(picture.convert("L" if name[:2] in ("L.", "LA", "1.") else "RGB"))
    assert values.dtype == np.uint8 and np.array_equal(values, expected) and np.array_equal(affine, np.eye(4))


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 1), (6, 3)])
def test_sixteen_bits_stay_sixteen_bits_in_grey_and_in_colour(tmp_path, kind, channels):
    values = rng.integers(0, 65536, (6, 5, {0: 1, 2: 3, 4: 2, 6: 4}[kind])).astype(np.uint16)
    read, _ = read_image(png(tmp_path / "deep.png", values, kind))
    expected = values[..., :channels].astype(np.float32)
    assert read.dtype == np.float32 and np.array_equal(read, expected[..., 0] if channels == 1 else expected)


def test_a_photograph_is_turned_as_viewers_turn_it(tmp_path):
    whole, turned = Image.new("L", (64, 32)), Image.Exif()
    whole.paste(255, (0, 0, 32, 32))
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    whole.save(tmp_path / "turned.jpg", exif=turned)
    values, _ = read_image(tmp_path / "turned.jpg")
    assert values.shape == (64, 32) and values[:30].mean() > 250 > 5 > values[34:].mean()


def test_a_grey_picture_among_coloured_ones_has_three_equal_channels(tmp_path):
    Image.fromarray(COLOURS[..., 0]).save(tmp_path / "grey.png")
    made = prepare([tmp_path / "grey.png"], None, Preprocessing(dims=2, channels=3, normalise="grey"))
    assert made.image.shape == (3, 9, 7) and (made.image == COLOURS[..., 0]).all()


def test_a_picture_of_another_kind_under_a_known_suffix_is_refused(tmp_path):
    for kind in ("gif", "bmp", "tiff"):
        PICTURES["L.png"].save(tmp_path / f"a.{kind}")
        (tmp_path / f"a.{kind}").rename(tmp_path / "a.png")
        refused(tmp_path / "a.png", "damaged, truncated or not an image")


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(COLOURS[..., i]) for i in range(3)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "moving.png", "3 pictures", "save the one")


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
    "badVR.dcm": ["damaged", "copy it again"],
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
    assert np.array_equal(first.image, second.image) and np.allclose(first.affine, second.affine, atol=1e-5)


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


# NIfTI headers -------------------------------------------------------------------------------------------------------

KINDS = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8"]
numbers = st.floats(-300, 300, width=32) | st.sampled_from([0.0, 1.0, -1.0])
wild = st.floats(width=32)


@st.composite
def niftis(draw) -> bytes:
    """A file's bytes: any data type, byte order, axes, affine by sform, qform or spacing alone, slope, extensions."""
    order, size = draw(st.sampled_from("<>")), draw(st.sampled_from([1, 1, 2]))
    kind = nibabel.Nifti1Header if size == 1 else nibabel.Nifti2Header
    header, some = kind(endianness=order), draw(st.sampled_from([numbers, numbers, wild]))
    dtype = np.dtype(draw(st.sampled_from(KINDS))).newbyteorder(order)
    shape = draw(st.lists(st.integers(1, 5), min_size=3, max_size=4))
    header.set_data_dtype(dtype)
    header["dim"][: len(shape) + 1] = len(shape), *shape
    header["pixdim"][1:4] = draw(st.lists(st.floats(0.25, 8, width=32) | some, min_size=3, max_size=3))
    header["pixdim"][0] = draw(st.sampled_from([1, -1, 0]))
    header["qform_code"], header["sform_code"] = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        header[name] = draw(st.floats(-0.5, 0.5, width=32) | some)
    for name in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = draw(some)
    for name in ("srow_x", "srow_y", "srow_z"):
        header[name] = draw(st.lists(some, min_size=4, max_size=4))
    header["scl_slope"], header["scl_inter"] = draw(some), draw(some)
    extensions = draw(st.integers(0, 2))
    block = struct.pack(f"{order}4B", min(extensions, 1), 0, 0, 0) + struct.pack(f"{order}2i8x", 16, 6) * extensions
    header["vox_offset"] = len(header.binaryblock) + len(block)
    if size == 1:
        header["magic"] = b"n+1"
    seed = np.random.default_rng(draw(st.integers(0, 99)))
    values = seed.integers(0, 100, shape) if dtype.kind in "iu" else seed.normal(0, 50, shape)
    return header.binaryblock + block + values.astype(dtype).tobytes(order="F")


def check_against_nibabel(path: Path) -> bool:
    """Is it read? Then its numbers are nibabel's, in RAS; else it was refused in one line."""
    try:
        values, affine = read_image(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return False
    channels = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
    if values.ndim > 4:
        return True
    ours, _, affine = reorient(channels, None, affine, "RAS")
    with np.errstate(all="ignore"):
        theirs = nibabel.as_closest_canonical(nibabel.load(path))
        expected = theirs.get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(np.moveaxis(ours, 0, -1) if values.ndim == 4 else ours[0], expected)
    np.testing.assert_array_equal(affine, theirs.affine)
    prepare([path], None, Preprocessing(dims=3, channels=len(ours), normalise="zscore"))
    return True


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=niftis(), zipped=st.booleans())
def test_any_header_gives_nibabel_s_numbers_in_ras_or_one_line(tmp_path, content, zipped):
    path = tmp_path / ("any.nii.gz" if zipped else "any.nii")
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    check_against_nibabel(path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    niftis(), st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 90)
)
def test_any_damage_to_a_header_gives_nibabel_s_numbers_or_one_line(tmp_path, content, damage, cut):
    spoilt = bytearray(content[: len(content) - cut])
    for place, byte in damage:
        if place < len(spoilt):
            spoilt[place] = byte
    (tmp_path / "any.nii").write_bytes(spoilt)
    check_against_nibabel(tmp_path / "any.nii")


def test_the_headers_that_are_tried_are_not_all_refused(tmp_path):
    """Otherwise the two tests above would show nothing."""
    read = []

    @settings(max_examples=60)
    @given(niftis())
    def look(content):
        (tmp_path / "any.nii").write_bytes(content)
        read.append(check_against_nibabel(tmp_path / "any.nii"))

    look()
    assert sum(read) > 15 < len(read) - sum(read)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """Files of every kind, by name."""
    folder = tmp_path_factory.mktemp("whole")
    for name, picture in PICTURES.items():
        picture.save(folder / name)
    png(folder / "deep.png", rng.integers(0, 65536, (6, 5, 3)), 2)
    names = ("MR_small", "MR_small_RLE", "MR_small_jp2klossless", "SC_rgb_small_odd_jpeg", "CT_small")
    dicoms = {f"{name}.dcm": shipped(f"{name}.dcm").read_bytes() for name in names}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | dicoms


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_a_picture_gives_numbers_or_one_line(whole, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    places = st.integers(0, min(len(content), 2500) - 1) | st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        content[place] = byte
    (tmp_path / name).write_bytes(content[: data.draw(st.just(len(content)) | places)])
    for shown in (True, False):
        try:
            values, _ = read_image(tmp_path / name, shown)
            assert values.dtype in (np.uint8, np.float32) and np.isfinite(values).all()
        except UserError as error:
            assert str(error).startswith(f"{tmp_path / name}: ") and "\n" not in str(error)


# Bombs ---------------------------------------------------------------------------------------------------------------


def header(shape: tuple[int, ...], **fields) -> bytes:
    made = nibabel.Nifti1Header()
    made.set_data_dtype(np.uint8)
    made["dim"][: len(shape) + 1] = len(shape), *shape
    made["magic"], made["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        made[name] = value
    return made.binaryblock + bytes(4)


def refused_cheaply(path: Path, *words: str) -> None:
    """Before 16 MB are taken."""
    tracemalloc.start()
    try:
        refused(path, *words)
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


ZEROS = bytes(2**20)


def bomb(path: Path, start: bytes, megabytes: int) -> Path:
    with gzip.open(path, "wb", 1) as file:
        file.write(start)
        for _ in range(megabytes):
            file.write(ZEROS)
    return path


def test_a_zipped_volume_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    refused_cheaply(bomb(tmp_path / "a.nii.gz", header((4, 4, 4)), 64), "unpacks to far more than its header says")


def test_a_zipped_volume_that_says_more_than_it_can_hold_is_refused(tmp_path):
    refused_cheaply(bomb(tmp_path / "a.nii.gz", header((1000, 1000, 1000)), 1), "truncated", "copy it again")


def test_a_volume_of_an_absurd_shape_is_refused(tmp_path):
    refused_cheaply(
        bomb(tmp_path / "a.nii.gz", header((30000, 30000, 30000)), 1), "claims the shape (30000, 30000, 30000)"
    )
    for shape in ((0, 4, 4), (-3, 4, 4)):
        refused_cheaply(bomb(tmp_path / "a.nii.gz", header(shape), 1), "claims the shape")


def test_a_header_that_goes_on_and_on_is_refused(tmp_path):
    endless = header((4, 4, 4), vox_offset=2**30)[:348] + b"\1\0\0\0" + struct.pack("<2i", 2**30 - 352, 6)
    refused_cheaply(bomb(tmp_path / "a.nii.gz", endless, 64), "puts the voxels at byte 1073741824")


def test_a_picture_of_an_absurd_size_is_refused(tmp_path):
    whole = bytearray(png(tmp_path / "a.png", np.zeros((4, 4, 1)), 0).read_bytes())
    whole[16:24] = struct.pack(">II", 60000, 60000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    (tmp_path / "a.png").write_bytes(whole)
    refused_cheaply(tmp_path / "a.png", "a.png")


def test_a_dicom_picture_of_an_absurd_size_is_refused(tmp_path):
    whole = pydicom.dcmread(shipped("MR_small_RLE.dcm"))
    whole.Rows, whole.Columns = 40000, 40000
    whole.save_as(tmp_path / "a.dcm")
    refused_cheaply(tmp_path / "a.dcm", "claims 40000 × 40000 pixels")


def test_a_series_of_an_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_module.geometry, "MAX_VOXELS", 6 * 5 * 7)
    refused_cheaply(ct_series(tmp_path / "series", VALUES), "claim the shape (6, 5, 8)")
