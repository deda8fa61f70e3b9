"""The methods of a comparison as a paragraph for a paper: design, numbers, seeds, statistics, software, digests.

Every sentence is made of the runs that are compared, and left out where they do not hold what it would say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

from premed.reporting.calibration import NUM_BINS
from premed.reporting.comparison.artifacts import SCORING
from premed.reporting.comparison.conclusion import baseline_of, images, trainings
from premed.reporting.comparison.design import MANY, Records, fractions_in_words, pretrained_on, selected_by_labels
from premed.reporting.comparison.effects import LEVEL
from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    Difference,
    TaskResult,
    compared_runs,
    experiments,
    looks_of,
)
from premed.reporting.comparison.sentences import comparisons
from premed.reporting.formatting import counted, listed, percent
from premed.reporting.statistics import SEEDS
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.run_store import RunStore

SCORES = {
    "dice": "the Dice coefficient, the mean over structures of the mean over images",
    "hd95": "the 95th percentile of the Hausdorff distance in mm, the mean over structures of the mean over images",
    "mauc": "the area under the ROC curve, the mean over classes",
    "accuracy": "the accuracy, the share of images whose likeliest class is the true one",
}
PSEUDO = (
    "Each training's score was expressed as one pseudo-value per patient by the infinitesimal jackknife (Efron, The "
    "Jackknife, the Bootstrap and Other Resampling Plans, 1982)"
)
PLACEMENTS = (
    ", which for the area under the ROC curve are placement values summed by patient (DeLong et al., Biometrics 44, "
    "1988, 837; Obuchowski, Biometrics 53, 1997, 567)"
)
OF_FOLDS = (
    ", taken within each fold, their deviations enlarged by the square root of m / (m - 1) for the fold's m patients "
    "with a kind of label"
)
TWO_WAY = (
    "these were analysed by a two-way analysis of variance with random effects of seed and patient (Dorfman et al., "
    "Invest Radiol 27, 1992, 723; Hillis, Stat Med 26, 2007, 596; Satterthwaite's degrees of freedom with the seeds' "
    "share of the variance in place of its square), so that {what} for other patients and other seeds"
)


class Part(NamedTuple):
    """Who was scored."""

    num_images: int
    patients: frozenset[str]

    def __str__(self) -> str:
        return f"{counted(self.num_images, 'image')} of {counted(len(self.patients), 'patient')}"


def scored_by(store: RunStore, block: BlockResult, kind: str) -> Part | None:
    """Who was scored by the stages of this kind, from the first run's; None where the store has its scores no more."""
    try:
        columns = store.columns(store.get(block.rows[0].runs[0].stages[kind]))
    except (ArtifactMissing, KeyError):
        return None
    return Part(len(columns["case"]), frozenset(map(str, columns["patient"])))


def methods(task: TaskResult, block: BlockResult, records: Records, store: RunStore) -> str:
    """The paragraph for the arms with one head."""
    parts = [
        *design(task, block, records),
        *data(task, block, records, *(scored_by(store, block, kind) for kind in SCORING)),
        *seeds(block),
        *statistics(task, block),
        *calibration(block),
        *software(block, records),
    ]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


# ---- what was compared


def design(task: TaskResult, block: BlockResult, records: Records) -> Iterator[str]:
    labels = list(dict.fromkeys(arm.label for arm in block.rows))
    who = listed(map(described, labels)) if len(labels) <= MANY else f"{len(labels)} ways of pre-training"
    baseline = f"; the baseline was {task.baseline}" if comparisons(task, block) else "; there was no baseline"
    found = f"compared {who}{baseline}" if len(labels) > 1 else f"evaluated {who}"
    yield f"on {task.task}, {question(task, block)}, we {found}"
    encoders = listed({arm.encoder for arm in block.rows if arm.encoder})
    if encoders:
        yield f"networks had the encoder {encoders} and the head {block.head}"
    for label, arm in {arm.label: arm for arm in block.rows}.items():
        if size := pretrained_on(arm, records):
            yield f"the pre-training of {label} learnt from {size}, without labels"
            if selected_by_labels(arm, records):
                yield "a linear probe, with labels of training and validation images, decided how long it was"


def described(label: str) -> str:
    return f"{label} (no pre-training)" if label.partition(" ")[0] == "none" else label


def question(task: TaskResult, block: BlockResult) -> str:
    scores, num = block.rows[0].scores, len(task.classes)
    names = f" ({', '.join(task.classes)})" if num <= MANY else ""
    if "dice" in scores:
        return f"a segmentation of {counted(num, 'structure')}{names}"
    if "accuracy" in scores:
        return f"a classification into {num} exclusive classes{names}"
    return f"a classification with {counted(num, 'label')}{names}, of which an image may have several"


def data(task: TaskResult, block: BlockResult, records: Records, val: Part | None, test: Part | None) -> Iterator[str]:
    shares = "; a smaller share of the labels was drawn by patient" if least_share(block) < 1 else ""
    yield f"fine-tuning used {fractions_in_words(block.rows, records)}{shares}"
    if task.part == "val":
        selected = "which also selected the weights, so that scores are optimistic"
        yield f"all were scored on the same {images(task)}, {selected}"
        return
    if task.num_folds > 1:
        yield (
            f"all were scored on the same {images(task)} by patient (cross-validation): each network on the fold that "
            "neither its training nor its validation, which selected the weights, has seen; a seed's score is that of "
            "its networks of all folds" + (", the mean over folds" if task.score == "mauc" else "")
        )
        yield "networks of two folds share training images, and no interval covers other training images"
        return
    if val:
        yield f"validation had {val} and selected the weights"
    disjoint = val is not None and test is not None and not val.patients & test.patients
    apart = ", none of whom is in the validation part" if disjoint else ""
    yield f"all were scored on the same {images(task)}{apart}"


def least_share(block: BlockResult) -> float:
    return min(arm.label_fraction for arm in block.rows)


def seeds(block: BlockResult) -> Iterator[str]:
    yield f"the trainings were {trainings(block.rows)}"
    varied: dict[str, list[str]] = {}
    for arm in block.rows:
        varied.setdefault(arm.varied, []).append(arm.label)
    words = [f"by {what} ({listed(dict.fromkeys(labels))})" for what, labels in varied.items() if what != "nothing"]
    if words:
        yield f"trainings of an arm differed {' or '.join(words)} alone"
    if once := [arm.label for arm in block.rows if "nothing" in arm.varied]:
        where = " at one share of the labels or more" if least_share(block) < 1 else ""
        yield f"there was one training{where} of {listed(dict.fromkeys(once))}"
    if averaged := [arm.label for arm in block.rows if arm.num_seeds < len(arm.runs)]:
        which = listed(dict.fromkeys(averaged))
        yield f"fine-tunings of one pre-training of {which} were averaged and count as one seed"


# ---- statistics


def statistics(task: TaskResult, block: BlockResult) -> Iterator[str]:
    arms, compared = block.rows, comparisons(task, block)
    yield f"the score was {SCORES.get(task.score, task.score)}"
    pseudo = PSEUDO + (PLACEMENTS + (OF_FOLDS if task.num_folds > 1 else "") if task.score == "mauc" else "")
    over_seeds = [arm for arm in arms if arm.scores[task.score].with_seeds]
    what = f"intervals{' and p-values' if any(each.with_seeds for _, each in compared) else ''} are"
    if over_seeds:
        yield f"{pseudo}; {TWO_WAY.format(what=what)}"
    else:
        yield f"{pseudo}, whose variation over patients gives the intervals (Student's t)"
    if few := [arm for arm in arms if not arm.scores[task.score].with_seeds]:
        named = "" if len(few) == len(arms) else f" of {listed({arm.label for arm in few})}"
        yield f"with fewer than {SEEDS} seeds the intervals{named} are for other patients alone and cover no other seed"
    scale = {"hd95": "logarithmic"}.get(task.score, "logit")
    yield f"95 % intervals of scores are symmetric on the {scale} scale, those of differences are not transformed"
    if compared:
        yield from differences(task, [difference for _, difference in compared])
        yield from left_out(block, compared)
    if once := [arm.label for arm in arms if arm.num_seeds > 1 and one_pretraining(arm)]:
        yield f"all seeds of {listed(set(once))} stand on one pre-training, and no interval covers another one"


def one_pretraining(arm: ArmResult) -> bool:
    """As `effects.one_pretraining` has it, of a result."""
    return len({run.pretrain_seed for run in arm.runs} - {None}) == 1


SEQUENTIAL = (
    "intervals and p-values of these differences are repeated ones (Jennison and Turnbull, J R Stat Soc B 51, 1989, "
    "305), at levels that spend 5 % by the square of the share of the seeds (Kim and DeMets, Biometrika 74, 1987, 149) "
    "and are made for Student's t"
)
PAIRINGS = {
    "paired": "on the same patients and the same seeds",
    "unpaired": "on the same patients, with seeds that are not the same",
    "patients": "on the same patients, over patients alone",
}


def differences(task: TaskResult, found: Sequence[Difference]) -> Iterator[str]:
    pairings = [words for name, words in PAIRINGS.items() if any(each.pairing == name for each in found)]
    yield f"differences to {task.baseline} were taken {' or '.join(pairings)}"
    if looks := {tuple(of.planned) for each in found if (of := looks_of(each))}:
        planned = " or ".join(", ".join(map(str, each)) for each in sorted(looks))
        yield f"seeds were added until a difference was decided, with looks planned at {planned} seeds; {SEQUENTIAL}"
    num = sum(each.p == each.p for each in found)
    if num > 1:
        yield (
            f"the {num} p-values, two-sided, were corrected by Holm's method (Scand J Stat 6, 1979, 65); a difference "
            f"counts where its interval leaves out zero and the corrected p is below {LEVEL:g}; intervals are "
            "not corrected"
        )
    elif num:
        yield f"there was one comparison, two-sided at {LEVEL:g}, and thus no correction for several"


def left_out(block: BlockResult, compared: Sequence[tuple[ArmResult, Difference]]) -> Iterator[str]:
    """What counts in a row's mean and not in its difference."""
    for arm, difference in compared:
        sides = arm, baseline_of(block, arm)
        numbers = [len(each.runs) - len(compared_runs(each, difference)) for each in sides]
        words = [f"{counted(num, 'training')} of {of.label}" for num, of in zip(numbers, sides, strict=True) if num]
        if words:
            share = f" with {percent(arm.label_fraction)} of the labels" if least_share(block) < 1 else ""
            are = "is" if sum(numbers) == 1 else "are"
            yield (
                f"the difference of {arm.label}{share} is of {counted(difference.num_seeds, 'seed')}; "
                f"{listed(words)} {are} in the arms' own scores alone"
            )


def calibration(block: BlockResult) -> Iterator[str]:
    found = [arm.calibration for arm in block.rows if arm.calibration is not None]
    if not found:
        return
    each = "the mean over classes of the error of each"
    of = "of the likeliest class" if found[0].kind == "likeliest class" else each
    of += " and of the answers of all folds together" if block.rows[0].runs[0].folds else ""
    yield (
        f"calibration is the expected calibration error, {of}, in {NUM_BINS} bins of equal mass (Nixon et al., CVPR "
        "Workshops 2019; Roelofs et al., AISTATS 2022), the mean over trainings; its bias correction and its interval "
        "invert a bootstrap over patients (Carpenter, J R Stat Soc B 61, 1999, 159), for these seeds"
    )


# ---- where it comes from


def software(block: BlockResult, records: Records) -> Iterator[str]:
    runs = [run for arm in block.rows for run in experiments(arm)]
    tags = [records[run_id].tags for run in runs for run_id in (run.run_id, *run.stages.values())]
    versions = versions_of(tags)
    if versions:
        yield f"the runs were made with {', '.join(f'{name} {listed(some)}' for name, some in versions.items())}"
    if commits := {tag[:12] for each in tags if (tag := each.get("mlflow.source.git.commit"))}:
        yield f"the commit of premed was {listed(commits)}"
    yield f"the analysis was made with premed {version('premed')}"
    if digests := [digest for run in runs if (digest := records[run.run_id].digest)]:
        yield f"the experiments' digests are {', '.join(dict.fromkeys(digests))}"


def versions_of(tags: Iterable[Mapping[str, str]]) -> dict[str, set[str]]:
    """By package, of the tags `version.<package>`."""
    versions: dict[str, set[str]] = {}
    for each in tags:
        for tag, value in each.items():
            if tag.startswith("version."):
                versions.setdefault(tag.removeprefix("version."), set()).add(value)
    return versions
