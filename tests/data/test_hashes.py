"""How files are looked at, and what is kept of them in `contents.sqlite`: under hashes of their paths where
`tracking.hash_ids` was ever set."""

import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.made_up import ct_series

from premed.data import content
from premed.data.content import Hashes
from premed.data.datamodule import DataModule
from premed.errors import UserError
from premed.safety.pseudonyms import make_key
from premed.tasks import unlabelled


def kept(home, files):
    """What is known of files, without reading them."""
    with Hashes(home / "cache") as hashes:
        return [hashes.get(file) for file in files]


@pytest.fixture
def before(tmp_path):
    """A home with hashes of files, and these files."""
    files = [tmp_path / "data" / f"DOE_{number}.bin" for number in range(200)]
    files[0].parent.mkdir()
    with Hashes(tmp_path / "home" / "cache") as hashes:
        for file in files:
            file.write_bytes(file.name.encode())
            hashes.of(file)
    return tmp_path / "home", files


def stored(home):
    return b"".join(path.read_bytes() for path in (home / "cache").iterdir())


def test_hashes_from_before_the_key_are_kept_and_the_paths_are_not(before):
    home, files = before
    known = kept(home, files)
    assert None not in known and b"DOE_7." in stored(home)
    make_key(home)
    with Hashes(home / "cache"):
        assert b"DOE_" not in stored(home)
    assert kept(home, files) == known


def test_a_command_that_began_before_the_key_leaves_no_path(before):
    home, files = before
    late = files[0].with_name("DOE_late")
    late.write_bytes(b"late")
    with Hashes(home / "cache") as began:
        make_key(home)
        kept(home, files)
        began.of(late)
        assert began.get(late)
    assert b"DOE_" not in stored(home) and None not in kept(home, [late])


def test_where_there_is_a_key_hashes_are_looked_up_without_writing(before):
    home, files = before
    make_key(home)
    known = kept(home, files)
    writer = sqlite3.connect(home / "cache" / "contents.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert kept(home, files) == known and time.monotonic() - started < 10
    writer.execute("ROLLBACK")
    writer.close()


def test_a_key_that_is_removed_and_made_again_finds_no_path(before):
    home, files = before
    make_key(home)
    kept(home, files)
    (home / "id_key").unlink()
    with Hashes(home / "cache") as hashes:
        hashes.of(files[0])
    assert b"DOE_0" in stored(home)
    make_key(home)
    kept(home, files)
    assert b"DOE_0" not in stored(home)


@pytest.mark.parametrize("damaged", ["", "ab", "x" * 64, "a" * 63])
def test_with_half_a_key_nothing_is_hashed_or_stored_plain(before, damaged):
    """Names could be found from hashes by an empty key."""
    home, files = before
    make_key(home)
    (home / "id_key").write_text(damaged)
    for use in (lambda: make_key(home), lambda: kept(home, files)):
        with pytest.raises(UserError, match="id_key: is damaged .* copy it from a backup, or remove it"):
            use()


# ---- how often files are looked at


def test_a_command_looks_at_each_file_of_a_stage_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    files = [tmp_path / "data" / f"{number}.png" for number in range(6)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10), np.uint8)).save(file)

    def fingerprint():
        return DataModule(unlabelled.build(unlabelled.Config(root=files[0].parent, roi=(8, 8)))).fingerprint("pretrain")

    expected, looked, state = fingerprint(), [], content._state
    monkeypatch.setattr(content, "_state", lambda file: (looked.append(file), state(file))[1])
    assert fingerprint() == expected and sorted(looked) == files


def test_a_folder_of_slices_is_listed_once_and_each_slice_looked_at_once(tmp_path, monkeypatch):
    folder = ct_series(tmp_path / "s", np.zeros((4, 5, 6), np.int16))
    slices = sorted(folder.iterdir())
    (folder / "link").symlink_to(slices[0])
    (folder / ".hidden").write_bytes(b"no slice")
    (folder / "below").mkdir()
    os.utime(slices[2], ns=(0, time.time_ns() + 10**12))
    parts = [folder / "link", *slices]
    expected = sum(part.stat().st_size for part in parts), slices[2].stat().st_mtime_ns, parts
    listings, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listings.append(path), scandir(path))[1])
    monkeypatch.setattr(Path, "iterdir", lambda path: pytest.fail(f"{path} was listed again"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} was looked at again"))
        patch.setattr(Path, "is_symlink", lambda path: pytest.fail(f"{path} was looked at again"))
        found = content._state(folder)
    assert found == expected and listings == [folder]
