"""Throughput: logged beside the curve and kept out of it. The clock moves only where a test moves it."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.stages import jobs, on_ranks

from premed.cli.messages import bottleneck_words
from premed.contracts import BatchIndices
from premed.data.loader import Views
from premed.data.phantoms.writers import write_chestxray14
from premed.events import DataLoadingBottleneck, MetricsLogged
from premed.pretext.mae import MAE
from premed.training import stage, throughput
from premed.training.throughput import Throughput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    return write_chestxray14(tmp_path_factory.mktemp("data") / "chest", num_patients=8, seed=1, size=32, prevalence=0.6)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(throughput, "num_cpus", lambda: 8.0)
    return now


def slow(monkeypatch, clock, reading, training):
    """A batch takes `reading` seconds to read, a step `training` to compute."""
    read, step = Views.__getitem__, MAE.after_step

    def read_slowly(self, indices):
        clock.seconds += reading
        return read(self, indices)

    def train_slowly(self, progress):
        clock.seconds += training
        return step(self, progress)

    monkeypatch.setattr(Views, "__getitem__", read_slowly)
    monkeypatch.setattr(MAE, "after_step", train_slowly)


def pretrained(chest, home, **changes):
    """The events of a pre-training of 10 steps, and its curve as it is kept."""
    job, events = jobs(chest, home, **changes)["pretrain"], []
    stage.run_stage(job, events.append, lambda numbers: None)
    curve = [json.loads(line) for line in job.stage_storage.get("curve.jsonl").splitlines()]
    return events, [(row["step"], row["metrics"]) for row in curve]


def throughput_by_step(events):
    """What is logged beside the curve."""
    return {event.step: event.throughput for event in events if isinstance(event, MetricsLogged) and event.throughput}


def test_a_training_that_waits_for_images_warns_once_with_a_remedy(chest, tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, reading=4, training=1)
    events, _ = pretrained(chest, tmp_path)
    (starving,) = [event for event in events if isinstance(event, DataLoadingBottleneck)]
    assert starving == DataLoadingBottleneck(pytest.approx(28 / 36), num_loaders=0, suggested_loaders=4)
    assert bottleneck_words(starving) == (
        "78% of the time is spent waiting for images; set train.loaders=4 (and train.cpus=5, so that each has a CPU)"
    )


def test_a_training_that_computes_most_of_the_time_does_not_warn(chest, tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, reading=4, training=5)
    events, _ = pretrained(chest, tmp_path)
    assert DataLoadingBottleneck not in map(type, events)


def test_each_point_has_the_throughput_since_the_last_one(chest, tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, reading=3, training=1)
    events, _ = pretrained(chest, tmp_path, pretrain={"batch": 4})
    numbers = throughput_by_step(events)
    assert numbers[2]["pace/data_wait"] == 3 / 5  # the first batch waits for loaders to start
    assert numbers[4]["pace/data_wait"] == 6 / 8 and numbers[4]["pace/samples_per_second"] == 4 * 2 / 8
    assert all(point["pace/memory_mb"] > 50 for point in numbers.values())


def test_validations_and_checkpoints_do_not_count_as_training_time(chest, tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, reading=0, training=1)
    measure = MAE.measure

    def measure_slowly(self, samples):
        clock.seconds += 1000
        return measure(self, samples)

    monkeypatch.setattr(MAE, "measure", measure_slowly)
    events, _ = pretrained(chest, tmp_path, pretrain={"batch": 4})
    assert all(
        point["pace/samples_per_second"] >= 1 for point in throughput_by_step(events).values()
    )  # an image a second at least


def test_the_steps_in_which_libraries_settle_are_not_the_speed_of_the_first_point(chest, tmp_path, clock, monkeypatch):
    after_step, steps = MAE.after_step, []

    def train_slowly_at_first(self, progress):
        steps.append(clock.seconds)
        clock.seconds += 100 if len(steps) <= 3 else 1
        return after_step(self, progress)

    monkeypatch.setattr(MAE, "after_step", train_slowly_at_first)
    events, _ = pretrained(chest, tmp_path, pretrain={"batch": 4, "validations": 1}, train={"log_steps": 5})
    speeds = [point["pace/samples_per_second"] for point in throughput_by_step(events).values()]
    assert len(speeds) == 2 and min(speeds) >= 1  # an image a second at least: the last batch of an epoch is smaller


def test_a_curve_does_not_depend_on_speed(chest, tmp_path, clock, monkeypatch):
    _, undisturbed = pretrained(chest, tmp_path / "a")
    slow(monkeypatch, clock, reading=4, training=1)
    events, curve = pretrained(chest, tmp_path / "b")
    assert curve == undisturbed and throughput_by_step(events)
    names = {name for _, metrics in curve for name in metrics}
    assert {"train/loss", "train/lr", "train/gradient_norm"} <= names
    assert not any(name.startswith("pace/") for name in names)


def wait_on_the_second_rank():
    rank, _ = stage.rank_and_world()
    throughput.time = SimpleNamespace(monotonic=lambda: 100.0)
    ours = Throughput(CPU, 0)
    ours.waited = 5.0 * rank
    throughput.time = SimpleNamespace(monotonic=lambda: 110.0)
    numbers = ours.stop(40)
    assert (numbers["pace/data_wait"], numbers["pace/samples_per_second"]) == (0.5, 4.0)


def test_of_several_ranks_the_longest_wait_is_reported():
    assert on_ranks(2, wait_on_the_second_rank) == [0, 0]


@pytest.mark.parametrize(
    ("num_loaders", "share", "cpus", "suggested"),
    [
        (0, 0.6, 16, 2),  # reading takes one and a half times as long as a step
        (0, 0.875, 16, 7),
        (2, 0.75, 16, 8),
        (0, 0.9, 4, 3),
        (3, 0.9, 4, 3),  # no CPU is left
        (0, 1.0, 2, 1),
        (4, 1.0, 64, 9),
    ],
)
def test_the_suggested_loaders_keep_up_and_have_a_cpu_each(num_loaders, share, cpus, suggested, monkeypatch):
    monkeypatch.setattr(throughput, "num_cpus", lambda: float(cpus))
    ours = Throughput(CPU, num_loaders)
    ours.seconds, ours.waiting_seconds = 100.0, 100 * share
    starving = ours.bottleneck()
    assert starving.suggested_loaders == suggested and ours.bottleneck() is None
    assert ("no CPU is left" in bottleneck_words(starving)) == (suggested <= num_loaders)


class Endless:
    """Reads a batch in a second."""

    def __init__(self, clock):
        self.clock = clock

    def batches(self, indices):
        for pick in indices:
            self.clock.seconds += 1
            yield pick


def test_a_timed_loader_yields_the_same_batches(clock):
    ours = Throughput(CPU, 0)
    indices = [BatchIndices(epoch, torch.zeros(1)) for epoch in range(3)]
    assert [pick.epoch for pick in ours.timed(Endless(clock)).batches(indices)] == [0, 1, 2]
    assert ours.waited == 2.0
