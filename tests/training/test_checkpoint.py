"""Checkpoints: which are kept, and that damage is noticed."""

import io
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.suite import examples

from premed.training import checkpoint as module
from premed.training.checkpoint import KEPT, Checkpoint, CheckpointManager
from premed.training.storage import StageStorage


@pytest.fixture
def storage(tmp_path):
    return StageStorage(str(tmp_path), "pretrain-0123")


def state(step):
    return {"weights": {"a": torch.full((100,), float(step))}, "groups": [{"lr": 0.1 * step, "betas": (0.9, 0.95)}]}


def saved(storage, *steps):
    for step in steps:
        CheckpointManager(storage).write(Checkpoint(step, state(step), {"curve": [step / 3, float("nan")], "best": {}}))


def test_the_newest_checkpoint_comes_back_with_its_notes(storage):
    assert CheckpointManager(storage).newest() is None
    saved(storage, 5, 10)
    step, restored, notes, _ = CheckpointManager(storage).newest()
    assert (step, restored["groups"], notes["curve"][0]) == (10, state(10)["groups"], 10 / 3)
    assert torch.equal(restored["weights"]["a"], state(10)["weights"]["a"])


def test_only_the_newest_checkpoints_are_kept(storage):
    saved(storage, 5, 10, 15, 20)
    assert CheckpointManager(storage).steps() == [15, 20]
    assert len(storage.names()) == 2 * KEPT


@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_any_damage_to_the_newest_checkpoint_is_seen(suffix, tmp_path):
    storage, name = StageStorage(str(tmp_path), "s"), f"checkpoints/000000010.{suffix}"
    saved(storage, 5, 10)
    intact = storage.get(name)

    @settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(intact) - 1), st.integers(1, 255), st.booleans())
    def damaged(place, change, cut):
        content = intact[:place] if cut else intact[:place] + bytes([intact[place] ^ change]) + intact[place + 1 :]
        storage.put(name, content)
        newest = CheckpointManager(storage).newest()
        # a byte between two values (a blank, say) may change without changing what the manifest says
        assert newest[0] == 5 or (suffix == "json" and not cut and newest[0] == 10 and storage.get_json(name)["notes"])

    damaged()


@pytest.mark.parametrize("lost", ["checkpoints/000000010.pt", "checkpoints/000000010.json"])
def test_a_checkpoint_that_lacks_a_file_is_none(storage, lost):
    saved(storage, 5, 10)
    storage.remove(lost)
    assert CheckpointManager(storage).newest()[0] == 5


def test_a_damaged_checkpoint_does_not_outlive_good_ones(storage):
    saved(storage, 5, 10)
    storage.put("checkpoints/000000010.pt", b"damaged")
    saved(storage, 7)  # gone on from 5
    assert CheckpointManager(storage).steps() == [5, 7]


class Executed:
    """What unpickling it does is seen."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "content",
    [lambda trace: pickle.dumps(Executed(trace)), lambda trace: torch_saved({"a": Executed(trace)}), lambda trace: b""],
    ids=["a pickle", "torch's, with code", "nothing"],
)
def test_what_is_no_checkpoint_is_never_executed_though_its_hash_is_right_and_the_one_before_is_used(
    tmp_path, storage, content
):
    saved(storage, 5, 10)
    forged = content(tmp_path / "executed")
    storage.put("checkpoints/000000010.pt", forged)
    manifest = storage.get_json("checkpoints/000000010.json")
    storage.put_json("checkpoints/000000010.json", manifest | {"hash": module._hash(forged, manifest["notes"])})
    manager = CheckpointManager(storage)
    assert manager.newest()[0] == 5 and not (tmp_path / "executed").exists()
    (warning,) = manager.unusable_words(5)
    assert warning.startswith(f"{storage.where}/checkpoints/000000010 is not a checkpoint (")
    assert warning.endswith("; the training goes on from step 5") and "\n" not in warning


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_every_checkpoint_that_is_passed_over_is_told_with_its_reason(storage):
    saved(storage, 5, 10)
    manager = CheckpointManager(storage)
    assert manager.newest()[0] == 10 and manager.unusable_words(10) == []
    storage.put("checkpoints/000000010.pt", b"damaged")
    storage.remove("checkpoints/000000005.json")
    storage.put("checkpoints/notes.json", b"{}")  # not premed's
    assert manager.newest() is None
    where, beginning = f"{storage.where}/checkpoints/0000000", "the training starts from the beginning"
    expected = [f"{where}10 is damaged; {beginning}", f"{where}05 is incomplete; {beginning}"]
    assert manager.unusable_words(0) == expected


@pytest.mark.parametrize("manifest", [b"[1]", b'"text"', b'{"hash": 1}', b'{"notes": []}', b"\xff"])
def test_a_manifest_that_is_none_makes_a_checkpoint_incomplete(storage, manifest):
    saved(storage, 5, 10)
    storage.put("checkpoints/000000010.json", manifest)
    manager = CheckpointManager(storage)
    assert manager.newest()[0] == 5 and manager.unusable == {10: "incomplete"}


def test_a_torn_manifest_stays_where_it_is(storage):
    """All ranks read it at once: one that put it aside would do so under the others' eyes."""
    storage.put("checkpoints/000000010.json", b"{torn")
    before = storage.names()
    assert CheckpointManager(storage).manifest(10) == {} and storage.names() == before
