"""Prepared images on disk: whatever a disk does to a file, no other grey value is handed out without a word."""

import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data import cache as module
from premed.data import found, prepared
from premed.data.cache import Cache
from premed.errors import UserError

nib = pytest.importorskip("nibabel")


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    for name, values in (("image", rng.normal(100, 30, (9, 8, 7))), ("label", rng.integers(0, 3, (9, 8, 7)))):
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    return Case("a", "a", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


@pytest.fixture
def preprocessing():
    return Preprocessing(dims=3, normalise="zscore")


def everything(file):
    labels = {label: file.locations(label) for label in file.counts}
    return [file.image(), file.label(), *labels.values(), file.affine, file.native_affine, np.array(file.counts)]


def turned(path, at, bit):
    """Turns a bit of a file, of which premed remembers nothing."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(0, time.time_ns()))  # a file system's clock may stand still for some milliseconds
    prepared.header.cache_clear()


@settings(max_examples=examples(60, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_bit_that_turns_is_seen_wherever_it_is(case, preprocessing, tmp_path, data):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole, before = file.path.read_bytes(), everything(file)
    turned(file.path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
    (again,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    prepared.header.cache_clear()
    assert all(np.array_equal(one, other) for one, other in zip(before, everything(again), strict=True))
    assert again.path == file.path


@pytest.mark.slow
def test_any_bit_of_a_header_that_turns_is_seen_or_changes_nothing(case, preprocessing, tmp_path):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole, before = file.path.read_bytes(), everything(file)
    copy = tmp_path / "copy.safetensors"
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        for bit in range(8):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            copy.write_bytes(content)
            prepared.header.cache_clear()
            if prepared.read_notes(copy) is None:
                with pytest.raises(
                    UserError, match=rf"^{copy}: cannot be used \(it is damaged\); run the same command"
                ):
                    _ = prepared.PreparedFile(copy).shape
            else:
                after = everything(prepared.PreparedFile(copy))
                assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_file_that_was_removed_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a: cannot be used \(No such file or directory\); run the same command again"):
        prepared.PreparedFile(tmp_path / "a").image()


def test_a_damaged_image_is_prepared_anew_and_told(case, preprocessing, tmp_path):
    messages = []
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole = file.path.read_bytes()
    turned(file.path, -1, 3)
    assert Cache(tmp_path / "cache").open(case, preprocessing) is None
    (again,) = Cache(tmp_path / "cache").prepare([case], preprocessing, notify=lambda *note: messages.append(note))
    assert again.path.read_bytes() == whole
    assert messages == [(file.path, ("was damaged on its disk: it was prepared anew", False))]


@pytest.fixture
def verified(monkeypatch):
    """The sizes of the arrays that are verified."""
    sizes, checksum = [], prepared.checksum

    def watch(content):
        if isinstance(content, np.ndarray):
            sizes.append(content.nbytes)
        return checksum(content)

    monkeypatch.setattr(prepared, "checksum", watch)
    return sizes


def test_what_is_read_is_verified_once_on_a_machine_and_never_by_a_reader(
    case, preprocessing, tmp_path, verified, monkeypatch
):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)  # as it is written
    del verified[:]
    for _ in range(2):
        Cache(tmp_path / "cache").prepare([case], preprocessing)
        everything(file)
        assert Cache(tmp_path / "cache").open(case, preprocessing) and verified == []
    (tmp_path / "cache" / "contents.sqlite").unlink()  # another process on another machine, say
    found._FOUND.clear()
    Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert sum(verified) == sum(each.nbytes for each in (file.stored(), file.label(), locations(file)))
    del verified[:]
    Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert verified == []


def locations(file):
    return np.concatenate([file.locations(label) for label in file.counts])


def test_a_bit_that_turns_without_a_trace_is_seen_a_week_later(case, preprocessing, tmp_path, monkeypatch):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    whole, state = file.path.read_bytes(), file.path.stat()
    turned(file.path, -1, 3)
    os.utime(file.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    now = time.time()
    monkeypatch.setattr("premed.data.content.time.time", lambda: now + 7 * 24 * 3600 + 1)
    (again,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert again.path.read_bytes() == whole


def test_verifying_goes_through_the_mapper(case, preprocessing, tmp_path):
    (file,) = Cache(tmp_path / "cache").prepare([case], preprocessing)
    os.utime(file.path, ns=(1, 1))
    jobs, progress = [], []

    def mapper(function, items):
        jobs.extend(items)
        return map(function, jobs)

    Cache(tmp_path / "cache").prepare([case], preprocessing, mapper, lambda *done: progress.append(done))
    assert [job.files for job in jobs] == [case.files] and progress == [(1, 1)]


def test_an_image_that_changes_while_it_is_read_is_not_kept_under_its_old_hash(
    case, preprocessing, tmp_path, monkeypatch
):
    """A file that is still being copied, say."""
    whole, reading = case.image[0].read_bytes(), module.prepare

    def read_and_change(*args):
        result = reading(*args)
        values = nib.load(case.image[0]).get_fdata() + 1
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), case.image[0])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", read_and_change)
        with pytest.raises(UserError, match=r"image.nii.gz: changed while it was read; run the same command again"):
            Cache(tmp_path / "cache").prepare([case], preprocessing)
    assert not list((tmp_path / "cache").glob("??/*.safetensors"))
    case.image[0].write_bytes(whole)
    Cache(tmp_path / "cache").prepare([case], preprocessing)
