"""Row help: CPU time of commands that compute nothing, beside Python's own start."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from premed.benchmarks.result import Floor, Target, Times
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings

Done = subprocess.CompletedProcess[str]
MISTAKE = "task: {name: msd}\nencoder: {name: vit, widht: 5}\n"
MESSAGE = "premed: encoder.widht: no such field; did you mean width?"


def commands(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wrong.yaml").write_text(MISTAKE)
        mistake = ["-m", "premed", "run", str(folder / "wrong.yaml")]
        for what, arguments, target, same in (
            ("premed --help", ["-m", "premed", "--help"], Target(1, 0.3, "s"), "exit code 0"),
            ("a mistake in a YAML", mistake, Target(1, 0.3, "s"), f"exit code 2 and one line: {MESSAGE}"),
        ):
            first = [run(arguments, folder, partial(assert_right, arguments))]
            yield Comparison(
                what,
                partial(first_or_run, first, arguments, folder),
                None,
                unit="a command",
                sizes="a process of its own",
                same=same,
                floor=partial(python_alone, settings, folder),
                target=target,
                most=1 if settings.short else None,
            )


def first_or_run(first: list[Times], arguments: list[str], folder: Path) -> Times:
    """What the first execution took, which was checked, once; then that of further ones."""
    return first.pop() if first else run(arguments, folder)


def run(arguments: list[str], folder: Path, check: Callable[[Done], None] | None = None, threads: int = 1) -> Times:
    """What a process takes, and what its children take. check: raises NotTheSame for one that does something else."""
    env = os.environ | {"PREMED_HOME": str(folder / "home"), "OMP_NUM_THREADS": str(threads)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if check:
        check(done)
    return Times(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def assert_right(arguments: list[str], done: Done) -> None:
    """Raises NotTheSame if a command does not do what it is timed for."""
    if "--help" in arguments:
        right = done.returncode == 0 and "predict" in done.stdout
    else:
        right = done.returncode == 2 and done.stderr.splitlines()[-1:] == [MESSAGE]
    if not right:
        raise NotTheSame(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")


def python_alone(settings: Settings, folder: Path) -> Floor:
    times = [getattr(run(["-c", "pass"], folder), settings.clock) for _ in range(3)]
    return Floor("python -c pass", min(times))
