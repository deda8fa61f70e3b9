"""What tests do with whole experiments: a tiny one, in this process, in a fork of it, or as a command."""

import json
import os
import signal
import subprocess
import sys

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - and all that takes time to import, once for all forks
import pytest
import timm.models.vision_transformer  # noqa: F401
import torch
import torch.export  # noqa: F401
import yaml
from support.forks import fork

from premed.cli import app
from premed.config.compose import merge, validate_experiment
from premed.execution import publisher, runner
from premed.execution.recorder import ExperimentRecorder
from premed.tracking.run_store import RunStore
from premed.training import stage

_TRAINING = {"epochs": 4, "batch": 16, "lr": 1e-3, "validations": 2, "augment": {"flip": 0.5}}
TINY = {
    "task": {"name": "chestxray14", "size": 16, "stored": 32},
    "encoder": {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8},
    "pretext": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "pretrain": _TRAINING | {"probe": None},  # it takes longer than the training; tests of it ask for one
    "finetune": _TRAINING | {"head": {"name": "linear", "pool": "mean"}, "drop_path": 0.1},
    "train": {"workers": 0, "log_steps": 2, "save_minutes": 0, "precision": "fp32"},
}
SCRATCH = {"pretext": {"name": "none"}}


def tree(chest, *changes):
    """The tiny experiment on the X-rays in the folder `chest`, with `changes` (trees), as a YAML would hold it."""
    whole = merge(TINY, {"task": {"root": str(chest)}})
    for change in changes:
        whole = merge(whole, change)
    return whole


def experiment(chest, *changes):
    return validate_experiment(tree(chest, *changes))


def settle_in(monkeypatch, home):
    """Makes `home` the home in use."""
    monkeypatch.setenv("PREMED_HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


DRAWING, REGISTERING, PUBLISHING = stage.save_pictures, ExperimentRecorder.register, publisher.register


def bare(patch, whole=False):
    """Stages draw no pictures and register no model, which cost more than a tiny training; or, if `whole`, they do."""
    patch.setattr(stage, "save_pictures", DRAWING if whole else lambda *_: None)
    patch.setattr(ExperimentRecorder, "register", REGISTERING if whole else lambda *_: None)
    patch.setattr(publisher, "register", PUBLISHING if whole else lambda *_: None)


def run(chest, *changes, show=lambda event: None):
    return runner.run(experiment(chest, *changes), show)


def beside(home, chest, *changes, uri=None):
    """(process, connection) of the same in another process: the connection gives its events, then the outcome."""
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_beside, args=(tree(chest, *changes), theirs, environment(home, uri)))
    process.start()
    theirs.close()
    return process, ours


def environment(home, uri=None):
    """This process' environment, with a home in use. uri: of MLflow, if it is not the home's file."""
    here = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return here | {"PREMED_HOME": str(home)} | ({"MLFLOW_TRACKING_URI": uri} if uri else {})


def _begin(environment):
    """In a process that was forked from one which another test may have started."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    bare(pytest.MonkeyPatch())


def _beside(tree, connection, environment):
    _begin(environment)
    connection.send(runner.run(validate_experiment(tree), connection.send))


def last(connection):
    """The last of what a process sends."""
    result = None
    while True:
        try:
            result = connection.recv()
        except EOFError:
            return result


def forked(home, *arguments, uri=None):
    """(process, its stderr by the line) of `premed …` in another process, without the time its imports take.

    uri: of MLflow, if it is not the home's file.
    """
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_forked, args=([str(each) for each in arguments], theirs, environment(home, uri)))
    process.start()
    theirs.close()
    return process, os.fdopen(os.dup(ours.fileno()))


def _forked(arguments, stderr, environment):
    _begin(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    sys.argv = ["premed", *arguments]
    app.main()


def command(folder, home, chest, *changes, arguments=()):
    """`premed run --json` of the tiny experiment, as a user starts it; its stderr comes by the line."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree(chest, *changes)))
    return subprocess.Popen(
        [sys.executable, "-m", "premed", "run", "--json", str(folder / "tiny.yaml"), *arguments],
        env=environment(home) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(lines, text):
    """Reads what a command says on stderr until it says `text`; that line."""
    messages = []
    for line in lines:
        messages.append(line)
        if text in line:
            return line
    raise AssertionError(f"it never said {text!r}: {''.join(messages)}")


def outcome(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def store_of(home):
    return RunStore(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))


def runs_of(home, kind, **more):
    return list(store_of(home).search({"premed.kind": kind}, **more))


def curve(home, run_id):
    """All that MLflow has of a run's training and validation: {name: [(step, value), …]}, in the order of telling."""
    client = store_of(home).client
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith(("train/", "val/"))]
    return {name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)] for name in names}


def results(outcome):
    """The scores of all stages: what must not depend on how they came about."""
    return [{name: stage[name] for name in ("digest", "summary", "num_cases")} for stage in outcome["stages"]]
