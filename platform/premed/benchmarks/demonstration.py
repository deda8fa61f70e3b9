"""Row demo: the whole of `premed demo` by the clock on the wall. There is no peer.

`python -m premed.benchmarks.demonstration FOLDER` is a small one: the X-rays alone, a few steps.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from premed.benchmarks.result import Target, Times
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.benchmarks.whole import WORKERS, executed, lacking
from premed.config.compose import merge
from premed.data.phantoms.writers import write_chestxray14

PATIENTS, SEEDS = 60, range(2)
FEW = {"pretrain": {"steps": 8}, "finetune": {"steps": 4}}


def demo(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """The demo, each time in a folder of its own: phantoms, experiments, comparison and page."""
    what = settings.size("premed demo", "premed demo, the X-rays alone and few steps")
    if missing := lacking(WORKERS):
        yield NotMeasured(what, missing)
        return
    with TemporaryDirectory() as name:
        folder, number = Path(name), count().__next__
        first = [once(settings, folder / f"{number()}")]

        def again() -> Times:
            return first.pop()[0] if first else once(settings, folder / f"{number()}")[0]

        tasks, experiments = first[0][1]
        yield Comparison(
            what,
            again,
            None,
            unit="a demo",
            sizes=f"{experiments} experiments of one worker, two at a time",
            same=f"exit code 0, a page and {tasks} verdict{'s' * (tasks > 1)}",
            target=Target(300, 180, "s"),
            most=1,
            clock="wall",
        )


def once(settings: Settings, folder: Path) -> tuple[Times, tuple[int, int]]:
    """What a demo takes, and how many tasks and experiments it has. Raises NotTheSame if it gave no verdict."""
    command = settings.size(["premed", "demo", "--json", "--folder"], ["premed.benchmarks.demonstration"])
    times, found = executed(["-m", *command, str(folder / "demo")], folder)
    tasks = {outcome["task"] for outcome in found["outcomes"]}
    if not found["report"] or len(found["verdicts"]) != len(tasks):
        raise NotTheSame(f"{len(found['verdicts'])} verdicts on {len(tasks)} tasks; page: {found['report']}")
    return times, (len(tasks), len(found["outcomes"]))


def small(folder: Path) -> dict[str, Any]:
    """The demo on the X-rays of few patients, with a few steps."""
    whole: Any = import_module("premed.cli.demo")  # which imports Ray and MLflow once it runs
    whole.TREES, whole.SEEDS = (merge(whole.CHEST, FEW),), {"chestxray14": SEEDS}
    write = partial(write_chestxray14, num_patients=PATIENTS, seed=0, size=64, prevalence=0.3)
    whole.WRITERS = {"chestxray14": write}
    return whole.run(folder.absolute())


if __name__ == "__main__":
    print(json.dumps(small(Path(sys.argv[1])), default=str))
