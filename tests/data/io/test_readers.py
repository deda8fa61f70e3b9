"""Files to numbers: equal to what Pillow, nibabel, MONAI and DICOM's own formulas give, or refused in one line."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.readers import refused, refused_cheaply, rng, shipped
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.data.io.geometry import reorient
from premed.data.io.readers import read_image
from premed.data.preprocess import prepare
from premed.errors import UserError

GREY = Preprocessing(dims=2, normalise="grey")


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
    millimetres = {1: 1e3, 3: 1e-3}.get(int(theirs.header["xyzt_units"]) % 8, 1)  # which nibabel leaves to its callers
    np.testing.assert_array_equal(affine[:3], theirs.affine[:3] * millimetres)
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
