"""Rows experiment and ray-start: whole commands beside a plain script, by the clock on the wall."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from premed.benchmarks.commands import Done, run
from premed.benchmarks.result import Target, Times
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.data.io.memory import num_cpus
from premed.data.phantoms.writers import write_chestxray14

NEEDS = ("ray", "mlflow", "optuna")
WORKERS = 2
PLAIN = "premed.benchmarks.plain"
FIRST_STEP = re.compile(r"^fine-tuning: +\d+/\d+ loss ")
EQUAL, CLOSE = 1e-6, 0.02
"""By how much test scores may differ with the same sums; and, as a share, pre-training's losses with two workers' sums.
These training amplifies, and the score of a small test part is another then."""


def experiments(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """A small experiment from the command to its end, in process and on Ray, each time in a home of its own."""
    steps = settings.size((400, 160), (8, 4))
    for workers in (0,) if settings.short else (0, WORKERS):
        peer = f"a plain script, {f'Ray with {workers} workers' if workers else 'in process'}"
        if missing := lacking(workers):
            yield NotMeasured(peer, missing)
            continue
        with TemporaryDirectory() as name:
            folder = Path(name)
            file, number = write_experiment(folder, settings.size(40, 20), steps), count().__next__

            def ours(folder=folder, file=file, number=number, workers=workers) -> tuple[Times, Any]:
                command = ["-m", "premed", "run", "--json", str(file), f"train.workers={workers}"]
                return executed(command, folder / f"{number()}")

            def theirs(folder=folder, file=file, number=number, workers=workers) -> tuple[Times, Any]:
                command = ["-m", PLAIN, str(file), str(folder / f"plain{number()}")]
                return executed(command, folder, max(workers, 1))  # it has the cores that the workers have

            yield Comparison(
                peer,
                lambda ours=ours: ours()[0],
                lambda theirs=theirs: theirs()[0],
                unit="an experiment",
                sizes=f"MAE of pictures of 64 pixels, encoder 192 × 6: {steps[0]} steps of 32, {steps[1]} of "
                "fine-tuning, the test; imports, too. The script has no MLflow, checkpoint, picture or probe",
                same=same_training(ours()[1], theirs()[1], same_sums=not workers),
                target=Target(0.67, 0.83),
                most=1 if settings.short else 3,
                clock="wall",
            )


def ray_start(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """From the command to the first step of two workers."""
    peer = "TorchTrainer in a plain script"
    missing = lacking(WORKERS) or ("left out by --short: each time starts a Ray" if settings.short else "")
    if missing:
        yield NotMeasured(peer, missing)
        return
    with TemporaryDirectory() as name:
        folder, seeds = Path(name), count().__next__
        file = write_experiment(folder, 12, (1, 8))

        def ours() -> Times:
            fields = ["pretext=none", "test=false", "train.log_steps=1", f"finetune.seed={seeds()}"]
            command = ["-m", "premed", "run", str(file), f"train.workers={WORKERS}", *fields]
            return until(FIRST_STEP, command, {"PREMED_HOME": str(folder / "home")})

        def theirs() -> Times:
            return until(FIRST_STEP, ["-m", PLAIN, str(file), str(folder / "plain"), str(WORKERS)], {})

        ours()  # images are prepared once
        theirs()
        yield Comparison(
            peer,
            ours,
            theirs,
            unit="from the command to the first step",
            sizes=f"{WORKERS} workers of one CPU; images are prepared; the script imports what premed does",
            same="both come to the first step of fine-tuning the same network",
            target=Target(0.83, 1),
            most=3,
            clock="wall",
        )


def lacking(cores: int) -> str:
    """Why whole commands cannot be measured here; empty if they can."""
    for name in NEEDS:
        try:
            there = find_spec(name) is not None
        except ImportError:
            there = False
        if not there:
            return f"{name} is not installed"
    return "" if num_cpus() >= cores else f"this machine has fewer than {cores} cores"


def write_experiment(folder: Path, patients: int, steps: tuple[int, int]) -> Path:
    """Writes pictures and a YAML; returns the YAML."""
    chests = write_chestxray14(folder / "chests", patients, 0, size=64, prevalence=0.4)
    validations = {"validations": min(4, *steps)}
    tree: dict[str, Any] = {
        "task": {"name": "chestxray14", "root": str(chests), "size": 64, "stored": 64, "val_share": 0.25},
        "encoder": {"name": "vit", "width": 192, "depth": 6, "heads": 3, "patch": 8},
        "pretext": {"name": "mae", "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3},
        "pretrain": {"steps": steps[0], "batch": 32, "lr": 1.2e-2, "clip": 1.0, **validations},
        "finetune": {"head": {"name": "linear"}, "steps": steps[1], "batch": 32, "lr": 4e-3, **validations},
        "train": {"workers": 0},
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def executed(command: list[str], folder: Path, threads: int = 1) -> tuple[Times, Any]:
    """What a process and its children take, and the JSON that it prints. Raises NotTheSame if it fails."""
    printed: list[str] = []

    def check(done: Done) -> None:
        if done.returncode:
            raise NotTheSame(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
        printed.append(done.stdout.splitlines()[-1])

    return run(command, folder, check, threads), json.loads(printed[0])


def until(line: re.Pattern[str], command: list[str], env: dict[str, str]) -> Times:
    """The time until a process says a line on stderr; it is left to end. Raises NotTheSame if it never says it."""
    began, text, wall = time.perf_counter(), "", 0.0
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env
    with subprocess.Popen(
        [sys.executable, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for text in process.stderr or ():
            if not wall and line.search(text):
                wall = time.perf_counter() - began
    if process.returncode or not wall:
        raise NotTheSame(f"exit code {process.returncode}: {text.strip()[-200:]}")
    return Times(float("nan"), wall)  # a raylet's processes are not all among those that a process has waited for


def same_training(outcome: Any, found: Any, same_sums: bool) -> str:
    """What was asserted of both. Raises NotTheSame if pre-training's last losses on val differ, or the test scores
    although both sum alike."""
    ours, theirs = outcome["stages"][0]["summary"]["val/loss"], found["loss"]
    losses = f"losses of the pre-training on val of {ours:.4f} and {theirs:.4f}"
    if not abs(ours - theirs) <= CLOSE * theirs:
        raise NotTheSame(losses)
    ours, theirs = outcome["stages"][-1]["value"], found["score"]
    scores = f"test scores of {ours:.4f} and {theirs:.4f}"
    if same_sums and not abs(ours - theirs) <= EQUAL:
        raise NotTheSame(scores)
    return f"{losses}, {scores}"
