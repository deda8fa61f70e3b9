"""A stage's folder, on a disk and behind a URL: a file is whole or not there, a checkpoint is whole or passed over."""

import os
import pickle

import pytest
import torch
from conftest import examples
from forks import fork
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from premed.vault import KEPT, Vault


@pytest.fixture(params=["path", "file", "url"])
def vault(request, tmp_path):
    """On a disk, by a path and by a URL; and in a file system that only pyarrow knows."""
    storage = {"path": str(tmp_path), "file": f"file://{tmp_path}", "url": "mock:///bucket"}
    return Vault(storage[request.param] + "/", "pretrain-0123")


def test_what_is_put_is_got_back_and_listed(vault):
    vault.put("parts/card.json", b"{}")
    vault.put("a", b"first")
    vault.put("a", b"second")
    assert (vault.get("a"), vault.get("parts/card.json")) == (b"second", b"{}")
    assert vault.names() == ["a", "parts/card.json"]


def test_what_is_not_there_is_none_and_can_be_removed(vault):
    assert vault.get("a") is vault.get_json("b/c.json") is vault.get_weights("d") is None
    assert vault.names() == []
    vault.put("a", b"")
    vault.remove("a")
    vault.remove("a")
    assert vault.names() == []


def test_a_folder_is_cleared_alone(vault):
    for name in ("best/1/a", "best/2", "bestow", "parts/best/a"):
        vault.put(name, b"")
    vault.clear("best")
    assert vault.names() == ["bestow", "parts/best/a"]


def test_weights_and_numbers_come_back_bit_by_bit(vault):
    weights = {"a": torch.rand(3, 4).T, "b": torch.arange(3), "c": torch.rand(2).bfloat16()}
    vault.put_weights("w.safetensors", weights)
    assert all(torch.equal(weights[name], value) for name, value in vault.get_weights("w.safetensors").items())
    vault.put_json("n.json", {"x": [0.1 + 0.2, float("-inf"), None], "y": 2**60})
    assert vault.get_json("n.json") == {"x": [0.1 + 0.2, float("-inf"), None], "y": 2**60}


def state(step):
    return {"weights": {"a": torch.full((100,), float(step))}, "groups": [{"lr": 0.1 * step, "betas": (0.9, 0.95)}]}


def saved(vault, *steps):
    for step in steps:
        vault.save_checkpoint(step, state(step), {"curve": [step / 3, float("nan")], "best": {}})


def test_the_newest_checkpoint_comes_back_with_its_notes(vault):
    assert vault.newest_checkpoint() is None
    saved(vault, 5, 10)
    step, found, notes = vault.newest_checkpoint()
    assert (step, found["groups"], notes["curve"][0]) == (10, state(10)["groups"], 10 / 3)
    assert torch.equal(found["weights"]["a"], state(10)["weights"]["a"])


def test_only_the_newest_checkpoints_are_kept(vault):
    saved(vault, 5, 10, 15, 20)
    assert vault.checkpoint_steps() == [15, 20]
    assert len(vault.names()) == 2 * KEPT


@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_any_damage_to_the_newest_checkpoint_is_seen(suffix, tmp_path):
    vault, name = Vault(str(tmp_path), "s"), f"checkpoints/000000010.{suffix}"
    saved(vault, 5, 10)
    whole = vault.get(name)

    @settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.booleans())
    def damaged(place, change, cut):
        content = whole[:place] if cut else whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
        vault.put(name, content)
        found = vault.newest_checkpoint()
        # a byte between two values (a blank, say) may change without changing what the manifest says
        assert found[0] == 5 or (suffix == "json" and not cut and found[0] == 10 and vault.get_json(name)["notes"])

    damaged()


@pytest.mark.parametrize("lost", ["checkpoints/000000010.pt", "checkpoints/000000010.json"])
def test_a_checkpoint_that_lacks_a_file_is_none(vault, lost):
    saved(vault, 5, 10)
    vault.remove(lost)
    assert vault.newest_checkpoint()[0] == 5


def test_a_damaged_checkpoint_does_not_outlive_good_ones(vault):
    saved(vault, 5, 10)
    vault.put("checkpoints/000000010.pt", b"damaged")
    saved(vault, 7)  # gone on from 5
    assert vault.checkpoint_steps() == [5, 7]


def test_a_state_is_never_unpickled(tmp_path):
    vault = Vault(str(tmp_path), "s")
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        vault.save_checkpoint(1, {"file": os.system}, {})
        vault.newest_checkpoint()


def killed_in_the_middle(folder):
    os.fsync = lambda file: os.kill(os.getpid(), 9)
    Vault(folder, "s").put("result.json", b"new")


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_writer_killed_in_the_middle_leaves_what_was_there(tmp_path, before):
    vault = Vault(str(tmp_path), "s")
    if before:
        vault.put("result.json", before)
    writer = fork.Process(target=killed_in_the_middle, args=(str(tmp_path),))
    writer.start()
    writer.join()
    assert writer.exitcode == -9
    assert vault.get("result.json") == before
    assert len(list(tmp_path.rglob("*.part"))) == 1
    vault.sweep()
    assert (vault.get("result.json"), list(tmp_path.rglob("*.part"))) == (before, [])


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    vault = Vault(str(tmp_path), "s")
    vault.put("a", b"old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        vault.put("a", b"new")
    assert (vault.get("a"), list(tmp_path.rglob("*.part"))) == (b"old", [])


def test_a_vault_travels_to_another_process(vault):
    vault.put("a", b"1")
    assert pickle.loads(pickle.dumps(vault)).where == vault.where
