"""What a stage's data is known by, what is refused before a training, and who may go on with one."""

import nibabel
import numpy as np
import pytest

from premed.config.compose import merge, validate_experiment
from premed.data.datamodule import DataModule, Tasks
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.events import WarningIssued
from premed.execution import executor, runner
from premed.execution.preflight import resolve, validate
from premed.execution.session import Session
from premed.tracking.mlflow_tracker import MLflowTracker
from premed.tracking.run_store import RunStore
from premed.training import stopping
from premed.training.stage import run_stage


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    root = write_msd(tmp_path / "mri", 8, seed=0, shape=(20, 24, 20))
    return {
        "task": {"name": "msd", "root": str(root), "roi": (16, 16, 16)},
        "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
        "pretext": "none",
        "finetune": {"head": "unetr", "epochs": 1, "batch": 4, "lr": 1e-3},
        "train": {"workers": 0},
    }


def known_by(tree) -> str:
    return DataModule(Tasks()(validate_experiment(tree).task)).fingerprint("finetune")


def test_other_classes_in_dataset_json_are_other_data(tree, tmp_path):
    before, about = known_by(tree), tmp_path / "mri" / "dataset.json"
    assert '"Anterior"' in about.read_text()
    about.write_text(about.read_text().replace('"Anterior"', '"Front"'))
    assert known_by(tree) != before


def test_the_same_folder_is_the_same_data(tree):
    assert known_by(tree) == known_by(tree)


def test_the_order_that_draws_go_by_is_part_of_the_data(tree):
    names = [case.name for case in Tasks()(validate_experiment(tree).task).split("train")]
    parts = {"train": names[:4], "val": names[4:]}
    one = known_by(tree | {"task": tree["task"] | {"split": parts}})
    other = known_by(tree | {"task": tree["task"] | {"split": parts | {"train": names[3::-1]}}})
    assert one != other


# ---- what is found out before a training


MAE = {
    "pretext": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "pretrain": {"epochs": 1, "batch": 4, "lr": 1e-3},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetune": {"head": "linear", "epochs": 1, "batch": 4, "lr": 1e-3}, "encoder": {"patch": 6}}, "roi"),
        ({"encoder": {"patch": 2}}, r"encoder\.patch: .* does not suit the head unetr"),
        ({"encoder": {"depth": 2}}, r"encoder\.depth: 2 is too shallow"),
        ({"finetune": {"policy": {"name": "last_n", "blocks": 99}}}, r"finetune\.policy\.blocks: is 99"),
    ],
)
@pytest.mark.parametrize("strategy", [MAE, {}])
def test_a_mistake_in_the_fine_tuning_costs_no_pre_training_and_no_preparation(tree, change, words, strategy):
    with pytest.raises(UserError, match=words):
        validate(resolve([validate_experiment(merge(merge(tree, strategy), change))]))


@pytest.mark.parametrize(
    ("where", "augment", "field"),
    [("finetune", {"scale": [0.5, 1]}, "scale"), ("pretrain", {"rand": "rand-m9"}, "rand")],
)
def test_an_augmentation_for_pictures_is_refused_for_volumes(tree, where, augment, field):
    with pytest.raises(UserError, match=f"^{where}.augment.{field}: is for pictures, and mri has none"):
        resolve([validate_experiment(merge(merge(tree, MAE), {where: {"augment": augment}}))])


def test_an_augmentation_for_volumes_is_refused_for_pictures(tmp_path):
    tiny = {"epochs": 1, "batch": 4, "lr": 1e-3}
    tree = {
        "task": {"name": "chestxray14", "root": str(tmp_path)},
        "encoder": {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8},
        "pretext": "none",
        "finetune": tiny | {"head": "linear", "augment": {"flip": 0.5, "flip_axes": [1], "shift": 3}},
    }
    with pytest.raises(UserError, match="^finetune.augment.shift: is for volumes"):
        resolve([validate_experiment(tree)])


# ---- a pre-training that labels end


def test_a_pre_training_that_labels_end_is_known_by_them_and_no_other_is(tree, tmp_path):
    def known(labels):
        session = Session(None, Tasks(), map, lambda event: None)  # type: ignore[arg-type]
        return session.fingerprint(resolve([validate_experiment(tree)])[0].experiment.task, "pretrain", labels)

    before = known(False), known(True)
    file = next((tmp_path / "mri" / "labelsTr").glob("*.nii.gz"))
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * 0, image.affine), file)
    after = known(False), known(True)
    assert before[0] == after[0] and before[1] != after[1] != after[0]
    assert [part.split(":")[0] for part in after[1].split()] == ["images", "val"]


# ---- a lease that is lost


@pytest.mark.slow
def test_a_stage_that_another_command_took_over_is_left_to_it_and_waited_for(tree, tmp_path, monkeypatch):
    """This command was silent for longer than a lease lasts, and another one went on with its stage."""
    events, tries = [], []

    def sleepy(job, emit, report, tasks):
        tries.append(job.stage.kind)
        if len(tries) > 1:
            return run_stage(job, emit, report, tasks)
        (lease,) = [lease for digest, lease in seen["tracker"].leases.items() if digest == job.stage.digest()]
        seen["tracker"].store.client.delete_run(lease.mine)  # as whoever takes over does
        seen["tracker"].beat()
        return run_stage(job, emit, report, tasks)  # wakes up, and goes on as if nothing were

    seen: dict = {}
    init = MLflowTracker.__init__
    monkeypatch.setattr(
        MLflowTracker, "__init__", lambda self, *args: (init(self, *args), seen.update(tracker=self))[0]
    )
    monkeypatch.setattr(executor, "run_stage", sleepy)
    outcome = runner.run(validate_experiment(tree), events.append)
    assert tries == ["finetune", "finetune", "test"]
    assert ["took over this stage" in event.text for event in events if isinstance(event, WarningIssued)] == [True]
    assert [stage["kind"] for stage in outcome["stages"]] == ["finetune", "test"]
    runs = RunStore(f"sqlite:///{tmp_path}/home/mlflow.db", None).search({"premed.kind": "finetune"})
    assert [(run.status, run.tags.get("premed.failure")) for run in runs] == [("FINISHED", None)]


def test_a_signal_ends_the_waiting_of_a_thread_that_receives_none(monkeypatch):
    session = Session(None, None, map, lambda event: None)
    session.pause(0)
    monkeypatch.setattr(stopping, "asked", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        session.pause(0)
