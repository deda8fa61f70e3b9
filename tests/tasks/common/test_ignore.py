"""`ignore`: voxels about which nothing is known count in neither loss, scores, constant answer, crops nor probe."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from support.suite import examples
from support.task_fixtures import brain
from support.tasks import samples

from premed.config.image_processing import Augmentation
from premed.data.check import Check
from premed.data.inspection import Inspection, inspect
from premed.rng import SampleRng
from premed.tasks import msd
from premed.tasks.common import losses
from premed.tasks.common.label_maps import ATLAS
from premed.tasks.common.segmentation import Regions, Segmentation

IGNORE = 3
REGIONS = {"whole": (1, 2), "part": (2,)}


class Volumes(Segmentation):
    dims, roi, classes, ignore = 3, (4, 4, 2), ("background", "a", "b"), IGNORE  # type: ignore[assignment]


class Parts(Regions):
    dims, roi, classes, regions = 3, (4, 4, 2), tuple(REGIONS), REGIONS  # type: ignore[assignment]
    labels, ignore = (0, 1, 2, IGNORE), IGNORE  # type: ignore[assignment]


def drawn(seed: int, share: float, num: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [num, 3, 4, 3, 2] and labels, a share of them to be ignored; of the first sample all of them."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, (num, 4, 3, 2)).astype(np.uint8)
    label[generator.random(label.shape) < share] = IGNORE
    label[0] = IGNORE if share else label[0]
    return torch.from_numpy(generator.normal(0, 2, (num, 3, 4, 3, 2))).float(), torch.from_numpy(label)


# Loss ----------------------------------------------------------------------------------------------------------------


def dice(p: np.ndarray, y: np.ndarray) -> float:
    return 1 - 2 * (p * y).sum() / ((p**2).sum() + (y**2).sum() + 1e-6)


def written_out(logits: np.ndarray, label: np.ndarray) -> float:
    """Dice + cross-entropy, voxel by voxel, in float64."""
    total = 0.0
    for scores, truth in zip(logits.astype(float), label, strict=True):
        known = [place for place in np.ndindex(truth.shape) if truth[place] != IGNORE]
        if not known:
            continue
        p = np.array([np.exp(scores[:, *place]) / np.exp(scores[:, *place]).sum() for place in known])
        y = np.eye(3)[[truth[place] for place in known]]
        total += np.mean([dice(p[:, k], y[:, k]) for k in range(3)]) - np.log((p * y).sum(axis=1)).mean()
    return total / len(label)


def regions_written_out(logits: np.ndarray, label: np.ndarray) -> float:
    total = 0.0
    for scores, truth in zip(logits.astype(float), label, strict=True):
        known = truth != IGNORE
        p, y = 1 / (1 + np.exp(-scores[:, known])), [np.isin(truth[known], values) for values in REGIONS.values()]
        total += np.mean([dice(p[k], y[k]) for k in range(2)]) if known.any() else 0.0
    return total / len(label)


@settings(max_examples=examples(60))
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_the_losses_are_the_formulae_over_the_known_voxels(seed, share):
    logits, label = drawn(seed, share)
    assert Volumes().loss(logits, label).item() == pytest.approx(written_out(logits.numpy(), label.numpy()), rel=2e-5)
    expected = regions_written_out(logits[:, :2].numpy(), label.numpy())
    assert Parts().loss(logits[:, :2], label).item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(("kind", "classes"), [(Volumes, 3), (Parts, 2)])
def test_what_is_ignored_moves_nothing_and_a_step_may_be_divided(kind, classes):
    logits, label = drawn(1, 0.4)
    logits = logits[:, :classes].clone().requires_grad_()
    loss = kind().loss(logits, label)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    ignored = (label == IGNORE)[:, None].expand_as(logits)
    assert (logits.grad[ignored] == 0).all() and (logits.grad[~ignored] != 0).all()
    other = torch.where(ignored, 1e3, logits)
    assert kind().loss(other, label).item() == loss.item()
    alone = [kind().loss(logits[i : i + 1], label[i : i + 1]).item() for i in range(len(label))]
    assert alone[0] == 0 and np.mean(alone) == pytest.approx(loss.item(), rel=1e-6)


def test_without_an_ignored_voxel_the_losses_are_monai_s_and_without_the_label_bit_for_bit():
    from monai.losses import DiceCELoss, DiceLoss

    logits, label = drawn(2, 0.0)
    how: Any = {"squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
    monai = DiceCELoss(to_onehot_y=True, softmax=True, **how)(logits, label[:, None].long())
    assert losses.dice_ce(logits, label) == monai
    assert losses.dice_ce(logits, label, IGNORE).item() == pytest.approx(monai.item(), rel=1e-6)
    truth = torch.stack([label > 0, label == 2, label == 1], dim=1)
    monai = DiceLoss(sigmoid=True, **how)(logits, truth.float())
    assert losses.region_dice(logits, truth) == monai
    assert losses.region_dice(logits, truth, label < 9).item() == pytest.approx(monai.item(), rel=1e-6)


# Scores --------------------------------------------------------------------------------------------------------------


def sparse(root: Path, share: float = 0.5, ignored: int = 2) -> Path:
    """MSD-like: images show the true class of each voxel, 0 or 1; label maps leave a share of the voxels out."""
    generator, entries = np.random.default_rng(3), []
    for number in range(6):
        truth = np.zeros((16, 16, 16), np.uint8)
        truth[3 : 9 + number, 4:12, 5:13] = 1
        label = np.where(generator.random(truth.shape) < share, ignored, truth).astype(np.uint8)
        entries.append({"image": f"imagesTr/c{number}.nii.gz", "label": f"labelsTr/c{number}.nii.gz"})
        for file, voxels in zip(entries[-1].values(), (truth.astype(np.float32), label), strict=True):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), root / file)
    about = {"modality": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "ignore": ignored}, "training": entries}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def read_off(root: Path) -> msd.MSD:
    split = {"train": ("c0", "c1", "c2", "c3"), "val": ("c4",), "test": ("c5",)}
    return brain(root, window=(0, 1), percentiles=None, normalise="window", split=split)


def oracle(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([0.5 - image, image - 0.5], dim=1)


def test_a_perfect_answer_scores_perfectly_and_maps_keep_their_value(tmp_path):
    task = read_off(sparse(tmp_path / "data"))
    assert (task.classes, task.labels, task.ignore, task.regions) == (
        ("background", "organ"),
        (0, 1, 2),
        2,
        {"organ": (1,)},
    )
    (sample,) = test = samples(task, task.split("test"), tmp_path / "cache")
    assert task.summary(task.measure(oracle, test)) == {
        **{"dice/organ": 1.0, "dice": 1.0, "hd95/organ": 0.0, "hd95": 0.0},
        **{"n_missed": 0.0, "n_invented": 0.0, "n_excluded": 0.0},
    }
    assert set(np.unique(sample.prepared.label())) == {0, 1, 2}
    image, label = torch.from_numpy(sample.prepared.image())[None], torch.from_numpy(sample.prepared.label())[None]
    assert task.loss(1e4 * oracle(image), label).item() == pytest.approx(0, abs=1e-6)


def test_scores_are_those_of_the_known_voxels(tmp_path):
    task = read_off(sparse(tmp_path / "data", share=0.3))
    (sample,) = samples(task, task.split("test"), tmp_path / "cache")
    prediction = np.random.default_rng(0).integers(0, 2, (16, 16, 16)).astype(np.uint8)
    assert isinstance(sample.case.label, Path)
    label = np.asarray(nibabel.nifti1.load(sample.case.label).dataobj)
    p, y = (prediction == 1) & (label != 2), label == 1
    row = task.row(sample, prediction)
    assert row["dice/organ"] == pytest.approx(2 * (p & y).sum() / (p.sum() + y.sum())) and row["state/organ"] == "both"

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = np.all([np.roll(padded, step, axis) for axis in range(3) for step in (1, -1)], axis=0)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * [1.0, 2.0, 3.0]

    apart = cdist(surface(p), surface(y))
    expected = max(np.quantile(apart.min(axis=1), 0.95), np.quantile(apart.min(axis=0), 0.95))
    assert row["hd95/organ"] == pytest.approx(expected)
    only_ignored = np.where(label == 2, 1, 0).astype(np.uint8)
    assert task.row(sample, only_ignored)["state/organ"] == "missed"


def test_nothing_but_ignored_voxels_is_in_no_score(tmp_path):
    task = read_off(sparse(tmp_path / "data", share=1.0))
    (row,) = task.measure(oracle, samples(task, task.split("test"), tmp_path / "cache"))
    assert np.isnan(row["dice/organ"]) and row["state/organ"] == "absent"
    assert task.summary([row]) == {"n_missed": 0.0, "n_invented": 0.0, "n_excluded": 1.0}


def test_pictures_show_what_is_scored(tmp_path, monkeypatch):
    task, shown = read_off(sparse(tmp_path / "data")), []
    monkeypatch.setattr("premed.data.figures.overlay", lambda path, cases, names: shown.extend(cases) or path)
    task.pictures(oracle, samples(task, task.split("test"), tmp_path / "cache"), tmp_path)
    (_, _, truth, prediction) = shown[0]
    assert np.array_equal(truth, prediction) and truth.any()


# The constant answer, crops, the probe -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "masks"), [(Volumes, [(0,), (1,), (2,)]), (Parts, [*REGIONS.values()])])
def test_the_atlas_is_the_mean_over_those_that_know(kind, masks):
    maps = np.random.default_rng(5).integers(0, 4, (3, ATLAS, ATLAS, ATLAS)).astype(np.uint8)
    maps[:, 0, 0, 0] = IGNORE
    atlas = kind().atlas(maps)
    for place in [(0, 0, 0), *np.random.default_rng(6).integers(0, ATLAS, (200, 3))]:
        known = [label for label in maps[:, *place] if label != IGNORE] or [0]
        expected = [np.mean([label in values for label in known]) for values in masks]
        assert atlas[:, *place] == pytest.approx(expected)


def test_the_constant_answer_of_alike_cases_is_near_them(tmp_path):
    task = read_off(sparse(tmp_path / "data", share=0.6))
    train, test = (samples(task, task.split(part), tmp_path / "cache") for part in ("train", "test"))
    assert task.summary(task.constant_baseline(train, test))["dice"] > 0.75


def test_crops_are_centred_on_labels_that_are_known(tmp_path):
    root, label = sparse(tmp_path / "data"), np.full((40, 40, 40), 2, np.uint8)
    label[30:34, 5:9, 20:24] = 1
    for folder in ("imagesTr", "labelsTr"):
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / folder / "c0.nii.gz")
    task = brain(root, roi=(8, 8, 8), split={"train": ("c0",)})
    (sample,) = samples(task, task.split("train"), tmp_path / "cache")
    labels = [task.view(sample, Augmentation(positive=0.5), SampleRng(seed))[1] for seed in range(40)]
    assert all(view is not None and (view == 1).any() for view in labels)


def test_a_patch_has_the_shares_of_its_known_voxels_and_one_without_is_unknown():
    label = np.zeros((4, 4, 2), np.uint8)
    label[0, :2], label[1, 0], label[2:, 2:], label[2:, :2] = 1, IGNORE, 2, IGNORE
    sample: Any = SimpleNamespace(prepared=SimpleNamespace(shape=label.shape, label=lambda start, roi: label))
    (shares,) = Volumes().label_fractions(sample, (2, 2, 2))
    np.testing.assert_allclose(shares[:, 0, 0, 0], [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(shares[:, 1, 1, 0], [0, 0, 1])
    assert np.isnan(shares[:, 1, 0, 0]).all() and not np.isnan(shares[:, 0]).any()
    (shares,) = Parts().label_fractions(sample, (2, 2, 2))
    np.testing.assert_allclose(shares[:, 0, 0, 0], [2 / 3, 0])
    assert np.isnan(shares[:, 1, 0, 0]).all()


# The check of the data -----------------------------------------------------------------------------------------------


def test_the_check_counts_classes_without_it_and_names_maps_that_are_ignored_as_a_whole(tmp_path):
    root = sparse(tmp_path / "data")
    (all_of_it,) = root.glob("labelsTr/c4.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((16, 16, 16), 2, np.uint8), np.diag([1.0, 2.0, 3.0, 1.0])), all_of_it)
    check = Check(read_off(root).config, test=True)
    check.open_images(None, lambda done, total: None)
    assert check.class_counts() == {"train": {"organ": 4}, "val": {"organ": 0}, "test": {"organ": 1}}
    about = [finding for finding in check.findings if finding.where == str(all_of_it)]
    assert [(f.severity, f.what) for f in about] == [
        ("note", "is 2 (ignore) everywhere: it counts in neither loss nor scores")
    ]
    assert not [finding for finding in check.findings if finding.severity == "error"]


def test_a_label_beyond_it_is_of_no_class(tmp_path):
    task = read_off(sparse(tmp_path / "data", ignored=2))
    path = next(tmp_path.glob("data/labelsTr/c0.nii.gz"))
    nibabel.save(nibabel.Nifti1Image(np.full((16, 16, 16), 3, np.uint8), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    job = Inspection(0, task.split("train")[0].image, path, task.preprocessing, task.labels, task.ignore)
    (finding,) = inspect(job).findings
    assert finding.what == "holds the label 3 (4096 voxels), which no class has (they are 0 to 2); fix the map"
