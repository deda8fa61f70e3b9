"""The charts of a comparison as files, SVG and PNG, for a paper or for documentation."""

import re
from collections.abc import Iterator
from pathlib import Path

from premed.errors import UserError
from premed.reporting import charts
from premed.reporting.comparison import artifacts, page
from premed.reporting.comparison.design import stage_records, trained_on
from premed.reporting.comparison.result import ComparisonResult
from premed.reporting.comparison.tables import Section
from premed.tracking.run_store import RunStore


def refuse(folder: Path) -> None:
    """Raises UserError, before any work, if `folder` cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--figures {folder}: cannot be made ({error.strerror}); name another folder") from None


def write(result: ComparisonResult, store: RunStore, folder: Path) -> list[Path]:
    """Writes `TASK-HEAD-CHART.svg` and `.png` for each chart of the page that there is. Returns the files.

    CHART is `labels` (the score over the share of labels), `cases` or `classes` (paired with the baseline's) or
    `pretraining` (its loss as a share of the gate). Raises UserError if a file cannot be written.
    """
    written = []
    for name, drawing in drawings(result, store):
        for file, content in ((folder / f"{name}.svg", drawing), (folder / f"{name}.png", drawing.png())):
            try:
                file.write_bytes(content)
            except OSError as error:
                raise UserError(
                    f"--figures {file}: cannot be written ({error.strerror}); name another folder"
                ) from None
            written.append(file)
    return written


def drawings(result: ComparisonResult, store: RunStore) -> Iterator[tuple[str, charts.Drawing]]:
    records = stage_records(store, (arm for task in result.tasks for block in task.blocks for arm in block.rows))
    for task in result.tasks:
        for block in task.blocks:
            section = Section(task, block, None)
            scores = artifacts.case_scores(artifacts.case_tables(store, task.part, section.largest))
            sizes = {fraction: trained_on(section.at(fraction), records) for fraction in section.fractions}
            found = {
                "labels": page.fractions(section, sizes),
                "cases" if scores.are_cases else "classes": page.strips(section, scores),
            }
            curves = page.pretraining(section, artifacts.loss_curves(store, section.arms))
            for number, chart in enumerate(curves):
                found["pretraining" + (f"-{number + 1}" if number else "")] = chart
            prefix = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, [task.task, block.head])))
            for name, chart in found.items():
                if chart is not None:
                    yield f"{prefix}-{name}", chart.svg
