"""What events say, in words."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from premed.config.settings import GATE_SHARE
from premed.events import (
    CollapseDetected,
    DataLoadingBottleneck,
    Event,
    GateNotPassed,
    MetricsLogged,
    TrainingEndedEarly,
    TrainingStarted,
    WaitingForResources,
    WeightsImported,
)
from premed.reporting.formatting import duration, score_name

FEW = 20
"""Names of tensors in one line; of more, their number and the first."""
DOING = {
    "pretrain": "pre-training",
    "trunk": "pre-training, trunk",
    "cooldown": "pre-training, cool-down",
    "import": "importing weights",
    "finetune": "fine-tuning",
    "test": "testing",
}
"""What a stage does, by its kind."""


def bottleneck_words(event: DataLoadingBottleneck) -> str:
    """The share of the time spent waiting for images, and the remedy."""
    waiting, loaders = f"{event.share:.0%} of the time is spent waiting for images", event.suggested_loaders
    if loaders > event.num_loaders:
        return f"{waiting}; set train.loaders={loaders} (and train.cpus={loaders + 1}, so that each has a CPU)"
    remedy = "lower train.workers, or put PREMED_HOME on a faster disk"
    return f"{waiting}; no CPU is left for train.loaders: {remedy}"


def resources_words(event: WaitingForResources) -> str:
    """What a stage needs, and what of it the cluster has."""
    workers, cpus = event.workers, event.cpus
    each = f"{workers} worker{'s' * (workers != 1)} of {cpus:g} CPU{'s' * (cpus != 1)}{' and a GPU' * event.gpu}"
    left = " and ".join(f"{free:g} of {event.total[name]:g} {name}s" for name, free in event.free.items())
    enough = event.free["CPU"] >= workers * cpus and (not event.gpu or event.free["GPU"] >= workers)
    return f"{each}; the cluster has {left} free{': others start or end just now' * enough}"


def gate_words(step: int, loss: float, gate: float, before: bool | None = None) -> str:
    """The validation loss of a pre-training against its gate, in words; what the gate is, only where it has come past
    it, or back, since `before` (whether it was past it at the validation before; None: there was none)."""
    passed = is_past(loss, gate)
    better = f"{1 - loss / gate:.1%}" if loss < gate else "no"
    if passed == before:
        little = f"{better} below the gate, not past it yet" if loss < gate else "not past the gate yet"
        result = f"{1 - loss / gate:.0%} below the gate" if passed else little
        return f"step {step}: validation loss {loss:.3f}, {result}"
    result = f"not past it yet: {better} better so far than predicting the mean patch of each position"
    result = f"past the gate by {1 - loss / gate:.0%}" if passed else result
    return f"step {step}: validation loss {loss:.3f}, gate {gate:.3f}: {result}"


def is_past(loss: float, gate: float) -> bool:
    return loss < GATE_SHARE * gate


def gate_warning(event: GateNotPassed) -> str:
    """Of a pre-training that ended without having passed its gate."""
    numbers = f"loss {event.loss:.3f}, a predictor without a network {event.gate:.3f}"
    return (
        f"the pre-training did not pass its gate ({numbers}): its encoder has learnt little to transfer; train longer "
        "(pretrain.epochs, or pretrain.steps where that is set), or with smaller patches (encoder.patch)"
    )


def collapse_warning(event: CollapseDetected) -> str:
    """Of a pre-training whose outputs came to be alike."""
    output = "the same output" if event.into == "one" else "a uniform output"
    return (
        f"the pre-training collapsed: its teacher gives all images {output} (entropy {event.entropy:.2f} of 1, "
        f"{event.same:.0%} alike): its encoder has learnt little; lower pretrain.lr, or raise pretrain.epochs"
    )


def probe_words(metrics: Mapping[str, float]) -> str:
    """The scores of the online probe at a validation, as the end of a line; empty if there is none."""
    scores = {
        name.removeprefix("val/probe_"): value for name, value in metrics.items() if name.startswith("val/probe_")
    }
    return "".join(f"; probe {score_name(name)} {value:.3f}" for name, value in scores.items())


def early_end_words(event: TrainingEndedEarly) -> str:
    """Where and why a pre-training ended early."""
    score = score_name(event.score.removeprefix("probe_"))
    return (
        f"ends at step {event.step} of {event.num_steps}: no better {score} of the probe in {event.patience} "
        f"validation{'s' * (event.patience != 1)} than {event.best:.3f} at step {event.best_step}, "
        "whose weights are kept"
    )


def large_batch_words(event: TrainingStarted, kind: str) -> str:
    """Of a step that holds more images than there are, in a stage of this kind."""
    field = "finetune.batch" if kind == "finetune" else "pretrain.batch"
    return (
        f"batch {event.batch} is more than the {event.num_images} training images: a step shows some of them several "
        f"times, and the learning rate grows with batch; lower {field}"
    )


def training_words(event: TrainingStarted) -> str:
    """Of how many images and steps a training is."""
    more = f", {event.trained}" if event.trained else ""
    more += f", resumed after step {event.start}" if event.start else ""
    if event.workers:
        more += f", {event.workers} worker{'s' * (event.workers != 1)}"
    steps = "" if event.batch is None else f" of {event.batch}, learning rate {event.lr:.3g}"
    steps += f" after {event.warmup:.0f} of warm-up" if event.warmup >= 1 else ""
    return f"on {event.num_images} images, {event.num_steps} steps{steps}{more}"


def pace_words(event: MetricsLogged, batch: int, speed: float) -> str:
    """How long a training will take, by its first steps. speed: images a second."""
    left = duration((event.num_steps - event.step) * batch / speed)
    return f"{speed:.3g} images/s in its first {event.step} steps: {left} for the rest, and validations"


def import_words(event: WeightsImported) -> str:
    """What became of a file's tensors; those that changed alike are listed together."""
    alike = defaultdict(list)
    for name, how in event.changed.items():
        alike[how].append(name)
    changed = "".join(f"; {listed(names)}: {how}" for how, names in alike.items())
    dropped = f"; left out: {listed(event.dropped)}" if event.dropped else ""
    missing = f"; not in the file, and at initial values: {listed(event.missing)}" if event.missing else ""
    return f"{event.file}: {event.kept} tensors unchanged{changed}{dropped}{missing}"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} tensors, such as {names[0]}"


WARNINGS: dict[type[Event], Callable[[Any], str]] = {
    GateNotPassed: gate_warning,
    CollapseDetected: collapse_warning,
    DataLoadingBottleneck: bottleneck_words,
}
"""Of what experiments may share, by the event: the words of a warning, with the fields that would change it."""
