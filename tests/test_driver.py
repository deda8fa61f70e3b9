"""What a stage's data is known by."""

import pytest

from premed import phantoms
from premed.driver import Data
from premed.experiment import checked


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    root = phantoms.write_msd(tmp_path / "mri", 8, seed=0, shape=(20, 24, 20))
    return {
        "task": {"name": "msd", "root": str(root), "roi": (16, 16, 16)},
        "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
        "pretext": "none",
        "finetune": {"head": "unetr", "epochs": 1, "batch": 4, "lr": 1e-3},
        "train": {"workers": 0},
    }


def known_by(tree) -> str:
    return Data(checked(tree), None, lambda event: None).fingerprint("finetune")


def test_other_classes_in_dataset_json_are_other_data(tree, tmp_path):
    before, about = known_by(tree), tmp_path / "mri" / "dataset.json"
    assert '"Anterior"' in about.read_text()
    about.write_text(about.read_text().replace('"Anterior"', '"Front"'))
    assert known_by(tree) != before


def test_the_same_folder_is_the_same_data(tree):
    assert known_by(tree) == known_by(tree)


def test_the_order_that_draws_go_by_is_part_of_the_data(tree):
    names = [case.name for case in Data(checked(tree), None, lambda event: None).task.split("train")]
    parts = {"train": names[:4], "val": names[4:]}
    one = known_by(tree | {"task": tree["task"] | {"split": parts}})
    other = known_by(tree | {"task": tree["task"] | {"split": parts | {"train": names[3::-1]}}})
    assert one != other
