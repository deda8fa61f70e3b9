"""What was found in a folder, in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from premed.contracts import Case
from premed.data.check import UNLABELLED
from premed.planning.choices import times
from premed.planning.folder import Looked
from premed.planning.machine import Machine


def described(looked: Looked, machine: Machine) -> dict[str, str]:
    """Returns what was found, in words by topic."""
    task, parts, found = looked.task, looked.parts, looked.found
    cases = [case for some in parts.values() for case in some]
    patients = len({case.patient for case in cases})
    labelled = sum(case.label is not None for case in cases)
    kind = "volumes" if task.dims == 3 else "pictures"
    names = f" ({', '.join(looked.recognised.channels)})" if looked.recognised.channels else ""
    facts = {
        "layout": f"{looked.recognised.layout}: task {looked.fields['name']}",
        "images": f"{len(cases)} {kind} of {patients} patients, {labelled} with labels",
        "parts": ", ".join(f"{len(some)} {part}" for part, some in parts.items()),
        **learnt_from(parts),
        "channels": f"{task.channels}{names}",
        "labels": labels_in_words(looked),
        "shapes": f"{extremes(found.shapes)} (of {len(found.headers)} headers)",
    }
    if len(found.spacings):
        facts["spacing"] = f"{extremes(found.spacings)} mm"
        counts = Counter(header.orientation for header in found.headers).most_common(3)
        facts["orientation"] = ", ".join(f"{count} {name}" for name, count in counts) + "; all are turned to RAS"
    if found.values:
        lowest, low, middle, high, highest = (f"{value:.4g}" for value in found.values.percentiles)
        facts["intensities"] = (
            f"{lowest} to {highest}, 0.5 % {low}, median {middle}, 99.5 % {high} (of {found.values.num} images)"
        )
    return facts | {"machine": str(machine)}


def learnt_from(parts: Mapping[str, Sequence[Case]]) -> dict[str, str]:
    """Says of which folders the unlabelled images are that pre-training learns from: imagesTs may be among them."""
    folders = Counter(Path(case.image[0]).parent.name for case in parts.get(UNLABELLED, ()))
    of = ", ".join(f"{count} of {name}" for name, count in folders.most_common(3))
    return {"pre-training": f"learns from train and from the unlabelled: {of}"} if folders else {}


def labels_in_words(looked: Looked) -> str:
    """Returns the classes; of labels per image, with the number of images that have each."""
    task = looked.task
    tables = [case.label for some in looked.parts.values() for case in some if isinstance(case.label, tuple)]
    names = [*task.classes]
    if tables:
        names = [f"{name} ({sum(row[i] == 1 for row in tables)})" for i, name in enumerate(names)]
    kind = "a label per voxel" if task.labels else "one of" if task.exclusive else "yes or no each"
    return f"{kind}: {', '.join(names)}"


def extremes(rows: np.ndarray) -> str:
    """Returns `35 × 50 × 36, from 31 × 40 × 24 to 43 × 59 × 47`."""
    low, middle, high = rows.min(axis=0), np.median(rows, axis=0), rows.max(axis=0)
    return times(middle) + ("" if np.allclose(low, high, rtol=1e-3) else f", from {times(low)} to {times(high)}")
