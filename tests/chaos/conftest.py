"""Faults injected for real, and the table of what came of each: make chaos writes docs/faults.md.

A test is a row. It fails where something is lost; the table says so, too.
"""

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chaos.harness import CHANGES, STARTED, Finished, finished_of
from integration.clusters import end
from support.experiments import command, outcome, run, settle_in
from support.suite import REPOSITORY, locked


@dataclass
class Row:
    """A line of the table."""

    fault: str = ""
    lost: str = ""
    equal: str = ""
    seconds: str = ""
    notes: list[str] = field(default_factory=list)


def pytest_addoption(parser):
    parser.addoption("--faults", help="the page to write the table to")


@pytest.fixture
def row(request):
    """What the test has to tell."""
    made = Row()
    yield made
    request.node.row = made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" or (call.when == "setup" and not report.passed):
        item.config.faults = [*getattr(item.config, "faults", []), (item, report)]
    return report


def pytest_sessionfinish(session):
    if (page := session.config.getoption("--faults", None)) and getattr(session.config, "faults", None):
        Path(page).write_text(written(session.config.faults))


def written(faults):
    """The page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    lines = [line(item, report) for item, report in faults]
    about = f"commit {commit.stdout.strip()}, {datetime.date.today()}, {os.cpu_count()} CPUs, {platform.system()}"
    about += f", load {os.getloadavg()[2]:.0f} at the end"
    return HEAD.format(about=about, ray=locked("ray"), mlflow=locked("mlflow")) + "\n".join(lines) + "\n"


def line(item, report):
    row = getattr(item, "row", None) or Row()
    fault = row.fault or (item.function.__doc__ or item.name).strip().partition("\n")[0].rstrip(".")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return f"| {fault} | {reason.removeprefix('Skipped: ')} | | |"
    if report.failed:
        return f"| {fault} | **FAILED**: {str(report.longrepr.reprcrash.message).splitlines()[0][:200]} | | |"
    return f"| {fault} | {'; '.join([row.lost, *row.notes])} | {row.equal} | {row.seconds} |"


HEAD = """# Faults

What `make chaos` did to trainings on made-up images, and what came of it ({about}; Ray {ray}, MLflow {mlflow}).
Written by that command; do not edit. Each row is a test in `tests/chaos/`, which fails where the row is not true.

- **lost**: points of MLflow's curves that the undisturbed command has and this one has not, or has twice; and scores,
  leases and records that stay behind. A training goes on from its last checkpoint: the steps after it are done again.
- **equal**: weights, curve and scores are those of the undisturbed command, bit for bit.
- **seconds**: from the fault until a training goes on, without anybody's help; where it says *again*, the command
  ended, and they count from the start of the same command (Python's imports and Ray's start are in them).

Ray's own defaults, without premed, measured earlier: 14 s after the kill of a worker, 48 to 74 s after that of a node;
MLflow's client stops a training for 246 s when its server dies.

| fault | lost | equal | seconds |
|---|---|---|---|
"""


@pytest.fixture(autouse=True)
def nothing_stays():
    """Ends what a failed test leaves."""
    yield
    while STARTED:
        if (process := STARTED.pop()).poll() is None:
            end(process)


@pytest.fixture(scope="session")
def undisturbed(chest, new_home, tmp_path_factory):
    """What the command gives that nothing is done to, by its number of Ray workers (0: without Ray)."""
    made: dict[int, Finished] = {}

    def find(workers: int = 0) -> Finished:
        if workers < 2:
            workers = 0  # one worker is bitwise none
        if workers not in made:
            home, folder = new_home(), tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                settle_in(patch, home)
                if workers:
                    found = outcome(command(folder, home, chest, *CHANGES, arguments=[f"train.workers={workers}"]))
                else:
                    found = run(chest, *CHANGES)
            made[workers] = finished_of(home, found)
        return made[workers]

    return find
