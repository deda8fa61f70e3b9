"""A comparison in sentences: for each task, whether an arm is better or worse than the baseline, by how much, and after
how much pre-training."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from premed.reporting.comparison.result import ArmResult, ComparisonResult, Difference, TaskResult
from premed.reporting.formatting import NAMES, duration, number, percent, signed, span

LONG = 3600  # seconds of pre-training, below which it is no surprise that it does not help
NEAR = 0.005  # a loss within this share of the gate's is not past it


class Pretraining(NamedTuple):
    """What a task's encoder was pre-trained on, and how far it came."""

    num_images: int
    loss: float | None = None
    """On val, and of the predictor without a network (`gate`); None where the strategy has no gate."""
    gate: float | None = None
    passed: bool = False
    """Whether it counts as past its gate."""

    def __str__(self) -> str:
        images = f"on {self.num_images:,} images"
        if self.loss is None or not self.gate:
            return images
        share = 1 - self.loss / self.gate
        beyond = "past its gate" if self.passed else "hardly past its gate"
        return f"{images}, {'not past its gate' if share < NEAR else f'{beyond} by {share:.0%}'}"


def sentences(result: ComparisonResult, pretrainings: Mapping[str, Pretraining]) -> list[str]:
    """One line for each task, share of the labels and arm that is not the baseline. pretrainings: by task."""
    return [line for task in result.tasks for line in task_sentences(task, pretrainings.get(task.task))]


def task_sentences(task: TaskResult, pretraining: Pretraining | None) -> Iterator[str]:
    for arm in (arm for block in task.blocks for arm in block.rows):
        if (difference := arm.scores[task.score].difference) is not None:
            yield f"{task.task}: {verdict_words(task, arm, difference)}{remark(arm, difference, pretraining)}"


def verdict_words(task: TaskResult, arm: ArmResult, difference: Difference) -> str:
    """Whether an arm's score differs from the baseline's, and by how much."""
    score, labels = NAMES.get(task.score, task.score), f"with {percent(arm.label_fraction)} of the labels"
    word, _, limit = difference.verdict.partition(", ")
    if word in ("better", "worse"):
        size = f"{number(abs(difference.value))} {span(sorted(map(abs, difference.interval)))}"
        limited = f" with {limit}" if limit else ""
        return f"{arm.label} {word} than {task.baseline} by {size} {score} {labels}{limited}"
    size = f"{score} {signed(difference.value)} {span(difference.interval, signed)}"
    known = difference.verdict.startswith("not separable")
    state = difference.verdict if known else "compared without an interval (too few patients)"
    return f"{arm.label} and {task.baseline} {state} {labels}: {size}"


def remark(arm: ArmResult, difference: Difference, pretraining: Pretraining | None) -> str:
    """How long the pre-training was, and what that says of the verdict."""
    if arm.cost.pretrain is None:
        return ""
    seconds = arm.cost.pretrain.seconds / max(arm.cost.pretrain.runs, 1)
    after = " ".join(["after", duration(seconds), "of pre-training", *([str(pretraining)] if pretraining else [])])
    if difference.verdict.startswith("better"):
        return f"; it helps on these images, {after}"
    return f"; expected {after}" if seconds < LONG else f"; {after}"
