"""What a command prints on stdout when it ends: tables and lines."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from premed.config.expand import percent
from premed.config.fields import FieldEntry
from premed.errors import printable
from premed.reporting.encoding import encodable
from premed.reporting.formatting import duration, number

GATE = """gate: how far pre-training's validation loss is below that of a predictor without a network;
      needed for a gain, and no promise of one"""


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], words: int = 2) -> None:
    """Prints a table as wide as its cells need: the first `words` columns left-aligned, the others right-aligned."""
    grid = Table(
        title=Text(encodable(title)), title_justify="left", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True
    )
    for i, column in enumerate(columns):
        grid.add_column(encodable(column), justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        # [a, b] is no markup here
        grid.add_row(*(cell if isinstance(cell, Text) else Text(encodable(cell)) for cell in row))
    Console(width=output_width(), highlight=False).print(grid)


def output_width() -> int | None:
    """The width of a line in characters; None on a terminal, whose own width counts."""
    return None if sys.stdout.isatty() else 120


# ---- premed init


def show_plan(result: dict[str, Any]) -> None:
    """Prints what `premed init` found, what it notes, and the next commands."""
    width = max(map(len, result["found"]))
    for name, fact in result["found"].items():
        print(f"{name:{width}}  {fact}")
    for note in result["notes"]:
        print(f"note: {printable(note)}")
    files = " and ".join(name for name in (result["yaml"], result["listing"]) if name)
    took = "" if result["minutes"] is None else f"; running it takes about {result['minutes']:.0f} minutes"
    idle = " while this machine is idle" if took else ""
    print(f"\nwritten: {files}{took}{idle}. Next:\n" + "\n".join(f"  {command}" for command in result["next"]))


# ---- premed run


def show_outcomes(outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints a row for each experiment: its score on test (or val), interval, constant answer, gate, seconds.

    Several experiments have columns for the share of labels and the seed, and a table of means over seeds.
    """
    several = ["labels", "seed"] if len(outcomes) > 1 else []
    columns = ["task", "strategy", *several, "score", "value", "95 % interval", "constant", "gate", "seconds"]
    rows, title = [outcome_row(outcome, bool(several)) for outcome in outcomes], "Scores"
    scores = {score_of(outcome)[0] for outcome in outcomes if outcome["stages"]}
    if several and len(scores) == 1:  # in the title, for 80 columns are few
        title, at = f"Scores: {scores.pop()}", columns.index("score")
        rows = [row[:at] + row[at + 1 :] for row in [columns, *rows]]
        columns = rows.pop(0)
    print_table(title, columns, rows)
    if encoders := [outcome for outcome in outcomes if "encoder" in outcome]:
        show_encoders(encoders)
        outcomes = [outcome for outcome in outcomes if "encoder" not in outcome]
    if not outcomes:
        return
    print("interval: over patients, one seed; constant: the best answer that ignores the image;")
    print(GATE)
    show_means(outcomes)
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


def outcome_row(outcome: dict[str, Any], is_one_of_several: bool) -> list[str]:
    stages, row = outcome["stages"], [outcome["task"], outcome["strategy"]]
    if is_one_of_several:
        row += [percent(share) if (share := outcome["label_fraction"]) is not None else "-", str(outcome["seed"])]
    if "failure" in outcome:
        return [*row, "-", "failed", "-", "-", "-", "-"]
    last, seconds = stages[-1], sum(stage["seconds"] for stage in stages)
    interval, constant = "-", "-"
    if last["kind"] == "test":
        constant = number(last["constant"])
        interval = f"[{number(last['interval'][0])}, {number(last['interval'][1])}]"
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
    return f"{part} {outcome['score']}", last["summary"].get(f"{part}/{outcome['score']}")


def score_text(outcome: Mapping[str, Any]) -> str:
    score, value = score_of(outcome)
    return f"{score} {number(value)}"


def show_means(outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints mean and standard deviation over seeds, for each task, strategy and share of labels with several seeds."""
    groups = defaultdict(list)
    for outcome in outcomes:
        if "failure" in outcome or "encoder" in outcome:
            continue
        score, value = score_of(outcome)
        if value is not None:
            share = percent(outcome["label_fraction"]) if "label_fraction" in outcome else ""
            groups[outcome["task"], outcome["strategy"], share, score].append(value)
    rows = [
        [*group, str(len(values)), f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"]
        for group, values in groups.items()
        if len(values) > 1
    ]
    if rows:
        print_table("Over seeds", ["task", "strategy", "labels", "score", "seeds", "mean ± std"], rows)


def show_estimate(result: Any) -> None:
    """Prints what experiments take (`execution.estimate.Estimate`): a row for each kind of stage, then all together."""
    columns = ["stage", "strategy", "stages", "steps", "images/s", "each", "memory", "GPU memory", "checkpoint"]
    rows = []
    for each in result.stages:
        gpu = "-" if each.gpu_memory_mb is None else f"{each.gpu_memory_mb / 1e3:.1f} GB"
        speed = f"{each.images_per_second:.3g}" if each.images_per_second else "-"
        sizes = [f"{each.memory_mb / 1e3:.1f} GB", gpu, f"{each.checkpoint_gb:.2f} GB"]
        rows.append([each.kind, each.strategy, str(each.number), str(each.steps or "-"), speed, duration(each.seconds)])
        rows[-1] += sizes
    print_table("Estimate", columns, rows)
    many = f"{result.at_once} stages at once" if result.at_once > 1 else "one stage at a time"
    print(
        f"time:   {duration(result.seconds)} on this machine, {many}; {duration(result.device_seconds)} in all stages"
    )
    if result.prepare_images:
        print(f"before: {result.prepare_images} images are prepared, {duration(result.prepare_seconds)}")
    print(f"memory: {result.memory_gb:.1f} GB at the peak")
    print(f"disk:   {result.checkpoints_gb:.2f} GB for checkpoints and weights, {result.cache_gb:.2f} GB for the cache")
    print("left out: the start of Ray, pictures and registration at the end; stages that are finished count, too")
    for note in result.notes:
        print(f"note: {note}")


# ---- other commands


def show_fields(found: Sequence[FieldEntry]) -> None:
    """Prints the fields of a YAML."""
    rows = [[each.path, each.type, each.default or "must be set", each.meaning] for each in found]
    print_table("", ["field", "type", "default", "meaning"], rows, words=4)


def show_predictions(report: dict[str, Any]) -> None:
    """Prints the result of `premed predict`."""
    what = "label maps" if "files" in report["outputs"][0] else "rows of probabilities"
    skipped = f"; {len(report['failed'])} skipped" if report["failed"] else ""
    print(f"{report['task']}: {what} of {len(report['outputs'])} images in {report['folder']}{skipped}")
    show_model(report)


def show_model(report: dict[str, Any]) -> None:
    """Prints which training's network it is, and what that scored."""
    if model := report.get("model"):
        print(f"the network is {printable(model['words'])}")


def show_export(report: dict[str, Any]) -> None:
    """Prints the result of `premed export`."""
    print(f"{report['task']} as {report['format']} in {report['folder']}: {', '.join(report['files'])}")
    show_model(report)
    if check := report.get("check"):
        print(f"largest difference of a logit from torch's: {check['largest_difference']:.2g}, on {check['on']}")
    if "reason" in report:
        print(f"no validation image: {printable(report['reason'])}")


def show_upload(report: dict[str, Any]) -> None:
    """Prints what `premed submit --dry-run` would send."""
    print(report["entrypoint"])
    for name, value in report["env_vars"].items():
        print(f"with {name}={value}")
    for file in report["files"]:
        print(f"{file['bytes']:>12,} {printable(file['name'])}")
    print(f"{report['megabytes'] * 1e6:>12,.0f} bytes in all, as Ray packs {len(report['files'])} files")


def show_findings(report: dict[str, Any]) -> None:
    """Prints the findings of `premed data check`; at most ten files with the same one."""
    from premed.reporting.data_check import grouped_findings, summary_line  # with torch, which other commands need not

    name = printable(report["task"])
    title = f"{name} in {printable(report['root'])}" if report["root"] else name
    if report["findings"]:
        print_table(title, ["", "where", "what"], list(grouped_findings(report, 10)), words=3)
    print(f"{name}: {summary_line(report)}")
    for source in report.get("sources", ()):
        show_findings(source)


def show_doctor(report: dict[str, Any]) -> None:
    """Prints the result of `premed doctor`: what there is, then what is wrong with it."""
    machine = report["machine"]
    rows = [["versions", ", ".join(f"{name} {number[:12]}" for name, number in report["versions"].items())]]
    rows += [["CPUs", f"{machine['cpus']:g}"], ["memory", room(machine, "memory")]]
    rows += [["shared memory", room(machine, "shared_memory")]] if "shared_memory_gb" in machine else []
    rows += [["GPU", f"{gpu['name']}, {room(gpu, 'memory')}".rstrip(", ")] for gpu in machine["gpus"]]
    rows += [] if machine["gpus"] else [["GPU", "none"]]
    for folder in report["folders"]:
        there = "" if folder["exists"] else " (is not there yet)"
        rows.append([folder["name"], f"{folder['path']}{there}: {room(folder, '')} on its disk"])
    rows += [[service["name"], f"{service['address']}{said_of(service)}"] for service in report["services"]]
    for ear in report["listening"]:
        rows.append([f"port {ear['port']}", f"{ear['kind']} on {ear['address']}{said_of(ear)}"])
    print_table("premed doctor", ["what", "here"], [[printable(cell) for cell in row] for row in rows])
    findings = [[printable(finding[name]) for name in ("severity", "where", "what")] for finding in report["findings"]]
    if findings:
        print_table("Findings", ["", "where", "what"], findings, words=3)
    numbers = {"error": report["num_errors"], "note": report["num_notes"]}
    print(", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in numbers.items()))


def room(facts: Mapping[str, Any], name: str) -> str:
    """`3.1 of 8.0 GB free`, of the fields `<name>_gb` and `<name>_free_gb`; empty where they are not known."""
    total, free = (facts.get(f"{name}_{each}".strip("_")) for each in ("gb" if name else "total_gb", "free_gb"))
    return "" if total is None or free is None else f"{free:.1f} of {total:.1f} GB free"


def said_of(service: Mapping[str, Any]) -> str:
    """What a port answered: its version, and whether it asks for a token or a password."""
    words = [service["version"]] if service.get("version") else []
    words += ["does not answer"] if service.get("answers") is False else []
    if service.get("asks_for_secret") is not None:
        words.append("asks for a token or password" if service["asks_for_secret"] else "asks for no token or password")
    return f": {', '.join(words)}" if words else ""
