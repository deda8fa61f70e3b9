"""The plan of one comparison: its components in words, the smallest difference shown, false claims, what it needs."""

from collections.abc import Sequence

import numpy as np

from premed.reporting.comparison.result import Difference, Looks, looks_of
from premed.reporting.formatting import counted
from premed.reporting.sample_size.components import (
    Components,
    Group,
    Side,
    Stated,
    estimate,
    patients_variance,
)
from premed.reporting.sample_size.levels import level_now, planned_in_words
from premed.reporting.sample_size.needs import Prices, Question, needs
from premed.reporting.sample_size.power import LEVEL, Design, MeanSquares, power, smallest_difference
from premed.reporting.sample_size.result import ComparisonPlan, ComponentRow, FalseClaim
from premed.reporting.sample_size.settings import PlanSettings
from premed.reporting.statistics import SEEDS, TINY, variances

NAMES = ("pre-trainings", "fine-tuning seeds", "test patients", "pre-training × patient", "fine-tuning × patient")
GUESSED = "guess: as much as these seeds; one pre-training shows none (--sd-pretraining states it)"
STATED = "stated"


def unplannable(groups: Sequence[Group], stated: Stated, looks: Looks | None = None) -> str:
    """Why there is no plan for a comparison, and what to do; empty if there is one."""
    if looks and not looks.taken:
        first = planned_in_words(looks.planned[:1])
        return f"seeds are added until it is decided, and the first look, at {first}, is still to come; no plan before"
    if not groups or groups[0].means.shape[1] < 2:
        return "no interval (one patient, or no defined score), so no plan"
    num_seeds = min(len(group.runs) for group in groups)
    if num_seeds < SEEDS:
        missing = ["--sd-finetuning"] * (stated.finetuning is None)
        missing += ["--sd-pretraining"] * (stated.pretraining is None and any(each.is_pretrained for each in groups))
        if missing:
            words = " and ".join(missing)
            few = f"{counted(num_seeds, 'seed')}, and the variance between seeds takes {SEEDS}"
            return f"{few}; run more, or state it: {words}"
        return ""
    over_seeds = sum(variances(group.means)[0] for group in groups)
    return "" if over_seeds + patients_variance(groups) > TINY else "nothing varies, so there is nothing to plan with"


def plan_comparison(
    groups: Sequence[Group],
    found: Difference,
    about: tuple[str, float],
    prices: tuple[Prices, Prices],
    settings: PlanSettings,
    num_comparisons: int,
) -> ComparisonPlan:
    """Plans from groups that are not `unplannable`. about: the arm's label and its share of the labels."""
    few = min(len(group.runs) for group in groups) < SEEDS
    components, cautious = (
        of_patients(groups, settings.stated) if few else estimate(groups, settings.stated, care)
        for care in (False, True)
    )
    now, once = design_of(groups), any(group.is_shared for group in groups)
    squares = observed(groups)
    planned = settings.margin if settings.margin is not None else abs(found.value)
    looks = looks_of(found)
    level, strictest = level_now(looks), level_now(looks, LEVEL / num_comparisons)
    smallest = smallest_difference(squares, settings.power, level)
    stricter = smallest_difference(squares, settings.power, strictest) if num_comparisons > 1 else np.nan
    pretrained = [group for group in groups if group.is_pretrained]
    stated_either = (settings.stated.pretraining, settings.stated.finetuning) != (None, None)
    question = Question(
        planned=planned,
        wanted=settings.power,
        now=now,
        components=components,
        cautious=cautious,
        is_one_pretraining=once,
        are_identified=stated_either or all(group.is_nested for group in pretrained),
        prices=prices,
        looks=looks,
    )
    return ComparisonPlan(
        label=about[0],
        label_fraction=about[1],
        now=now,
        num_seeds=min(squares.sizes),
        level=level,
        looks=looks,
        is_one_pretraining=once,
        difference=found.value,
        interval=found.interval,
        verdict=found.verdict,
        planned=planned,
        components=components,
        rows=component_rows(components, groups, settings.stated, few),
        smallest=smallest,
        smallest_corrected=stricter,
        chance=power(planned, squares, level) if planned else np.nan,
        false_claim=false_claim(groups, found, components, settings.margin),
        needs=needs(question) if planned else [],
    )


def observed(groups: Sequence[Group]) -> MeanSquares:
    """The mean squares that the test found, as the best guess of those that it finds on average.

    Those of seeds are on average no smaller than the residual, which is a part of them.
    """
    num_patients = groups[0].means.shape[1]
    several = all(len(group.runs) > 1 for group in groups)
    found = [variances(group.means) if several else (0.0, 0.0) for group in groups]
    residuals = [residual for _, residual in found]
    patients = max(patients_variance(groups) - sum(residuals), 0.0)
    return MeanSquares(
        [len(group.runs) for group in groups], [max(each) for each in found], residuals, patients, num_patients
    )


def design_of(groups: Sequence[Group]) -> Design:
    """The design that there is: of the arm, or of the side that has pre-trainings."""
    group = next((each for each in groups if each.is_pretrained), groups[0])
    num, patients = len(group.runs), group.means.shape[1]
    if group.is_shared:
        return Design(1, num, patients)
    each = 1 / np.mean([1 / len(runs) for runs in group.runs])
    return Design(num, round(each) if group.is_pretrained else 1, patients)


def of_patients(groups: Sequence[Group], stated: Stated) -> Components:
    """Of too few seeds: the patients' variance is estimated (with the mixtures in it), and the seeds' is stated."""
    pretrained = any(group.is_pretrained for group in groups)
    pretraining, finetuning = ((each or 0.0) ** 2 for each in (stated.pretraining, stated.finetuning))
    half = Side(pretraining if pretrained else 0.0, finetuning, 0.0, 0.0, pretrained).scaled(0.5)
    return Components(half, half, patients_variance(groups) * groups[0].means.shape[1])


# ---- in words


def component_rows(components: Components, groups: Sequence[Group], stated: Stated, few: bool) -> list[ComponentRow]:
    """The standard deviations of the difference, and how each is known."""
    side = components.difference
    values = (side.pretraining, side.finetuning, components.patients, side.pretraining_patients)
    known = known_few(groups) if few else known_from(groups)
    if stated.pretraining is not None and side.is_pretrained:
        known[0] = STATED
    if stated.finetuning is not None:
        known[1] = STATED
        known[0] = known[0] if stated.pretraining is not None else known[0].replace(TOGETHER, "the rest of the sum")
    rows = zip(NAMES, (*values, side.finetuning_patients), known, strict=True)
    return [
        ComponentRow(name, np.nan if words.startswith(WITHIN) else float(np.sqrt(value)), words)
        for name, value, words in rows
    ]


WITHIN = "in that of"
TOGETHER = "with fine-tuning seeds: one fine-tuning each does not tell them apart"


def known_from(groups: Sequence[Group]) -> list[str]:
    """How the components are known, in the order of NAMES."""
    num_patients = groups[0].means.shape[1]
    seeds = " and ".join(str(len(group.runs)) for group in groups)
    patients = f"estimated from {num_patients} patients"
    pretrained = [group for group in groups if group.is_pretrained]
    noise = "estimated, with what is noise"
    if not pretrained:
        return ["no arm has one with a seed", f"estimated from {seeds} seeds", patients, "no pre-training", noise]
    if any(group.is_shared for group in pretrained):
        within = f"{WITHIN} test patients"
        return [GUESSED, f"estimated from {seeds} seeds", f"{patients}, one pre-training's", within, noise]
    if all(group.is_nested for group in pretrained):
        within = (
            f"estimated from {sum(len(runs) - 1 for group in pretrained for runs in group.runs)} degrees of freedom"
        )
        return [f"estimated from {len(pretrained[0].runs)} pre-trainings", within, patients, "estimated", noise]
    others = len(pretrained) < len(groups)
    rest = f"{WITHIN} pre-trainings" + (", but for the baseline's" if others else "")
    return [
        TOGETHER,
        rest,
        patients,
        "with fine-tuning × patient, and noise",
        rest.replace("trainings", "training × patient"),
    ]


def known_few(groups: Sequence[Group]) -> list[str]:
    return ["", "", f"estimated from {groups[0].means.shape[1]} patients, with both below", "in that of test patients",
            "in that of test patients"]  # fmt: skip


# ---- false claims


def false_claim(
    groups: Sequence[Group], found: Difference, components: Components, margin: float | None
) -> FalseClaim | None:
    """The posterior probability that the true order is the other way round, with a flat prior.

    That of a normal mean is Student's t at -|difference| / error, which is half the two-sided p (Christodoulou et al.:
    False promises in medical imaging AI?, 2025, for segmentation, with the patients' error and P-1 degrees of freedom:
    `patients_only`). How often it was looked is of no account to a posterior, so that the p-value is that of the last
    look alone. Here error and degrees of freedom are the test's. What the test leaves out is added as stated or
    guessed: of fewer than three seeds their variance, of one pre-training that of pre-trainings.
    """
    from scipy.stats import t

    if not np.isfinite(found.p):
        return None
    size, num_patients, now = abs(found.value), groups[0].means.shape[1], design_of(groups)
    level = level_now(looks_of(found))
    variance = ((found.interval[1] - found.interval[0]) / 2 / t.ppf(1 - level / 2, found.df)) ** 2
    side, alone = components.difference, np.sqrt(patients_variance(groups))
    of_seeds = 0.0 if found.with_seeds else side.finetuning / min(len(group.runs) for group in groups)
    left_out = not found.with_seeds or any(group.is_shared for group in groups)
    of_pretraining = of_seeds + side.pretraining / now.pretrainings

    def chance(above: float, more: float) -> float:
        """That the true difference is below `above`; `more` variance is known, so that it adds degrees of freedom."""
        total = variance + more
        return float(t.sf((size - above) / np.sqrt(total), found.df * (total / variance) ** 2))

    return FalseClaim(
        chance=chance(0.0, of_seeds),
        patients_only=float(t.sf(size / alone, num_patients - 1)) if alone else np.nan,
        any_pretraining=chance(0.0, of_pretraining) if left_out and side.is_pretrained else np.nan,
        below_margin=np.nan if margin is None else chance(margin, of_seeds),
    )
