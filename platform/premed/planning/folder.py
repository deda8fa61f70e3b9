"""What a folder is: asks the tasks whether it is in their layout, lists its cases, looks at its images."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import premed.tasks
from premed.config.plugins import plugin
from premed.config.spec import validate_spec
from premed.contracts import Case, Task
from premed.data.check import listings, split_cases
from premed.data.survey import Survey, survey
from premed.errors import Finding, Missing, UserError
from premed.tasks.common import volume_pairs
from premed.tasks.common.image_folder import TABLES, table_fault, unread_tables
from premed.tasks.common.image_tree import find_images
from premed.tasks.common.recognised import OWN, TABLE, Recognised

FEW_PATIENTS = 10  # of test: an interval over fewer says little


class Looked(NamedTuple):
    """What a folder is, its task, and its images."""

    recognised: Recognised
    task: Task
    fields: dict[str, Any]
    """Of the task, as far as the layout decides them."""
    parts: dict[str, list[Case]]
    findings: list[Finding]
    found: Survey


def recognise(folder: Path) -> Recognised:
    """Returns the answer of the task that is surest of the folder. Raises UserError if there is none.

    What a task refuses another may still read: refusals become notes of the answer, and errors only without one.
    """
    if several := data_sets_below(folder):
        if len(several) == 1:
            raise UserError(f"{folder}: holds a data set: name its folder, {folder / several[0]}")
        raise UserError(f"{folder}: holds several data sets ({', '.join(several[:5])}): name the folder of one of them")
    best: Recognised | None = None
    refusals: dict[str, UserError] = {}
    for task in (each.name for each in iter_modules(premed.tasks.__path__)):
        hook = getattr(import_module(f"premed.tasks.{task}"), "recognise", None)
        try:
            answer = hook(folder) if hook else None
        except UserError as error:
            refusals[task] = error
            continue
        if answer is not None and (best is None or answer.sure > best.sure):
            best = answer
        if best is not None and best.sure == OWN:
            break
    if best is None:
        raise next(iter(refusals.values()), None) or unlabelled(folder)
    notes = [f"not read: {fault}" for fault in unread_tables(folder)] if best.sure <= TABLE else []
    notes += [f"not read as task {task}: {error}" for task, error in refusals.items()]
    if best.sure <= TABLE and (links := find_images(folder).unfollowed):  # tasks with a layout read through links
        notes.append(links)
    return replace(best, notes=(*best.notes, *notes))


def data_sets_below(folder: Path) -> list[str]:
    """Returns the folders directly below that are data sets of their own; [] if `folder` is one."""
    if any(path.suffix.lower() in TABLES or path.name == "dataset.json" for path in folder.glob("[!.]*")):
        return []
    return sorted({path.parent.name for path in folder.glob("[!.]*/dataset.json")})


def unlabelled(folder: Path) -> UserError:
    """The error for a folder that no task recognises: it has no images, or no labels, which a comparison needs.

    Of images without labels it names the task that pre-trains on them: `unlabelled`.
    """
    tree = find_images(folder)
    if not tree.names:
        remedy = tree.unfollowed or "name the folder with the images"
        return UserError(f"{folder}: holds no image that is read (NIfTI, PNG, JPEG, DICOM); {remedy}")
    if any(volume_pairs.parse(name).is_label for name in tree.pictures):
        return UserError(f"{folder}: pictures are not segmented here: write images and masks as NIfTI")
    above = folder.absolute().parent
    if (above / "dataset.json").is_file() or any((above / name).is_dir() for name in ("labelsTr", "labels")):
        return UserError(f"{folder}: {tree.described()} and no labels, which are in the folder above: name {above}")
    if fault := table_fault(folder, tree):
        return UserError(
            f"{fault}; mend it, or write the YAML by docs/own-data.md and name its columns; images: {tree.described()}"
        )
    if maps := [name for name in tree.volumes if volume_pairs.parse(name).is_label]:
        return UserError(
            f"{folder}: {maps[0]} is named as a label map, and its image is not known by its name, or has several: "
            "write one map for each image, labels 0 (background), 1, 2, …, as labels/CASE.nii.gz beside "
            "images/CASE.nii.gz, and call premed init again"
        )
    what = "label maps in labels/ beside images/, or " if tree.volumes else ""
    return UserError(
        f"{folder}: {tree.described()} and no labels, which a comparison needs: add {what}a CSV with the columns path, "
        "patient and label beside them, or put them into a folder for each class, and call premed init again; the task "
        "`unlabelled` pre-trains on them alone (docs/unlabelled.md)"
    )


def look(folder: Path, recognised: Recognised, listed: Path, progress: Callable[[int, int], None]) -> Looked:
    """Builds the task of a folder and looks at its images. Raises UserError if a part has no labelled image.

    listed: where the listing that the task needs will be written; messages name it so.
    """
    with tempfile.TemporaryDirectory() as temporary:
        listing, name = recognised.listing, recognised.task["name"]
        fields = {"name": name, "root": str(folder), **recognised.task}
        if listing:
            path = Path(temporary) / f"listing{listing.suffix}"
            path.write_text(listing.text, encoding="utf-8")
            fields[listing.field] = str(path)
        task, fields, findings = build(fields)
        findings = [each._replace(where=each.where.replace(f"{temporary}/listing", str(listed))) for each in findings]
        parts, refusals = split_cases(task, test=True)
        if refusals:
            raise too_few(folder, task, refusals, findings)
        cases = [case for some in parts.values() for case in some]
        found = survey(cases, task.dims, progress)
    if not found.headers or (found.values is None and not found.too_large):
        raise UserError(f"{found.unreadable[0]} (none of the {len(found.unreadable)} images that were tried is read)")
    if listing:
        del fields[listing.field]
    return Looked(recognised, task, fields, parts, findings, found)


def build(fields: dict[str, Any]) -> tuple[Task, dict[str, Any], list[Finding]]:
    """Returns the task, its fields and what its listings show; incomplete downloads are left out (`partial`)."""
    module = plugin("tasks", fields)

    def of(fields: dict[str, Any]) -> tuple[Task, list[Finding]]:
        provisional = {"roi": [16] * 3} if fields.get("dims") == 3 else {}  # `images` has a default for pictures
        task = module.build(validate_spec(module.Config, fields | provisional))
        return task, listings(task, test=True)

    task, findings = of(fields)
    if num_errors(findings) and "partial" in module.Config.model_fields:
        other, fewer = of(fields | {"partial": True})
        if num_errors(fewer) < num_errors(findings):
            return other, fields | {"partial": True}, fewer
    return task, fields, findings


def num_errors(findings: list[Finding]) -> int:
    return sum(finding.severity == "error" for finding in findings)


def too_few(folder: Path, task: Task, refusals: dict[str, UserError], findings: list[Finding]) -> UserError:
    """The error for a data set that lacks labelled images for a part; what its lists say wrong, if that is all."""
    task.lenient = True
    parts = split_cases(task, test=True)[0]
    if all(parts.get(part) for part in ("train", "val", "test")):  # enough, and something else is wrong with it
        return next(iter(refusals.values()))
    labelled = {case.patient for some in parts.values() for case in some if case.label is not None}
    if not labelled:
        absent = next((each for each in findings if isinstance(each, Missing)), None)  # all that the lists name, say
        return UserError(f"{absent.where}: {absent.what}") if absent else unlabelled(folder)
    return UserError(
        f"{folder}: {len(labelled)} patient(s) with labels leave none for {next(iter(refusals))}: train, val and test "
        f"need one each at least, and an interval some {FEW_PATIENTS} in test; label more"
    )
