"""`premed init`: recognises a folder's layout, looks at its images, chooses settings, writes a YAML."""

import os
import shlex
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from premed.config.expand import load_all
from premed.config.plugins import plugin
from premed.data.check import UNLABELLED, rare_classes
from premed.data.io.memory import busy_words
from premed.data.survey import LARGEST_SAMPLE
from premed.errors import Missing
from premed.paths import writing
from premed.planning import document, images, training
from premed.planning.choices import Choice, Choices
from premed.planning.facts import described
from premed.planning.folder import FEW_PATIENTS, Looked, look, recognise
from premed.planning.machine import Machine, this_machine
from premed.planning.output import refuse_overwriting, settle
from premed.tasks.common.recognised import OWN as OWN_TASK

LONG = 45  # minutes
PATIENCE, SHORT = 5, "pretrain.steps=100 finetune.steps=60"  # minutes that one waits, and what a run takes fewer with
MOST_FINDINGS = 5
FEW_IN_ONE_SPLIT, FOLDS = 50, 5  # patients of test, below which folds are named: each of them tests every patient once
OWN = "each image counts as"  # what a task notes where nothing says whose the images are


def run(
    folder: Path,
    out: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Writes a YAML for a folder of images, and says what was found. Raises UserError if there is nothing to compare.

    out: the YAML's path; None: named after the folder, in the current one. progress: called with images done and total.
    """
    folder, out = settle(folder, out)
    recognised = recognise(folder)
    if recognised.listing:
        refuse_overwriting(out.with_suffix(recognised.listing.suffix))
    machine = machine or this_machine()
    looked = look(folder, recognised, out.with_suffix(""), progress)
    grid, task_choices, notes = choose_task(looked, machine, folder, out)
    plan = training.plan(data_of(looked), grid, machine)
    notes += plan.notes
    facts = described(looked, machine)
    notes += [*warnings(looked, plan), *busy(machine, plan)]
    return write(looked, out, task_choices | plan.choices, facts, notes, plan)


def data_of(looked: Looked) -> training.Data:
    """Returns what the trainings are planned for."""
    task, parts = looked.task, looked.parts
    num = {part: len(parts.get(part, ())) for part in ("train", "val", "test")}
    num["pretrain"] = num["train"] + len(parts.get(UNLABELLED, ()))
    voxels = looked.found.shapes.astype(float).prod(axis=1)
    sizes = float(np.median(voxels)), float(voxels.max())
    return training.Data(task.dims, task.channels, task.classes, bool(task.labels), num, *sizes)


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
        grid = images.picture_grid(found, machine)
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
    own = recognised.sure == OWN_TASK  # what its papers have stays, but for what the machine decides
    kept = {name for name in values if own and name in known and known[name].default not in (None, False)}
    fields |= {name: value for name, value in fitted.items() if name in known and name not in kept}
    choices = {
        f"task.{name}": Choice(value, reasons.get(name, roi if name == "size" else ""))
        for name, value in fields.items()
    }
    return grid, choices, [*recognised.notes, *notes, *grid.notes]


def is_raw(looked: Looked) -> bool:
    """Whether it is nnU-Net's raw data, which counts its labels in lists of its own."""
    return looked.fields["name"] == "nnunet"


def of_few_patients(looked: Looked) -> list[str]:
    """A note on a test part of few patients, with the folds that would test them all."""
    tested = len({case.patient for case in looked.parts["test"]})
    every = len({case.patient for part in looked.parts.values() for case in part if case.label is not None})
    has_folds = "folds" in plugin("tasks", looked.fields["name"]).Config.model_fields
    deals = has_folds and getattr(looked.task, "deals_folds", True)  # nnU-Net's files may give the test part
    folds = ""
    if deals and every >= FOLDS:
        numbers = ",".join(map(str, range(FOLDS)))
        folds = f"; task.folds={FOLDS} 'task.fold=[{numbers}]' tests all {every} (docs/compare.md)"
    few = FEW_IN_ONE_SPLIT if folds else FEW_PATIENTS
    return [f"test has {tested} patient(s): its interval will be wide{folds}"] if tested < few else []


def warnings(looked: Looked, plan: training.Plan) -> list[str]:
    """Returns notes on the data set as a whole."""
    notes, errors = [], [finding for finding in looked.findings if finding.severity == "error"]
    notes += of_few_patients(looked)
    notes += lacking_classes(looked)
    notes += [f"{finding.where}: {finding.what}" for finding in looked.findings if OWN in finding.what]
    notes += [f"{finding.where}: {finding.what}" for finding in errors[:MOST_FINDINGS]]
    missing = [each for each in looked.findings if each.severity == "note" and isinstance(each, Missing)]
    labels = [each for each in missing if Path(each.where).parent.name == "labelsTr"] if is_raw(looked) else []
    if absent := [each for each in missing if each not in labels]:
        first = f"{absent[0].where} {absent[0].what.split(';')[0]}"
        notes.append(f"files that are listed are NOT there ({len(absent)}), and their images are not used: {first}")
    if labels:
        notes.append(
            f"images of imagesTr without a label in labelsTr are NOT used ({len(labels)}), since splits_final.json "
            "or `numTraining` counts them, or a link stands for the label: copy their labels there"
        )
    unlisted = [finding for finding in looked.findings if "is in no entry of dataset.json" in finding.what]
    if images := [each for each in unlisted if Path(each.where).parent.name in ("imagesTr", "imagesTs")]:
        notes.append(
            f"images in no entry of dataset.json are NOT used ({len(images)}): list them under `test`, where "
            "pre-training takes them"
        )
    if len(errors) > MOST_FINDINGS:
        notes.append(f"{len(errors) - MOST_FINDINGS} more errors: premed data check lists them")
    if looked.found.values is None:
        what = f"the {looked.found.too_large} that were tried have more than {LARGEST_SAMPLE:,} voxels"
        notes.append(f"no image was opened for its values: {what}; see to window, percentiles and normalise yourself")
    if unreadable := looked.found.unreadable:
        notes.append(f"{len(unreadable)} of the images that were opened cannot be read: {unreadable[0]}")
    if plan.minutes and plan.minutes > LONG:
        notes.append(
            f"about {plan.minutes:.0f} minutes on this machine while it is idle: seeds: [0], or fewer images, take less"
        )
    return notes


def lacking_classes(looked: Looked) -> list[str]:
    """Returns notes on classes that no image of a part has, or every one: of a table, whose labels are known by now."""
    found = []
    for part in ("train", "val", "test"):
        labels = [case.label for case in looked.parts.get(part, ()) if isinstance(case.label, tuple)]
        found += [each for each in rare_classes(looked.task, part, labels) if "image has it" in each.what]
    more = [f"{len(found) - MOST_FINDINGS} more of these: premed data check lists them"] * (len(found) > MOST_FINDINGS)
    return [f"{each.where}: {each.what}" for each in found[:MOST_FINDINGS]] + more


def busy(machine: Machine, plan: training.Plan) -> list[str]:
    """Returns a note on what the machine's load makes of the estimate."""
    words = busy_words(machine.load, machine.cores)
    if plan.minutes is None or not words:
        return []
    times = (machine.load + machine.cores) / machine.cores  # by a fair share of the cores
    longer = f"while that lasts, up to {times:.1f} times as long"
    return [f"the minutes are those of this machine while it is idle, and {words}: {longer}"]


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
        f"{home}premed predict {shlex.quote(f'models:/{looked.task.name}@best')} NEW_IMAGES --out DIR",
    ]
    about = (
        "minutes to hours on a GPU: not measured"
        if plan.minutes is None
        else f"about {plan.minutes:.0f} minutes while it is idle"
    )
    head = [f"Written by premed init on {date.today()} for {facts['machine']}; {about}. Every number may be changed."]
    head += [f"{name}: {fact}" for name, fact in facts.items() if name != "machine"]
    head += [f"note: {note}" for note in notes]
    written = {out: document.text(head, choices)}
    if listing:
        written[out.with_suffix(listing.suffix)] = listing.text
    with writing(out, "name another file with --out"):
        for path, text in reversed(written.items()):
            with open(path, "x", encoding="utf-8") as file:  # never over another's
                file.write(text)
        load_all([out])
    return {
        "yaml": str(out),
        "listing": str(out.with_suffix(listing.suffix)) if listing else None,
        "task": looked.task.name,
        "found": facts,
        "notes": notes,
        "minutes": plan.minutes,
        "next": commands,
        "first_look": f"{commands[1]} {SHORT}" if plan.minutes and plan.minutes > PATIENCE else None,
    }
