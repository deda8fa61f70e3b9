"""`premed init`: recognises a folder's layout, looks at its images, chooses settings, writes a YAML."""

import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import premed.tasks
from premed.config.expand import load_all
from premed.config.plugins import plugin
from premed.config.spec import validate_spec
from premed.contracts import Case, Task
from premed.data.check import UNLABELLED, listings, split_cases
from premed.data.survey import Survey, survey
from premed.errors import Finding, UserError
from premed.planning import document, images, training
from premed.planning.choices import Choice, Choices, times
from premed.planning.machine import Machine, this_machine
from premed.tasks.common.image_folder import TABLES
from premed.tasks.common.image_tree import find_images
from premed.tasks.common.recognised import Recognised

FEW_PATIENTS = 10  # of test: an interval over fewer says little
LONG = 45  # minutes
MOST_FINDINGS = 5
OWN = "each image counts as"  # what a task notes where nothing says whose the images are


class Looked(NamedTuple):
    """What a folder is, its task, and its images."""

    recognised: Recognised
    task: Task
    fields: dict[str, Any]
    """Of the task, as far as the layout decides them."""
    parts: dict[str, list[Case]]
    findings: list[Finding]
    found: Survey


def run(
    folder: Path,
    out: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Writes a YAML for a folder of images, and says what was found. Raises UserError if there is nothing to compare.

    out: the YAML's path; None: named after the folder, in the current one. progress: called with images done and total.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one that holds the images")
    folder = Path(os.path.abspath(folder))
    out = out or Path(re.sub(r"[^\w.-]+", "_", folder.name).strip("._") or "experiment").with_suffix(".yaml")
    refuse_overwriting(out)
    recognised = recognise(folder)
    if recognised.listing:
        refuse_overwriting(out.with_suffix(recognised.listing.suffix))
    machine = machine or this_machine()
    looked = look(folder, recognised, progress)
    grid, task_choices, notes = choose_task(looked, machine, folder, out)
    plan = training.plan(data_of(looked), grid, machine)
    notes += plan.notes
    facts = described(looked, machine)
    return write(looked, out, task_choices | plan.choices, facts, [*notes, *warnings(looked, plan)], plan)


def refuse_overwriting(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it")
    if os.path.lexists(path):
        raise UserError(f"{path} exists: remove it, or name another file with --out")


# What is there -------------------------------------------------------------------------------------------------------


def recognise(folder: Path) -> Recognised:
    """Returns the answer of the task that is surest of the folder. Raises UserError if there is none."""
    if several := data_sets_below(folder):
        named = ", ".join(several[:5])
        raise UserError(f"{folder}: holds several data sets ({named}): name the folder of one of them")
    modules = [import_module(f"premed.tasks.{each.name}") for each in iter_modules(premed.tasks.__path__)]
    hooks = [module.recognise for module in modules if hasattr(module, "recognise")]
    answers = [answer for hook in hooks if (answer := hook(folder)) is not None]
    if not answers:
        raise unlabelled(folder)
    return max(answers, key=lambda answer: answer.sure)


def data_sets_below(folder: Path) -> list[str]:
    """Returns the folders directly below that are data sets of their own; [] if `folder` is one."""
    if any(path.suffix.lower() in TABLES or path.name == "dataset.json" for path in folder.glob("[!.]*")):
        return []
    return sorted({path.parent.name for path in folder.glob("[!.]*/dataset.json")})


def unlabelled(folder: Path) -> UserError:
    """The error for a folder that no task recognises: it has no labels, or no images.

    Pre-training on such a folder alone, and naming it in `pretrain.sources`, would be written here.
    """
    tree = find_images(folder)
    if not tree.names:
        return UserError(
            f"{folder}: holds no image that is read (NIfTI, PNG, JPEG, DICOM); name the folder with the images"
        )
    what = "label maps in labels/ beside images/, or " if tree.volumes else ""
    return UserError(
        f"{folder}: {tree.described()} and no labels, which a comparison needs: add {what}a CSV with the columns path, "
        "patient and label beside them, or put them into a folder for each class, and call premed init again"
    )


def look(folder: Path, recognised: Recognised, progress: Callable[[int, int], None]) -> Looked:
    """Builds the task of a folder and looks at its images. Raises UserError if a part has no labelled image."""
    with tempfile.TemporaryDirectory() as temporary:
        listing, name = recognised.listing, recognised.task["name"]
        fields = {"name": name, "root": str(folder), **recognised.task}
        if listing:
            path = Path(temporary) / f"listing{listing.suffix}"
            path.write_text(listing.text, encoding="utf-8")
            fields[listing.field] = str(path)
        task, fields, findings = build(fields)
        parts, refusals = split_cases(task, test=True)
        if refusals:
            raise too_few(folder, task, refusals)
        cases = [case for some in parts.values() for case in some]
        found = survey(cases, task.dims, progress)
    if not found.headers or found.values is None:
        raise UserError(f"{found.unreadable[0]} (and none of {len(found.unreadable)} others that were tried is read)")
    if listing:
        del fields[listing.field]
    return Looked(recognised, task, fields, parts, findings, found)


def build(fields: dict[str, Any]) -> tuple[Task, dict[str, Any], list[Finding]]:
    """Returns the task, its fields and the errors of its listings; incomplete downloads are left out (`partial`)."""
    module = plugin("tasks", fields)

    def of(fields: dict[str, Any]) -> tuple[Task, list[Finding]]:
        provisional = {"roi": [16] * 3} if fields.get("dims") == 3 else {}  # `images` has a default for pictures
        task = module.build(validate_spec(module.Config, fields | provisional))
        return task, [finding for finding in listings(task, test=True) if finding.severity == "error"]

    task, errors = of(fields)
    if errors and "partial" in module.Config.model_fields:
        other, fewer = of(fields | {"partial": True})
        if len(fewer) < len(errors):
            return other, fields | {"partial": True}, fewer
    return task, fields, errors


def too_few(folder: Path, task: Task, refusals: dict[str, UserError]) -> UserError:
    """The error for a data set that lacks labelled images for a part."""
    task.lenient = True
    parts = split_cases(task, test=True)[0]
    labelled = {case.patient for some in parts.values() for case in some if case.label is not None}
    if not labelled:
        return unlabelled(folder)
    return UserError(
        f"{folder}: {len(labelled)} patient(s) with labels leave none for {next(iter(refusals))}: train, val and test "
        f"need one each at least, and an interval some {FEW_PATIENTS} in test; label more"
    )


def data_of(looked: Looked) -> training.Data:
    """Returns what the trainings are planned for."""
    task, parts = looked.task, looked.parts
    num = {part: len(parts.get(part, ())) for part in ("train", "val", "test")}
    num["pretrain"] = num["train"] + len(parts.get(UNLABELLED, ()))
    voxels = float(looked.found.shapes.prod(axis=1).max())
    return training.Data(task.dims, task.channels, task.classes, bool(task.labels), num, voxels)


# Choices of the task -------------------------------------------------------------------------------------------------


def choose_task(looked: Looked, machine: Machine, folder: Path, out: Path) -> tuple[images.Grid, Choices, list[str]]:
    """Returns the grid, the fields of `task`, and notes."""
    recognised, task, found = looked.recognised, looked.task, looked.found
    known = plugin("tasks", looked.fields).Config.model_fields
    if task.dims == 3:
        own = known["spacing"].default if "spacing" in known else None
        grid = images.volume_grid(found, machine, bool(task.labels), own)
        values, notes = images.volume_values(found, recognised.channels, task.channels)
        values = (
            {"channels": Choice(n)} | values if (n := found.headers[0].channels) > 1 and "dims" in known else values
        )
    else:
        grid = images.picture_grid(found, machine, task)
        values, notes = images.picture_values(found)
    planned = grid.choices | values
    fitted = recognised.fit({name: choice.value for name, choice in planned.items()})
    reasons = {name: choice.why for name, choice in planned.items()} | dict(recognised.reasons)
    roi = planned["roi"].why
    listing = recognised.listing
    fields = looked.fields | ({listing.field: str(out.with_suffix(listing.suffix).absolute())} if listing else {})
    if listing:
        reasons[listing.field] = f"written by premed init, of {listing.made_of}"
    if fields.get("partial"):
        reasons["partial"] = "what is listed and not there is left out"
    fields |= {name: value for name, value in fitted.items() if name in known}
    choices = {
        f"task.{name}": Choice(value, reasons.get(name, roi if name == "size" else ""))
        for name, value in fields.items()
    }
    return grid, choices, [*recognised.notes, *notes, *grid.notes]


# Words ---------------------------------------------------------------------------------------------------------------


def described(looked: Looked, machine: Machine) -> dict[str, str]:
    """Returns what was found, in words by topic."""
    task, parts, found = looked.task, looked.parts, looked.found
    cases = [case for some in parts.values() for case in some]
    patients = len({case.patient for case in cases})
    labelled = sum(case.label is not None for case in cases)
    kind = "volumes" if task.dims == 3 else "pictures"
    names = f" ({', '.join(looked.recognised.channels)})" if looked.recognised.channels else ""
    said = {
        "layout": f"{looked.recognised.layout}: task {looked.fields['name']}",
        "images": f"{len(cases)} {kind} of {patients} patients, {labelled} with labels",
        "parts": ", ".join(f"{len(some)} {part}" for part, some in parts.items()),
        "channels": f"{task.channels}{names}",
        "labels": labels_in_words(looked),
        "shapes": f"{extremes(found.shapes)} (of {len(found.headers)} headers)",
    }
    if len(found.spacings):
        said["spacing"] = f"{extremes(found.spacings)} mm"
        counts = Counter(header.orientation for header in found.headers).most_common(3)
        said["orientation"] = ", ".join(f"{count} {name}" for name, count in counts) + "; all are turned to RAS"
    if found.values:
        lowest, low, middle, high, highest = (f"{value:.4g}" for value in found.values.percentiles)
        said["intensities"] = (
            f"{lowest} to {highest}, 0.5 % {low}, median {middle}, 99.5 % {high} (of {found.values.num} images)"
        )
    return said | {"machine": str(machine)}


def labels_in_words(looked: Looked) -> str:
    """Returns the classes; of labels per image, with the number of images that have each."""
    task = looked.task
    tables = [case.label for some in looked.parts.values() for case in some if isinstance(case.label, tuple)]
    names = [*task.classes]
    if tables:
        names = [f"{name} ({sum(row[i] == 1 for row in tables)})" for i, name in enumerate(names)]
    kind = "a label per voxel" if task.labels else "one of" if task.exclusive else "yes or no each"
    return f"{kind}: {', '.join(names)}"


def extremes(rows: Any) -> str:
    """Returns `35 × 50 × 36, from 31 × 40 × 24 to 43 × 59 × 47`."""
    import numpy as np

    low, middle, high = rows.min(axis=0), np.median(rows, axis=0), rows.max(axis=0)
    return times(middle) + ("" if np.allclose(low, high, rtol=1e-3) else f", from {times(low)} to {times(high)}")


def warnings(looked: Looked, plan: training.Plan) -> list[str]:
    """Returns notes on the data set as a whole."""
    notes, errors = [], looked.findings
    patients = {case.patient for case in looked.parts["test"]}
    if len(patients) < FEW_PATIENTS:
        notes.append(f"test has {len(patients)} patient(s): its interval will be wide")
    notes += [f"{finding.where}: {finding.what}" for finding in listings(looked.task, test=True) if OWN in finding.what]
    notes += [f"{finding.where}: {finding.what}" for finding in errors[:MOST_FINDINGS]]
    if len(errors) > MOST_FINDINGS:
        notes.append(f"{len(errors) - MOST_FINDINGS} more errors: premed data check lists them")
    if unreadable := looked.found.unreadable:
        notes.append(f"{len(unreadable)} of the images that were opened cannot be read: {unreadable[0]}")
    if plan.minutes and plan.minutes > LONG:
        notes.append(f"about {plan.minutes:.0f} minutes on this machine: seeds: [0], or fewer images, take less")
    return notes


# Files ---------------------------------------------------------------------------------------------------------------


def write(
    looked: Looked, out: Path, choices: Choices, facts: dict[str, str], notes: list[str], plan: training.Plan
) -> dict[str, Any]:
    """Writes the YAML, and the listing that it needs. Returns the result of the command."""
    listing = looked.recognised.listing
    home = f"PREMED_HOME={shlex.quote(os.environ['PREMED_HOME'])} " if os.environ.get("PREMED_HOME") else ""
    file, page = shlex.quote(str(out)), shlex.quote(str(out.with_suffix(".html")))
    commands = [
        f"{home}premed data check {file}",
        f"{home}premed run {file}",
        f"{home}premed compare --task {shlex.quote(looked.task.name)} --html {page}",
    ]
    about = "minutes to hours on a GPU: not measured" if plan.minutes is None else f"about {plan.minutes:.0f} minutes"
    head = [f"Written by premed init on {date.today()} for {facts['machine']}; {about}. Every number may be changed."]
    head += [f"{name}: {fact}" for name, fact in facts.items() if name != "machine"]
    head += [f"note: {note}" for note in notes]
    written = {out: document.text(head, choices)}
    if listing:
        written[out.with_suffix(listing.suffix)] = listing.text
    try:
        for path, text in reversed(written.items()):
            with open(path, "x", encoding="utf-8") as file:  # never over another's
                file.write(text)
        load_all([out])
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from None
    return {
        "yaml": str(out),
        "listing": str(out.with_suffix(listing.suffix)) if listing else None,
        "task": looked.task.name,
        "found": facts,
        "notes": notes,
        "minutes": plan.minutes,
        "next": commands,
    }
