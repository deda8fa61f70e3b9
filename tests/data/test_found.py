"""What a process has found it looks for no more, as long as the case's files and the prepared file are as they were."""

import os

import numpy as np
import pytest
from PIL import Image

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data import found
from premed.data.cache import Cache

GREY = Preprocessing(dims=2, channels=1, size=(8, 8), normalise="grey")


def picture(path, value):
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return path


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Prepares a picture; what it holds, and how many headers were read."""
    read, read_notes = [], found.read_notes
    monkeypatch.setattr(found, "read_notes", lambda path: read.append(path) or read_notes(path))
    file = picture(tmp_path / "one.png", 10)
    cache = Cache(tmp_path / "cache")

    def now():
        read.clear()
        (image,) = cache.prepare([Case("one", "p", (file,))], GREY)
        return int(image.stored().max()), len(read)

    now.file, now.cache = file, cache
    return now


def test_a_header_is_read_once(look):
    assert [look(), look(), look()] == [(10, 0), (10, 1), (10, 0)]  # made, found, remembered


def test_a_changed_picture_is_prepared_anew_and_the_earlier_one_is_found_again(look):
    look(), look()
    picture(look.file, 20)
    assert look() == (20, 0) and look() == (20, 1)
    picture(look.file, 10)
    os.utime(look.file, ns=(1, 1))
    assert look()[0] == 10


def test_a_prepared_file_that_was_removed_or_damaged_is_made_anew(look):
    look(), look()
    (prepared,) = look.cache.root.glob("??/*.safetensors")
    prepared.unlink()
    assert look()[0] == 10 and look()[0] == 10
    content = bytearray(prepared.read_bytes())
    content[-1] ^= 1
    prepared.write_bytes(content)
    assert look()[0] == 10 and prepared.read_bytes() != content
