"""Row sweep: `premed sweep` on one Ray worker beside its stages one after another, by the clock on the wall."""

import json
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from premed.benchmarks.result import Target, Times
from premed.benchmarks.settings import Comparison, NotMeasured, NotTheSame, Settings
from premed.benchmarks.whole import EQUAL, executed, lacking, write_experiment

STAGES = "premed.benchmarks.stages"
SPACE = {  # 18 trials, 6 pre-trainings, as in docs/sweeps.md
    "pretext.mask_ratio": [0.5, 0.75, 0.875],
    "pretrain.lr": [6e-3, 1.2e-2],
    "finetune.layer_decay": [0.65, 0.75, 0.85],
}
SHORT = {path: values[:2] if path.startswith("finetune") else values[:1] for path, values in SPACE.items()}


def sweep(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """A grid, each time in a home of its own. One trial at a time, so that a second core makes neither faster."""
    space: dict[str, list[float]] = settings.size(SPACE, SHORT)
    fields = [[f"{path}={value}" for path, value in zip(space, each, strict=True)] for each in product(*space.values())]
    peer = "its stages one after another, without a sweep"
    if missing := lacking(1):
        yield NotMeasured(peer, missing)
        return
    steps, number = settings.size((400, 160), (8, 4)), count().__next__
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = write_experiment(folder, settings.size(40, 20), steps)
        file = folder / "sweep.yaml"
        tree = {"base": [base.name], "set": {"train": {"workers": 1}}, "space": space, "concurrency": 1}
        file.write_text(yaml.safe_dump(tree))

        def ours() -> tuple[Times, Any]:
            return executed(["-m", "premed", "sweep", "--json", str(file)], folder / f"{number()}")

        def theirs() -> tuple[Times, Any]:
            command = ["-m", STAGES, str(base), str(folder / f"plain{number()}")]
            return executed([*command, *map(json.dumps, fields)], folder)

        yield Comparison(
            peer,
            lambda: ours()[0],
            lambda: theirs()[0],
            unit="a sweep",
            sizes=f"{len(fields)} trials one at a time on one Ray worker; the experiment of the row experiment, "
            f"{steps[0]} and {steps[1]} steps, each pre-training once; imports, too. The stages have no Ray, MLflow or "
            "Optuna",
            same=same_scores(ours()[1], theirs()[1], fields),
            target=Target(0.91, 1),
            most=1,
            clock="wall",
        )


def same_scores(result: Any, summaries: list[dict[str, float]], fields: list[list[str]]) -> str:
    """What was asserted of both. Raises NotTheSame if a trial is missing, or its score is another."""
    (metric,) = result["metrics"]
    found = {frozenset(f"{path}={value}" for path, value in each["setting"].items()): each for each in result["trials"]}
    for setting, summary in zip(fields, summaries, strict=True):
        values = (found.get(frozenset(setting)) or {}).get("values") or [float("nan")]
        if not abs(values[0] - summary[metric]) <= EQUAL:
            raise NotTheSame(f"{', '.join(setting)}: {metric} of {values[0]:.4f} and {summary[metric]:.4f}")
    trained = {stage["digest"] for each in found.values() for stage in each["stages"]}
    return f"equal scores of {len(fields)} trials on val, of {len(trained)} stages"
