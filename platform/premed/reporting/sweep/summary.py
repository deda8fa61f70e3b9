"""A sweep's result in sentences: the best setting, how sure that is, what reuse saved. How its numbers are written."""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from premed.errors import printable
from premed.reporting.formatting import NAMES, counted, duration, listed, number
from premed.reporting.statistics import SEEDS
from premed.reporting.sweep.analysis import ScoreGrid, Spread, finished, ranking, reuse_savings, trial_score
from premed.reporting.sweep.fields import as_finite, field_paths, format_field, short_names, varied_fields
from premed.reporting.sweep.result import SweepResult, TrialResult

SEARCHES = {"grid": "a grid", "random": "at random", "optuna": "Optuna"}
STAGES = {"import": "weights", "pretrain": "pre-training", "finetune": "fine-tuning"}
COSTS = {
    "seconds": "seconds",
    "pretrain_seconds": "seconds of pre-training",
    "finetune_seconds": "seconds of fine-tuning",
    "peak_memory_mb": "peak memory, MB",
}
STATES = ("done", "stopped", "running", "waiting", "failed")


# ---- sentences


def headline(result: SweepResult) -> str:
    """What was searched, how, and how many trials are in which state."""
    how = SEARCHES.get(result.search, "") + (f" with {result.scheduler.upper()}" if result.scheduler else "")
    counts = {state: sum(trial.state == state for trial in result.trials) for state in STATES}
    states = [f"{counts['done']} of {counted(result.num_trials, 'trial')} done"]
    states += [f"{counts[state]} {state}" for state in STATES[1:] if counts[state]]
    return printable(f"{result.task}, {result.strategy}; {how}; {', '.join(states)}")


def conclusion(result: SweepResult) -> str:
    """The best setting and its score; with several metrics, the size of the Pareto front; or why there is neither."""
    if result.is_multi_objective and result.front:
        count = f"{counted(len(result.front), 'trial')} of {len(finished(result))}"
        *labels, last = (metric_label(result, i) for i in range(len(result.metrics)))
        return f"No single best: {count} on the Pareto front of {', '.join(labels)} and {last}."
    best = next((trial for trial in result.trials if trial.number == result.best), None)
    if best is None:
        return "No trial came to a score: all failed." if result.all_failed else "No trial is done yet."
    score = trial_score(best)
    seeds = f" over {counted(score.num, 'seed')}" if score.num > 1 else ", one seed"
    count = counted(len(ranking(result)), "finished trial")
    gave = f"{metric_label(result)} {format_score(result, score)}{seeds}"
    return f"Best of {count}: {format_setting(result, best)} gave {gave} (trial {best.number})."


def front_lines(result: SweepResult) -> list[str]:
    """With several metrics, a line for each trial on the Pareto front: its setting and its values."""
    if not result.is_multi_objective:
        return []

    def line(trial: TrialResult) -> str:
        scores = (
            f"{metric_label(result, i)} {format_score(result, trial_score(trial, i), i)}"
            for i in range(len(result.metrics))
        )
        return f"trial {trial.number}: {format_setting(result, trial)}: {', '.join(scores)}"

    return [line(trial) for trial in sorted_trials(result) if trial.number in result.front]


def caveats(result: SweepResult) -> Iterator[str]:
    """What limits the conclusion."""
    pending = sum(trial.state in ("waiting", "running") for trial in result.trials)
    if pending or len(result.trials) < result.num_trials:
        left = max(pending, result.num_trials - len(result.trials) + pending)
        yield f"The sweep is not finished: {counted(left, 'trial')} to come may change all of this."
    ranked = ranking(result)
    if not ranked:
        return
    num_seeds = len(result.seeds)
    if num_seeds < SEEDS:
        yield (
            f"{counted(num_seeds, 'seed')} a trial: the variance over seeds is not known, and takes {SEEDS} at least."
            " A small lead may be chance."
        )
    if result.best is not None and len(ranked) > 1:
        yield from _lead(result, ranked)
    if result.metrics[0].startswith("val/") and len(ranked) > 1:
        yield (
            f"The best of {len(ranked)} validation scores is optimistic, for it was chosen by being the best. No trial"
            " saw the test part; premed run opens it once."
        )
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    if num_behind := sum(trial.behind is not None for trial in stopped):
        yield (
            f"{counted(num_behind, 'trial')} got fewer seeds, being known to be no better than the best so far; no mean"
            " counts them."
        )
    if num_stopped := len(stopped) - num_behind:
        yield f"{counted(num_stopped, 'trial')} stopped early, after fewer steps; no mean counts them."


def _lead(result: SweepResult, ranked: Sequence[TrialResult]) -> Iterator[str]:
    """How far the best trial is ahead of the others."""
    best, *others = (trial_score(trial) for trial in ranked)
    behind = f"{format_number(result, abs(best.mean - others[0].mean))} behind"
    yield f"The next best is trial {ranked[1].number} ({format_setting(result, ranked[1])}), {behind}."
    if best.num >= SEEDS and math.isfinite(best.std):
        num_near = sum(abs(best.mean - other.mean) <= best.std for other in others)
        if num_near:
            lie = f"{counted(num_near, 'trial')} lie{'s' * (num_near == 1)}"
            yield f"{lie} within the best's deviation over seeds: their order may be chance."


def reuse_lines(result: SweepResult) -> list[str]:
    """What reusing stages saved, in all and by kind of stage."""
    savings = reuse_savings(result)
    shared, unshared = sum(savings.shared.values()), sum(savings.unshared.values())
    if not unshared:
        return []
    saved = f"reuse saved {duration(savings.saved, unshared)} ({savings.fraction:.0%})"
    each_its_own = f"had every trial trained its own, {duration(unshared)}"
    lines = [f"All stages took {duration(shared, unshared)}; {each_its_own}: {saved}."]
    for kind, seconds in savings.shared.items():
        if savings.num_unshared[kind] > savings.num_shared[kind]:
            count = f"{savings.num_shared[kind]} in place of {savings.num_unshared[kind]}"
            time = f"{duration(seconds, savings.unshared[kind])} in place of {duration(savings.unshared[kind])}"
            lines.append(f"{stage_label(kind)}: {count}, {time}")
    return lines


def failures(result: SweepResult) -> list[tuple[int, str]]:
    """(number, reason) of the trials that failed."""
    failed = [trial for trial in result.trials if trial.state == "failed"]
    return [(trial.number, trial.failure or "no reason was recorded") for trial in failed]


def best_command(result: SweepResult) -> str:
    """The command that runs and tests the best setting."""
    return f"premed run {shlex.quote(printable(Path(result.where) / 'best.yaml'))}"


# ---- trials and fields


def sorted_trials(result: SweepResult) -> list[TrialResult]:
    """Finished trials, the best first, then the others by state and number."""
    ranks = {trial.number: i for i, trial in enumerate(ranking(result))}
    others = sorted(result.trials, key=lambda trial: (STATES.index(trial.state), trial.number))
    return sorted(others, key=lambda trial: ranks.get(trial.number, len(ranks)))


def field_text(result: SweepResult, trial: TrialResult, path: str) -> str:
    """A trial's value of a field; - if it has none."""
    return format_field(result, path, trial.setting[path]) if path in trial.setting else "-"


def format_setting(result: SweepResult, trial: TrialResult) -> str:
    """A trial's values of the varied fields."""
    names, paths = short_names(field_paths(result)), varied_fields(result) or field_paths(result)
    return named([names[path] for path in paths], [field_text(result, trial, path) for path in paths]) or "as it is"


def constant_setting(result: SweepResult) -> str:
    """The fields that are the same in all trials, and their values."""
    names, varied = short_names(field_paths(result)), varied_fields(result)
    paths = [path for path in field_paths(result) if path not in varied and result.trials]
    return named([names[path] for path in paths], [field_text(result, result.trials[0], path) for path in paths])


def named(names: Sequence[str], values: Sequence[str]) -> str:
    """Names and values in one line: `lr 0.1, epochs 20`."""
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def importance_shares(result: SweepResult) -> dict[str, float]:
    """Optuna's importances by the field's short name, the largest first; empty if they are not known."""
    importances = result.importances or {}
    names = short_names([*field_paths(result), *importances])
    shares = {names[path]: as_finite(share, 0.0) for path, share in importances.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


# ---- metrics and scores


def metric_label(result: SweepResult, metric: int = 0) -> str:
    """A metric's name for people: `val Dice` for `val/dice`."""
    name = result.metrics[metric]
    part, slash, score = name.partition("/")
    return printable(f"{part} {NAMES.get(score, score)}" if slash else COSTS.get(name, name))


def is_cost(result: SweepResult, metric: int) -> bool:
    return result.metrics[metric] in COSTS


def format_number(result: SweepResult, value: float, metric: int = 0) -> str:
    """A metric's value: three decimals, none of a cost."""
    return f"{value:.0f}" if is_cost(result, metric) else number(value)


def format_score(result: SweepResult, score: Spread, metric: int = 0) -> str:
    """A score as `0.712 ± 0.012`; `-` if it is unknown."""
    if not math.isfinite(score.mean):
        return "-"
    is_exact = score.std == 0 and is_cost(result, metric)  # a trial's cost is one number, whatever its seeds
    std = f" ± {format_number(result, score.std, metric)}" if math.isfinite(score.std) and not is_exact else ""
    return format_number(result, score.mean, metric) + std


def averaged_over(result: SweepResult, grid: ScoreGrid) -> str:
    """What the mean and the deviation in a cell of the grid are over."""
    if all(cell.num < 2 for row in grid.cells for cell in row):
        return "one number a cell"
    names = short_names(field_paths(result))
    pooled = [counted(grid.num_seeds, "seed")] if grid.num_seeds > 1 else []
    pooled += [f"all {names[path]}" for path in grid.pooled]
    return f"mean ± std over {listed(pooled) or 'the trials of a cell'}"


def stage_label(kind: str) -> str:
    return printable(STAGES.get(kind, kind))


def heat_colours(relative: float) -> tuple[str, str]:
    """The background of a grid's cell, darker for better ones (0 to 1), and the colour of its text, as #rrggbb."""
    worst, best = (240, 245, 250), (0, 88, 143)
    channels = (round(light + relative * (dark - light)) for light, dark in zip(worst, best, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels), "#ffffff" if relative > 0.5 else "#222222"
