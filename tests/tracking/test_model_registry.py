import gc
import os
import subprocess

import numpy as np
import pytest
import torch
from support.stores import registered, start
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from premed.errors import UserError
from premed.tracking import model_registry

pytest_plugins = ["support.store_fixtures"]

EXAMPLE = np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.slow
def test_an_export_leaves_nothing_of_its_trace_in_memory(tmp_path):
    """torch keeps half a megabyte of each, which a sweep of two thousand trainings would feel."""
    before = num_traces()  # of exports to ONNX that other tests made in this process, say
    for number in range(2):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
        model_registry.export(network, np.zeros((2, 1, 8, 8), np.float32), {}, tmp_path / str(number))
    assert num_traces() <= before


def num_traces():
    gc.collect()
    return sum(type(each) is ShapeEnv for each in gc.get_objects())


def test_a_temporary_folder_without_room_is_refused_before_torch_ends_the_process(tmp_path):
    """It did, and with it all that the command trained, at each start again."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]).returncode:
        pytest.skip("to mount a disk is root's, who is not allowed it everywhere")
    try:
        network = torch.nn.Linear(8, 2)
        with pytest.raises(UserError, match="16 MB are needed and 1 MB free; make room there, or set TMPDIR"):
            model_registry.export(network, np.zeros((2, 8), np.float32), {}, tmp_path / "model")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_best_compares_scores_of_the_same_images_of_val_and_says_when_others_are_left_out(store, module):
    """Two folders of one name, or patients added to one: the higher score of other images says nothing."""
    said = []

    def best_after(val, score):
        run_id = start(store, kind="finetune", tags={"premed.data": f"train:{score} val:{val}"})
        registered(store, run_id, "scans", module, EXAMPLE, score, {}, said.append)
        return str(store.client.get_model_version_by_alias("scans", "best").version)

    assert [best_after("a", score) for score in (0.8, 0.9, 0.7)] == ["1", "2", "2"] and said == []
    assert best_after("b", 0.6) == "4"
    sentence = "models:/scans@best was version 2 and is 4 now: 3 of 4 versions were scored on other images of val"
    assert len(said) == 1 and said[0].startswith(sentence)
    assert best_after("b", 0.5) == "4" and len(said) == 1
    assert best_after("a", 0.1) == "2" and len(said) == 2


def test_best_knows_the_images_of_versions_that_an_older_premed_registered(store, module):
    """By their runs, once; a version without a run is of no known images."""
    for score, val in ((0.9, "b"), (0.8, "a")):
        run_id = start(store, kind="finetune", tags={"premed.data": f"val:{val}"})
        version = registered(store, run_id, "scans", module, EXAMPLE, score, {})
        store.client.delete_model_version_tag("scans", version, "premed.val")
    store.client.create_model_version("scans", "file:///elsewhere", tags={"premed.score": "0.99"})  # by hand, no run
    run_id = start(store, kind="finetune", tags={"premed.data": "val:a"})
    registered(store, run_id, "scans", module, EXAMPLE, 0.5, {})
    assert str(store.client.get_model_version_by_alias("scans", "best").version) == "2"
    kept = {int(each.version): each.tags.get("premed.val") for each in store.client.search_model_versions()}
    assert kept == {1: "b", 2: "a", 3: None, 4: "a"}  # asked for once


@pytest.mark.parametrize("name", ["scans.v2", "50 % of St. Mary's", 'the "new" ones', "a: b"])
def test_a_task_may_be_called_as_its_folder_is_whatever_mlflow_takes(store, name):
    """Else nothing is registered, and the `premed predict models:/…@best` that `premed init` prints finds nothing."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    runs = {score: start(store, f"digest {score}") for score in (0.5, 0.7)}
    for score, run in runs.items():
        registered(store, run, name, network, np.zeros((2, 1, 8, 8), np.float32), score, {})
    assert model_registry.run_of(store.client, f"models:/{name}@best") == runs[0.7]
    assert model_registry.run_of(store.client, f"models:/{name}/1") == runs[0.5]
    assert model_registry.run_of(store.client, model_registry.references(store.client)[0]) == runs[0.7]
