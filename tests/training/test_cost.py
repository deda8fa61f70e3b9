"""What a stage takes, from its settings and from speeds."""

from dataclasses import replace
from functools import partial

import pytest
from support.stages import jobs

from premed.data.datamodule import Tasks, stage_cases, stage_data_sets
from premed.data.phantoms.writers import write_chestxray14
from premed.training.cost import Speed, cases_of, cost
from premed.training.schedule import planned
from premed.training.setup import make_objective


@pytest.fixture(scope="session")
def chest(shared):
    write = partial(write_chestxray14, num_patients=16, seed=1, size=32, prevalence=0.6)
    return shared("x-rays to train on", lambda folder: write(folder / "chest")) / "chest"


def cost_of(job, speed):
    objective, _ = make_objective(replace(job, parent=None), stage_data_sets(job.stage))
    return cost(job, speed, Tasks(), objective)


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
