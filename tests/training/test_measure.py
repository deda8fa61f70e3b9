"""How fast a stage is, from some of its steps, and how near what follows from it comes."""

import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.stages import jobs, run

from premed.contracts import BatchIndices, Case
from premed.data.cache import Cache
from premed.data.datamodule import Tasks, stage_data_sets
from premed.data.phantoms.writers import write_chestxray14
from premed.data.samplers import AlternatingSampler
from premed.events import TrainingStarted
from premed.training import measure as measuring
from premed.training.cost import cost
from premed.training.measure import FewSteps, measure, spread
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


@pytest.mark.parametrize(("workers", "ranks", "taken"), [(3, 1, 4), (3, 2, 7), (3, 3, 10), (1, 3, 10)])
def test_ranks_take_the_share_of_so_many_workers(workers, ranks, taken):
    plan = AlternatingSampler((100,), 10, 100, 0, "pretrain", 1)
    step = FewSteps(plan, plan.sizes, plan.sizes, workers, ranks).at(0)
    assert step.samples.tolist() == plan.at(0).samples[:taken].tolist() and len(step.epoch) == taken


def test_a_single_step_is_repeated():
    class One:
        num_steps = 1

        def at(self, step):
            assert step == 0
            return BatchIndices(0, np.arange(4))

    assert FewSteps(One(), [4], [2], 1).at(22).samples.tolist() == [0, 1, 0, 1]


def test_few_cases_are_spread_over_all():
    cases = [Case(name, name, ()) for name in "abcdefgh"]
    assert [case.name for case in spread(cases, 4)] == list("aceg") and spread(cases[:2], 4) == cases[:2]


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
    monkeypatch.setattr(measuring, "Clock", lambda device: time.process_time)
    torch.set_num_threads(1)
    steps = {"steps": 400, "validations": 4, "batch": 32}
    rarely = {"log_steps": 100, "save_minutes": 60}
    changes = {"pretrain": steps | {"probe": {"images": 20}}, "finetune": steps, "train": rarely}
    began = 0.0

    def note(event):
        nonlocal began
        began = time.process_time() if isinstance(event, TrainingStarted) else began

    def ratio(home):
        job = jobs(chest, home, **changes, **STRATEGY[kind])[kind]
        expected = cost_of(job, measure(job)).seconds
        run_stage(job, note, lambda numbers: None)
        return expected / (time.process_time() - began)

    # what shares the processor's caches with one side is hardly there beside it twice
    ratios = [found := ratio(tmp_path / "first")]
    if found != pytest.approx(1, abs=0.25):
        ratios.append(ratio(tmp_path / "second"))
    assert ratios[-1] == pytest.approx(1, abs=0.25), ratios
