"""Row compare: CPU time of `premed compare` over stores of more and more runs."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from premed.benchmarks.commands import Done, first_or_run, run
from premed.benchmarks.result import Floor, Target
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings

SIZES = ((105, 5, Target(3, 3, "s")), (1008, 3, Target(5, 5, "s")))  # runs, pairs at most, CPU seconds
PAIR = 7  # runs of an experiment from scratch and one with MAE, stages included
FRACTIONS = (1.0, 0.5, 0.25)
PRETRAININGS: dict[str, dict[str, Any] | None] = {  # of an arm
    "none": None,
    "mae": {"pretext": {"name": "mae", "mask_ratio": 0.75}, "training": {"epochs": 9, "lr": 1e-3}},
}
CLASSES, CASES, PATIENTS = tuple("abcde"), 200, 60
IMPORTS = ["-c", "import mlflow.store.tracking.sqlalchemy_store, scipy.stats"]


def commands(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    try:  # imported here alone: the other rows are for machines without MLflow, too
        open_store = import_module("premed.tracking.run_store").RunStore
    except ImportError as error:
        yield NotMeasured("premed compare", str(error))
        return
    for num_runs, most, target in SIZES[:1] if settings.short else SIZES:
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "home").mkdir()
            write_runs(open_store(f"sqlite:///{folder}/home/mlflow.db"), num_runs // PAIR)
            arguments = ["-m", "premed", "compare", "--json"]
            first = [run(arguments, folder, partial(check, num_runs // PAIR))]
            yield Comparison(
                f"premed compare over {num_runs:,} runs",
                partial(first_or_run, first, arguments, folder),
                None,
                unit="a command",
                sizes=f"a process of its own; sqlite; {len(CLASSES)} classes, {CASES} images of {PATIENTS} patients",
                same="exit code 0, and all experiments are in its tables",
                floor=partial(imports_alone, settings, folder),
                target=target,
                most=1 if settings.short else most,
            )


def check(pairs: int, done: Done) -> None:
    """Raises NotTheSame if the comparison lacks one of the experiments."""
    if done.returncode:
        raise NotTheSame(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    (task,) = json.loads(done.stdout)["tasks"]
    seeds = sum(arm["num_seeds"] for block in task["blocks"] for arm in block["rows"])
    if seeds != 2 * pairs:
        raise NotTheSame(f"{seeds} of {2 * pairs} experiments were compared")


def imports_alone(settings: Settings, folder: Path) -> Floor:
    times = [getattr(run(IMPORTS, folder), settings.clock) for _ in range(3)]
    return Floor("importing MLflow and scipy", min(times))


def write_runs(store: Any, pairs: int) -> None:
    """Experiments in pairs, from scratch and with MAE, each seed at each share of the labels, as runs leave them."""
    for number in range(pairs):
        seed, fraction = divmod(number, len(FRACTIONS))
        for strategy in PRETRAININGS:
            write_experiment(store, strategy, seed, FRACTIONS[fraction])


def write_experiment(store: Any, strategy: str, seed: int, fraction: float) -> None:
    tags = {
        "task": "bench",
        "strategy": strategy,
        "seed": str(seed),
        "score": "mauc",
        "label_fraction": f"{fraction:g}",
    }
    digest = f"{strategy} {seed} {fraction:g}"
    parent = store.start("bench", digest, digest=digest, kind="experiment", tags=tags)
    encoder = {"task": {"name": "bench"}, "encoder": {"name": "vit", "width": 192}}
    head = {"name": "linear", "pool": "mean"}
    training = {"epochs": 4, "lr": 1e-3, "head": head, "label_fraction": fraction, "seed": seed}
    stages: dict[str, tuple[Mapping[str, Any], str]] = {
        "finetune": (encoder | {"training": training}, "train:cc val:dd"),
        "test": (encoder | {"training": training}, "test:ee"),
    }
    if pretraining := PRETRAININGS[strategy]:
        seeded = pretraining | {"training": pretraining["training"] | {"seed": seed}}
        stages = {"pretrain": (seeded, "images:aa val:bb")} | stages
    runs = {}
    for kind, (params, data) in stages.items():
        about = tags | {"premed.data": data, "compute": "2 CPU"}
        run_id = store.start(
            "bench", kind, digest=digest, kind=kind, parent=parent, tags=about, params={"stage": params}
        )
        metrics = {"seconds": 60.0, "peak_memory_mb": 512.0} | ({"test/constant": 0.5} if kind == "test" else {})
        store.log_rows(run_id, [{"step": 0, "time": 0, "metrics": metrics}])
        if kind != "pretrain":
            store.log_scores(run_id, answers(1.0 + bool(pretraining), seed))
        store.finish(run_id)
        runs[f"{kind}_run"] = run_id
    store.set_tags(parent, runs)
    store.finish(parent)


def answers(value: float, seed: int) -> list[dict[str, Any]]:
    """Rows of scores of a classification, the better the higher `value`."""
    rng = np.random.default_rng([seed, int(10 * value)])
    truth = np.random.default_rng(0).random((CASES, len(CLASSES))) < 0.3
    logits = value * truth + rng.normal(size=truth.shape)
    given = 1 / (1 + np.exp(-logits))
    rows: list[dict[str, Any]] = []
    for number in range(CASES):
        row: dict[str, Any] = {"case": f"c{number:03d}", "patient": f"p{number % PATIENTS}"}
        for k, name in enumerate(CLASSES):
            row |= {f"y/{name}": float(truth[number, k]), f"p/{name}": float(given[number, k])}
        rows.append(row)
    return rows
