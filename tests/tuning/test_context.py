"""A sweep's result, as its study gives it and as `premed sweep --json` prints it."""

import json

import pytest
import yaml
from support.suite import REPOSITORY

from premed.cli.options import as_json_value
from premed.tuning.context import SweepContext
from premed.tuning.space import load_sweep
from premed.tuning.study import encode

GOLDEN = REPOSITORY / "tests" / "golden" / "sweep" / "study.json"
SPACE = {
    "finetune.lr": {"loguniform": [1e-3, 1.0]},
    "finetune.epochs": {"int": [1, 9]},
    "finetune.layer_decay": {"uniform": [0.6, 1.0]},
    "finetune.augment": [{"flip": 0.5}, {}],
}
STAGES = [
    {"kind": "pretrain", "digest": "a", "seconds": 60.5, "peak_memory_mb": 900.0, "run_id": "b", "reused": False},
    {"kind": "finetune", "digest": "c", "seconds": 20.25, "peak_memory_mb": None, "run_id": "d", "reused": True},
]
ENDS = [
    ("done", [0.5], {"run_id": "r0", "stages": STAGES, "by_seed": {"0": [0.4], "1": [0.6]}}),
    ("failed", None, {"run_id": "r1", "failure": "the loss is not finite at step 3", "stages": STAGES[:1]}),
    ("stopped", None, {"run_id": "r2", "stages": [], "by_seed": {}}),
    ("done", [0.7], {"by_seed": {"0": [0.6], "1": [0.8]}}),
    ("done", [0.6], {}),
    ("done", [0.625], {}),
    ("done", [0.625], {}),
]
SHARES = {"finetune.lr": 0.75, "finetune.epochs": 0.25, "finetune.layer_decay": 0.0}


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "premed"))
    task = {"name": "chestxray14", "root": str(tmp_path)}
    finetune = {"epochs": 2, "batch": 4, "lr": 1e-3, "head": "linear"}
    base = {"task": task, "encoder": "vit", "pretext": "none", "finetune": finetune}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {"base": "base.yaml", "space": SPACE, "search": "optuna", "trials": 9, "seeds": [0, 1]}
    sweep |= {"scheduler": {"name": "asha", "grace": 1, "reduction": 2}}
    (tmp_path / "lr.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return SweepContext(load_sweep(tmp_path / "lr.yaml"))


def test_the_json_of_a_sweep_is_to_the_byte_what_it_was(context, tmp_path, monkeypatch):
    study = context.study()
    monkeypatch.setattr(study, "importances", lambda: SHARES)  # Optuna computes others in every version
    study.start("data")
    study.set_note("run_id", "the sweep's run")
    for i, (state, values, notes) in enumerate(ENDS):
        setting = (0.001 * 2**i, 1 + i, 0.6 + 0.1 * i % 0.4, encode([{"flip": 0.5}, {}][i % 2]))
        study.study.enqueue_trial(dict(zip(SPACE, setting, strict=True)))
        number = study.ask().number
        for validation in (1, 2):
            study.report_intermediate(number, validation, 0.25 * validation)
        study.tell(number, state, values, notes)
    study.study.enqueue_trial({"finetune.lr": 0.1, "finetune.epochs": 9})  # waits
    printed = json.dumps(as_json_value(context.result(study)), allow_nan=False)
    assert printed.replace(str(tmp_path), "") + "\n" == GOLDEN.read_text()
