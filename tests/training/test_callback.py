"""The training callback: the curve, validations, which weights are kept, what stops a training."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stages import on_ranks
from support.suite import examples
from torch import nn

from premed.contracts import Case, Objective, Sample
from premed.data.samplers import EpochSampler
from premed.errors import Stopped, UserError
from premed.events import WarningIssued
from premed.training.callback import NotFinite, TrainingCallback
from premed.training.checkpoint import Checkpoint, best_file
from premed.training.optimizer import make_optimizer
from premed.training.storage import StageStorage

FP32 = torch.float32


class Fixed(Objective):
    """Its weight is the number of the step; its scores on val are given."""

    def __init__(self, scores=()):
        super().__init__()
        self.w, self.scores, self.shows = nn.Parameter(torch.zeros(1)), list(scores), True
        self.parts = {"encoder": self}

    def param_groups(self):
        return [{"params": [self.w], "weight_decay": 0.0, "lr_scale": 1.0}]

    def measure(self, samples):
        assert not self.training
        assert samples, "no rank measures without samples"
        return [{"case": sample.case.name, "n": int(sample.case.patient)} for sample in samples]

    def snapshot(self, samples):
        assert not self.training
        return {samples[0].case.name: self.w.detach().clone()} if self.shows else {}

    def summary(self, rows):
        score = self.scores.pop(0) if self.scores else 0.5
        return {"n/each": len(rows)} if score is None else {"score": score, "n/each": len(rows)}


def samples(num):
    return [Sample(Case(f"case {i}", str(i), ()), None) for i in range(num)]


def training_callback(folder, scores=(), *, num_steps=10, validations=5, score="score", log_steps=5, batch=4):
    objective, reports = Fixed(scores), []
    objective.train()
    plan = EpochSampler(8, batch, num_steps, 0, "finetune")
    callback = TrainingCallback(
        objective,
        make_optimizer(objective, (0.9, 0.999)),
        plan,
        StageStorage(str(folder), "stage"),
        samples(3),
        validations=validations,
        score=score,
        log_steps=log_steps,
        save_minutes=0,
        precision=FP32,
        sample_names=lambda indices: [f"case {i}" for i in indices.samples],
        on_event=lambda event: None,
        report=reports.append,
    )
    return callback, reports


def steps(callback, first=1, last=None, losses=None):
    for step in range(first, (last or callback.plan.num_steps) + 1):
        with torch.no_grad():
            callback.objective.w.fill_(step)
        callback(step, torch.tensor(losses[step] if losses else float(step)), {"lr": step / 10})


def weights(callback):
    return {
        name: callback.storage.get_weights(name)["w"].item()
        for name in callback.storage.names()
        if name.startswith("best/")
    }


# ---- the curve


def test_a_point_is_the_mean_loss_since_the_last_point(tmp_path):
    callback, _ = training_callback(tmp_path, validations=1, log_steps=4)
    steps(callback)
    curve = [(row["step"], row["metrics"]) for row in callback.curve if "train/loss" in row["metrics"]]
    assert curve == [
        (4, {"train/loss": 2.5, "train/lr": 0.4}),
        (8, {"train/loss": 6.5, "train/lr": 0.8}),
        (10, {"train/loss": 9.5, "train/lr": 1.0}),
    ]


@pytest.mark.parametrize(
    ("validations", "num_steps", "expected"),
    [(1, 10, [10]), (3, 10, [4, 7, 10]), (5, 10, [2, 4, 6, 8, 10]), (50, 3, [1, 2, 3]), (20, 1, [1])],
)
def test_validations_are_spread_evenly_and_end_at_the_last_step(tmp_path, validations, num_steps, expected):
    callback, reports = training_callback(tmp_path, num_steps=num_steps, validations=validations)
    steps(callback)
    assert [numbers["step"] for numbers in reports] == expected
    assert [row["step"] for row in callback.curve if "val/score" in row["metrics"]] == expected


def test_per_class_numbers_stay_out_of_the_curve(tmp_path):
    callback, _ = training_callback(tmp_path)
    steps(callback)
    assert {name for row in callback.curve for name in row["metrics"]} == {"train/loss", "train/lr", "val/score"}
    assert callback.objective.training


# ---- the weights that are kept


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.4, 0.3, 0.4, 0.2], 4),  # of equals the first
        ([0.1, 0.2, 0.3, 0.4, 0.5], 10),
        ([None, None, 0.1, None, None], 6),  # undefined beats nothing
        ([None] * 5, 10),
    ],
)
def test_the_highest_score_picks_the_weights(tmp_path, scores, best):
    callback, _ = training_callback(tmp_path, scores)
    steps(callback)
    assert (callback.best["step"], weights(callback)[best_file(callback.best["step"], "encoder")]) == (best, best)
    assert [row["case"] for row in callback.rows] == ["case 0", "case 1", "case 2"]


@pytest.mark.parametrize(("scores", "told"), [([None] * 5, 1), ([None, 0.1, None, None, None], 0)])
def test_a_val_that_never_has_a_score_and_picks_nothing_is_told(tmp_path, scores, told):
    """Val has one kind of label only, say: its AUC is undefined."""
    callback, _ = training_callback(tmp_path, scores)
    heard = []
    callback.on_event = heard.append
    steps(callback)
    warnings = [event.text for event in heard if isinstance(event, WarningIssued)]
    assert len(warnings) == told and all("the last ones are kept" in text for text in warnings)


def test_without_a_score_the_last_weights_are_kept_and_written_once(tmp_path):
    callback, _ = training_callback(tmp_path, [0.9, 0.1, 0.1, 0.1, 0.1], score=None)
    steps(callback, last=9)
    assert weights(callback) == {}
    steps(callback, first=10)
    assert weights(callback) == {"best/000000010/encoder.safetensors": 10}


def test_best_weights_of_a_checkpoint_are_kept_beside_better_ones(tmp_path):
    callback, _ = training_callback(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5])
    steps(callback, last=6)  # the checkpoint is of step 5, when 4 was best
    assert sorted(weights(callback).values()) == [4, 6]
    again, _ = training_callback(tmp_path, [0.1, 0.1, 0.1])
    assert (again.resume(), again.best["step"], again.objective.w.item()) == (5, 4, 5)
    steps(again, first=6)
    assert weights(again)[best_file(again.best["step"], "encoder")] == 4


def test_a_resumed_run_has_the_same_curve(tmp_path):
    uninterrupted, _ = training_callback(tmp_path / "whole")
    steps(uninterrupted)
    callback, _ = training_callback(tmp_path / "cut")
    steps(callback, last=7)
    again, _ = training_callback(tmp_path / "cut")
    steps(again, first=again.resume() + 1)
    curves = [[(row["step"], row["metrics"]) for row in each.curve] for each in (again, uninterrupted)]
    assert curves[0] == curves[1]
    assert again.elapsed() >= again.seconds > 0


def snapshots(callback):
    names = [name for name in callback.storage.names() if name.startswith("snapshots/")]
    return {int(name[10:19]): callback.storage.get_weights(name)["case 0"].item() for name in names}


@pytest.mark.parametrize(
    ("num_steps", "validations", "expected"), [(40, 20, [10, 20, 30, 40]), (10, 5, [4, 6, 8, 10]), (10, 2, [5, 10])]
)
def test_outputs_for_fixed_cases_are_saved_after_each_quarter(tmp_path, num_steps, validations, expected):
    callback, _ = training_callback(tmp_path, num_steps=num_steps, validations=validations)
    steps(callback)
    assert snapshots(callback) == {step: step for step in expected}
    assert callback.objective.training


def test_a_resumed_run_keeps_earlier_snapshots_and_saves_none_twice(tmp_path):
    callback, _ = training_callback(tmp_path)
    steps(callback, last=9)  # the checkpoint is of step 5
    again, _ = training_callback(tmp_path)
    steps(again, first=again.resume() + 1)
    assert snapshots(again) == {4: 4, 6: 6, 8: 8, 10: 10}


def test_an_objective_without_snapshots_saves_none(tmp_path):
    callback, _ = training_callback(tmp_path)
    callback.objective.shows = False
    steps(callback)
    assert snapshots(callback) == {}


# ---- stopped in the middle


def curve(callback):
    return [(row["step"], row["metrics"]) for row in callback.curve]


def num_asked(callback, start, stop):
    """How often it asks whether to stop in the steps between: once each, and once more after a validation."""
    between = range(start + 1, stop)
    return len(between) + len(callback.validation_steps & set(between))


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(1, 10), min_size=1, max_size=4), st.sampled_from([1, 3, 4, 20]), st.data())
def test_a_training_stopped_after_any_steps_has_the_same_curve_and_the_same_best_weights(
    tmp_path_factory, stops, log_steps, data
):
    """Also between two points of the curve, and before a validation, which is then done by the next start."""
    folder = tmp_path_factory.mktemp("stopped")
    by_step = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=5, max_size=5))
    losses = {step: data.draw(st.floats(-2, 2, width=32)) for step in range(1, 11)}
    about = {"log_steps": log_steps, "validations": 5}
    whole, _ = training_callback(folder / "whole", by_step, **about)
    steps(whole, losses=losses)
    for stop in sorted(stops):
        callback, _ = training_callback(folder / "cut", **about)
        start = callback.resume()
        callback.save_minutes = 60
        callback.objective.scores = by_step[sum("val/score" in row["metrics"] for row in callback.curve) :]
        callback.catch_up()
        left = iter([*[False] * num_asked(callback, start, stop), True])
        callback.stopping = lambda left=left: next(left)
        with pytest.raises(Stopped, match=f"at step {stop}$"):
            steps(callback, first=start + 1, last=stop, losses=losses)
        assert callback.checkpoints.steps()[-1] == stop
    again, _ = training_callback(folder / "cut", **about)
    start = again.resume()
    again.objective.scores = by_step[sum("val/score" in row["metrics"] for row in again.curve) :]
    again.catch_up()
    steps(again, first=start + 1, losses=losses)
    assert curve(again) == curve(whole)
    assert (again.best, again.rows) == (whole.best, whole.rows)
    best = best_file(whole.best["step"], "encoder")
    assert weights(again)[best] == weights(whole)[best]


def test_a_stop_in_the_middle_of_a_validation_leaves_it_to_the_next_start(tmp_path, monkeypatch):
    whole, _ = training_callback(tmp_path / "whole")
    steps(whole)
    callback, _ = training_callback(tmp_path / "cut")
    callback.save_minutes = 60
    steps(callback, last=5)
    measure = Fixed.measure
    monkeypatch.setattr(Fixed, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Stopped, match="at step 6"):
        steps(callback, first=6, last=6)
    monkeypatch.setattr(Fixed, "measure", measure)
    again, reports = training_callback(tmp_path / "cut")
    assert again.resume() == 6 and [step for step, _ in curve(again)] == [2, 2, 4, 4, 5, 6]
    again.catch_up()
    assert [numbers["step"] for numbers in reports] == [6]
    steps(again, first=7)
    assert curve(again) == curve(whole)


def test_weights_that_are_not_finite_are_not_saved_when_stopped(tmp_path):
    callback, _ = training_callback(tmp_path, validations=1)
    callback.stopping = lambda: True
    with torch.no_grad():
        callback.objective.w.fill_(math.nan)
    with pytest.raises(NotFinite):
        callback(3, torch.tensor(1.0), {})
    assert callback.storage.names() == []


def test_a_checkpoint_that_is_passed_over_is_a_warning(tmp_path):
    callback, _ = training_callback(tmp_path, log_steps=2)
    steps(callback, last=9)
    callback.storage.put("checkpoints/000000008.pt", b"damaged")
    again, events = training_callback(tmp_path)[0], []
    again.on_event = events.append
    assert again.resume() == 6
    (warning,) = [event.text for event in events if isinstance(event, WarningIssued)]
    assert warning.endswith("checkpoints/000000008 is damaged; the training goes on from step 6")


# ---- losses and weights that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_non_finite_loss_is_reported_with_its_samples(tmp_path, bad):
    callback, _ = training_callback(tmp_path, validations=1)
    losses = {step: bad if step >= 7 else 1.0 for step in range(1, 11)}
    expected = [f"case {i}" for i in callback.plan.at(6).samples]
    with pytest.raises(NotFinite, match="at step 7 .*; the last good checkpoint is that of step 5: look at") as caught:
        steps(callback, losses=losses)
    assert (caught.value.step, caught.value.samples) == (7, expected)
    assert all(name in str(caught.value) for name in expected)
    assert callback.checkpoints.steps() == [5]


def test_a_large_batch_names_twenty_and_counts_the_rest(tmp_path):
    callback, _ = training_callback(tmp_path)
    callback.sample_names = lambda indices: [f"case {i}" for i in range(256)]
    with pytest.raises(NotFinite, match=r"case 19 and 236 more\)") as caught:
        callback.raise_not_finite(1, "the loss is not finite")
    assert len(caught.value.samples) == 256


def test_non_finite_weights_stop_the_run_before_they_are_saved(tmp_path):
    callback, _ = training_callback(tmp_path, validations=1)
    with torch.no_grad():
        callback.objective.w.fill_(math.nan)
    with pytest.raises(NotFinite, match="the weights are not finite at step 5 .*there is no checkpoint yet"):
        callback(5, torch.tensor(1.0), {})
    assert callback.storage.names() == []


# ---- several ranks


def resume_in_a_folder_of_its_own(folder):
    import torch.distributed as dist

    rank = dist.get_rank()
    if rank == 0:  # as on a machine that trained alone before
        alone, _ = training_callback(folder / "0")
        alone.checkpoints.write(Checkpoint(5, {"objective": {}, "optimizer": {}}, {"curve": []}))
    dist.barrier()
    callback, _ = training_callback(folder / str(rank))
    with pytest.raises(UserError, match=r"train.storage: .* of steps \[5, 0\]"):
        callback.resume()


def test_a_folder_that_is_not_shared_is_refused_on_all_ranks(tmp_path):
    assert on_ranks(2, resume_in_a_folder_of_its_own, tmp_path) == [0, 0]
