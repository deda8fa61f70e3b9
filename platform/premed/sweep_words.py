"""What a sweep found, in words: the answer, how sure it is, what reuse saved; how its numbers and fields are called."""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from premed.axes import Told, called, fields, finite, short, varied
from premed.console import NAMES, number
from premed.contenders import counted, listed
from premed.errors import printable
from premed.findings import Grid, Spread, done, ranking, reuse, scored
from premed.stats import SEEDS

STAGES = {"import": "weights", "pretrain": "pre-training", "finetune": "fine-tuning"}
COSTS = {
    "seconds": "seconds",
    "pretrain_seconds": "seconds of pre-training",
    "finetune_seconds": "seconds of fine-tuning",
    "peak_memory_mb": "peak memory, MB",
}
STATES = ("done", "stopped", "running", "waiting", "failed")
LIGHT, DARK = (240, 245, 250), (0, 88, 143)  # of a grid's worst cell and of its best


def about(outcome: Told) -> str:
    """What was searched, and how far that has come."""
    how = {"grid": "a grid", "random": "at random", "optuna": "Optuna"}.get(outcome["search"], "")
    how += f" with {str(outcome['scheduler']).upper()}" if outcome["scheduler"] else ""
    counts = {state: sum(trial["state"] == state for trial in outcome["trials"]) for state in STATES}
    states = [f"{counts['done']} of {counted(outcome['num_trials'], 'trial')} done"]
    states += [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
    return printable(f"{outcome['task']}, {outcome['strategy']}; {how}; {', '.join(states)}")


def answer(outcome: Told) -> str:
    """The best setting and its score, or the front, or that there is none."""
    if several(outcome) and outcome["front"]:
        of = f"{counted(len(outcome['front']), 'trial')} of {len(done(outcome))}"
        return f"No single best: {of} on the front of {all_labels(outcome)}."
    if (trial := by_number(outcome).get(outcome["best"])) is None:
        failed = sum(trial["state"] == "failed" for trial in outcome["trials"])
        all_failed = failed and failed == len(outcome["trials"])
        return "No trial came to a score: all failed." if all_failed else "No trial is done yet."
    found = scored(trial)
    over_seeds = f" over {counted(found.num, 'seed')}" if found.num > 1 else ", one seed"
    score = f"{label(outcome)} {told(outcome, found)}{over_seeds}"
    of = counted(len(ranking(outcome)), "finished trial")
    return f"Best of {of}: {setting(outcome, trial)} gave {score} (trial {trial['number']})."


def front_lines(outcome: Told) -> list[str]:
    """Each trial of the front of several metrics: its setting and its numbers."""
    if not several(outcome):
        return []

    def line(trial: Told) -> str:
        scores = (f"{label(outcome, i)} {told(outcome, scored(trial, i), i)}" for i in range(len(outcome["metrics"])))
        return f"trial {trial['number']}: {setting(outcome, trial)}: {', '.join(scores)}"

    return [line(trial) for trial in ordered(outcome) if trial["number"] in outcome["front"]]


def caveats(outcome: Told) -> Iterator[str]:
    """How sure the answer is."""
    going = sum(trial["state"] in ("waiting", "running") for trial in outcome["trials"])
    if going or len(outcome["trials"]) < outcome["num_trials"]:
        left = max(going, outcome["num_trials"] - len(outcome["trials"]) + going)
        yield f"The sweep is not finished: {counted(left, 'trial')} to come may change all of this."
    ranked = ranking(outcome)
    if not ranked:
        return
    num_seeds = len(outcome["seeds"])
    if num_seeds < SEEDS:
        yield (
            f"{counted(num_seeds, 'seed')} a trial: the variance over seeds is not known, and takes {SEEDS} at least."
            " A small lead may be chance."
        )
    if outcome["best"] is not None and len(ranked) > 1:
        yield from lead(outcome, ranked)
    if outcome["metrics"][0].startswith("val/") and len(ranked) > 1:
        yield (
            f"The best of {len(ranked)} validation scores is optimistic, for it was chosen by being the best. No trial"
            " saw the test part; premed run opens it once."
        )
    if stopped := [trial for trial in outcome["trials"] if trial["state"] == "stopped"]:
        yield f"{counted(len(stopped), 'trial')} stopped early, after fewer steps; no mean counts them."


def lead(outcome: Told, ranked: Sequence[Told]) -> Iterator[str]:
    """How far the best is ahead of the others."""
    mine, *others = (scored(trial) for trial in ranked)
    ahead = abs(mine.mean - others[0].mean)
    behind = f"{decimals(outcome, ahead)} behind"
    yield f"The next best is trial {ranked[1]['number']} ({setting(outcome, ranked[1])}), {behind}."
    if mine.num >= SEEDS and math.isfinite(mine.std):
        near = sum(abs(mine.mean - other.mean) <= mine.std for other in others)
        if near:
            some = f"{counted(near, 'trial')} lie{'s' * (near == 1)}"
            yield f"{some} within the best's deviation over seeds: their order may be chance."


def reused(outcome: Told) -> list[str]:
    """What reuse saved, whole and by kind of stage."""
    found = reuse(outcome)
    spent, alone = sum(found.spent.values()), sum(found.alone.values())
    if not alone:
        return []
    saved = f"reuse saved {lasting(found.saved, alone)} ({found.share:.0%})"
    lines = [f"All stages took {lasting(spent, alone)}; had every trial trained its own, {lasting(alone)}: {saved}."]
    for kind, seconds in found.spent.items():
        if found.num_alone[kind] > found.num_spent[kind]:
            count = f"{found.num_spent[kind]} in place of {found.num_alone[kind]}"
            times = f"{lasting(seconds, found.alone[kind])} in place of {lasting(found.alone[kind])}"
            lines.append(f"{stage(kind)}: {count}, {times}")
    return lines


def failures(outcome: Told) -> list[tuple[int, str]]:
    """Trials that failed, and why."""
    failed = [trial for trial in outcome["trials"] if trial["state"] == "failed"]
    return [(trial["number"], trial["failure"] or "no reason was recorded") for trial in failed]


def command(outcome: Told) -> str:
    """What runs the best setting."""
    return f"premed run {shlex.quote(printable(Path(outcome['where']) / 'best.yaml'))}"


# ---- words and numbers


def label(outcome: Told, metric: int = 0) -> str:
    """A metric as people call it."""
    name = outcome["metrics"][metric]
    part, slash, score = name.partition("/")
    return printable(f"{part} {NAMES.get(score, score)}" if slash else COSTS.get(name, name))


def all_labels(outcome: Told) -> str:
    *some, last = (label(outcome, i) for i in range(len(outcome["metrics"])))
    return f"{', '.join(some)} and {last}"


def is_cost(outcome: Told, metric: int) -> bool:
    return outcome["metrics"][metric] in COSTS


def several(outcome: Told) -> bool:
    """Whether metrics are weighed against each other."""
    return len(outcome["metrics"]) > 1


def decimals(outcome: Told, value: float, metric: int = 0) -> str:
    return f"{value:.0f}" if is_cost(outcome, metric) else number(value)


def told(outcome: Told, found: Spread, metric: int = 0) -> str:
    """0.712 ± 0.012, or - where nothing is known."""
    if not math.isfinite(found.mean):
        return "-"
    is_exact = found.std == 0 and is_cost(outcome, metric)  # a trial's cost is one number, whatever its seeds
    std = f" ± {decimals(outcome, found.std, metric)}" if math.isfinite(found.std) and not is_exact else ""
    return decimals(outcome, found.mean, metric) + std


def value(outcome: Told, trial: Told, path: str) -> str:
    return called(outcome, path, trial["setting"][path]) if path in trial["setting"] else "-"


def weights(outcome: Told) -> dict[str, float]:
    """Optuna's importances by short name, the largest first; none if they are not known."""
    known, names = outcome["importances"] or {}, short([*fields(outcome), *(outcome["importances"] or {})])
    shares = {names[path]: finite(share, 0.0) for path, share in known.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def changing(outcome: Told) -> list[str]:
    """The fields that are not the same in all, as the space has them."""
    some = varied(outcome)
    return [path for path in fields(outcome) if path in some]


def constant(outcome: Told) -> str:
    """The fields that are the same in all trials, and their values."""
    names, some = short(fields(outcome)), changing(outcome)
    same = [path for path in fields(outcome) if path not in some and outcome["trials"]]
    return joined([names[path] for path in same], [value(outcome, outcome["trials"][0], path) for path in same])


def setting(outcome: Told, trial: Told) -> str:
    """A trial's values of the fields that are not the same in all."""
    names, some = short(fields(outcome)), changing(outcome) or fields(outcome)
    return joined([names[path] for path in some], [value(outcome, trial, path) for path in some]) or "as it is"


def joined(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name} {each}" for name, each in zip(names, values, strict=True))


def stage(kind: str) -> str:
    return printable(STAGES.get(kind, kind))


def over(outcome: Told, found: Grid) -> str:
    """What the mean and the deviation in a cell are over."""
    if all(cell.num < 2 for row in found.cells for cell in row):
        return "one number a cell"
    names = short(fields(outcome))
    what = [counted(found.num_seeds, "seed")] if found.num_seeds > 1 else []
    what += [f"all {names[path]}" for path in found.over]
    return f"mean ± std over {listed(what) or 'the trials of a cell'}"


def lasting(seconds: float, beside: float | None = None) -> str:
    """A time in the unit that suits it, or the one that it stands beside."""
    most = seconds if beside is None else beside
    size, unit = (1, "s") if most < 120 else (60, "min") if most < 7200 else (3600, "h")
    return f"{seconds / size:.{int(size > 1)}f} {unit}"


def shade(share: float) -> tuple[tuple[int, int, int], str]:
    """The colour of a cell, the better the darker, and that of letters on it."""
    red, green, blue = (round(light + share * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
    return (red, green, blue), "#ffffff" if share > 0.5 else "#222222"


def by_number(outcome: Told) -> dict[int, Told]:
    return {trial["number"]: trial for trial in outcome["trials"]}


def chosen(outcome: Told) -> list[int]:
    """The best trial, or those of the front."""
    return list(outcome["front"]) if several(outcome) else [n for n in [outcome["best"]] if n is not None]


def ordered(outcome: Told) -> list[Told]:
    """Trials that are done, the best first, then the others by state and number."""
    best = {trial["number"]: i for i, trial in enumerate(ranking(outcome))}
    others = sorted(outcome["trials"], key=lambda trial: (STATES.index(trial["state"]), trial["number"]))
    return sorted(others, key=lambda trial: best.get(trial["number"], len(best)))
