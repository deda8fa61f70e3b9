"""The answer of a plan in one sentence: what this design shows, the chance of showing the difference that is planned
for, and what it would take. The tables stand below it."""

import math

from premed.reporting.formatting import NAMES, counted, number, percent, signed
from premed.reporting.sample_size.levels import look_in_words
from premed.reporting.sample_size.needs import ANEW, DEALT, LABELS, PATIENTS, TOGETHER
from premed.reporting.sample_size.result import BlockPlan, ComparisonPlan, Need
from premed.reporting.statistics import SEEDS

FORECAST_NOW = "the forecast's own difference at the labels that were used is large enough to be shown"
"""The law through all shares of the labels may have a larger one at the largest than was measured there."""


def conclusion(block: BlockPlan, power: float, margin: float | None) -> str:
    """The sentence, without a full stop; empty where nothing could be planned. Of several comparisons it is about the
    one that is likeliest to be shown. power: that is wanted; margin: that was stated, None: none."""
    plans = block.comparisons
    if not plans:
        return ""
    plan = max(plans, key=lambda each: each.chance if math.isfinite(each.chance) else -1.0)
    of_several = f" (of {len(plans)} comparisons the likeliest to be shown)" if len(plans) > 1 else ""
    shows = f"shows a difference of {number(plan.smallest)} or more with a power of {percent(power)}{limit(plan)}"
    if not block.head:
        return f"From guesses, this design ({design(plan)}) {shows}{outlook(plan, power, margin)}"
    score, about = NAMES.get(block.score, block.score), ""
    if math.isfinite(plan.label_fraction):
        about = f" with {percent(plan.label_fraction)} of the labels"
    compared = f"{plan.label} against {block.baseline}{about}{of_several}"
    return f"On {block.task}, {score} of {compared}: {design(plan)} {shows}{outlook(plan, power, margin)}"


def design(plan: ComparisonPlan) -> str:
    """`3 pre-trainings with 1 fine-tuning each and 12 test patients`."""
    now = plan.now
    trainings = f"{counted(now.pretrainings, 'training')} an arm"
    if plan.components.difference.is_pretrained:
        trainings = f"{counted(now.pretrainings, 'pre-training')} with {counted(now.finetunings, 'fine-tuning')} each"
    return f"{trainings} and {counted(now.patients, 'test patient')}"


def limit(plan: ComparisonPlan) -> str:
    """At which level of a look it is tested, and for what the power holds, where that is less than other seeds and
    pre-trainings."""
    at = f", tested at {look_in_words(plan.looks, plan.level)}" if plan.looks else ""
    if plan.is_one_pretraining:
        return f"{at}, for this one pre-training"
    return f"{at}, for these seeds alone (fewer than {SEEDS})" if plan.num_seeds < SEEDS else at


def outlook(plan: ComparisonPlan, power: float, margin: float | None) -> str:
    """The chance of the difference that is planned for, and what would show it."""
    if not math.isfinite(plan.chance):
        why = "no difference was seen" if plan.difference == 0 else "no difference to plan for is stated"
        return f"; {why}: --margin names one"
    of = f"one of {margin:g}" if margin is not None else f"the measured one, {signed(plan.difference)},"
    chance = f"; {of} would be shown with a chance of {percent(round(plan.chance, 2))}"
    if margin is None and plan.verdict.startswith(("better", "worse")):
        chance += f" (it was, in these runs: {plan.verdict.partition(',')[0]})"
    if plan.chance >= power:
        return f"{chance}, so this design is enough for it, if the variances are what they seem"
    ways = [way for need in plan.needs if (way := way_of(need))]
    forecast = f"; {FORECAST_NOW}" if any(need.what == LABELS and need.needed == 1 for need in plan.needs) else ""
    if not ways:
        return f"{chance}, and no number of trainings or patients that was tried shows it{forecast}"
    return f"{chance}; it takes {' or '.join(ways)}{forecast}"


def way_of(need: Need) -> str:
    """`12 pre-trainings, a fine-tuning each (cautiously 21)`; empty where no number of it, or no more of it, is."""
    if need.needed is None:
        return ""
    if need.what == LABELS:
        return f"{need.needed} times the labels" if need.needed > 1 else ""
    on = f" on {need.patients:,} {PATIENTS}" if need.patients is not None else ""
    what = need.what.partition(",")[0] if need.what == TOGETHER else need.what
    cautious = f"more than {need.most:,}" if need.cautious is None else f"{need.cautious:,}"
    begun = ", begun anew" if need.note in (ANEW, DEALT) else ""
    return f"{need.needed:,} {what}{on}{begun}" + (f" (cautiously {cautious})" if need.cautious != need.needed else "")
