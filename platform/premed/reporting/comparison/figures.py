"""A comparison as files for a paper or for documentation: charts as SVG and PNG, the table, the methods."""

import re
from collections.abc import Iterator
from pathlib import Path

from premed.paths import writing
from premed.reporting import charts
from premed.reporting.comparison import artifacts, page
from premed.reporting.comparison.design import Records, stage_records, trained_on
from premed.reporting.comparison.methods import methods
from premed.reporting.comparison.paper import table_csv, table_tex
from premed.reporting.comparison.result import ComparisonResult
from premed.reporting.comparison.tables import Section, reliability_chart
from premed.tracking.run_store import RunStore


def write(result: ComparisonResult, store: RunStore, folder: Path) -> list[Path]:
    """Writes `table.csv`, `table.tex`, `methods.txt`, and for each chart of the page `TASK-HEAD-CHART.svg` and `.png`.

    CHART is `labels` (the score over the share of labels), `cases` or `classes` (paired with the baseline's),
    `reliability` or `pretraining` (its loss as a share of the gate). Returns the files. Raises UserError if one cannot
    be written.
    """
    records = stage_records(store, (arm for task in result.tasks for block in task.blocks for arm in block.rows))
    written = [written_file(folder / name, text.encode()) for name, text in texts(result, store, records).items()]
    for name, drawing in drawings(result, store, records):
        written.append(written_file(folder / f"{name}.svg", drawing))
        written.append(written_file(folder / f"{name}.png", drawing.png()))
    return written


def written_file(file: Path, content: bytes) -> Path:
    with writing(f"--figures {file}", "name another folder"):
        file.write_bytes(content)
    return file


def texts(result: ComparisonResult, store: RunStore, records: Records) -> dict[str, str]:
    paragraphs = [methods(task, block, records, store) for task in result.tasks for block in task.blocks]
    return {
        "table.csv": table_csv(result),
        "table.tex": table_tex(result),
        "methods.txt": "\n\n".join([*paragraphs, ""])[:-1],
    }


def drawings(result: ComparisonResult, store: RunStore, records: Records) -> Iterator[tuple[str, charts.Drawing]]:
    for task in result.tasks:
        for block in task.blocks:
            section = Section(task, block, None)
            scores = artifacts.case_scores(artifacts.case_tables(store, task.part, section.largest))
            sizes = {fraction: trained_on(section.at(fraction), records) for fraction in section.fractions}
            found = {
                "labels": page.fractions(section, sizes),
                "cases" if scores.are_cases else "classes": page.strips(section, scores),
                "reliability": reliability_chart(section),
            }
            curves = page.pretraining(section, artifacts.loss_curves(store, section.arms))
            for number, chart in enumerate(curves):
                found["pretraining" + (f"-{number + 1}" if number else "")] = chart
            prefix = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, [task.task, block.head])))
            for name, chart in found.items():
                if chart is not None:
                    yield f"{prefix}-{name}", chart.svg
