"""A comparison in sentences: for each task, whether an arm is better or worse than the baseline, by how much, and after
how much pre-training. `conclusion.py` has the one sentence that stands above them."""

from collections.abc import Iterator, Mapping
from math import floor
from typing import NamedTuple

from premed.config.settings import GATE_SHARE, PRETRAINING
from premed.reporting.comparison.result import ArmResult, BlockResult, ComparisonResult, Difference, TaskResult
from premed.reporting.formatting import NAMES, counted, duration, number, percent, signed, span
from premed.reporting.statistics import SEEDS

LONG = 3600  # seconds of pre-training, below which it is no surprise that it does not help
FEW = 3  # comparisons that have a sentence each
HELPS = {"": "it helps", "this pre-training": "this pre-training helps", "these seeds": "with these seeds it helps"}
FEW_PATIENTS = 10  # below, a few outliers make the test err too often (docs/compare.md)
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
        if self.passed:
            return f"{images}, past its gate by {share:.0%}"
        if share < NEAR:
            return f"{images}, not past its gate"
        little = f"{floor(1000 * share + 1e-9) / 10}% below its gate"  # not rounded up to what counts
        return f"{images}, {little}, and past it only from {1 - GATE_SHARE:.0%} on"


def sentences(result: ComparisonResult, pretrainings: Mapping[str, Pretraining]) -> list[str]:
    """One line for each task, share of the labels and arm that is not the baseline. pretrainings: by task."""
    return [line for task in result.tasks for line in task_sentences(task, pretrainings.get(task.task))]


def task_sentences(task: TaskResult, pretraining: Pretraining | None) -> Iterator[str]:
    for arm, difference in (compared for block in task.blocks for compared in comparisons(task, block)):
        yield f"{task.task}: {verdict_words(task, arm, difference)}{remark(arm, difference, pretraining)}"


def comparisons(task: TaskResult, block: BlockResult) -> list[tuple[ArmResult, Difference]]:
    """The arms that are compared with the baseline."""
    found = ((arm, arm.scores[task.score].difference) for arm in block.rows)
    return [(arm, difference) for arm, difference in found if difference is not None]


# ---- below the conclusion of one table


def evidence(task: TaskResult, block: BlockResult, pretrainings: Mapping[str, Pretraining]) -> list[str]:
    """What stands below the block's conclusion and is not in it: of one comparison its pre-training, of a few their
    sentences, of many that of the largest clear difference.

    pretrainings: by the arm's label.
    """
    compared = comparisons(task, block)
    remarks = [remark(arm, difference, pretrainings.get(arm.label)) for arm, difference in compared]
    if len(compared) == 1:
        words = remarks[0].removeprefix("; ")
        whole = f"that is {words}" if words.startswith("expected") else words
        return [whole[0].upper() + whole[1:]] if whole else []
    lines = [verdict_words(task, *each) + more for each, more in zip(compared, remarks, strict=True)]
    if len(compared) <= FEW:
        return lines
    clear = [i for i, (_, difference) in enumerate(compared) if difference.verdict.startswith(("better", "worse"))]
    largest = max(clear, key=lambda i: abs(compared[i][1].value), default=None)
    return [] if largest is None else [f"The largest of these differences: {lines[largest]}"]


# ---- one comparison


def verdict_words(task: TaskResult, arm: ArmResult, difference: Difference) -> str:
    """Whether an arm's score differs from the baseline's, and by how much."""
    score, labels = NAMES.get(task.score, task.score), f"with {percent(arm.label_fraction)} of the labels"
    word, _, limit = difference.verdict.partition(", ")
    if word in ("better", "worse"):
        size = f"{number(abs(difference.value))} {span(sorted(map(abs, difference.interval)))}"
        limited = f" with {limit}" if limit else ""
        hint = unchecked(task, difference)
        return f"{arm.label} {word} than {task.baseline} by {size} {score} {labels}{limited}{hint}"
    size = f"{score} {signed(difference.value)} {span(difference.interval, signed)}"
    known = difference.verdict.startswith("not separable")
    state = difference.verdict if known else "compared without an interval (too few patients)"
    return f"{arm.label} and {task.baseline} {state} {labels}: {size}"


def unchecked(task: TaskResult, difference: Difference) -> str:
    """Of a better or worse from fewer seeds or patients than the test was tried with: that its assumption cannot be
    checked there, as the end of a sentence; else empty."""
    few = [counted(difference.num_seeds, "seed")] if difference.num_seeds < SEEDS else []
    few += [counted(task.num_patients, "patient")] if task.num_patients < FEW_PATIENTS else []
    if not few or not difference.verdict.startswith(("better", "worse")):
        return ""
    return (
        f"; with {' and '.join(few)} it cannot be checked that differences are near normal, as interval and p assume: "
        "take it as a hint"
    )


def remark(arm: ArmResult, difference: Difference, pretraining: Pretraining | None) -> str:
    """How long the pre-training was, and what that says of the verdict."""
    if arm.cost.pretrain is None or any(
        "import" in run.stages and not set(PRETRAINING) & set(run.stages) for run in arm.runs
    ):  # given weights: nothing was trained
        return ""
    seconds = arm.cost.pretrain.seconds / max(arm.cost.pretrain.runs, 1)
    after = " ".join(["after", duration(seconds), "of pre-training", *([str(pretraining)] if pretraining else [])])
    word, _, limit = difference.verdict.partition(", ")
    if word == "better":
        return f"; {HELPS[limit]} on these images, {after}"
    return f"; expected {after}" if seconds < LONG else f"; {after}"
