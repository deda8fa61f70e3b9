"""What a command prints on stdout when it ends: tables and lines."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from premed.config.fields import FieldEntry
from premed.errors import printable
from premed.reporting.encoding import encodable
from premed.reporting.formatting import duration
from premed.safety.files import MIB


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
    if first_look := result["first_look"]:
        print(f"\nA first look, whose answer is worth little:\n  {first_look}")


# ---- premed run


def show_estimate(result: Any) -> None:
    """Prints what experiments take (`execution.estimate.Estimate`): a row for each kind of stage, then all together."""
    columns = ["stage", "strategy", "stages", "steps", "images/s", "each", "memory", "GPU memory", "checkpoint"]
    rows = []
    for each in result.stages:
        gpu = "-" if each.gpu_memory_mb is None else f"{each.gpu_memory_mb * MIB / 1e9:.1f} GB"
        speed = f"{each.images_per_second:.3g}" if each.images_per_second else "-"
        sizes = [f"{each.memory_mb * MIB / 1e9:.1f} GB", gpu, f"{each.checkpoint_gb:.2f} GB"]
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
    if len(found) == 1 and found[0].type.startswith("one of "):  # a plug-in, whose fields are those of its name
        first = found[0].type.removeprefix("one of ").partition(",")[0]
        print(f"the fields of each: premed fields {found[0].path}.{first}, and so on")


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
