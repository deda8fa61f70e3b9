"""Entries: what a crop reads, what a key is made of, and what survives kills, races and full disks."""

import errno
import os
import pickle
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.forks import fork
from support.suite import examples

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data import cache as cache_module
from premed.data import content, transforms
from premed.data import prepared as entry_module
from premed.data.cache import Cache
from premed.data.prepared import PreparedFile, write
from premed.data.preprocess import Prepared, prepare
from premed.errors import UserError
from premed.rng import SampleRng

ZSCORE = Preprocessing(dims=3, normalise="zscore")
CT = Preprocessing(dims=3, normalise="window", window=(-175, 250))


def case_of(name: str, image: tuple[Path, ...], label: Path | tuple[float, ...] | None = None) -> Case:
    return Case(name, "patient", image, label)


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    """Three small volumes with label maps."""
    rng = np.random.default_rng(0)
    made = []
    for name in "abc":
        image, label = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(rng.normal(9, 3, (9, 10, 11)).astype(np.float32), np.eye(4)), image)
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 3, (9, 10, 11), np.uint8), np.eye(4)), label)
        made.append(case_of(name, (image,), label))
    return made


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def hippocampus(real) -> list[Case]:
    folder = real("Task04_Hippocampus")
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))[:6]
    return [case_of(path.name, (path,), folder / "labelsTr" / path.name) for path in images]


def files(cache: Cache) -> list[Path]:
    return [path for path in cache.root.glob("??/*") if path.is_file()]


def made(path: Path, image: np.ndarray, label: np.ndarray | None = None) -> PreparedFile:
    channels = np.ones(len(image), np.float32)
    write(path, Prepared(image, 0.5 * channels, 3 * channels, label, np.eye(4), np.eye(4), image.shape[1:]))
    return PreparedFile(path)


# Entries -------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(60), deadline=None)
@given(st.tuples(*[st.integers(-9, 14)] * 3), st.tuples(*[st.integers(1, 16)] * 3))
def test_a_crop_is_the_slice_of_the_whole_with_air_around(tmp_path_factory, start, size):
    rng = np.random.default_rng(0)
    image, label = rng.integers(-99, 99, (2, 5, 8, 9), np.int16), rng.integers(0, 9, (5, 8, 9), np.uint8)
    entry = made(tmp_path_factory.mktemp("entry") / "aa" / "entry", image, label)
    wide = np.pad(image, [(0, 0)] + [(20, 40)] * 3)
    box = tuple(slice(20 + at, 20 + at + length) for at, length in zip(start, size, strict=True))
    np.testing.assert_array_equal(entry.stored(start, size), wide[:, *box])
    np.testing.assert_array_equal(entry.image(start, size), wide[:, *box] * np.float32(0.5) + 3)
    np.testing.assert_array_equal(entry.label(start, size), np.pad(label, [(20, 40)] * 3)[box])


def test_what_networks_get_is_float32_contiguous_and_writable(tmp_path):
    entry = made(tmp_path / "aa" / "entry", np.ones((2, 9, 9, 9), np.uint8), np.ones((9, 9, 9), np.uint8))
    for array in (entry.image(), entry.image((1, 1, 1), (3, 3, 3)), entry.image((7, 7, 7), (4, 4, 4))):
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable
    assert entry.label((1, 1, 1), (3, 3, 3)).flags.writeable and entry.stored().flags.writeable


def test_a_crop_of_a_large_image_takes_only_the_crops_memory(tmp_path):
    entry = made(tmp_path / "aa" / "entry", np.zeros((1, 256, 256, 256), np.int16))
    entry.image((0, 0, 0), (2, 2, 2))  # what is imported and remembered
    tracemalloc.start()
    crop = entry.image((100, 90, 80), (32, 32, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * crop.nbytes + 50_000


def test_a_crop_touches_only_its_own_pages(tmp_path):
    from resource import RUSAGE_SELF, getrusage

    entry = made(tmp_path / "aa" / "entry", np.zeros((1, 256, 256, 256), np.int16))
    entry.stored((0, 0, 0), (1, 1, 256))
    before = getrusage(RUSAGE_SELF).ru_minflt
    entry.stored((128, 128, 0), (1, 1, 256))
    assert getrusage(RUSAGE_SELF).ru_minflt - before < 100  # the whole has 8,192 pages


def test_an_entry_knows_where_it_is_and_travels_as_its_path(cache, real):
    folder = real("btcv")
    case = case_of("img0005", (folder / "img/img0005.nii.gz",), folder / "label/label0005.nii.gz")
    entry = pickle.loads(pickle.dumps(cache.prepare([case], CT.model_copy(update={"spacing": (3, 3, 6)}))[0]))
    assert (
        entry.channels == 1
        and entry.shape == (122, 101, 56)
        and entry.spacing == (3, 3, 6)
        and entry.native_shape == (122, 101, 112)
    )
    assert entry.labels_present == (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13)  # no esophagus in this one
    assert entry.image().min() == 0 and entry.image().max() == pytest.approx(1) and len(pickle.dumps(entry)) < 500


def test_locations_are_the_labels_own_voxels_and_background_is_not_air(cache, real):
    folder = real("btcv")
    case = case_of("img0005", (folder / "img/img0005.nii.gz",), folder / "label/label0005.nii.gz")
    entry = cache.prepare([case], CT)[0]
    label, image = entry.label(), entry.image()
    for number in (0, *entry.labels_present):
        places = entry.locations(number)
        assert (label[tuple(places.T)] == number).all() and len(np.unique(places, axis=0)) == len(places)
        assert len(places) == min(5000, entry.counts[number])
        assert number or (image[0][tuple(places.T)] > 0).all()
    assert entry.counts[6] == (label == 6).sum() and entry.locations(5).shape == (0, 3)


def test_balanced_crops_of_a_real_image_hold_its_labels(cache, hippocampus):
    entry = cache.prepare(hippocampus[:1], ZSCORE)[0]
    roi = (16, 16, 16)
    centres = [entry.label(transforms.balanced_start(entry, roi, SampleRng(i), 1.0), roi).any() for i in range(50)]
    assert all(centres)


def test_augmented_eight_bit_pictures_become_values(cache, real):
    case = case_of("chest", (next((real("chestxray14") / "images").glob("*.png")),), (0.0, 1.0))
    entry = cache.prepare([case], Preprocessing(dims=2, normalise="grey"))[0]
    np.testing.assert_array_equal(entry.values(entry.stored()), entry.image())
    assert not entry.has_label and entry.image().shape == (1, 64, 64)
    with pytest.raises(ValueError, match="without a label"):
        entry.label()


# Finding again -------------------------------------------------------------------------------------------------------


def test_entries_hold_what_prepare_gives_in_the_cases_order(cache, hippocampus):
    done = []
    entries = cache.prepare(hippocampus, ZSCORE, progress=lambda *now: done.append(now))
    for case, entry in zip(hippocampus, entries, strict=True):
        direct = prepare(case.image, case.label, ZSCORE)
        np.testing.assert_array_equal(entry.stored(), direct.image)
        np.testing.assert_array_equal(entry.label(), direct.label)
        np.testing.assert_array_equal(entry.affine, direct.affine)
    assert done == [(i, 6) for i in range(1, 7)]


def test_what_is_there_is_not_made_again(cache, cases, monkeypatch):
    cache.prepare(cases[:2], ZSCORE)
    asked = []
    monkeypatch.setattr(cache_module, "prepare", lambda *args: asked.append(args[0]) or prepare(*args))
    cache.prepare(cases, ZSCORE)
    assert asked == [cases[2].image]


def test_results_may_come_in_any_order_and_from_other_threads(cache, cases):
    def backwards(function, items):
        with ThreadPoolExecutor(2) as pool:
            return reversed(list(pool.map(function, items)))

    entries = cache.prepare(cases, ZSCORE, mapper=backwards)
    assert [entry.path for entry in entries] == [cache.open(case, ZSCORE).path for case in cases]


@pytest.mark.slow
def test_other_processes_may_do_the_work(cache, cases):
    with fork.Pool(1) as pool:
        entries = cache.prepare(cases, ZSCORE, mapper=pool.imap_unordered)
    np.testing.assert_array_equal(entries[1].stored(), prepare(cases[1].image, None, ZSCORE).image)


def test_another_recipe_is_another_entry(cache, cases):
    assert cache.prepare(cases, ZSCORE)[0].path != cache.prepare(cases, CT)[0].path
    assert cache.open(cases[0], Preprocessing(dims=3, normalise="zscore_nonzero")) is None


def test_a_touched_or_moved_file_is_the_same_and_a_changed_one_is_not(cache, cases, tmp_path):
    before = cache.prepare(cases, ZSCORE)[0]
    os.utime(cases[0].image[0], ns=(1, 1))
    assert cache.open(cases[0], ZSCORE).path == before.path
    moved = cases[0].image[0].rename(tmp_path / "moved.nii.gz")
    assert cache.open(replace(cases[0], image=(moved,)), ZSCORE).path == before.path
    assert cache.open(replace(cases[0], image=cases[1].image), ZSCORE) is None


def test_content_is_hashed_once(cache, cases, monkeypatch):
    cache.prepare(cases, ZSCORE)
    monkeypatch.setattr(content, "hash_file", lambda file: pytest.fail(f"{file} was read again"))
    assert cache.open(cases[0], ZSCORE) and cache.fingerprint(cases, labels=True)


def test_what_preparing_found_out_of_files_is_not_looked_up_again(cache, cases, monkeypatch):
    known = {cases[2].image[0]: "as it was when its stage was identified"}
    expected = cache.fingerprint(cases[:2], labels=True)
    for _ in range(2):  # of images that are computed, and of those that the cache has
        known = {file: hash for file, hash in known.items() if file == cases[2].image[0]}
        cache.prepare(cases, ZSCORE, known=known)
    assert set(known) == {file for case in cases for file in case.files}
    assert known[cases[2].image[0]] == "as it was when its stage was identified"
    monkeypatch.setattr(content, "_state", lambda file: pytest.fail(f"{file} was looked at again"))
    assert cache.fingerprint(cases[:2], labels=True, known=known) == expected


def test_a_damaged_memory_of_hashes_costs_time_only(cache, cases):
    before = cache.prepare(cases, ZSCORE)
    for path in cache.root.glob("contents.sqlite*"):
        path.write_bytes(b"nonsense" * 1000)
    assert [entry.path for entry in cache.prepare(cases, ZSCORE)] == [entry.path for entry in before]


def test_an_image_is_prepared_and_fingerprinted_without_its_label(cache, cases):
    cases[0].label.unlink()
    fingerprint = cache.fingerprint(cases[:1], labels=False)
    entry = cache.prepare([replace(cases[0], label=None)], ZSCORE)[0]
    assert not entry.has_label and entry.labels_present == () and len(fingerprint) == 64


def test_a_fingerprint_follows_names_images_and_if_asked_labels(cache, cases):
    first, second = replace(cases[0], label=(0.0, float("nan"))), replace(cases[1], label=None)
    base = cache.fingerprint([first, second], labels=True)
    assert base == cache.fingerprint([second, first], labels=True)
    relabelled = replace(first, label=(1.0, float("nan")))
    assert base != cache.fingerprint([relabelled, second], labels=True)
    assert cache.fingerprint([first], labels=False) == cache.fingerprint([relabelled], labels=False)
    assert base != cache.fingerprint([replace(first, name="z"), second], labels=True)
    assert base != cache.fingerprint([replace(first, image=cases[2].image), second], labels=True)


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_bad_case_is_named_and_what_is_finished_stays(cache, cases):
    cases[1].image[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"^b: .*b\.nii\.gz: the file is empty"):
        cache.prepare(cases, ZSCORE)
    assert cache.open(cases[0], ZSCORE) and not cache.open(cases[2], ZSCORE)


def test_a_missing_file_is_named(cache, cases):
    cases[0].image[0].unlink()
    with pytest.raises(UserError, match=r"^a: .*a\.nii\.gz"):
        cache.prepare(cases, ZSCORE)


def test_a_kill_in_the_middle_is_made_good(cache, cases):
    entry = cache.prepare(cases, ZSCORE)[0]
    whole = entry.path.read_bytes()
    for kept in (0, 5, 100, len(whole) - 1):
        entry.path.write_bytes(whole[:kept])
        assert cache.open(cases[0], ZSCORE) is None
        assert cache.prepare(cases, ZSCORE)[0].path.read_bytes() == whole


def test_what_killed_writers_left_is_swept_after_a_day(cache, cases):
    path = cache.prepare(cases, ZSCORE)[0].path
    old, young = path.with_name("old.tmp"), path.with_name("young.tmp")
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    cache.prepare(cases, ZSCORE)
    assert young.exists() and not old.exists()


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_half(cache, cases, monkeypatch, wrapped):
    import safetensors.numpy

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise (
            safetensors.SafetensorError("Error while serializing: No space left on device (os error 28)")
            if wrapped
            else OSError(errno.ENOSPC, "No space left on device")
        )

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match=rf"^a: {cache.root}: the disk is full \(about \d.* MB more are needed\)"):
        cache.prepare(cases, ZSCORE)
    assert files(cache) == []


def test_an_entry_appears_whole_or_not_at_all(cache, cases, monkeypatch):
    def dies(*_):
        raise OSError(errno.EIO, "the power went")

    monkeypatch.setattr(entry_module.os, "replace", dies)
    with pytest.raises(UserError, match="cannot be written"):
        cache.prepare(cases, ZSCORE)
    assert files(cache) == []


def race(root: Path, cases: list[Case], barrier) -> None:
    barrier.wait(250)
    assert [entry.shape for entry in Cache(root).prepare(cases, ZSCORE)] == [(9, 10, 11)] * 3


def test_two_processes_may_fill_one_folder_at_once(cache, cases):
    barrier = fork.Barrier(2)
    other = fork.Process(target=race, args=(cache.root, cases, barrier))
    other.start()
    race(cache.root, cases, barrier)
    other.join(60)
    assert other.exitcode == 0 and len(files(cache)) == 3


def test_an_unwritable_folder_is_named(tmp_path, cases):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file.* cannot be written"):
        Cache(tmp_path / "file").prepare(cases, ZSCORE)


def test_entries_are_plain_safetensors(cache, cases):
    from safetensors.numpy import load_file

    arrays = load_file(cache.prepare(cases, ZSCORE)[0].path)
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "image": "int16",
        "label": "uint8",
        "locations": "int16",
    }
    assert entry_module.read_notes(cache.open(cases[0], ZSCORE).path, verify=True) == []
