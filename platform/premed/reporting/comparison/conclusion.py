"""The answer in one sentence that a clinician understands: which arm, in what, by how much, how sure, and from how many
images, patients, trainings and pre-trainings. The evidence stands below it, in tables, on the page.

What does not hold for others is said: one pre-training, fewer than three seeds, scores on val, which picked weights.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    Difference,
    TaskResult,
    compared_runs,
    looks_of,
)
from premed.reporting.comparison.sentences import comparisons, unchecked
from premed.reporting.formatting import NAMES, counted, is_better, listed, number, p_value, percent, signed

LIMITS = {
    "": "",
    "this pre-training": " with the one pre-training that there is (another may give another result)",
    "these seeds": " in these trainings (fewer than three seeds: others may give another result)",
}
"""After better and worse: how far the verdict goes."""
OPTIMISTIC = "; these images also chose the weights, so the scores are optimistic, and this is no test"


def conclusion(task: TaskResult, block: BlockResult) -> str:
    """The sentence, without a full stop. It says nothing that the block's numbers do not."""
    compared = comparisons(task, block)
    if not compared:
        words = alone(task, block)
    elif len(compared) == 1:
        words = one(task, block, *compared[0])
    else:
        words = several(task, block, compared)
    is_known = any(math.isfinite(arm.scores[task.score].mean) for arm in block.rows)
    return f"{words}{OPTIMISTIC if task.part == 'val' and is_known else ''}"


# ---- one comparison


def one(task: TaskResult, block: BlockResult, arm: ArmResult, difference: Difference) -> str:
    arm, base = as_compared(task, block, arm, difference)
    where = f"{question(task, block)} with {percent(arm.label_fraction)} of the labels"
    found = f"{where}, {outcome(task, arm, difference)}: {numbers(difference)}"
    due_to = f"; {arm.attribution}" if arm.attribution else ""
    caveats = f"{unchecked(task, difference)}{due_to}{no_better(task.score, [arm, base])}"
    return f"{found}{caveats}; {images(task)}, {trainings([arm, base])}"


def outcome(task: TaskResult, arm: ArmResult, difference: Difference) -> str:
    """`mae has a better accuracy than none`, or why that cannot be said."""
    score, (word, _, limit) = score_name(task), difference.verdict.partition(", ")
    if word in ("better", "worse"):
        return f"{arm.label} has a {word} {score} than {baseline_name(task)}{LIMITS[limit]}"
    if word == "not separable":
        words = f"{arm.label} and {baseline_name(task)} cannot be told apart in {score}"
        return f"{words}, and are {limit}" if limit else words
    if difference.verdict == "not separable after correction":
        return (
            f"{arm.label} and {baseline_name(task)} cannot be told apart in {score} "
            "once it is counted how many comparisons were made"
        )
    return f"how {arm.label} compares with {baseline_name(task)} in {score} cannot be said"


def as_compared(
    task: TaskResult, block: BlockResult, arm: ArmResult, difference: Difference
) -> tuple[ArmResult, ArmResult]:
    """An arm and its baseline with the runs and the means of the seeds that are compared, which may be fewer than each
    has: so the means differ by what is said to be their difference."""
    found = []
    for each, mean in zip((arm, baseline_of(block, arm)), difference.means, strict=True):
        score = each.scores[task.score]
        scores = {**each.scores, task.score: replace(score, mean=mean)} if math.isfinite(mean) else each.scores
        found.append(replace(each, runs=compared_runs(each, difference), scores=scores))
    return found[0], found[1]


def numbers(difference: Difference) -> str:
    if (looks := looks_of(difference)) and not looks.taken:
        return f"seeds are added until it is decided, and the first look is at {looks.planned[0]} seeds"
    if not math.isfinite(difference.value):
        return "it is undefined for these images"
    ours, theirs = map(number, difference.means)
    words = f"{ours} against {theirs}, a difference of {signed(difference.value)}"
    if not math.isfinite(difference.interval[0]):
        return f"{words}, to which no interval can be given"
    low, high = map(signed, difference.interval)
    for_whom = "other patients and seeds" if difference.with_seeds else "other patients, with these seeds"
    for_whom += ", allowing for all looks" if looks_of(difference) else ""
    return f"{words} (95 % interval for {for_whom}: {low} to {high}{corrected(difference)})"


def corrected(difference: Difference) -> str:
    return f", p {equals(difference.p_holm)}" if math.isfinite(difference.p_holm) else ""


def equals(p: float) -> str:
    """`= 0.043`, `< 0.001`."""
    words = p_value(p)
    return f"< {words[1:]}" if words.startswith("<") else f"= {words}"


# ---- several


def several(task: TaskResult, block: BlockResult, compared: Sequence[tuple[ArmResult, Difference]]) -> str:
    """How many comparisons have which outcome, and the clearest of them, else the largest."""
    groups: dict[str, list[ArmResult]] = {}
    for arm, difference in compared:
        word, _, limit = difference.verdict.partition(", ")
        kinds = {each: f"{each}{LIMITS.get(limit, '')}" for each in ("better", "worse")} | {"no interval": UNKNOWN}
        groups.setdefault(kinds.get(word, SAME), []).append(arm)
    where = question(task, block)
    if list(groups) == [SAME]:
        of_all = f"none of {len(compared)} comparisons with {baseline_name(task)}"
        answer = f"{of_all} shows a difference in {score_name(task)}"
    else:
        order = sorted(groups, key=lambda kind: (kind in (SAME, UNKNOWN), kind))
        many = {kind: len({arm.label for arm in groups[kind]}) > 1 for kind in order}
        parts = [f"{named(groups[kind])} {'are' if many[kind] else 'is'} {kind}" for kind in order]
        answer = f"compared with {baseline_name(task)} in {score_name(task)}, {'; '.join(parts)}"
    found = f"{where}, {answer}{most(compared)}"
    fewest = sorted((difference for _, difference in compared), key=lambda each: each.num_seeds)
    hint = next(filter(None, (unchecked(task, difference) for difference in fewest)), "")
    pairs = [each for one in compared for each in as_compared(task, block, *one)]
    return f"{found}{hint}{no_better(task.score, block.rows)}; {images(task)}, {trainings(pairs)}"


SAME, UNKNOWN = "not told apart from it", "without an interval"


def most(compared: Sequence[tuple[ArmResult, Difference]]) -> str:
    """The largest difference of those with the clearest verdict, with its numbers."""
    known = [each for each in compared if math.isfinite(each[1].value)]
    clear = [each for each in known if each[1].verdict.startswith(("better", "worse"))]
    if not known:
        return ""
    arm, difference = max(clear or known, key=lambda each: abs(each[1].value))
    which = "the largest clear difference" if clear else "the largest difference"
    return f" ({which}: {named([arm])}, {numbers(difference)}; Holm's correction for {len(compared)} comparisons)"


def named(arms: Sequence[ArmResult]) -> str:
    """`mae with 10 % and 100 % and unimiss with 100 % of the labels`."""
    shares: dict[str, list[str]] = {}
    for arm in arms:
        shares.setdefault(arm.label, []).append(percent(arm.label_fraction))
    return in_order(f"{label} with {in_order(some)}" for label, some in shares.items()) + " of the labels"


def in_order(words: Iterable[str]) -> str:
    """`a, b and c`, as they stand."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


# ---- nothing to compare


def alone(task: TaskResult, block: BlockResult) -> str:
    """The score of the best arm; whether a pre-training helps cannot be said."""
    score = score_name(task)
    known = [arm for arm in block.rows if math.isfinite(arm.scores[task.score].mean)]
    if not known:
        return f"{question(task, block)}, {score} is undefined for these images, so nothing can be said"
    up = known[0].scores[task.score].higher_is_better
    best = (max if up else min)(known, key=lambda arm: arm.scores[task.score].mean)
    found, rest = best.scores[task.score], len(block.rows) - 1
    low, high = map(number, found.interval)
    between = f" (95 % interval {low} to {high})" if math.isfinite(found.interval[0]) else ""
    beside = f", the best of {len(block.rows)} rows" if rest else ""
    return (
        f"{question(task, block)}, {named([best])} has {article(score)} {score} of {number(found.mean)}"
        f"{between}{beside}{no_better(task.score, [best])}; {images(task)}, {trainings([best])}; there is no baseline "
        "to set it against, so whether pre-training helps cannot be said"
    )


# ---- an answer that ignores the image


def no_better(score: str, arms: Sequence[ArmResult]) -> str:
    """Which arms have no better score than the constant answer: how they compare says little of pre-training."""
    known = [arm for arm in arms if math.isfinite(arm.constant) and math.isfinite(arm.scores[score].mean)]
    poor = [arm for arm in known if not is_better(score, arm.scores[score].mean, arm.constant)]
    if not poor:
        return ""
    which = f"{named(poor)} {'does' if len(poor) == 1 else 'do'} not beat"
    if len(poor) == len(arms) > 1:
        which = "no arm beats"
    constants = in_order(dict.fromkeys(number(arm.constant) for arm in poor))
    return f"; {which} an answer that ignores the image ({constants}), so train longer before you conclude"


# ---- how many


def question(task: TaskResult, block: BlockResult) -> str:
    """`On chestxray14`, and which head, where there are several."""
    return f"On {task.task}" + (f" (head {block.head})" if len(task.blocks) > 1 else "")


def baseline_of(block: BlockResult, arm: ArmResult) -> ArmResult:
    return next(each for each in block.rows if each.is_baseline and each.label_fraction == arm.label_fraction)


def score_name(task: TaskResult) -> str:
    """In words; a score of which lower is better says so."""
    name, _, unit = NAMES.get(task.score, task.score).partition(", ")
    lower = not task.blocks[0].rows[0].scores[task.score].higher_is_better
    about = ", ".join([*filter(None, [unit]), *["lower is better"] * lower])
    return f"{name} ({about})" if about else name


def baseline_name(task: TaskResult) -> str:
    """`none` alone could be read as nobody."""
    return "none (no pre-training)" if task.baseline == "none" else str(task.baseline)


def article(word: str) -> str:
    return "an" if word[:1].lower() in "aeio" or word.startswith("HD") else "a"


def images(task: TaskResult) -> str:
    part = {"test": "test", "val": "validation"}[task.part]
    folds = f" in {task.num_folds} folds" if task.num_folds > 1 else ""
    return f"{counted(task.num_cases, f'{part} image')} of {counted(task.num_patients, 'patient')}{folds}"


def trainings(arms: Iterable[ArmResult]) -> str:
    """`5 pre-trainings with 8 fine-tunings of mae and 6 trainings of none`: those of each label, over all fractions.

    A run that several of `arms` have, as the baseline of each, counts once.
    """
    of_label: dict[str, tuple[set[str], set[str]]] = {}
    arms = [*arms]
    in_folds = " in each fold" if any(run.folds for arm in arms for run in arm.runs) else ""
    for arm in arms:
        before, runs = of_label.get(arm.label, (set(), set()))
        of_label[arm.label] = before | pretraining_seeds(arm), runs | {run.run_id for run in arm.runs}
    each = listed(
        f"{counted(len(before), 'pre-training')} with {counted(len(runs), 'fine-tuning')} of {label}"
        if before
        else f"{counted(len(runs), 'training')} of {label}"
        for label, (before, runs) in of_label.items()
    )
    return each + in_folds


def pretraining_seeds(arm: ArmResult) -> set[str]:
    """Those of the arm's own pre-trainings: one that was run twice is the same. Given weights have none."""
    return {run.pretrain_seed for run in arm.runs if run.pretrain_seed is not None}
