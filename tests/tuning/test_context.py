"""A sweep's result, as its study gives it and as `premed sweep --json` prints it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.memory_store import MemoryStore
from support.pretrained import NAME, move_alias, tuned
from support.stores import free_port
from support.suite import REPOSITORY
from support.sweeps import write_chest_base
from typer.testing import CliRunner

from premed.cli.app import app
from premed.cli.options import as_json_value
from premed.config.compose import load
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.reporting.sweep.summary import headline
from premed.tuning.context import SweepContext
from premed.tuning.space import encode
from premed.tuning.sweep import SweepRunner
from premed.tuning.sweep_file import load_sweep

pytest_plugins = ["support.pretrained"]

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
    write_chest_base(tmp_path)
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


def test_with_hashed_names_best_yaml_names_nobody_and_says_what_to_add(context, tmp_path):
    tree = yaml.safe_load((tmp_path / "base.yaml").read_text())
    tree["tracking"] = {"hash_ids": True}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree))
    of_sweep = SweepContext(load_sweep(tmp_path / "lr.yaml"))
    study = of_sweep.study()
    study.start("data")
    study.tell(study.ask().number, "done", [0.5], {})
    *_, best = of_sweep.write(of_sweep.result(study))
    text = best.read_text()
    assert best.name == "best.yaml" and str(tmp_path) not in text
    assert "premed run YOURS.yaml best.yaml" in text and "lr: " in text
    assert load([str(tmp_path / "base.yaml"), str(best)]).task.root == tmp_path


@pytest.mark.parametrize("place", ["", "best.yaml"])
def test_a_report_that_cannot_be_written_is_one_line(context, place):
    study = context.study()
    study.start("data")
    study.tell(study.ask().number, "done", [0.5], {})
    if place:
        (context.where / place).mkdir(parents=True)
    else:
        context.where.parent.mkdir()
        context.where.write_text("a file")
    with pytest.raises(UserError, match=rf"{place}: cannot be written \(.*\); make room there"):
        context.write(context.result(study))


@pytest.fixture
def refused_metric(tmp_path, monkeypatch):
    """What is said of a sweep by this metric, over a task; None if nothing is."""
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "premed"))
    write_msd(tmp_path / "Task04_Hippocampus", 4, 0)

    def refusal(metric, task, head="linear", **search):
        where = tmp_path if task == "chestxray14" else tmp_path / "Task04_Hippocampus"
        base = {"task": {"name": task, "root": str(where)}, "encoder": "vit", "pretext": "none"}
        base["finetune"] = {"epochs": 2, "batch": 4, "lr": 1e-3, "head": head}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        sweep = {"base": "base.yaml", "space": {"finetune.lr": [0.1, 0.2]}, "metric": metric} | search
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        try:
            SweepContext(load_sweep(tmp_path / "sweep.yaml"))
        except UserError as error:
            return str(error)
        return None

    return refusal


@pytest.mark.parametrize(
    ("metrics", "modes"),
    [
        (["val/hd95"], ("min",)),
        (["val/dice", "val/hd95/Anterior", "val/n_missed", "finetune_seconds"], ("max", "min", "min", "min")),
    ],
)
def test_of_distances_counts_of_failures_and_costs_the_least_is_the_best_unless_the_file_says_else(
    tmp_path, monkeypatch, metrics, modes
):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "premed"))
    write_msd(tmp_path / "data", 4, 0)
    base = {"task": {"name": "msd", "root": str(tmp_path / "data")}, "encoder": "vit", "pretext": "none"}
    base["finetune"] = {"epochs": 2, "batch": 4, "lr": 1e-3, "head": "unetr"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {"base": "base.yaml", "space": {"finetune.lr": [0.1, 0.2]}, "metric": metrics}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert SweepContext(load_sweep(tmp_path / "sweep.yaml")).modes == modes
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"mode": ["max"] * len(metrics)}))
    assert SweepContext(load_sweep(tmp_path / "sweep.yaml")).modes == ("max",) * len(metrics)


def test_a_trial_s_run_has_the_deviation_of_its_page_and_its_cost_beside_what_it_trained(tmp_path):
    """Of stages that were there already: their seconds are a trial's cost, and it trained none of them."""
    store = MemoryStore(tmp_path)
    run_id = store.start("task", "trial 0", digest="a", kind="trial")
    stages = [{"reused": True, "seconds": 20.0, "run_id": "b"}, {"reused": False, "seconds": 3.0, "run_id": run_id}]
    by_seed = {0: [0.4, 23.0], 1: [0.6, 23.0]}
    trial: Any = SimpleNamespace(by_seed=by_seed, stages=stages, run_id=run_id, number=0, behind="", pipelines=[])
    about: Any = SimpleNamespace(tracker=store, context=SimpleNamespace(metrics=("val/mauc", "seconds"), name="s"))
    SweepRunner.close_trial_run(about, trial, "done", [0.5, 23.0], "")
    metrics = store.get(run_id).metrics
    assert metrics["val/mauc_std"] == pytest.approx(0.02**0.5)  # over n - 1
    assert (metrics["seconds"], metrics["trained_seconds"]) == (23.0, 3.0)


def test_a_misspelt_metric_is_refused_before_anything_starts_with_the_names_there_are(refused_metric):
    message = refused_metric("val/mauv", "chestxray14")
    assert message.startswith(
        "metric: chestxray14 has no val/mauv; did you mean val/mauc? there are val/auc/Atelectasis"
    )
    message = refused_metric(["val/dise", "seconds"], "msd", "unetr")
    assert "has no val/dise; did you mean val/dice? " in message and "val/hd95/Anterior" in message


@pytest.mark.parametrize(
    ("metric", "task", "head"),
    [
        ("val/auc/Hernia", "chestxray14", "linear"),
        ("val/n_undefined", "chestxray14", "linear"),
        ("val/dice/Posterior", "msd", "unetr"),
        (["val/hd95", "finetune_seconds"], "msd", "unetr"),
    ],
)
def test_a_metric_that_a_validation_has_is_taken(refused_metric, metric, task, head):
    assert refused_metric(metric, task, head) is None


def test_asha_cannot_follow_the_score_of_one_class_which_is_not_logged_at_each_validation(refused_metric):
    assert refused_metric("val/mauc", "chestxray14", scheduler="asha") is None
    assert "scheduler: val/auc/Hernia is not compared" in refused_metric(
        "val/auc/Hernia", "chestxray14", scheduler="asha"
    )


# ---- from a finished pre-training

NEWEST = "models:/scans-mae-encoder@newest"


def over(pool, folder, space, encoder=NEWEST):
    (folder / "tuned.yaml").write_text(yaml.safe_dump(tuned(pool, {"train": {"workers": 1}}, encoder=encoder)))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"base": "tuned.yaml", "space": space}))
    return SweepContext(load_sweep(folder / "sweep.yaml"))


def encoders_of(context):
    """What each trial starts from."""
    trials = [context.experiments(setting) for setting in context.sweep.combinations()]
    return [experiment.pretrained.digest for (experiment,) in trials]


def test_all_trials_start_from_the_encoder_of_the_start_and_best_yaml_names_it(pretrained, pool, tmp_path, monkeypatch):
    context, ours = over(pool, tmp_path, {"finetune.lr": [0.1, 0.2]}), pretrained["encoder"]["digest"]
    study = context.study()
    study.start("data")
    other = move_alias(tmp_path / "home", pretrained["encoder"])
    again = over(pool, tmp_path, {"finetune.lr": [0.1, 0.2]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")  # an outage ends no trial
    assert encoders_of(context) == [ours, ours] and encoders_of(again) == [other, other]
    assert context.digest != again.digest
    study.tell(study.ask().number, "done", [0.5], {})
    best = yaml.safe_load(context.write(context.result(study))[-1].read_text())
    assert best["pretrain"]["encoder"] == ours and best["finetune"]["lr"] == 0.1


def test_the_encoders_of_a_space_are_looked_up_at_the_start(pretrained, pool, tmp_path, monkeypatch):
    """A sweep over encoders, one of which moves, is another sweep once it has: its trials would start from others."""
    space = {"pretrain.encoder": [NAME, NEWEST]}
    context, ours = over(pool, tmp_path, space, NAME), pretrained["encoder"]["digest"]
    other = move_alias(tmp_path / "home", pretrained["encoder"])
    again = over(pool, tmp_path, space, NAME)
    with pytest.raises(UserError, match="^pretrain.encoder: models:/absent/1: "):
        over(pool, tmp_path, {"pretrain.encoder": [NAME, "models:/absent/1"]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert encoders_of(context) == [ours, ours] and encoders_of(again) == [ours, other]
    assert context.digest != again.digest


def test_fewer_trials_than_there_are_is_not_more_than_all(context, tmp_path):
    """It said "2 of 1 trial done"."""
    study = context.study()
    study.start("data")
    for _ in range(2):
        study.tell(study.ask().number, "done", [0.5], {})
    fewer = SweepContext(load_sweep(tmp_path / "lr.yaml", (), ["trials=1"]))
    assert "; 2 of 2 trials done" in headline(fewer.result(fewer.study(must_exist=True)))


@pytest.mark.parametrize(("states", "code"), [(["failed", "failed"], 1), (["failed", "done"], 0)])
def test_a_sweep_whose_trials_all_failed_exits_with_1(context, tmp_path, monkeypatch, states, code):
    """Else `premed sweep A && premed run best.yaml` goes on without a best.yaml, or with an older one."""
    study = context.study()
    study.start("data")
    for state in states:
        study.tell(study.ask().number, state, [0.5] if state == "done" else None, {"failure": "not finite"})
    monkeypatch.setattr("premed.tuning.sweep.run", lambda sweep, show: context.result(study))
    assert CliRunner().invoke(app, ["sweep", str(tmp_path / "lr.yaml"), "--json"]).exit_code == code


CHANGES = {
    "the pre-training's length": {"pretrain": {"epochs": 7}},
    "the pre-training's rate": {"pretrain": {"lr": 0.5}},
    "what one strategy alone has": {"only": {"mae": {"finetune": {"lr": 0.5}}}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_sweep_of_strategies_is_another_one_if_what_only_one_of_them_reads_changes(tmp_path, monkeypatch, change):
    """Else the same command would say that the trials are done, and give the scores of the settings before."""
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "premed"))
    write_chest_base(tmp_path)
    (tmp_path / "lengths.yaml").write_text("pretrain: {epochs: 2, batch: 4, lr: 0.1}")
    sweep = {"base": ["base.yaml", "lengths.yaml"], "space": {"pretext": ["none", "mae"]}}

    def digest(changes):
        (tmp_path / "lr.yaml").write_text(yaml.safe_dump(sweep | {"set": changes}))
        return SweepContext(load_sweep(tmp_path / "lr.yaml")).digest

    assert digest({}) == digest({"train": {"cpus": 2}}) != digest(CHANGES[change])
