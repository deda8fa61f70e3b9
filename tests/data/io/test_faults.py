"""Faults put into real files: each ends in one line that names the file and the mend, on the way a user takes."""

import csv
import gzip
import json
import shutil
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from support.spoiling import (
    Spoil,
    a_folder,
    bytes_at,
    coloured,
    cut,
    deep,
    fields,
    flat,
    line,
    linked,
    not_a_number,
    of_entry,
    of_label,
    saved_as,
    semicolons,
    swapped,
    voxels,
    written,
)

from premed.data.cache import Cache
from premed.errors import UserError
from premed.tasks import images, msd

NUM = 6


@pytest.fixture
def pictures(real, tmp_path) -> Path:
    """Six of the NIH's X-rays, 1.png … 6.png, and a table."""
    found = sorted((real("chestxray14") / "images").glob("*.png"))[:NUM]
    for number, path in enumerate(found, 1):
        shutil.copy(path, tmp_path / f"{number}.png")
    return listed(tmp_path, "png")


@pytest.fixture
def photographs(pictures) -> Path:
    """The same as JPEG."""
    for path in sorted(pictures.glob("*.png")):
        Image.open(path).convert("L").save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return listed(pictures, "jpg")


@pytest.fixture
def dicoms(tmp_path) -> Path:
    """pydicom's own files."""
    names = ["MR_small", "CT_small", "MR_small_RLE", "JPEG2000", "MR_small_implicit", "693_J2KI"]
    for number, name in enumerate(names, 1):
        shutil.copy(str(get_testdata_file(f"{name}.dcm", download=False)), tmp_path / f"{number}.dcm")
    return listed(tmp_path, "dcm")


@pytest.fixture
def volumes(real, tmp_path) -> Path:
    """Six hippocampi."""
    found = sorted((real("Task04_Hippocampus") / "imagesTr").glob("h*.nii.gz"))[:NUM]
    for number, path in enumerate(found, 1):
        shutil.copy(path, tmp_path / f"{number}.nii.gz")
    return listed(tmp_path, "nii.gz")


@pytest.fixture
def decathlon(real, tmp_path) -> Path:
    """Ten hippocampi with labels, as the decathlon lays them out."""
    folder = real("Task04_Hippocampus")
    about = json.loads((folder / "dataset.json").read_text())
    about["training"] = about["training"][:10]
    for entry in about["training"]:
        for path in (entry["image"], entry["label"]):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            shutil.copy(folder / path, tmp_path / path)
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    return tmp_path


def listed(folder: Path, suffix: str) -> Path:
    lines = [f"{i}.{suffix},p{i},{'train' if i < NUM - 1 else 'val'},{i % 2}" for i in range(1, NUM + 1)]
    (folder / "labels.csv").write_text("\n".join(["path,patient,part,sick", *lines]) + "\n")
    return folder


def prepared(root: Path, **settings) -> None:
    """What a user's command comes to, before anything is trained."""
    if (root / "dataset.json").exists():
        task = msd.build(msd.Config(root=root, roi=(16, 16, 16)))
    else:
        volumes = (root / "1.nii.gz").exists() or (root / "2.nii.gz").exists()
        shape = {"dims": 3, "roi": (16, 16, 16)} if volumes else {"roi": (32, 32)}
        task = images.build(images.Config(root=root, **shape | {"labels": ("sick",)} | settings))
    parts = ("train", "val", "test") if (root / "dataset.json").exists() else ("train", "val")
    Cache(root / "cache").prepare([case for part in parts for case in task.split(part)], task.preprocessing)


DAMAGED, TABLE = "damaged, truncated or not an image", "labels.csv"
FAULTS: dict[str, tuple[str, Spoil, list[str]]] = {
    # PNG
    "png of 0 bytes": ("pictures", written("1.png", b""), ["1.png: the file is empty (0 bytes); copy it again"]),
    "png cut short": ("pictures", cut("1.png", 0.6), ["1.png", DAMAGED, "copy it again"]),
    "png cut in its header": ("pictures", cut("1.png", 0.008), ["1.png", DAMAGED]),
    "png with a flipped byte": ("pictures", bytes_at("1.png", 200, b"\xff\x00"), ["1.png", DAMAGED]),
    "a web page": ("pictures", written("1.png", b"<html>404 not found</html>"), ["1.png", DAMAGED]),
    "png 60000 pixels wide": ("pictures", bytes_at("1.png", 16, struct.pack(">2I", 60000, 60000)), ["1.png"]),
    "gif called png": ("pictures", saved_as("1.png", "GIF"), ["1.png", DAMAGED]),
    "16 bits": ("pictures", deep, ["1.png: not 8 bit", "normalise: zscore"]),
    "a coloured png": ("pictures", coloured("1.png"), ["1.png: 3 channel(s), 1 expected"]),
    "a folder called png": ("pictures", a_folder("1.png"), ["1.png: holds 0 DICOM slice(s)"]),
    # JPEG
    "jpeg cut short": ("photographs", cut("1.jpg", 0.5), ["1.jpg", DAMAGED, "truncated"]),
    "jpeg without its start": ("photographs", bytes_at("1.jpg", 0, b"\0\0\0"), ["1.jpg", DAMAGED]),
    "jpeg without its tables": ("photographs", bytes_at("1.jpg", 20, bytes(120)), ["1.jpg", DAMAGED]),
    "a coloured jpeg": ("photographs", coloured("1.jpg"), ["1.jpg: 3 channel(s)"]),
    # DICOM
    "dicom cut short": ("dicoms", cut("1.dcm", 0.9), ["1.dcm", "truncated", "copy it again"]),
    "dicom cut in its header": ("dicoms", cut("1.dcm", 0.05), ["1.dcm", "copy it again"]),
    "dicom without its mark": ("dicoms", bytes_at("1.dcm", 128, b"xxxx"), ["1.dcm: not DICOM", "dcmconv"]),
    "several frames": ("dicoms", swapped("1.dcm", "rtdose.dcm"), ["1.dcm: holds 15 frames", "dcm2niix"]),
    "a report": ("dicoms", swapped("1.dcm", "reportsi.dcm"), ["1.dcm: holds no picture", "leave it out"]),
    "JPEG-LS": (
        "dicoms",
        swapped("1.dcm", "MR_small_jpeg_ls_lossless.dcm"),
        ["1.dcm: compressed as", "gdcmconv --raw"],
    ),
    "12-bit JPEG": ("dicoms", swapped("1.dcm", "JPEG-lossy.dcm"), ["1.dcm: JPEG Extended", "12-bit", "gdcmconv --raw"]),
    "deflated": ("dicoms", swapped("1.dcm", "image_dfl.dcm"), ["1.dcm: a deflated data set", "dcmconv"]),
    "RLE with a hole": ("dicoms", cut("3.dcm", 0.8), ["3.dcm", "copy it again"]),
    "dicom too wide": ("dicoms", fields("1.dcm", Rows=60000, Columns=60000), ["1.dcm: its header claims 60000"]),
    "dicom of other bits": ("dicoms", fields("1.dcm", BitsAllocated=13), ["1.dcm", "copy it again"]),
    "a coloured dicom": ("dicoms", swapped("1.dcm", "SC_rgb_rle.dcm"), ["1.dcm: 3 channel(s)"]),
    # NIfTI
    "nifti cut short": ("volumes", cut("1.nii.gz", 0.5), ["1.nii.gz", DAMAGED, "copy it again"]),
    "nifti cut in its header": ("volumes", cut("1.nii.gz", 0.002), ["1.nii.gz", "copy it again"]),
    "a flipped bit in the zip": ("volumes", bytes_at("1.nii.gz", 9000, b"\x55\xaa"), ["1.nii.gz", DAMAGED]),
    "a wrong checksum": ("volumes", bytes_at("1.nii.gz", -8, b"\x55\xaa"), ["1.nii.gz", "CRC"]),
    "no zip": ("volumes", written("1.nii.gz", b"hello " * 200), ["1.nii.gz", "not NIfTI; copy it again"]),
    "a header of another size": ("volumes", bytes_at("1.nii.gz", 0, b"\x07\0\0\0", True), ["1.nii.gz", "not NIfTI"]),
    "an absurd shape": (
        "volumes",
        bytes_at("1.nii.gz", 42, b"\x30\x75" * 3, True),
        ["claims the shape (30000, 30000, 30000)"],
    ),
    "more than it holds": ("volumes", bytes_at("1.nii.gz", 42, b"\x60\0" * 3, True), ["1.nii.gz", DAMAGED]),
    "an unknown data type": ("volumes", bytes_at("1.nii.gz", 70, b"\x11\x27", True), ["1.nii.gz", DAMAGED]),
    "complex numbers": ("volumes", bytes_at("1.nii.gz", 70, b"\x20\0", True), ["holds complex64, not plain numbers"]),
    "voxels far away": (
        "volumes",
        bytes_at("1.nii.gz", 108, struct.pack("<f", 1e9), True),
        ["puts the voxels at byte"],
    ),
    "a lost voxel": ("volumes", voxels("1.nii.gz", not_a_number), ["1.nii.gz: 1 values are NaN or infinite"]),
    "a flat affine": ("volumes", flat, ["1.nii.gz: its affine cannot be inverted; fix the header"]),
    "two channels": ("volumes", voxels("1.nii.gz", lambda v: np.stack([v, v], -1)), ["1.nii.gz: 2 channel(s)"]),
    "a slice": ("volumes", voxels("1.nii.gz", lambda v: v[..., 0]), ["1.nii.gz: 2 axes; 3"]),
    # CSV
    "no table": ("pictures", lambda root: (root / TABLE).unlink(), [f"{TABLE} is missing", "task.table"]),
    "an empty table": ("pictures", written(TABLE, b""), [f"{TABLE}: is empty", "first line must name the columns"]),
    "a header alone": ("pictures", written(TABLE, b"path,patient,part,sick\n"), [f"{TABLE}: has a header and no row"]),
    "Latin-1": ("pictures", line(2, "1.png,Müller,train,1"), []),
    "a table in Latin-1": (
        "pictures",
        written(TABLE, "path,patient,part,sick\n1.png,Müller,train,1\n".encode("latin-1")),
        [f"{TABLE}: is not UTF-8 (byte 30)", "save it as CSV UTF-8"],
    ),
    "semicolons": ("pictures", semicolons, ["column 'path' is not among path;patient;part;sick", "task.delimiter"]),
    "no such column": (
        "pictures",
        line(1, "path,patient,part,ill"),
        ["column 'sick' is not among path, patient", "task.labels"],
    ),
    "a column twice": ("pictures", line(1, "path,path,part,sick"), ["column 'path' is there twice"]),
    "a line too long": ("pictures", line(3, "2.png,p2,train,1,7"), [f"{TABLE}: is not a table", "line 3"]),
    "an open quote": ("pictures", line(7, '"6.png,p6,val,1'), [TABLE, "is not a table"]),
    "a path outside": (
        "pictures",
        line(2, "../../1.png,p1,train,1"),
        [f"{TABLE}, line 2: ../../1.png leads out of the folder"],
    ),
    "an absolute path": (
        "pictures",
        line(2, "/etc/passwd,p1,train,1"),
        ["line 2: /etc/passwd leads out of the folder"],
    ),
    "a link outside": ("pictures", linked, ["1.png: leads out of the folder, by a link; keep images inside it"]),
    "no path": ("pictures", line(2, ",p1,train,1"), [f"{TABLE}, line 2: has no path"]),
    "a row twice": (
        "pictures",
        line(3, "./1.png,p1,train,1"),
        ["line 3: ./1.png is listed in line 2 already; keep one"],
    ),
    "no image": ("pictures", line(2, "x/9.png,p1,train,1"), ["x/9.png: is missing", "task.partial=true"]),
    "a label of 2": ("pictures", line(2, "1.png,p1,train,2"), ["line 2: '2' in column sick is neither 1, 0 nor empty"]),
    "an unknown part": (
        "pictures",
        line(2, "1.png,p1,dev,1"),
        ["line 2: 'dev' in column part is none of", "task.parts"],
    ),
    "a patient in two": ("pictures", line(7, "6.png,p1,val,1"), ["patient p1 is in train and val", "in one part"]),
    "a volume": (
        "pictures",
        line(2, "1.nii.gz,p1,train,1"),
        ["line 2: '1.nii.gz' in column path is not the path of a picture"],
    ),
    "a picture": (
        "volumes",
        line(2, "1.png,p1,train,1"),
        ["line 2: '1.png' in column path is not the path of a volume"],
    ),
    # JSON and what it lists
    "JSON cut short": ("decathlon", cut("dataset.json", 0.5), ["dataset.json is not JSON", "download it again"]),
    "JSON in UTF-16": ("decathlon", written("dataset.json", "{}".encode("utf-16")), ["dataset.json is not JSON"]),
    "a way out": (
        "decathlon",
        of_entry(lambda e: e | {"image": "../x.nii.gz"}),
        ["../x.nii.gz leads out of the folder"],
    ),
    "a label of another shape": (
        "decathlon",
        of_label(lambda path: nibabel.save(nibabel.load(path).slicer[1:], path)),
        ["labelsTr", "its shape", "resample it onto that grid"],
    ),
    "a label of fractions": (
        "decathlon",
        of_label(lambda path: voxels(path.name, lambda v: v * np.float32(0.5))(path.parent)),
        ["labelsTr", "labels must be whole numbers in 0..255"],
    ),
}
FINE = {"Latin-1"}  # in UTF-8 it is a name like any other


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_a_real_file_is_one_line_with_file_and_mend(what, request):
    source, spoil, words = FAULTS[what]
    root = request.getfixturevalue(source)
    spoil(root)
    if what in FINE:
        prepared(root)
        return
    with pytest.raises(UserError) as caught:
        prepared(root)
    message = str(caught.value)
    assert "\n" not in message and [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("source", ["pictures", "photographs", "dicoms", "volumes", "decathlon"])
def test_without_a_fault_each_folder_is_prepared(source, request):
    prepared(request.getfixturevalue(source))


def test_what_is_whole_is_prepared_beside_a_damaged_file(volumes):
    cut("6.nii.gz", 0.5)(volumes)
    with pytest.raises(UserError, match=r"6\.nii\.gz"):
        prepared(volumes)
    assert len(list((volumes / "cache").glob("??/*.safetensors"))) == NUM - 1


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(pictures):
    table = (pictures / TABLE).read_text()
    (pictures / TABLE).write_bytes(("\ufeff" + table.replace("\n", "\r\n") + "\r\n").encode())
    prepared(pictures)


def test_a_listing_in_json_may_begin_with_a_byte_order_mark(decathlon):
    (decathlon / "dataset.json").write_text((decathlon / "dataset.json").read_text(), encoding="utf-8-sig")
    prepared(decathlon)


def test_a_volume_is_read_whether_its_name_says_that_it_is_zipped_or_not(volumes):
    """Browsers unpack what they save and keep its name."""
    (volumes / "1.nii.gz").write_bytes(gzip.decompress((volumes / "1.nii.gz").read_bytes()))
    (volumes / "2.nii.gz").rename(volumes / "2.nii")
    line(3, "2.nii,p2,train,0")(volumes)
    prepared(volumes)


def test_an_empty_slope_in_a_dicom_header_is_none(dicoms):
    fields("1.dcm", RescaleSlope="", RescaleIntercept=None)(dicoms)
    prepared(dicoms)


@pytest.mark.parametrize("name", ["Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"])
def test_nih_s_files_in_another_encoding_are_refused(real, tmp_path, name):
    from premed.tasks import chestxray14

    for file in ("Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"):
        shutil.copy(real("chestxray14") / file, tmp_path / file)
    (tmp_path / name).write_bytes("Müller\n".encode("latin-1") + (tmp_path / name).read_bytes())
    task = chestxray14.build(chestxray14.Config(root=tmp_path, partial=True))
    with pytest.raises(UserError, match=f"{name}: is not UTF-8 \\(.* at byte 1\\); save it as UTF-8"):
        task.names("test_list.txt"), task.names("train_val_list.txt"), task.rows


def test_nih_s_table_with_a_field_without_end_is_refused(real, tmp_path):
    from premed.tasks import chestxray14

    table = (real("chestxray14") / "Data_Entry_2017_v2020.csv").read_text()
    (tmp_path / "Data_Entry_2017.csv").write_text(table.replace("\n", '\n"', 1) + " " * csv.field_size_limit())
    with pytest.raises(UserError, match=r"Data_Entry_2017\.csv: is not a table .*; download it again"):
        _ = chestxray14.build(chestxray14.Config(root=tmp_path)).rows
