"""Files that are none, and files that ask for all the memory: one line, no hang."""

import csv
import gzip
import io
import os
import re
import signal
import socket
from contextlib import contextmanager

import nibabel
import numpy as np
import pandas
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_tables import folder as folder
from support.image_tables import rows, write_table
from support.image_tables import task as image_task
from support.made_up import ct_series
from support.nnunet import raw
from support.nnunet import task as nnunet_task
from support.readers import refused_cheaply, shipped
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data import content
from premed.data.io import dicom_series, geometry, memory
from premed.data.io.dicom_tree import read_head
from premed.data.io.headers import read_header
from premed.data.io.readers import read_file
from premed.errors import MOST_SIGNS, UserError, brief, shortened
from premed.inference.inputs import prepare_sample
from premed.models.pretrained import read_weights
from premed.safety.files import MOST_JSON, MOST_TABLE, csv_line, refuse_irregular, spreadsheet_cell
from premed.tasks.common.files import read_json
from premed.tasks.common.image_tree import find_images
from premed.tasks.common.table import read_table
from premed.training.checkpoint import Checkpoint, CheckpointManager
from premed.training.storage import StageStorage


@contextmanager
def at_once(seconds=20):
    """Fails if the block takes longer, whatever it waits in."""

    def stop(*_):
        raise TimeoutError("waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make(kind, path):
    """A path that is no regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)
    return path


PREPROCESSING = Preprocessing(dims=2, size=(8, 8), normalise="grey")
READERS = {
    "image.nii.gz": lambda path: read_file(path),
    "image.nii": lambda path: read_header(path),
    "image.png": lambda path: read_file(path),
    "image.dcm": lambda path: read_file(path),
    "IM0001": lambda path: read_file(path),
    "head.dcm": lambda path: read_head(path),
    "bytes.png": lambda path: content.hash_file(path),
    "predicted.png": lambda path: prepare_sample(path, PREPROCESSING).__enter__(),
    "labels.csv": lambda path: read_table(path),
    "dataset.json": lambda path: read_json(path, ""),
    "weights.safetensors": lambda path: read_weights(path),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["fifo", "link to a device", "socket"])
def test_what_is_no_file_is_refused_and_never_read(tmp_path, name, kind):
    path = make(kind, tmp_path / name)
    with at_once(), pytest.raises(UserError) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value) and "not a file; replace it" in str(caught.value)


LATIN = b"M\xfcller.png"


def test_a_name_that_is_not_utf_8_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / os.fsdecode(LATIN)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    for use in (lambda: Case("a", "", (path,)), lambda: Case(path.stem, "", ()), lambda: find_images(tmp_path)):
        with pytest.raises(UserError, match=r"M\\xfcller.*: its name is not UTF-8; rename it"):
            use()


def test_where_names_are_read_as_another_encoding_the_files_are_not_to_be_renamed(tmp_path, monkeypatch):
    """LC_ALL=C with PYTHONUTF8=0, or a locale of ISO 8859: the name is good UTF-8, and convmv would spoil it."""
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match="names of files are read as ascii here; set PYTHONUTF8=1"):
        Case("M\udcc3\udcbcller", "", ())


def test_links_to_nothing_are_no_images_and_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "lost.dcm").symlink_to(tmp_path / "nowhere")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert find_images(tmp_path).names == ["a.png"]
    (tmp_path / "below").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="below: cannot be read [(]Permission denied[)]; its images would be missing"):
        find_images(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "link to a device"])
def test_an_image_of_a_table_or_a_listing_that_is_no_file_is_found_by_name(folder, tmp_path, kind):
    root = folder()
    (root / "pictures/0.png").unlink()
    make(kind, root / "pictures/0.png")
    with at_once(), pytest.raises(UserError, match="0.png: "):
        for case in image_task(root).split("train"):
            content.hash_file(case.image[0])
    listed = {f"c{i}": {"images": [f"x{i}.nii.gz"] * 2, "label": f"y{i}.nii.gz"} for i in range(9)}
    data = raw(tmp_path / "raw", dataset=listed)
    make(kind, data / "x3.nii.gz")
    with at_once(), pytest.raises(UserError, match=r"x3.nii.gz (is a named pipe, not a file|leads out of the folder)"):
        nnunet_task(data).split("train")


def test_a_table_and_a_listing_of_any_size_are_refused_unread(tmp_path):
    listing = lambda path: read_json(path, "")  # noqa: E731
    for name, most, read in (("a.csv", MOST_TABLE, read_table), ("a.json", MOST_JSON, listing)):
        with (tmp_path / name).open("w") as file:
            file.truncate(most + 1)
        with pytest.raises(UserError, match=f"{name}: has .* MiB, and .* are the most here"):
            read(tmp_path / name)
    refuse_irregular(tmp_path / "nothing")


# Paths ---------------------------------------------------------------------------------------------------------------


def test_a_table_is_below_the_root_or_named_by_an_absolute_path(folder, tmp_path):
    root = folder()
    write_table(tmp_path, rows(), "beside.csv")
    for leaving in ("../beside.csv", "pictures/../../beside.csv"):
        with pytest.raises(UserError, match=r"task.table: .*beside.csv leads out of .*; .* absolute path$"):
            image_task(root, table=leaving)
    assert image_task(root, table=str(tmp_path / "beside.csv")).split("train")
    (root / "linked.csv").symlink_to(tmp_path / "beside.csv")  # data sets made of links are common
    assert image_task(root, table="linked.csv").split("train")
    data = raw(tmp_path / "raw")
    (tmp_path / "listing.json").write_text((data / "dataset.json").read_text())
    with pytest.raises(UserError, match=r"task.listing: \.\./listing.json leads out of"):
        nnunet_task(data, listing="../listing.json")
    with pytest.raises(UserError, match="leads out of the folder"):
        nnunet_task(data, splits="../splits.json").split("train")


def test_a_series_made_of_links_is_read_and_a_link_to_nothing_is_not_left_out_silently(tmp_path):
    ct_series(tmp_path / "archive", np.arange(8 * 7 * 6, dtype=np.int16).reshape(8, 7, 6))
    linked = tmp_path / "linked"
    linked.mkdir()
    files = sorted((tmp_path / "archive").iterdir())
    for file in files:
        (linked / file.name).symlink_to(file)
    assert (read_file(linked).values == read_file(tmp_path / "archive").values).all()
    files[-1].unlink()  # the last slice: without it the others are evenly spaced
    lost = linked / files[-1].name
    with pytest.raises(UserError, match=f"^{lost}: is a link to .*, which is not there; mend or remove it$"):
        read_file(linked)
    lost.unlink()
    assert read_file(linked).values.shape[2] == 5
    os.mkfifo(linked / "z")
    with at_once(), pytest.raises(UserError, match="/z: is a named pipe, not a file"):
        read_file(linked)


# Memory --------------------------------------------------------------------------------------------------------------


def zeros(path, shape):
    """A gzip of so many zeros, uint8, that takes a thousandth of them."""
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(shape[0]):
            file.write(bytes(shape[1] * shape[2]))
    return path


def test_an_image_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = zeros(tmp_path / "a.nii.gz", (200, 512, 1100))  # 0.11 MB; as uint8 and twice as float32: 9 bytes a voxel
    monkeypatch.setattr(memory, "memory", lambda: (64.0, 1.0))
    need = 200 * 512 * 1100 * 9 / 1e9
    refused_cheaply(path, "200 × 512 × 1100", f"need {need:.1f} GB of memory, and 1.0 GB are free")
    assert read_header(path).shape  # which needs no memory


def test_a_series_beyond_the_memory_is_refused_before_its_pixels_are_read(tmp_path, monkeypatch):
    ct_series(tmp_path / "series", np.zeros((8, 7, 6), np.int16))
    monkeypatch.setattr(memory, "LITTLE", 0)
    monkeypatch.setattr(memory, "memory", lambda: (64.0, 2e-6))
    monkeypatch.setattr(dicom_series, "pixels", lambda *given: pytest.fail("read"))
    with pytest.raises(UserError, match="8 × 7 × 6 values need 0.0 GB of memory, and 0.0 GB are free"):
        read_file(tmp_path / "series")


def test_a_grid_that_spacing_makes_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: (64.0, 1.0))
    values, affine = np.zeros((1, 50, 50, 50), np.float32), np.diag([10.0, 10, 10, 1])
    with pytest.raises(UserError, match=r"spacing: .* 1 × 491 × 491 × 491 values need 0.9 GB|are free"):
        geometry.resample_to_spacing(values, None, affine, (0.8, 0.8, 0.8))


def test_free_memory_counts_a_container_s_limit_and_not_its_files_that_were_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    before = memory.memory()
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    assert memory.memory() == (1.0, pytest.approx(0.1)) and before[0] > 1
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000000\nactive_file 200000000\n")
    assert memory.memory() == (1.0, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "50000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cpus_count_a_container_s_quota(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert memory.num_cpus() == (expected or 64)


# Messages and cells --------------------------------------------------------------------------------------------------


def test_a_message_has_a_length_that_people_read():
    error = UserError(f"a.yaml: {'x' * 191_972}; fix it")
    assert len(str(error)) <= MOST_SIGNS
    assert str(error).startswith("a.yaml: xx") and str(error).endswith("xx; fix it") and "characters] …" in str(error)
    kept, cut, end = re.fullmatch(r"(\W*) … \[(\d+) characters\] … (\W*)", shortened("." * 5000)).groups()
    assert len(kept) + int(cut) + len(end) == 5000
    assert len(brief("\0" * 10_000)) <= MOST_SIGNS and brief("a\nb") == "a\\nb"


@pytest.mark.parametrize("value", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "-"])
def test_text_that_a_spreadsheet_would_run_is_quoted(value):
    assert spreadsheet_cell(value) == f"'{value}"


@pytest.mark.parametrize("value", ["-0.5", "+1e-3", "-inf", -0.5, 3, "", None, True, "case-1", "/data/=x.png", "a=b"])
def test_numbers_and_other_text_stay_as_they_are(value):
    assert spreadsheet_cell(value) is value


@pytest.mark.parametrize("cell", ["a\rb.png", "a\r\nb", "a\nb", 'a"b', "a,b", " a ", "\r", "a\r\n", ""])
def test_a_line_of_a_csv_is_read_as_it_was_written(cell, tmp_path):
    (tmp_path / "a.csv").write_text(csv_line(["path", "score"]) + csv_line([cell, 0.5]), newline="")
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file)) == [["path", "score"], [cell, "0.5"]]
    read = pandas.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert read.to_dict("list") == {"path": [cell], "score": [0.5]}


# Fuzz ----------------------------------------------------------------------------------------------------------------

SAMPLES = {
    "nifti.nii": nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes(),
    "zipped.nii.gz": gzip.compress(nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4)).to_bytes()),
    "second.nii": nibabel.Nifti2Image(np.ones((3, 4, 5), np.uint8), np.eye(4)).to_bytes(),
    "dicom.dcm": shipped("CT_small.dcm").read_bytes(),
    "table.csv": b'path,label,part\na.png,1,train\n"b,c.png",0,val\n',
    "dataset.json": b'{"labels": {"background": 0, "a": 1}, "training": [{"image": "a", "label": "b"}], "n": [1e5]}',
}
FUZZED = {
    ".nii": read_file,
    ".gz": read_file,
    ".dcm": read_file,
    ".csv": read_table,
    ".json": lambda path: read_json(path, "missing"),
}
HOW = ["set", "cut", "insert", "remove"]
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(HOW), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def changed(whole, changes):
    """`whole` with bytes overwritten, cut off, put in and taken out; mostly in its first 400, where headers are."""
    for where, how, new in changes:
        at = where % min(len(whole), 400) if where % 4 and whole else where % (len(whole) + 1)
        parts = {
            "set": (whole[:at], new, whole[at + len(new) :]),
            "cut": (whole[:at],),
            "insert": (whole[:at], new, whole[at:]),
            "remove": (whole[:at], whole[at + len(new) :]),
        }
        whole = b"".join(parts[how])
    return whole


def own_folder(tmp_path_factory):
    """A folder for all examples; in that of all tests a dataset.json would be a file above each of theirs."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=examples(400, least=60))
@given(changes=CHANGES)
def test_fuzz_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, name, changes):
    path = own_folder(tmp_path_factory) / name
    path.write_bytes(changed(SAMPLES[name], changes))
    with at_once(60):
        try:
            FUZZED[path.suffix](path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=examples(200, least=40))
@given(st.sampled_from(["pt", "json"]), CHANGES)
def test_fuzz_a_damaged_checkpoint_is_whole_or_unusable(tmp_path_factory, suffix, changes):
    storage = StageStorage(str(own_folder(tmp_path_factory)), "stage")
    storage.clear("checkpoints")
    manager = CheckpointManager(storage)
    manager.write(Checkpoint(3, {"weights": torch.arange(5.0)}, {"curve": [1.5]}))
    name = f"checkpoints/000000003.{suffix}"
    storage.put(name, changed(storage.get(name), changes))
    with at_once(60):
        newest = manager.newest()
    if newest is not None:
        assert torch.equal(newest.state["weights"], torch.arange(5.0)) and newest.notes == {"curve": [1.5]}
    else:
        assert all(reason and "\n" not in reason for reason in manager.unusable.values())


def saved_weights():
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.arange(5.0)}}, buffer)
    return {".pt": buffer.getvalue(), ".safetensors": safetensors.torch.save({"a.weight": torch.arange(5.0)})}


@settings(max_examples=examples(200, least=40))
@given(st.sampled_from(sorted(saved_weights())), CHANGES)
def test_fuzz_damaged_weights_of_other_people_are_read_or_refused_in_one_line(tmp_path_factory, suffix, changes):
    path = own_folder(tmp_path_factory) / f"weights{suffix}"
    path.write_bytes(changed(saved_weights()[suffix], changes))
    with at_once(60):
        try:
            read_weights(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
