"""What a stage takes, from a few of its steps: the formula, what is measured, and how near it comes."""

import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.stages import jobs, run

from premed.contracts import BatchIndices
from premed.data.cache import Cache
from premed.data.datamodule import Tasks, stage_cases, stage_data_sets
from premed.data.phantoms.writers import write_chestxray14
from premed.data.samplers import AlternatingSampler
from premed.events import TrainingStarted
from premed.training import cost as cost_module
from premed.training.cost import FewSteps, Speed, cases_of, cost, measure, spread
from premed.training.schedule import planned
from premed.training.setup import make_objective
from premed.training.stage import run_stage


@pytest.fixture(scope="session")
def chest(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays to train on", lambda folder: write(folder / "chest")) / "chest"


def cost_of(job, speed):
    objective, _ = make_objective(replace(job, parent=None), stage_data_sets(job.stage))
    return cost(job, speed, Tasks(), objective)


# ---- steps


def test_the_steps_are_spread_over_the_training_and_stay_in_their_data_sets():
    plan, few = AlternatingSampler((100, 40), 10, 280, 0, "pretrain", 1), [3, 2]
    steps = FewSteps(plan, plan.sizes, few, workers=2)
    taken = [steps.at(i) for i in range(steps.num_steps)]
    of_second = [int(indices.samples.min()) >= 3 for indices in taken]
    assert all(len(indices.samples) == 5 for indices in taken)  # one of two workers' share
    assert all((indices.samples >= 3).all() == second for indices, second in zip(taken, of_second, strict=True))
    assert {int(each) for indices in taken for each in indices.samples} == {0, 1, 2, 3, 4}
    assert sum(of_second) / len(taken) == pytest.approx(40 / 140, abs=0.1)  # as in the whole training


def test_a_single_step_is_repeated():
    class One:
        num_steps = 1

        def at(self, step):
            assert step == 0
            return BatchIndices(0, np.arange(4))

    assert FewSteps(One(), [4], [2], 1).at(22).samples.tolist() == [0, 1, 0, 1]


def test_few_cases_are_spread_over_all():
    assert spread("abcdefgh", 4) == list("aceg") and spread("ab", 4) == list("ab")


# ---- what it takes, from speeds


SPEED = Speed(step=2.0, start=0.25, val=0.5, probe=0.125)


def test_seconds_are_steps_validations_probes_and_the_start(chest, tmp_path):
    job = jobs(chest, tmp_path, pretrain={"probe": {"images": 20}})["pretrain"]
    task = Tasks()(job.stage.task)
    train, val = stage_cases(job.stage, task)
    of_probe = 0.125 * (min(20, len(task.split("train"))) + min(20, len(val)))
    found = cost_of(job, SPEED)
    assert (found.steps, found.batch) == (10, 8)
    assert found.seconds == pytest.approx(0.25 * len(train) + 10 * 2.0 + 4 * (0.5 * len(val) + of_probe))
    assert found.images_per_second == 4.0


def test_the_segments_of_a_trunk_share_its_steps(chest, tmp_path):
    changes = {"trunk": [3, 6], "epochs": 6, "steps": None, "warmup_epochs": 0, "validations": 1}
    found, whole = jobs(chest, tmp_path, pretrain=changes), jobs(chest, tmp_path, pretrain={"epochs": 6, "steps": None})
    costs = {kind: cost_of(job, SPEED).steps for kind, job in found.items() if kind in ("trunk", "cooldown")}
    job = whole["pretrain"]
    sizes = [len(cases_of(job, data_set)[0]) for data_set in stage_data_sets(job.stage)]
    before = planned(found["trunk"].parent, sizes)[0].num_steps
    assert before + sum(costs.values()) == planned(job.stage, sizes)[0].num_steps


def test_a_test_is_as_many_images_as_it_has(chest, tmp_path):
    job = jobs(chest, tmp_path)["test"]
    assert cost_of(job, SPEED).seconds == 0.5 * len(Tasks()(job.stage.task).split("test"))


# ---- what is measured


def test_it_measures_speed_and_sizes_and_opens_no_test_image(chest, tmp_path):
    found = jobs(chest, tmp_path, pretrain={"probe": {"images": 20}})
    speeds = {kind: measure(job) for kind, job in found.items()}
    pretrain, finetune, test = speeds["pretrain"], speeds["finetune"], speeds["test"]
    assert min(pretrain.step, pretrain.start, pretrain.val, pretrain.probe, finetune.step, test.val) > 0
    assert pretrain.prepare > 0 == finetune.prepare and test.step == 0 and pretrain.memory_mb > 50
    assert pretrain.gpu_memory_mb is None
    task, cache = Tasks()(found["test"].stage.task), Cache(found["test"].cache)
    assert len(cache.missing(task.split("test"), task.preprocessing)) == len(task.split("test"))
    job = found["pretrain"]
    assert run(job, kill="saved 4") == [-9]
    size = os.path.getsize(f"{job.stage_storage.where}/checkpoints/000000004.pt")
    assert pretrain.checkpoint_bytes == pytest.approx(size, rel=0.2)  # the file has names, too
    objective, _ = make_objective(job, stage_data_sets(job.stage))
    weights = [tensor for part in objective.parts.values() for tensor in part.state_dict().values()]
    assert pretrain.parts_bytes == sum(tensor.numel() * 4 for tensor in weights)


STRATEGY = {"pretrain": {}, "finetune": {"pretext": {"name": "none"}}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_estimate_is_within_a_quarter_of_what_a_stage_took(chest, tmp_path, monkeypatch, kind):
    """In seconds of the processor, which do not depend on what else the machine does."""
    monkeypatch.setattr(cost_module, "Clock", lambda device: time.process_time)
    torch.set_num_threads(1)
    steps = {"steps": 400, "validations": 4, "batch": 32}
    rarely = {"log_steps": 100, "save_minutes": 60}
    changes = {"pretrain": steps | {"probe": {"images": 20}}, "finetune": steps, "train": rarely}
    job = jobs(chest, tmp_path, **changes, **STRATEGY[kind])[kind]
    began = 0.0

    def note(event):
        nonlocal began
        began = time.process_time() if isinstance(event, TrainingStarted) else began

    expected = cost_of(job, measure(job)).seconds
    run_stage(job, note, lambda numbers: None)
    assert expected == pytest.approx(time.process_time() - began, rel=0.25)
