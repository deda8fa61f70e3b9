"""nnU-Net's labels: regions by name and number, `ignore`, and the label maps that are painted of regions."""

import json

import nibabel
import numpy as np
import pytest
import torch
from support.nnunet import ABOUT, BRATS, change, raw, task
from support.tasks import refused, samples

from premed.data.datamodule import DataModule
from premed.data.phantoms.writers import write_nnunet
from premed.inference.load import task_from_card
from premed.tasks.common.segmentation import Regions


def test_lists_of_labels_are_regions_by_their_names_and_labels(tmp_path):
    found = task(raw(tmp_path, **BRATS))
    assert isinstance(found, Regions) and found.classes == ("whole_tumor", "core", "enhancing")
    assert found.regions == {"whole_tumor": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (found.labels, found.ignore, found.exclusive) == ((0, 1, 2, 3), None, False)


def test_a_list_of_one_label_is_a_label(tmp_path):
    found = task(raw(tmp_path, labels={"background": 0, "a": [1], "b": 2}))
    assert not isinstance(found, Regions) and found.classes == ("background", "a", "b")


def test_ignore_is_no_class_of_labels_nor_of_regions(tmp_path):
    found = task(raw(tmp_path / "labels", labels=ABOUT["labels"] | {"ignore": 3}))
    assert (found.classes, found.labels, found.ignore) == (("background", "PZ", "TZ"), (0, 1, 2, 3), 3)
    of_regions = task(raw(tmp_path / "regions", **BRATS | {"labels": BRATS["labels"] | {"ignore": 4}}))
    assert (of_regions.labels, of_regions.ignore) == ((0, 1, 2, 3, 4), 4)
    assert of_regions.regions == {"whole_tumor": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


PARTED = {"labels": {"background": 0, "left": [1, 3], "right": [2, 3]}}
"""Neither region lies in the other."""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (BRATS, [0, 1, 2, 3, 3]),
        (BRATS | {"regions_class_order": [2, 3, 3]}, [0, 2, 3, 3, 3]),
        (BRATS | {"regions_class_order": None}, [0, 1, 2, 3, 3]),
        (PARTED | {"regions_class_order": [1, 2]}, [0, 1, 2]),
        (PARTED, None),
    ],
)
def test_a_predicted_label_map_is_painted_in_the_order_of_the_file(tmp_path, fields, expected):
    found = task(raw(tmp_path, **fields))
    voxels = {3: [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], 2: [[0, 1, 1], [0, 0, 1]]}
    masks = np.array(voxels[len(found.classes)], bool)[..., None, None]
    described = task_from_card(json.loads(json.dumps(found.describe())))  # as `predict` has it, without the data
    for painter in (found, described):
        painted = painter.label_map(masks)  # type: ignore[attr-defined]
        assert (None if painted is None else painted.ravel().tolist()) == expected


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([1, 2], "`regions_class_order` must list one label for each of whole_tumor, core, enhancing"),
        ("123", "`regions_class_order` must list one label for each"),
        ([3, 1, 2], "`regions_class_order` paints core with 1, which it does not unite"),
    ],
)
def test_a_wrong_order_of_the_regions_is_refused(tmp_path, order, words):
    refused(lambda: task(raw(tmp_path, **BRATS | {"regions_class_order": order})), "dataset.json", words)


def test_a_perfect_answer_of_regions_scores_perfectly_and_trains_to_nothing(tmp_path):
    root = raw(tmp_path, channels=1, test=0, channel_names={"0": "MRI"}, **BRATS)
    label = np.random.default_rng(0).integers(0, 4, (16, 16, 16)).astype(np.uint8)
    for file in ("imagesTr/case_00_0000", "labelsTr/case_00"):
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / f"{file}.nii.gz")
    found = task(root, window=(0, 3), percentiles=None, normalise="window", split={"test": ("case_00",)})

    def oracle(image: torch.Tensor) -> torch.Tensor:
        value = (3 * image[:, 0]).round()
        return torch.stack([torch.isin(value, torch.tensor(r)) for r in found.regions.values()], dim=1) * 200.0 - 100

    (sample,) = samples(found, found.split("test"), tmp_path / "cache")
    (row,) = found.measure(oracle, [sample])
    assert [row[f"dice/{name}"] for name in found.classes] == [1.0] * 3
    image, truth = (torch.from_numpy(each)[None] for each in (sample.prepared.image(), sample.prepared.label()))
    assert found.loss(oracle(image), truth).item() == pytest.approx(0, abs=1e-6)


def test_another_meaning_of_the_same_names_is_another_data_set_for_fine_tuning_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    root = write_nnunet(tmp_path / "data", 7, seed=1, shape=(12, 14, 12))
    seen = []
    for more in ({"whole": [1, 2], "part": 2}, {"whole": [1, 2], "part": 1}, {"whole": [1, 2], "part": 1, "ignore": 3}):
        change(root, labels={"background": 0} | more)
        seen.append([DataModule(task(root)).fingerprint(kind) for kind in ("pretrain", "finetune", "test")])
    before, after, ignoring = seen
    assert before[0] == after[0] == ignoring[0]
    assert len({before[1], after[1], ignoring[1]}) == len({before[2], after[2], ignoring[2]}) == 3
