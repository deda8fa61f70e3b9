"""What is kept of files in `contents.sqlite`: under hashes of their paths where `tracking.hash_ids` was ever set."""

import sqlite3
import time

import pytest

from premed.data.content import Hashes
from premed.safety.pseudonyms import make_key


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
