"""Effects: each arm's scores over its seeds, and its differences to the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from premed.reporting.comparison.costs import cost
from premed.reporting.comparison.grouping import Arm, Block
from premed.reporting.comparison.interim import APART, level_of, notes, pairs, sequential_p
from premed.reporting.comparison.labels import POLICY
from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    ClassEstimate,
    Difference,
    Estimate,
    Looks,
    RunResult,
    ScoreResult,
    SequentialDifference,
    looks_of,
)
from premed.reporting.comparison.scores import SCALES, ScoreTable
from premed.reporting.comparison.selection import ExperimentRun
from premed.reporting.formatting import LOWER_IS_BETTER, counted
from premed.reporting.statistics import SEEDS, Scale, holm, interval

LEVEL = 0.05  # of a Holm-corrected p-value, below which an arm is called better or worse
Tables = Mapping[str, ScoreTable]
"""By run."""


def block_result(block: Block, baselines: Mapping[float, Arm], tables: Tables, main: str) -> BlockResult:
    """A block in numbers. baselines: the baseline's arm at each label fraction; main: the task's own score."""
    arms = sorted(block.arms, key=lambda arm: (arm.fraction, arm is not baselines.get(arm.fraction), arm.label))
    results = [arm_result(arm, baselines.get(arm.fraction), tables, main) for arm in arms]
    compared = [(i, difference) for i, result in enumerate(results) if (difference := result.scores[main].difference)]
    corrected = holm([difference.p for _, difference in compared])
    for (i, difference), p_holm in zip(compared, corrected, strict=True):
        once = any(map(one_pretraining, pairs(arms[i], baselines[arms[i].fraction])[:2]))
        results[i] = with_verdict(results[i], main, replace(difference, p_holm=p_holm), once)
    return BlockResult(block.head, [*caveats(arms, results, main, baselines), *uneven(arms, tables, main)], results)


def with_verdict(result: ArmResult, main: str, difference: Difference, once: bool) -> ArmResult:
    """The arm with this difference of its main score, and the verdict on it. once: see `verdict`."""
    score = result.scores[main]
    difference = replace(difference, verdict=verdict(difference, score.higher_is_better, once))
    return replace(result, scores={**result.scores, main: replace(score, difference=difference)})


def arm_result(arm: Arm, baseline: Arm | None, tables: Tables, main: str) -> ArmResult:
    """An arm in numbers; its main difference is not yet corrected and has no verdict."""
    own = [tables[run.run.run_id] for run in arm.runs]
    tests = [run.stages["test"] for run in arm.experiments if "test" in run.stages]
    constants = [test.metrics.get("test/constant", np.nan) for test in tests]
    other = None if arm is baseline else baseline
    return ArmResult(
        label=arm.label,
        strategy=arm.strategy,
        encoder=arm.fields.get("encoder.name", ""),
        label_fraction=arm.fraction,
        is_baseline=arm is baseline,
        same_architecture=baseline is None or arm.architecture == baseline.architecture,
        policy=arm.fields[f"{POLICY}name"],
        due_to=() if baseline is None else arm.differs_from(baseline),
        differs=arm.differs,
        num_seeds=len(arm.by_seed),
        varied=arm.varied,
        scores={name: score_result(name, arm, other, tables) for name in own[0].scores},
        counts={name: float(np.mean([table.counts[name] for table in own])) for name in own[0].counts},
        constant=float(np.mean(constants)) if constants else np.nan,
        cost=cost(arm),
        runs=[
            run_result(run, float(table.scores[main].full[0]), main) for run, table in zip(arm.runs, own, strict=True)
        ],
    )


def run_result(run: ExperimentRun, value: float, main: str) -> RunResult:
    """One experiment of an arm, or a cross-validated one with those of its folds. value: of the task's score, main."""
    return RunResult(
        run_id=run.run.run_id,
        experiment_id=run.run.experiment_id,
        name=run.run.name,
        seed=run.seed,
        pretrain_seed=run.pretrain_seed,
        value=value,
        stages={kind: stage.run_id for kind, stage in run.stages.items()},
        folds=[run_result(each, each.stages["test"].metrics.get(f"test/{main}", np.nan), main) for each in run.folds],
    )


# ---- scores


def score_result(name: str, arm: Arm, baseline: Arm | None, tables: Tables) -> ScoreResult:
    """One score of an arm: overall, by class, and less the baseline's."""
    full, pseudo = stacked(name, arm, tables)
    of_runs = [tables[run.run.run_id].scores[name] for run in arm.runs]
    estimates = [estimate(full[:, k], pseudo[:, :, k], SCALES[name]) for k in range(full.shape[1])]
    differences: list[Difference | None] = [None] * len(estimates)
    if baseline is not None:
        own, base, pairing, ours, theirs, looks = pairs(arm, baseline)
        (full, pseudo), (other, other_pseudo) = stacked(name, own, tables), stacked(name, base, tables)
        for k in range(len(estimates)):
            one, two = (full[ours, k], pseudo[ours, :, k]), (other[theirs, k], other_pseudo[theirs, :, k])
            known = known_seeds(pairing, one[0], two[0])
            sides = (arm, own, np.array(ours, int)[known[0]]), (baseline, base, np.array(theirs, int)[known[1]])
            without = [run_id for each in sides for run_id in left_out(*each)]
            differences[k] = replace(difference(pairing, one, two, looks), left_out=without)
    alone = np.any([scores.alone for scores in of_runs], axis=0)
    classes = {
        label: ClassEstimate(**vars(estimates[k]), alone=bool(alone[k]), difference=differences[k])
        for k, label in enumerate(of_runs[0].classes, start=1)
    }
    higher = name not in LOWER_IS_BETTER
    return ScoreResult(**vars(estimates[0]), higher_is_better=higher, difference=differences[0], classes=classes)


def stacked(name: str, arm: Arm, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """A score by independent seed, the mean over a seed's runs: [S, 1 + K], and pseudo-values [S, P, 1 + K]."""
    by_seed = [[tables[run.run.run_id].scores[name] for run in runs] for runs in arm.by_seed.values()]
    full = np.stack([np.mean([scores.full for scores in runs], axis=0) for runs in by_seed])
    return full, np.stack([np.mean([scores.pseudo for scores in runs], axis=0) for runs in by_seed])


def estimate(full: np.ndarray, pseudo: np.ndarray, scale: Scale) -> Estimate:
    """Mean, standard deviation and interval of a score [S], from its pseudo-values [S, P]; undefined seeds left out."""
    known = ~np.isnan(full)
    if not known.any():
        return Estimate(mean=np.nan, std=np.nan, interval=(np.nan, np.nan), df=np.nan, with_seeds=False)
    of = interval(float(full[known].mean()), [pseudo[known]], scale)
    std = float(full[known].std(ddof=1)) if known.sum() > 1 else np.nan
    return Estimate(of.value, std, (of.low, of.high), of.df, of.seeds)


def known_seeds(pairing: str, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of an arm's scores [S] and the baseline's, which seeds have one; if they are paired, which pairs have both."""
    known, other = ~np.isnan(one), ~np.isnan(two)
    if len(one) == len(two) and pairing != "unpaired":
        known = other = known & other
    return known, other


def left_out(arm: Arm, compared: Arm, seeds: np.ndarray) -> list[str]:
    """The runs of an arm that are not of these seeds, by index, of what of it is compared."""
    by_seed = list(compared.by_seed.values())
    counted = {run.run.run_id for i in seeds for run in by_seed[i]}
    return [run.run.run_id for run in arm.runs if run.run.run_id not in counted]


def difference(
    pairing: str,
    one: tuple[np.ndarray, np.ndarray],
    two: tuple[np.ndarray, np.ndarray],
    looks: Looks | None = None,
) -> Difference:
    """One score less another, each [S] with its pseudo-values [S, P]; seeds in which one is undefined are left out."""
    known = known_seeds(pairing, one[0], two[0])
    matched = len(one[0]) == len(two[0]) and pairing != "unpaired"
    (full, pseudo), (other, other_pseudo) = (
        (full[k], pseudo[k]) for k, (full, pseudo) in zip(known, (one, two), strict=True)
    )
    undefined = Difference(
        value=np.nan,
        interval=(np.nan, np.nan),
        df=np.nan,
        with_seeds=False,
        p=np.nan,
        pairing=pairing,
        num_seeds=min(len(full), len(other)),
        p_holm=np.nan,
        verdict="",
        means=(np.nan, np.nan),
        left_out=(),
    )
    if looks is not None:
        undefined = SequentialDifference(**vars(undefined), looks=looks)
    if not undefined.num_seeds:
        return undefined
    groups = [pseudo - other_pseudo] if matched else [pseudo, -other_pseudo]
    means = float(full.mean()), float(other.mean())
    of = interval(means[0] - means[1], groups, level=level_of(looks))
    found = replace(undefined, value=of.value, interval=(of.low, of.high), df=of.df, with_seeds=of.seeds)
    return replace(found, p=sequential_p(looks, of.p), means=means)


def verdict(difference: Difference, higher_is_better: bool, once: bool = False) -> str:
    """A difference in words. The interval is of this comparison alone; better or worse takes the corrected p-value.

    once: all seeds of one of the arms stand on one pre-training, which is one draw: another may give another result.
    """
    (low, high), looks = difference.interval, looks_of(difference)
    if difference.value == 0 or low <= 0 <= high:
        is_small = looks is not None and looks.margin is not None and max(-low, high) < looks.margin
        return f"not separable, {APART} {looks.margin:g} apart" if looks and is_small else "not separable"
    if np.isnan(low):
        return "no interval"
    if difference.p_holm >= LEVEL:
        return "not separable after correction"
    word = "better" if (difference.value > 0) == higher_is_better else "worse"
    if not difference.with_seeds:
        return f"{word}, these seeds"
    return f"{word}, this pre-training" if once else word


def one_pretraining(arm: Arm) -> bool:
    """Whether several seeds of an arm stand on one pre-training."""
    return len(arm.by_seed) > 1 and len({run.pretrain_seed for run in arm.runs} - {None}) == 1


# ---- limits of the numbers


def caveats(arms: Sequence[Arm], results: Sequence[ArmResult], main: str, baselines: Mapping[float, Arm]) -> list[str]:
    """Notes on what the intervals of these arms do not cover."""
    found: list[str] = []
    if few := [arm for arm in arms if len(arm.by_seed) < SEEDS]:
        note = f"fewer than {SEEDS} seeds; the interval covers patient sampling only, not seed-to-seed variation"
        found.append(f"{arm_names(few, arms)}: {note}")
    if once := [arm for arm in arms if one_pretraining(arm)]:
        note = "one pre-training; the interval does not cover variation between pre-trainings"
        found.append(f"{arm_names(once, arms)}: {note}")
    for words in dict.fromkeys(result.attribution for result in results if result.attribution):
        some = [arm for arm, result in zip(arms, results, strict=True) if result.attribution == words]
        found.append(f"{arm_names(some, arms)}: {words}")
    for arm, result in zip(arms, results, strict=True):
        if not (difference := result.scores[main].difference):
            continue
        found += notes(arm, baselines.get(arm.fraction), difference, arm_name(arm))
        if difference.pairing == "unpaired":
            found.append(f"{arm_name(arm)}: its seeds are not the baseline's, compared unpaired")
        elif difference.num_seeds and difference.left_out and looks_of(difference) is None:
            whose = "that the baseline has too"
            if difference.num_seeds == len(arm.by_seed):
                whose = "that it has; further ones of the baseline count in the baseline's mean alone"
            found.append(f"{arm_name(arm)}: compared on the {counted(difference.num_seeds, 'seed')} {whose}")
    return found


def uneven(arms: Sequence[Arm], tables: Tables, main: str) -> list[str]:
    """A note on classes that no image has and that count in the means of some runs only, those that invent them."""
    scores = [tables[run.run.run_id].scores[main] for arm in arms for run in arm.runs]
    defined = ~np.isnan([each.full[1:] for each in scores])
    if not (some := defined.any(axis=0) & ~defined.all(axis=0)).any():
        return []
    names, num = ", ".join(np.array(scores[0].classes)[some]), int(defined[:, some].any(axis=1).sum())
    count = f"{num} of {counted(len(scores), 'run')}"
    return [f"{names}: in no image, and invented by {count}, in whose mean alone it counts; see the scores by class"]


def arm_name(arm: Arm) -> str:
    return f"{arm.label} at {100 * arm.fraction:.4g} %"


def arm_names(some: Sequence[Arm], arms: Sequence[Arm]) -> str:
    """The names of some arms; a label alone where all arms of this label are among them."""
    labels = {arm.label: [each for each in arms if each.label == arm.label] for arm in some}
    complete = {label for label, same in labels.items() if all(each in some for each in same)}
    return ", ".join(dict.fromkeys(arm.label if arm.label in complete else arm_name(arm) for arm in some))
