"""The loop's arithmetic: learning rates, which samples make up a step, and who takes which of them."""

from math import ceil, cos, pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tasks import ask_for_too_much_memory, refused
from torch import nn

from premed.contracts import Batch, BatchIndices, Objective
from premed.data.samplers import EpochSampler
from premed.rng import permutation
from premed.training import fit as loop
from premed.training.fit import fit, share
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule


def test_the_learning_rate_is_the_papers_formula():
    schedule = Schedule(num_steps=100, warmup_steps=10, lr=0.5)
    assert [schedule.at(step) for step in range(10)] == pytest.approx([0.05 * step for step in range(10)])
    cosine = [0.5 * 0.5 * (1 + cos(pi * (step - 10) / 90)) for step in range(10, 101)]
    assert [schedule.at(step) for step in range(10, 101)] == pytest.approx(cosine)
    assert (schedule.at(0), schedule.at(10), schedule.at(100)) == (0, 0.5, 0)


@given(st.integers(1, 200), st.floats(0, 250))
def test_the_learning_rate_stays_between_zero_and_its_top(num_steps, warmup):
    rates = [Schedule(num_steps, min(warmup, num_steps), 1.0).at(step) for step in range(num_steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] == (0 if warmup else 1)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5))
def test_an_epoch_takes_every_sample_once(num_samples, batch, epoch):
    plan, steps = EpochSampler(num_samples, batch, 10**6, 0, "pretrain"), ceil(num_samples / batch)
    indices = [plan.at(epoch * steps + i) for i in range(steps)]
    assert sorted(np.concatenate([pick.samples for pick in indices])) == list(range(num_samples))
    assert {pick.epoch for pick in indices} == {epoch}
    assert all(len(pick.samples) == batch for pick in indices[:-1])


def order(epoch=0, seed=0, stage="pretrain"):
    return EpochSampler(50, 50, 100, seed, stage).at(epoch).samples.tolist()


def test_each_epoch_seed_and_stage_has_an_order_of_its_own():
    assert order() == order()
    assert len({tuple(o) for o in (order(), order(epoch=1), order(seed=1), order(stage="finetune"))}) == 4


def test_a_step_does_not_depend_on_earlier_calls():
    ahead = EpochSampler(7, 2, 100, 0, "pretrain")
    in_order = [ahead.at(step).samples.tolist() for step in range(40)]
    permutation.cache_clear()
    assert [ahead.at(step).samples.tolist() for step in reversed(range(40))] == in_order[::-1]


# ---- who takes what


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4))
def test_every_sample_is_taken_once_with_its_share_of_the_weight(num, world, accumulate):
    picks_of_step = BatchIndices(3, np.arange(100, 100 + num))
    dealt = [indices for rank in range(world) for indices in share(picks_of_step, rank, world, accumulate)]
    assert len(dealt) == world * accumulate
    assert (
        sorted(np.concatenate([indices.samples for indices in dealt if indices.weight]))
        == picks_of_step.samples.tolist()
    )
    assert sum(indices.weight for indices in dealt) == pytest.approx(world)
    for indices in dealt:
        assert set(indices.epoch) == {3} and len(indices.samples) >= 1
        assert indices.weight in (0, pytest.approx(len(indices.samples) * world / num))


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_weighted_means_add_up_to_the_mean_of_the_step(num, world, accumulate, seed):
    losses = np.random.default_rng(seed).normal(size=num)
    ranks = [share(BatchIndices(0, np.arange(num)), rank, world, accumulate) for rank in range(world)]
    sums = [sum(losses[indices.samples].mean() * indices.weight for indices in rank) for rank in ranks]
    assert np.mean(sums) == pytest.approx(losses.mean())  # DDP takes the mean over ranks


class Numbers:
    """A source whose images are their samples' numbers."""

    def __init__(self, values=tuple(range(100))):
        self.values, self.read = values, []

    def batches(self, indices):
        for pick in indices:
            self.read.append(pick.samples.tolist())
            image = torch.tensor([[float(self.values[i])] for i in pick.samples])
            yield Batch(image, torch.tensor(pick.samples), tuple(map(str, pick.samples)), None, pick.weight)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_number_of_ranks_sees_the_same_global_batches(world, accumulate, monkeypatch):
    plan = EpochSampler(11, 4, 9, 0, "finetune")
    samples = {step: [] for step in range(2, 9)}
    for rank in range(world):
        monkeypatch.setattr(loop, "rank_and_world", lambda rank=rank: (rank, world))
        for step, batches in loop.feed(plan, Numbers(), 2, accumulate):
            samples[step] += [number for batch in batches if batch.weight for number in batch.keys.tolist()]
    assert {step: sorted(numbers) for step, numbers in samples.items()} == {
        step: sorted(plan.at(step).samples.tolist()) for step in samples
    }


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3))
def test_each_sample_keeps_the_epoch_that_it_has_of_its_own(num, world, accumulate):
    picks_of_step = BatchIndices(np.arange(num) // 3, np.arange(num))
    dealt = [indices for rank in range(world) for indices in share(picks_of_step, rank, world, accumulate)]
    assert all((indices.epoch == indices.samples // 3).all() for indices in dealt)


# ---- the loop


class Line(Objective):
    """The mean of w · x: its gradient is the mean of x."""

    def __init__(self):
        super().__init__()
        self.w, self.frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
        self.calls = []

    def forward(self, batch, progress):
        self.calls.append(progress)
        return (self.w * batch.image).mean(), {"seen": batch.image.mean()}

    def param_groups(self):
        return [{"params": [self.w], "weight_decay": 0.0, "lr_scale": 0.5}]

    def before_step(self, progress):
        self.gradient = self.w.grad.clone()
        return {}

    def after_step(self, progress):
        self.calls.append("after")


def trained(make=Line, **options):
    objective, calls = make(), []
    optimizer = make_optimizer(objective, (0.9, 0.999))
    plan = EpochSampler(6, 6, options.pop("num_steps", 1), 0, "finetune")
    fit(objective, Numbers(), plan, Schedule(10, 0, 0.1), optimizer, lambda *row: calls.append(row), **options)
    return objective, optimizer, calls


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 8])
def test_micro_batches_give_the_gradient_the_loss_and_the_numbers_of_the_whole_step(accumulate):
    objective, _, calls = trained(accumulate=accumulate)
    assert objective.gradient.item() == pytest.approx(2.5)
    ((step, loss, numbers),) = calls
    assert (step, loss.item(), numbers["seen"].item()) == (1, pytest.approx(2.5), pytest.approx(2.5))


class Large(Line):
    """Asks for more memory than any machine has, if there are more than two images at a time."""

    def forward(self, batch, progress):
        if len(batch.image) > 2:
            ask_for_too_much_memory()
        return super().forward(batch, progress)


def test_a_step_that_does_not_fit_is_told_and_what_is_told_mends_it():
    refused(lambda: trained(Large), "a step of 6 images", "set train.accumulate=2,")
    refused(lambda: trained(Large, accumulate=2), "a step of 3 images", "set train.accumulate=4,")
    assert trained(Large, accumulate=4)[0].gradient.item() == pytest.approx(2.5)


def test_layer_decay_reaches_the_optimizer_at_every_step():
    _, optimizer, calls = trained(num_steps=3)
    assert [numbers["lr"] for _, _, numbers in calls] == [Schedule(10, 0, 0.1).at(step) for step in range(3)]
    assert optimizer.param_groups[0]["lr"] == 0.5 * Schedule(10, 0, 0.1).at(2)


class Decaying(Line):
    def param_groups(self):
        (group,) = super().param_groups()
        return [group | {"decay": (0.04, 0.4)}]


def test_weight_decay_may_go_from_first_to_last_by_half_a_cosine():
    objective, decays = Decaying(), []
    optimizer = make_optimizer(objective, (0.9, 0.999))
    plan, schedule = EpochSampler(6, 6, 10, 0, "finetune"), Schedule(10, 0, 0.1)
    fit(
        objective,
        Numbers(),
        plan,
        schedule,
        optimizer,
        lambda *row: decays.append(optimizer.param_groups[0]["weight_decay"]),
    )
    assert decays == pytest.approx([0.22 - 0.18 * cos(pi * step / 10) for step in range(10)])


def test_clip_scales_the_gradient_and_logs_its_norm_before():
    objective, optimizer, calls = trained(clip=0.5)
    assert calls[0][2]["gradient_norm"].item() == pytest.approx(2.5)
    assert optimizer.state[objective.w]["exp_avg"].item() == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_without_clip_the_gradient_norm_is_logged_and_changes_nothing():
    objective, optimizer, calls = trained()
    assert calls[0][2]["gradient_norm"].item() == pytest.approx(2.5)
    assert optimizer.state[objective.w]["exp_avg"].item() == pytest.approx(0.1 * 2.5)


def test_progress_and_hooks_come_step_by_step_from_where_it_starts():
    objective, _, calls = trained(num_steps=4, start=2)
    assert objective.calls == [0.2, "after", 0.3, "after"]  # of the schedule's ten steps
    assert [step for step, _, _ in calls] == [3, 4]


def test_a_run_that_is_done_trains_nothing():
    assert trained(num_steps=4, start=4)[2] == []
