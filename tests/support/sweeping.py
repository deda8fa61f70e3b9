"""Made-up results of sweeps, for tests of what is reported of them."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from premed.reporting.sweep.analysis import ranking
from premed.reporting.sweep.result import StageResult, SweepResult, TrialResult


def stage(kind, digest, seconds=60.0, memory=900.0, reused=False):
    return StageResult(kind, digest, seconds, memory, f"run of {digest}", reused)


def trial(number, setting, by_seed=None, **more):
    """A trial that is done, with the mean over its seeds, unless `more` has others."""
    by_seed = {seed: value if isinstance(value, list) else [value] for seed, value in (by_seed or {}).items()}
    values = np.asarray(list(by_seed.values()), float).mean(axis=0).tolist() if by_seed else None
    fields = {
        "state": "done",
        "values": values,
        "curve": {},
        "stages": [],
        "failure": None,
        "run_id": f"run of {number}",
    }
    return TrialResult(number=number, setting=setting, by_seed=by_seed, **fields | more)


def sweep(space, trials, **more):
    """A grid of them; the best is the one of the highest value."""
    values = {each.number: each.values[0] for each in trials if each.state == "done" and each.values}
    best = max((number for number, value in values.items() if value is not None), key=values.__getitem__, default=None)
    fields = {"name": "sweep", "task": "Task04_Hippocampus", "strategy": "mae", "score": "dice", "search": "grid"}
    fields |= {"scheduler": None, "metrics": ["val/dice"], "modes": ["max"], "seeds": [0, 1]}
    fields |= {"num_trials": len(trials), "where": "/premed/sweeps/sweep", "run_id": "run of the sweep"}
    fields |= {"best": best, "front": [best] if best is not None else [], "importances": None}
    return SweepResult(space=space, trials=trials, **fields | more)


def full_grid(seeds=(0, 1)):
    """3 x 2 x 3 trials, whose 6 pre-trainings each serve three."""
    space = {"pretext.mask_ratio": [0.5, 0.1 + 0.2, 0.75], "pretrain.epochs": [20, 40]}
    space |= {"finetune.layer_decay": [0.65, 0.75, 0.85]}
    trials, rng = [], np.random.default_rng(0)
    for number, values in enumerate(product(*space.values())):
        ratio, epochs, decay = values
        mean = 0.70 + 0.04 * (epochs == 40) - 0.8 * (ratio - 0.6) ** 2 + 0.1 * (decay - 0.65)
        by_seed = {str(seed): float(mean + 0.008 * rng.normal()) for seed in seeds}
        first = stage("pretrain", f"p {ratio} {epochs}", 3.1 * epochs, 1400.0, reused=number % 3 != 0)
        stages = [first, *(stage("finetune", f"f {number} {seed}", 24 + rng.normal()) for seed in seeds)]
        first_curve = np.maximum.accumulate(mean - 0.3 / np.arange(1, 7) + 0.01 * rng.normal(size=6))
        curve = {at: float(value) for at, value in enumerate(first_curve, 1)}
        trials.append(trial(number, dict(zip(space, values, strict=True)), by_seed, stages=stages, curve=curve))
    importances = {"pretext.mask_ratio": 0.41, "pretrain.epochs": 0.52, "finetune.layer_decay": 0.07}
    return sweep(space, trials, name="mask_ratio_epochs", seeds=[*seeds], importances=importances)


def pruned_search(num=12):
    """Optuna and ASHA: most are stopped, one fails, one is running."""
    space = {"finetune.lr": {"loguniform": [1e-4, 1e-1]}, "finetune.layer_decay": {"uniform": [0.6, 1.0]}}
    space |= {"finetune.epochs": {"int": [10, 40]}, "finetune.head.name": ["linear", "mlp"]}
    trials, rng = [], np.random.default_rng(1)
    for number in range(num):
        lr, decay = float(10 ** rng.uniform(-4, -1)), float(rng.uniform(0.6, 1))
        setting = dict(zip(space, (lr, decay, int(rng.integers(10, 41)), ["linear", "mlp"][number % 2]), strict=True))
        mean = 0.62 - 0.05 * (np.log10(lr) + 2.5) ** 2 + 0.05 * decay
        state = "failed" if number == 4 else "running" if number == 11 else "done" if number % 3 == 0 else "stopped"
        length = {"done": 9, "running": 4, "failed": 2}.get(state, 1 if number % 2 else 3)
        curve = np.maximum.accumulate(mean - 0.2 / np.arange(1, length + 1) + 0.01 * rng.normal(size=length))
        stages = [stage("pretrain", "p", 610.0, 1400.0, reused=number > 0)]
        stages += [stage("finetune", f"f {number}", 11.0 * length, 700.0)]
        more = {"curve": {i: float(x) for i, x in enumerate(curve, 1)}, "stages": stages, "state": state}
        more |= (
            {"failure": "finetune: the loss is not finite at step 41; lower finetune.lr"} if state == "failed" else {}
        )
        more |= {"values": [float(curve[-1])] if state == "stopped" else None} if state != "done" else {}
        trials.append(trial(number, setting, {"0": float(mean)} if state == "done" else {}, **more))
    importances = {
        "finetune.lr": 0.83,
        "finetune.layer_decay": 0.1,
        "finetune.head.name": 0.04,
        "finetune.epochs": 0.03,
    }
    fields = {"search": "optuna", "scheduler": "asha", "seeds": [0], "importances": importances, "score": "mauc"}
    return sweep(space, trials, name="fine-tuning", task="chestxray14", metrics=["val/mauc"], **fields)


def two_objectives(num=14):
    """Two objectives, three seeds."""
    space = {"pretrain.epochs": {"int": [5, 80]}, "encoder.name": ["vit", "mit"], "finetune.lr": [1e-3, 3e-3]}
    trials, rng = [], np.random.default_rng(2)
    for number in range(num):
        epochs, encoder = int(rng.integers(5, 81)), ["vit", "mit"][number % 2]
        seconds = epochs * (4.0 if encoder == "vit" else 6.0) + 70
        mean = 0.6 + 0.06 * np.log(epochs) / np.log(80) + 0.02 * (encoder == "mit") + 0.015 * rng.normal()
        by_seed = {str(seed): [float(mean + 0.01 * rng.normal()), seconds] for seed in range(3)}
        stages = [
            stage("pretrain", f"p {epochs} {encoder}", seconds - 70),
            *(stage("finetune", f"f {number} {s}", 23.0) for s in range(3)),
        ]
        setting = dict(zip(space, (epochs, encoder, [1e-3, 3e-3][number // 2 % 2]), strict=True))
        trials.append(trial(number, setting, by_seed, stages=stages))
    fields = {"metrics": ["val/dice", "seconds"], "modes": ["max", "min"], "seeds": [0, 1, 2], "search": "optuna"}
    result = sweep(space, trials, name="score against cost", **fields)
    front = [number for number in range(num) if not any(beats(each, trials[number]) for each in trials)]
    return replace(result, best=None, front=front)


def beats(one, other):
    """Of a score and a cost: better in one, and no worse in the other."""
    (score, cost), (its_score, its_cost) = one.values, other.values
    return score >= its_score and cost <= its_cost and (score, cost) != (its_score, its_cost)


def by_seed(result) -> pd.DataFrame:
    """One line per trial and seed: its setting, number, seed and score."""
    return pd.DataFrame([
        {**each.setting, "number": each.number, "seed": seed, "score": values[0]}
        for each in result.trials
        for seed, values in each.by_seed.items()
    ])  # fmt: skip


# ---- whatever comes

_NUMBERS = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, None, 0.0]))
_SCALARS = st.one_of(
    st.booleans(), st.integers(-3, 99), st.floats(allow_nan=False, width=32), st.text(max_size=6), st.none()
)
_VALUES = st.one_of(
    _SCALARS, st.lists(_SCALARS, max_size=2), st.dictionaries(st.text(max_size=3), _SCALARS, max_size=2)
)
_PATHS = st.sampled_from(["finetune.lr", "pretrain.lr", "pretext.mask_ratio", "finetune.head.name", "seed", "ü.<b>"])
_ENDS = st.tuples(st.floats(1e-6, 1), st.floats(2, 50)).map(list)
_SPACES = st.one_of(
    st.lists(_VALUES, min_size=1, max_size=4),
    st.builds(lambda ends, kind: {kind: ends}, _ENDS, st.sampled_from(["uniform", "loguniform"])),
    st.builds(lambda low, more: {"int": [low, low + more]}, st.integers(-5, 5), st.integers(1, 40)),
)
_KINDS = st.sampled_from(["pretrain", "import", "trunk", "cooldown", "finetune"])
_STAGES = st.builds(stage, _KINDS, st.sampled_from("abc"), _NUMBERS, _NUMBERS, st.booleans())
_STATES = st.sampled_from(["waiting", "running", "done", "stopped", "failed"])
_METRICS = st.sampled_from(
    [["val/dice"], ["seconds"], ["val/mauc", "seconds"], ["val/dice", "val/hd95", "peak_memory_mb"]]
)


@st.composite
def results(draw):
    """Any result that a sweep may have, and numbers that are none."""
    metrics = draw(_METRICS)
    space = draw(st.dictionaries(_PATHS, _SPACES, max_size=4))
    values = st.lists(_NUMBERS, min_size=len(metrics), max_size=len(metrics))
    seeds = st.dictionaries(st.sampled_from("012"), values, max_size=3)
    curves = st.dictionaries(st.integers(0, 30), _NUMBERS, max_size=4)

    def setting():
        drawn = {
            path: draw(st.sampled_from(choices) if isinstance(choices, list) else st.floats(0.1, 40))
            for path, choices in space.items()
        }
        return drawn | draw(st.dictionaries(_PATHS, _VALUES, max_size=1))

    stages, failures = st.lists(_STAGES, max_size=3), st.none() | st.text(max_size=99)
    trials = [
        trial(number, setting(), state=draw(_STATES), values=draw(st.none() | values), by_seed=draw(seeds),
              curve=draw(curves), stages=draw(stages), failure=draw(failures),
              run_id=draw(st.none() | st.text(max_size=4)))
        for number in range(draw(st.integers(0, 9)))
    ]  # fmt: skip
    modes = [draw(st.sampled_from(["max", "min"])) for _ in metrics]
    fields = {"metrics": metrics, "modes": modes, "num_trials": len(trials) + draw(st.integers(0, 2))}
    fields["importances"] = draw(st.none() | st.dictionaries(_PATHS, st.floats(0, 1), max_size=3))
    result = sweep(space, trials, **fields)
    first = [each.number for each in ranking(result)]
    is_single = len(metrics) == 1
    return replace(result, best=first[0] if first and is_single else None, front=first[: 1 if is_single else 2])
