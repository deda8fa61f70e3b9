"""CTs and brains from a folder to a test score, in this process; and what ten thousand epochs cost."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.experiments import settle_in
from support.suite import REPOSITORY

from premed.config.compose import load, validate_experiment
from premed.config.experiment import Stage
from premed.config.image_processing import Augmentation
from premed.contracts import DataSet, Objective, Sample
from premed.data.cache import Cache
from premed.data.loader import PreparedLoader
from premed.data.phantoms.abdomen import write_btcv
from premed.data.phantoms.brain import write_brats
from premed.data.samplers import EpochSampler
from premed.events import MetricsLogged
from premed.execution import runner
from premed.models.encoders import vit
from premed.pretext import mae
from premed.tasks import brats, btcv
from premed.training.callback import TrainingCallback
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule, planned

TINY = {
    "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
    "pretext": {"name": "mae", "mask_ratio": 0.25, "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "pretrain": {"epochs": 1, "steps": 4, "batch": 2, "lr": 0.1, "validations": 2, "augment": {"crops": 2}},
    "finetune": {
        "head": {"name": "unetr", "feature_size": 4},
        **{"epochs": 1, "steps": 6, "batch": 2, "lr": 0.2, "validations": 2, "layer_decay": 0.75, "drop_path": 0.1},
        "augment": {"crops": 2, "positive": 0.5, "flip": 0.2, "rotate": 0.2, "intensity": 0.1},
    },
    "train": {"workers": 0, "log_steps": 2, "precision": "fp32"},
}


def run(task: dict, home: Path, monkeypatch) -> dict:
    """Pre-training, fine-tuning and test."""
    settle_in(monkeypatch, home)
    outcome = runner.run(validate_experiment(TINY | {"task": task}), lambda event: None)
    assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune", "test"]
    assert outcome["score"] == "dice" and 0 <= outcome["stages"][2]["value"] <= 1
    return outcome["stages"][2]


@pytest.mark.slow
def test_ct_phantoms_and_the_real_ct_train_end_to_end(real, tmp_path, monkeypatch):
    root = write_btcv(tmp_path / "btcv", 4, seed=0, shape=(36, 36, 24))
    for kind in ("img", "label"):  # the real one takes the number of a phantom
        shutil.copy(real("btcv") / kind / f"{kind}0005.nii.gz", root / "Training" / kind)
    task = {"name": "btcv", "root": str(root), "roi": (32, 32, 16), "spacing": (9.0, 9.0, 12.0), "partial": True}
    cases = btcv.build(btcv.Config(**task))
    assert "img0005" in [case.name for case in cases.split("train")] + [case.name for case in cases.split("val")]
    test = run(task, tmp_path / "home", monkeypatch)
    assert {"test/dice", "test/hd95", "test/dice_8", "test/hd95_8", "test/dice/liver"} <= set(test["summary"])
    assert test["num_cases"] == 1 and test["constant"] > 0.05


@pytest.mark.slow
def test_brain_phantoms_train_end_to_end(tmp_path, monkeypatch):
    root = write_brats(tmp_path / "brats", 6, seed=0, shape=(32, 32, 20))
    task = {
        "name": "brats",
        "root": str(root),
        "roi": (16, 16, 16),
        "spacing": (7.5, 7.5, 7.5),
        "crop_foreground": True,
    }
    test = run(task, tmp_path / "home", monkeypatch)
    assert {"test/dice/TC", "test/dice/WT", "test/hd95/WT"} <= set(test["summary"])
    assert test["num_cases"] == 2


@pytest.mark.parametrize("name", ["btcv", "Task01_BrainTumour"])
def test_a_real_image_is_pretrained_on_for_a_few_steps(real, tmp_path, name):
    if name == "btcv":
        task = btcv.build(btcv.Config(root=real(name), roi=(48, 48, 48), split={"train": ("img0005",)}))
    else:
        task = brats.build(brats.Config(root=real(name), roi=(48, 48, 48), crop_foreground=True))
    (case,) = task.images()
    sample = Sample(case, Cache(tmp_path).prepare([case], task.preprocessing)[0])
    torch.manual_seed(0)
    encoder = vit.build(vit.Config(width=48, depth=2, heads=3, patch=16), task.channels, task.roi)
    config = mae.Config(mask_ratio=0.25, decoder_width=24, decoder_depth=1, decoder_heads=2)
    objective = mae.build(config, encoder, [DataSet(task, "")], weight_decay=0.05)
    data_set = DataSet(task, "", Augmentation(shift=0))
    source = PreparedLoader([data_set], [sample], seed=0, stage="pretrain", device=torch.device("cpu"))
    losses: list[float] = []
    fit(
        objective,
        source,
        EpochSampler(1, 1, 10, seed=0, stage="pretrain"),
        Schedule(10, 1, lr=3e-3),
        make_optimizer(objective, (0.9, 0.95)),
        lambda step, loss, numbers: losses.append(loss.item()),
    )
    assert len(losses) == 10 and np.mean(losses[-3:]) < 0.99 * np.mean(losses[:3])


# The recipes ---------------------------------------------------------------------------------------------------------


def stages(*files: str) -> dict[str, Stage]:
    experiment = load([REPOSITORY / "experiments" / file for file in files])
    return {stage.kind: stage for stage in experiment.stages(lambda kind: kind)}


@pytest.mark.parametrize(
    ("file", "num", "pretrain", "finetune"),
    [
        ("btcv/mae.yaml", 15, (30_000, 1.5e-4), (15_000, 8.06e-4)),
        ("brats/mae.yaml", 348, (29_000, 1.5e-4), (17_400, 4.03e-4)),
        ("brats/mae.yaml", 387, (32_500, 1.5e-4), (19_500, 4.03e-4)),
    ],
)
def test_a_recipe_takes_the_paper_s_steps_at_its_effective_rates(file, num, pretrain, finetune):
    found = stages(file)
    for kind, (steps, rate) in {"pretrain": pretrain, "finetune": finetune}.items():
        plan, schedule = planned(found[kind], [num])
        assert plan.num_steps == steps and schedule.lr == pytest.approx(rate, rel=1e-3)
    assert found["pretrain"].pretext.mask_ratio == 0.125
    assert found["finetune"].training.augment.positive == 0.5 and found["pretrain"].training.augment.positive is None


class Still(Objective):
    """An objective that costs nothing."""

    def __init__(self):
        super().__init__()
        self.w, self.measured = torch.nn.Parameter(torch.zeros(1)), 0
        self.parts = {"encoder": self}

    def measure(self, samples):
        self.measured += 1
        return [{"case": sample.case.name} for sample in samples]

    def summary(self, rows):
        return {"loss": 1.0}


class Shelf:
    """Counts what is written; the clock below decides when."""

    def __init__(self):
        self.checkpoints: list[int] = []

    def put(self, name, content):
        self.checkpoints.append(name)

    def put_json(self, name, value):
        pass

    def put_weights(self, name, state):
        pass

    def names(self):
        return []


@pytest.mark.slow
def test_ten_thousand_epochs_of_three_steps_are_thirty_thousand_steps_with_nothing_done_per_epoch(monkeypatch):
    """BTCV's recipe: points of the curve, validations and checkpoints fall where they fall in one epoch of as many."""
    messages = []
    plan, _ = planned(stages("btcv/mae.yaml")["pretrain"], [15])
    for of in (plan, EpochSampler(6 * 30_000, 6, 30_000, 0, "pretrain")):
        clock = [0.0]
        monkeypatch.setattr("premed.training.callback.time.monotonic", lambda clock=clock: clock[0])
        objective, shelf, events = Still(), Shelf(), []
        callback = TrainingCallback(
            objective,  # type: ignore[arg-type]
            torch.optim.AdamW(objective.parameters()),
            of,
            shelf,  # type: ignore[arg-type]
            [],
            **{"validations": 20, "score": None, "log_steps": 20, "save_minutes": 5.0, "precision": torch.float32},
            sample_names=lambda indices: [],
            on_event=events.append,
            report=lambda numbers: None,
        )
        monkeypatch.setattr(
            "premed.training.callback.evaluate", lambda objective, samples, precision: objective.measure(samples)
        )
        loss = torch.tensor(1.0)
        for step in range(1, of.num_steps + 1):
            clock[0] += 0.25  # seconds
            callback(step, loss, {})
        rows = [event.step for event in events if isinstance(event, MetricsLogged)]
        messages.append((of.num_steps, rows, objective.measured, shelf.checkpoints))
    assert messages[0] == messages[1]
    num_steps, rows, num_validations, checkpoints = messages[0]
    assert (num_steps, num_validations) == (30_000, 20)
    assert len(rows) == 1500 + 20 and len(checkpoints) == 30_000 * 0.25 / 300 - 1
