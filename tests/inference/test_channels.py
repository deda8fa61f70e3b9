"""`premed predict` of networks whose channels are files: CASE_0000, CASE_0001, … are one image, CASE."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from support.nnunet import raw, task

from premed.errors import UserError
from premed.inference import predict
from premed.inference.inputs import Input, join_channels
from premed.inference.load import task_from_card


def inputs(*names: str) -> list[Input]:
    return [Input(Path("in") / f"{name}.nii.gz", name) for name in names]


def network(channels: int) -> SimpleNamespace:
    return SimpleNamespace(channels=channels, channel_files=True)


def test_files_of_a_case_are_joined_in_the_order_of_their_numbers():
    wanted = inputs("a_0001", "b_0000", "a_0000", "c", "b_0001", "sub/a_0000", "sub/a_0001")
    joined, failed = join_channels(wanted, network(2))
    assert [(each.name, each.path.name, [path.name for path in each.more]) for each in joined] == [
        ("a", "a_0000.nii.gz", ["a_0001.nii.gz"]),
        ("b", "b_0000.nii.gz", ["b_0001.nii.gz"]),
        ("c", "c.nii.gz", []),
        ("sub/a", "a_0000.nii.gz", ["a_0001.nii.gz"]),
    ]
    assert failed == []


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1, 2), (0, 2)])
def test_a_case_with_other_channels_is_named_with_what_is_there(numbers):
    joined, (failed,) = join_channels(inputs(*(f"a_{number:04d}" for number in numbers)), network(2))
    assert joined == [] and failed["path"] == f"in/a_{numbers[0]:04d}.nii.gz"
    there = ", ".join(f"{number:04d}" for number in numbers)
    assert failed["why"] == (f"in/a: has the channels {there}, and the network takes 0000 to 0001; add or remove files")


@pytest.mark.parametrize("channels", [1, 2])
def test_two_files_of_one_channel_are_refused_and_neither_is_left_out_without_a_word(channels):
    twice = [*inputs("a_0000", "a_0001"), Input(Path("in/a_0000.nii"), "a_0000")]
    with pytest.raises(UserError, match=r"^in/a_0000\.nii\.gz and in/a_0000\.nii are one channel of in/a; keep one of"):
        join_channels(twice, network(channels))


def test_of_one_channel_only_the_first_is_a_channel_and_other_tasks_join_nothing():
    joined, failed = join_channels(inputs("a_0000", "scan_0001", "scan_0002"), network(1))
    assert [each.name for each in joined] == ["a", "scan_0001", "scan_0002"] and failed == []
    wanted = inputs("a_0000", "a_0001")
    assert join_channels(wanted, SimpleNamespace(channels=2)) == (wanted, [])


def test_a_folder_of_nnunet_s_test_images_is_answered_case_by_case(tmp_path, monkeypatch):
    root, generator, truth = raw(tmp_path / "data", test=3), np.random.default_rng(0), {}
    for name in ("case_10", "case_11"):
        first, second = (generator.integers(0, 2, (9, 10, 11)).astype(np.uint8) for _ in range(2))
        truth[name] = first + first * second  # the second channel says which label, where the first has one
        for number, values in enumerate((first, second)):
            path = root / "imagesTs" / f"{name}_{number:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.diag([2.0, 1.0, 1.0, 1.0])), path)
    (root / "imagesTs" / "case_12_0001.nii.gz").unlink()
    found = task(root, window=(0, 1), percentiles=None, normalise="window")
    described = task_from_card(json.loads(json.dumps(found.describe())))  # as a run has it, without the data

    @contextmanager
    def trained(reference):
        card = {"digest": "0" * 64, "answer": "labels"}
        yield SimpleNamespace(run_id="r", card=card, scored=None, network=lambda: (None, described))

    def forward(image: torch.Tensor) -> torch.Tensor:
        label = image[:, 0] + image[:, 0] * image[:, 1]
        return torch.stack([-((label - number) ** 2) for number in range(3)], dim=1)

    monkeypatch.setattr(predict, "open_trained", trained)
    monkeypatch.setattr(predict, "make_forward", lambda network, train: forward)
    result = predict.run("r", [root / "imagesTs"], tmp_path / "out", lambda event: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_10.nii.gz", "case_11.nii.gz"]
    for name, label in truth.items():
        assert np.array_equal(nibabel.nifti1.load(tmp_path / "out" / f"{name}.nii.gz").get_fdata(), label)
    assert [Path(each["path"]).name for each in result["failed"]] == ["case_12_0000.nii.gz"]
