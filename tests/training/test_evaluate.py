"""Rows of scores over several ranks, their bootstrap interval, the gate and collapse of a pre-training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.stages import on_ranks

from premed.contracts import Case, Objective, Sample
from premed.tasks.common import resamples
from premed.training import evaluate

FP32 = torch.float32


class Numbered(Objective):
    """Its rows have the number of each sample."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def measure(self, samples):
        assert not self.training and samples
        return [{"case": sample.case.name, "n": int(sample.case.patient)} for sample in samples]


def samples(num):
    return [Sample(Case(f"case {i}", str(i), ()), None) for i in range(num)]


def measure_on_ranks(num_samples):
    rows = evaluate.evaluate(Numbered(), samples(num_samples), FP32)
    assert [row["n"] for row in rows] == list(range(num_samples))


def measure_cases_of_one_name_on_ranks():
    alike = [sample._replace(case=replace(sample.case, name="case")) for sample in samples(5)]
    assert [row["n"] for row in evaluate.evaluate(Numbered(), alike, FP32)] == list(range(5))


def test_cases_of_one_name_in_two_data_sets_keep_a_row_each():
    assert on_ranks(2, measure_cases_of_one_name_on_ranks) == [0, 0]


@pytest.mark.parametrize("num_samples", [1, 2, 7])
def test_ranks_share_the_validation_even_if_it_is_smaller_than_they_are_many(num_samples):
    assert on_ranks(3, measure_on_ranks, num_samples) == [0, 0, 0]


def test_val_rows_come_in_the_samples_order():
    assert [row["n"] for row in evaluate.evaluate(Numbered(), samples(5), FP32)] == list(np.arange(5))


def findings(truth, probability):
    """Rows of one class `x`, one patient each."""
    pairs = enumerate(zip(truth, probability, strict=True))
    return [{"patient": str(i), "y/x": y, "p/x": p} for i, (y, p) in pairs]


def mean_p(rows, counts):
    return counts @ [row["p/x"] for row in rows] / counts.sum(1)


def test_the_interval_of_a_mean_is_the_textbooks():
    sample = np.random.default_rng(0).normal(size=400)
    low, high = evaluate.bootstrap_interval(findings(np.zeros(400), sample), mean_p, level=0.9)
    half = 1.645 * sample.std() / 20
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.015)


def test_patients_are_resampled_and_not_images():
    rows = [{"patient": patient, "p/x": float(patient == "a")} for patient in ("a", "b") for _ in range(100)]
    assert evaluate.bootstrap_interval(rows, mean_p) == (0, 1)


def test_the_interval_depends_on_the_seed_and_not_on_the_rows_order():
    rows = findings(np.zeros(30), np.random.default_rng(0).normal(size=30))
    interval = evaluate.bootstrap_interval(rows, mean_p)
    assert evaluate.bootstrap_interval(rows[::-1], mean_p) == pytest.approx(interval, rel=1e-12)
    assert evaluate.bootstrap_interval(rows, mean_p, seed=1) != interval


def test_a_share_of_the_resamples_at_a_time_gives_the_same(monkeypatch):
    rows = findings(np.zeros(30), np.random.default_rng(0).normal(size=30))
    interval = evaluate.bootstrap_interval(rows, mean_p)
    monkeypatch.setattr(evaluate, "COUNTS", 7 * 30)
    assert evaluate.bootstrap_interval(rows, mean_p) == pytest.approx(interval, rel=1e-12)


def test_undefined_resamples_are_skipped_and_too_many_give_no_interval():
    def auc(rows, counts):
        return resamples.mean_aucs(rows, ("x",), counts)

    def seldom(rows, counts):  # 1 resample of 9
        return np.where((counts > 0).sum(1) == 1, 1.0, np.nan)

    assert np.isfinite(evaluate.bootstrap_interval(findings([0, 0, 1, 1], [0.1, 0.5, 0.4, 0.9]), auc)).all()
    assert np.isnan(evaluate.bootstrap_interval(findings([0, 0, 0], [0.1, 0.5, 0.4]), auc)).all()
    assert np.isnan(evaluate.bootstrap_interval([], auc)).all()
    assert np.isnan(evaluate.bootstrap_interval(findings([0, 0, 0], [0.1, 0.5, 0.4]), seldom)).all()


@pytest.mark.parametrize(("loss", "passed"), [(0.5, True), (0.949, True), (0.96, False), (1.2, False)])
def test_a_pretraining_is_past_its_gate_when_clearly_below_it(loss, passed):
    gate = evaluate.passed_gate({"loss": loss, "gate": 1.0})
    assert gate["passed"] is passed
    assert math.isclose(gate["below"], 1 - loss)
    assert evaluate.passed_gate({"mauc": 0.6}) is None
    assert evaluate.passed_gate({"loss": 0.0, "gate": 0.0})["passed"] is False  # all images alike


def test_of_one_patient_there_is_no_interval_however_many_images():
    rows = [{**row, "patient": "one"} for row in findings([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8])]
    assert all(map(math.isnan, evaluate.bootstrap_interval(rows, mean_p)))
