"""A stage's folder, on a disk and behind a URL: a file is complete or not there."""

import os
import pickle

import pytest
import torch
from support.forks import fork

from premed.training.storage import StageStorage


@pytest.fixture(params=["path", "file", "url"])
def storage(request, tmp_path):
    """On a disk, by a path and by a URL; and in a file system that only pyarrow knows."""
    storage = {"path": str(tmp_path), "file": f"file://{tmp_path}", "url": "mock:///bucket"}
    return StageStorage(storage[request.param] + "/", "pretrain-0123")


def test_a_written_file_is_read_back_and_listed(storage):
    storage.put("parts/card.json", b"{}")
    storage.put("a", b"first")
    storage.put("a", b"second")
    assert (storage.get("a"), storage.get("parts/card.json")) == (b"second", b"{}")
    assert storage.names() == ["a", "parts/card.json"]


def test_what_is_not_there_is_none_and_can_be_removed(storage):
    assert storage.get("a") is storage.get_json("b/c.json") is storage.get_weights("d") is None
    assert storage.names() == []
    storage.put("a", b"")
    storage.remove("a")
    storage.remove("a")
    assert storage.names() == []


def test_a_folder_is_cleared_alone(storage):
    for name in ("best/1/a", "best/2", "bestow", "parts/best/a"):
        storage.put(name, b"")
    storage.clear("best")
    assert storage.names() == ["bestow", "parts/best/a"]


def test_weights_and_numbers_come_back_bit_by_bit(storage):
    weights = {"a": torch.rand(3, 4).T, "b": torch.arange(3), "c": torch.rand(2).bfloat16()}
    storage.put_weights("w.safetensors", weights)
    assert all(torch.equal(weights[name], value) for name, value in storage.get_weights("w.safetensors").items())
    storage.put_json("n.json", {"x": [0.1 + 0.2, float("-inf"), None], "y": 2**60})
    assert storage.get_json("n.json") == {"x": [0.1 + 0.2, float("-inf"), None], "y": 2**60}


def killed_in_the_middle(folder):
    os.fsync = lambda file: os.kill(os.getpid(), 9)
    StageStorage(folder, "s").put("result.json", b"new")


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_writer_killed_in_the_middle_leaves_what_was_there(tmp_path, before):
    storage = StageStorage(str(tmp_path), "s")
    if before:
        storage.put("result.json", before)
    writer = fork.Process(target=killed_in_the_middle, args=(str(tmp_path),))
    writer.start()
    writer.join()
    assert writer.exitcode == -9
    assert storage.get("result.json") == before
    assert len(list(tmp_path.rglob("*.part"))) == 1
    storage.remove_partial_files()
    assert (storage.get("result.json"), list(tmp_path.rglob("*.part"))) == (before, [])


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    storage = StageStorage(str(tmp_path), "s")
    storage.put("a", b"old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.put("a", b"new")
    assert (storage.get("a"), list(tmp_path.rglob("*.part"))) == (b"old", [])


def test_a_storage_pickles(storage):
    storage.put("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).where == storage.where
