"""The table that `premed run` ends with: a row for each experiment, and means over seeds."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from premed.config.expand import percent
from premed.reporting.console import print_table
from premed.reporting.formatting import is_better, number, score_name, span

GATE = """gate: how far pre-training's validation loss is below that of a predictor without a network;
      needed for a gain, and no promise of one"""


def show_outcomes(outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints a row for each experiment: its score on test (or val), interval, constant answer, gate, seconds.

    Several experiments have columns for the share of labels and the seed, and a table of means over seeds.
    """
    several = ["labels", "seed"] if len(outcomes) > 1 else []
    columns = ["task", "strategy", *several, "score", "value", "95 % interval", "constant", "gate", "seconds"]
    arms = arm_names(outcomes)
    rows = [outcome_row(outcome, arm, bool(several)) for outcome, arm in zip(outcomes, arms, strict=True)]
    title = "Scores"
    scores = {score_of(outcome)[0] for outcome in outcomes if outcome["stages"]}
    if several and len(scores) == 1:  # in the title, for 80 columns are few
        title, at = f"Scores: {scores.pop()}", columns.index("score")
        rows = [row[:at] + row[at + 1 :] for row in [columns, *rows]]
        columns = rows.pop(0)
    print_table(title, columns, rows)
    if encoders := [outcome for outcome in outcomes if "encoder" in outcome]:
        show_encoders(encoders)
        kept = [number for number, outcome in enumerate(outcomes) if "encoder" not in outcome]
        outcomes, arms = [outcomes[number] for number in kept], [arms[number] for number in kept]
    if not outcomes:
        return
    print("interval: over patients, one seed; constant: the best answer that ignores the image;")
    print(GATE)
    for words in filter(None, [tested_weights(outcomes), not_above_constant(outcomes)]):
        print(words)
    show_means(outcomes, arms)
    for outcome in outcomes:
        name = outcome.get("name") or f"{outcome['task']} {outcome['strategy']}"
        if ended := next((stage["stopped"] for stage in outcome["stages"] if stage.get("stopped")), None):
            print(f"{name}: its pre-training ended at step {ended['step']} of {ended['of']}, by the probe")
        if "failure" in outcome:
            print(f"{name} FAILED: {outcome['failure']}")
        elif not several:
            print(f"{name}: {outcome['stages'][-1]['where']}")
            if run_id := outcome.get("run_id"):
                print(f"run {run_id}; for other images: premed predict {run_id[:8]} IMAGE… --out DIR")
    last_stages = [(outcome["task"], outcome["stages"][-1]) for outcome in outcomes if outcome["stages"]]
    undefined = {(task, *stage["undefined"]) for task, stage in last_stages if stage.get("undefined")}
    for task, *classes in sorted(undefined):  # the same classes in all experiments on a test part
        print(f"{task}: no AUC, and left out of the mean: {', '.join(classes)} (one kind of label only)")
    folders = sorted({str(PurePosixPath(stage["where"]).parent) for _, stage in last_stages if several})
    if predicting := [
        outcome for outcome in outcomes if several and outcome.get("run_id") and "failure" not in outcome
    ]:
        first, *others = [outcome["run_id"][:8] for outcome in predicting]
        more = (
            f" (or {', '.join(others[:7])}{', …' * (len(others) > 7)}: the runs above, in their order)"
            if others
            else ""
        )
        print(f"for other images: premed predict {first} IMAGE… --out DIR{more}")
    if folders:
        print(f"weights and pictures: {', '.join(folders)}; compare them, with intervals and tests: premed compare")


def tested_weights(outcomes: Sequence[dict[str, Any]]) -> str:
    """Of which steps the weights are that val selected; empty where none had several to select from.

    A probe's steps are the strengths that it tries, and no training.
    """
    trained = [outcome for outcome in outcomes if outcome.get("head") != "probe"]
    stages = [stage for outcome in trained for stage in outcome["stages"] if stage["kind"] == "finetune"]
    steps = sorted({(stage["best_step"], stage["num_steps"]) for stage in stages if stage.get("num_steps", 1) > 1})
    if not steps:
        return ""
    (first, _), (last, of) = steps[0], steps[-1]
    which = f"step {first}" if first == last else f"steps {first} to {last}"
    which += f" of {of}" if len({num for _, num in steps}) == 1 else ""
    return f"scored: the weights that were best on val, of {which}"


def not_above_constant(outcomes: Sequence[dict[str, Any]]) -> str:
    """How many tests have no better score than the best answer that ignores the image, if any."""
    tests = [stage for outcome in outcomes for stage in outcome["stages"] if stage["kind"] == "test"]
    known = [stage for stage in tests if None not in (stage.get("value"), stage.get("constant"))]
    known = [stage for stage in known if math.isfinite(stage["value"] - stage["constant"])]
    poor = [stage for stage in known if not is_better(stage["score"], stage["value"], stage["constant"])]
    if not poor:
        return ""
    constants = ", ".join(dict.fromkeys(number(stage["constant"]) for stage in poor))
    which = "the test is" if len(known) == 1 else f"{len(poor)} of {len(known)} tests are"
    return f"{which} no better than an answer that ignores the image ({constants}): train longer before you conclude"


def show_encoders(outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints the encoder of each pre-training, and the command that fine-tunes it."""
    print(GATE)
    for outcome in outcomes:
        encoder = outcome["encoder"]
        name = encoder["name"] or encoder["digest"]  # without a registry, the digest names it, too
        print(f"encoder: {encoder['name'] or 'not registered'}")
        if ended := outcome["stages"][-1].get("stopped"):
            print(f"length:  {ended['step']} of {ended['of']} steps, ended by the probe")
        print(f"digest:  {encoder['digest']}")
        print(f"run:     {encoder['run_id']} ({outcome['stages'][-1]['where']})")
        print(f"next:    premed run FINETUNE.yaml pretext={outcome['strategy']} pretrain.encoder={name}")


def arm_names(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    """What experiments are called without seed and share of labels; arms with one name are numbered: `mae (2)`."""
    arms = [outcome.get("arm") or {"name": outcome["strategy"], "digest": ""} for outcome in outcomes]
    shares = [(outcome["task"], outcome.get("label_fraction")) for outcome in outcomes]
    places = [(*share, arm["name"]) for share, arm in zip(shares, arms, strict=True)]
    digests: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for place, arm in zip(places, arms, strict=True):
        if arm["digest"] not in digests[place]:
            digests[place].append(arm["digest"])
    return [
        arm["name"] + (f" ({digests[place].index(arm['digest']) + 1})" if len(digests[place]) > 1 else "")
        for place, arm in zip(places, arms, strict=True)
    ]


def outcome_row(outcome: dict[str, Any], arm: str, is_one_of_several: bool) -> list[str]:
    stages, row = outcome["stages"], [outcome["task"], arm]
    if is_one_of_several:
        row += [percent(share) if (share := outcome["label_fraction"]) is not None else "-", str(outcome["seed"])]
    if "failure" in outcome:
        return [*row, "-", "failed", "-", "-", "-", "-"]
    last, seconds = stages[-1], sum(stage["seconds"] for stage in stages)
    interval, constant = "-", "-"
    if last["kind"] == "test":
        constant = number(last["constant"])
        interval = span(last["interval"])
    score, value = score_of(outcome)
    return [*row, score, number(value), interval, constant, gate_cell(stages), f"{seconds:.0f}"]


def gate_cell(stages: Sequence[dict[str, Any]]) -> str:
    """How far the pre-training is below its gate; - if there is none."""
    if any(stage.get("collapse") for stage in stages):
        return "collapsed"
    gate = next((stage["gate"] for stage in stages if stage.get("gate")), None)
    if gate is None:
        return "-"
    return f"{gate['below']:.0%}" if gate["passed"] else "not past"


def score_of(outcome: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name and value of an experiment's score, on test if it has been tested, else on val."""
    last = outcome["stages"][-1]
    if "encoder" in outcome:
        return "val loss", last["summary"].get("val/loss")
    part = "test" if last["kind"] == "test" else "val"
    return f"{part} {score_name(outcome['score'])}", last["summary"].get(f"{part}/{outcome['score']}")


def score_text(outcome: Mapping[str, Any]) -> str:
    score, value = score_of(outcome)
    return f"{score} {number(value)}"


def show_means(outcomes: Sequence[dict[str, Any]], arms: Sequence[str]) -> None:
    """Prints mean and standard deviation over seeds, for each arm on a task with several seeds. arms: their names."""
    groups = defaultdict(list)
    for outcome, arm in zip(outcomes, arms, strict=True):
        if "failure" in outcome or "encoder" in outcome:
            continue
        score, value = score_of(outcome)
        if value is not None:
            share = percent(outcome["label_fraction"]) if "label_fraction" in outcome else ""
            groups[outcome["task"], arm, share, score].append(value)
    rows = [
        [*group, str(len(values)), f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"]
        for group, values in groups.items()
        if len(values) > 1
    ]
    if rows:
        print_table("Over seeds", ["task", "strategy", "labels", "score", "seeds", "mean ± std"], rows)
