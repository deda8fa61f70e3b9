"""The checks see what they are there for: other numbers, a resume that lost something."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from premed.benchmarks import mae, steps
from premed.benchmarks.gpu import equality, resident, resume
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.result import GpuReport
from premed.benchmarks.gpu.trainings import InMemory, Training, train
from premed.benchmarks.settings import Settings
from premed.contracts import Batch, BatchIndices
from premed.data.samplers import EpochSampler
from premed.training.checkpoint import CheckpointManager
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule

TINY = mae.Sizes((32, 32), 4, 1, encoder=(24, 1, 2), decoder=(16, 1, 2))
TRAINING = Training("MAE 2-D", TINY, mae.build)


def lines(row, monkeypatch, training=TRAINING):
    """What a row tells of one small training."""
    module = equality if row.__module__ == equality.__name__ else resume
    monkeypatch.setattr(module, "small", lambda: [training])
    report = GpuReport({}, True, 1, running="row")
    row(Context(Settings(short=True), report, lambda report: None))
    return [(line.state, line.found) for line in report.lines]


class Drifting:
    """Builds networks of which the last layer is a little off, from the third one on: the device's."""

    def __init__(self, by):
        self.by, self.built = by, 0

    def __call__(self, sizes):
        objective = mae.build(sizes)
        self.built += 1
        if self.built > 2:
            with torch.no_grad():
                objective.decoder.predict.weight.mul_(1 + self.by)
        return objective


def test_a_device_that_computes_other_losses_fails(monkeypatch):
    ((state, found),) = lines(equality.equal, monkeypatch)
    assert state == "passed" and "losses of 20 steps" in found
    ((state, found),) = lines(equality.equal, monkeypatch, Training("MAE 2-D", TINY, Drifting(by=0.01)))
    assert state == "failed", found


def test_views_on_a_device_that_are_others_than_the_cpu_s_fail(monkeypatch):
    monkeypatch.setattr(resident, "small", lambda: [TRAINING])
    found = []
    for _ in range(2):
        report = GpuReport({}, True, 1, running="views")
        resident.views(Context(Settings(short=True), report, lambda report: None))
        found += [(line.state, line.found[:20], len(line.numbers)) for line in report.lines]
        monkeypatch.setattr(resident.ResidentLoader, "cut", lambda *_: (torch.zeros(1, 1, 32, 32), None))
    assert found == [("passed", "equal, bit for bit; ", 2), ("failed", "views on the device ", 0)]


@pytest.mark.slow  # one of many
def test_bf16_that_is_further_off_than_its_rounding_fails(monkeypatch):
    assert [state for state, _ in lines(equality.bf16, monkeypatch)] == ["passed"]
    monkeypatch.setattr(equality, "BF16", 1e-9)
    assert [state for state, _ in lines(equality.bf16, monkeypatch)] == ["failed"]


def test_losses_that_are_no_numbers_are_infinitely_apart():
    assert equality.apart([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert equality.apart([float("nan"), 2.0], [1.0, 2.0]) == float("inf")


def test_a_resume_that_forgets_the_optimizer_s_state_fails(monkeypatch):
    assert lines(resume.resume, monkeypatch) == [
        ("passed", "20 steps, resumed after 10: the same weights, bit for bit")
    ]
    whole = CheckpointManager.restore

    def forgetful(self, objective, optimizer):
        fresh = {**optimizer.state_dict()}
        checkpoint = whole(self, objective, optimizer)
        optimizer.load_state_dict(fresh)
        return checkpoint

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)
    ((state, found),) = lines(resume.resume, monkeypatch)
    assert state == "failed" and "two runs without a stop are the same" in found


@pytest.mark.slow  # one of many
def test_a_training_that_is_never_the_same_twice_is_judged_by_deterministic_algorithms(monkeypatch):
    def inexact(sizes):
        objective = mae.build(sizes)
        if not torch.are_deterministic_algorithms_enabled():
            with torch.no_grad():  # numbers of no seed, as sums in no order are
                objective.decoder.predict.weight.mul_(1 + 1e-3 * next(numbers))
        return objective

    numbers = iter(range(100))
    ((state, found),) = lines(resume.resume, monkeypatch, Training("MAE 2-D", TINY, inexact))
    assert state == "passed" and "with deterministic algorithms the same, bit for bit" in found
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_algorithm_is_named():
    error = RuntimeError("nll_loss2d_cuda does not have a deterministic implementation, but you set 'torch.…'")
    assert resume.no_algorithm(error) == "nll_loss2d_cuda does not have a deterministic implementation"
    with pytest.raises(RuntimeError, match="shapes"):
        resume.no_algorithm(RuntimeError("shapes do not match"))


def test_the_images_of_a_step_are_those_that_the_plan_names():
    source, plan = InMemory(TRAINING, 8, torch.device("cpu")), torch.arange(3).numpy()
    (batch,) = source.batches([BatchIndices(2, plan, 0.5)])
    assert torch.equal(batch.image, source.image[:3]) and batch.keys.tolist() == [16, 17, 18] and batch.weight == 0.5
    whole, parts = (
        train(TRAINING.build(torch.device("cpu")), source, 8, num_steps=2, accumulate=each) for each in (1, 4)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow  # imports what torch compiles with
def test_a_step_of_premed_s_loop_reads_no_value_for_which_it_would_wait():
    with FakeTensorMode():  # tensors without numbers: reading one raises
        objective = mae.build(TINY)
        batch = Batch(torch.randn(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64), ("case",) * 4)
        optimizer, plan = make_optimizer(objective, steps.BETAS), EpochSampler(4, 4, 2, 0, "bench")
        fit(objective, steps.OneBatch(batch), plan, Schedule(2, 0, 1e-3), optimizer, steps.ignore, clip=1.0)
