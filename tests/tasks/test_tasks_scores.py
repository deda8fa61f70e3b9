"""What tasks make of images and answers: views, losses, scores, pictures."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from support.task_fixtures import brain, chest
from support.tasks import names, samples

from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case, Sample
from premed.data.phantoms.writers import save_nifti
from premed.rng import SampleRng
from premed.tasks.common.classification import of_each_class

pytest_plugins = ["support.task_fixtures"]


# Views ---------------------------------------------------------------------------------------------------------------


def test_views_are_pure_and_carry_the_label(nih, decathlon, tmp_path):
    augment = Augmentation(flip=0.5, positive=0.5)
    for task, shape in ((chest(nih, size=24), (1, 24, 24)), (brain(decathlon), (1, 16, 16, 16))):
        sample = samples(task, task.split("train")[:1], tmp_path)[0]
        (image, label), (again, _) = (task.view(sample, augment, SampleRng(7)) for _ in range(2))
        assert image.shape == shape and image.dtype == np.float32 and np.array_equal(image, again)
        assert label is not None and label.shape == ((14,) if task.dims == 2 else shape[1:])
        blind = samples(task, task.images()[:1], tmp_path)[0]
        assert task.view(blind, Augmentation(), SampleRng(7))[1] is None
        assert all(tile.shape == shape for tile in task.tiles(blind))


# Loss ----------------------------------------------------------------------------------------------------------------


def test_the_classification_loss_is_the_mean_cross_entropy_of_the_known_labels(nih):
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0]], requires_grad=True)
    label = torch.tensor([[1.0, torch.nan, 0.0], [torch.nan, torch.nan, torch.nan]])
    loss = chest(nih).loss(logits, label)
    known = -np.log(1 / (1 + np.exp(-0.5))) - np.log(1 - 1 / (1 + np.exp(-2.0)))
    assert loss.item() == pytest.approx(known / 2 / 2)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[label.isnan()] == 0).all()


def test_the_segmentation_loss_is_monai_s_dice_and_cross_entropy(decathlon):
    from monai.losses.dice import DiceCELoss

    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 6, 6, 6), torch.randint(0, 3, (2, 6, 6, 6), dtype=torch.uint8)
    settings = {"to_onehot_y": True, "softmax": True, "squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
    monai = DiceCELoss(**settings)(logits, label[:, None].long())
    assert brain(decathlon).loss(logits, label).item() == pytest.approx(monai.item(), rel=1e-6)


def test_the_segmentation_loss_is_dice_plus_cross_entropy_written_out(decathlon):
    torch.manual_seed(1)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    p, y = logits.softmax(1), torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    overlap, total = (p * y).sum((2, 3, 4)), (p**2).sum((2, 3, 4)) + (y**2).sum((2, 3, 4))
    written_out = (1 - 2 * overlap / (total + 1e-6)).mean() - (y * p.log()).sum(1).mean()
    assert brain(decathlon).loss(logits, label).item() == pytest.approx(written_out.item(), rel=1e-5)


# Scores --------------------------------------------------------------------------------------------------------------


def labelled_volumes(folder: Path, axes: str, spacing: tuple[float, float, float]) -> Path:
    """MSD-like, with images whose values are their labels', so that an answer can be read off the image."""
    entries = []
    for number in range(4):
        label = np.zeros((24, 28, 20), np.uint8)
        label[4 + number : 14, 6:16, 5:12], label[14:20, 8:20, 6:14] = 1, 2
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            voxels = label if part == "labelsTr" else label.astype(np.float32)
            save_nifti(voxels, np.diag([*spacing, 1.0]), axes, folder / part / f"case_{number}.nii.gz")
        entries.append({"image": f"imagesTr/case_{number}.nii.gz", "label": f"labelsTr/case_{number}.nii.gz"})
    labels = {"0": "background", "1": "one", "2": "two"}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels, "training": entries}))
    return folder


def oracle(image: torch.Tensor) -> torch.Tensor:
    """The image is label / 2: logits that are highest for the class whose value is nearest."""
    return torch.cat([-((2 * image - label) ** 2) for label in range(3)], dim=1)


def read_off(root: Path, **settings):
    every = tuple(f"case_{i}" for i in range(4))
    split = {"train": every[:2], "val": every[2:3], "test": every[3:]}
    scale = {"window": (0, 2), "percentiles": None, "normalise": "window", "split": split}
    return brain(root, **scale, **settings)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
def test_a_perfect_answer_scores_perfectly_on_the_image_s_own_grid(tmp_path, axes):
    task = read_off(labelled_volumes(tmp_path / "data", axes, (1.0, 1.3, 0.8)))
    rows = task.measure(oracle, samples(task, task.split("test"), tmp_path / "cache"))
    assert task.summary(rows) == {
        **{"dice/one": 1.0, "dice/two": 1.0, "dice": 1.0, "hd95/one": 0.0, "hd95/two": 0.0, "hd95": 0.0},
        **{"n_missed": 0.0, "n_invented": 0.0, "n_excluded": 0.0},
    }
    assert rows[0]["case"] == rows[0]["patient"] == "case_3"


def test_an_answer_given_on_another_spacing_is_scored_on_the_image_s_own_grid(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "LPS", (1.5, 1.5, 1.5)), spacing=(0.75, 0.75, 0.75))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    assert task.predict(oracle, sample).shape == (24, 28, 20) != sample.prepared.shape
    summary = task.summary(task.measure(oracle, [sample]))
    assert summary["dice"] > 0.97 and summary["hd95"] <= 1.5


def test_hausdorff_distances_are_in_millimetres_along_the_file_s_own_axes(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "ASR", (2.0, 3.0, 5.0)))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    assert isinstance(sample.case.label, Path)
    truth = nib.nifti1.load(sample.case.label)
    axis = int(np.argmax(np.abs(truth.affine[0, :3])))  # the file's left-right axis, 2 mm apart
    row = task.row(sample, np.roll(np.asarray(truth.dataobj), 2, axis))
    assert row["hd95/one"] == pytest.approx(4.0)


def test_an_invented_and_a_missed_region_are_counted_and_cost_the_diagonal(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "RAS", (1.0, 1.0, 1.0)))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    summary = task.summary([task.row(sample, np.zeros((24, 28, 20), np.uint8))])
    assert (summary["dice"], summary["n_missed"]) == (0.0, 2.0)
    assert summary["hd95"] == pytest.approx(np.sqrt(24**2 + 28**2 + 20**2))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR"])
def test_the_constant_answer_of_alike_cases_is_near_them_whatever_way_the_files_lie(tmp_path, axes):
    task = read_off(labelled_volumes(tmp_path / "data", axes, (1.0, 1.0, 1.0)))
    train, test = (samples(task, task.split(part), tmp_path / "cache") for part in ("train", "test"))
    assert 0.85 < task.summary(task.constant_baseline(train, test))["dice"] < 1


def test_the_constant_answer_does_not_depend_on_how_the_files_lie(tmp_path):
    """Files in mixed orientations describe the same anatomy as files in one."""
    scores = []
    for axes in (["RAS"] * 4, ["RAS", "LPS", "ASR", "PIL"]):
        root = tmp_path / "".join(axes)
        for number, way in enumerate(axes):
            labelled_volumes(root / way, way, (1.0, 1.0, 1.0))
            for part in ("imagesTr", "labelsTr"):
                (root / part).mkdir(exist_ok=True)
                shutil.copy(root / way / part / f"case_{number}.nii.gz", root / part)
        shutil.copy(root / axes[0] / "dataset.json", root)
        task = read_off(root)
        train, test = (samples(task, task.split(part), tmp_path / "cache") for part in ("train", "test"))
        scores.append(task.summary(task.constant_baseline(train, test))["dice"])
    assert scores[0] == pytest.approx(scores[1])


def test_the_constant_answer_of_a_classification_has_an_auc_of_one_half(nih, tmp_path):
    task = chest(nih)
    train, test = (samples(task, task.split(part), tmp_path) for part in ("train", "test"))
    rows = task.constant_baseline(train, test)
    assert task.summary(rows)["mauc"] == 0.5
    assert rows[0]["p/Effusion"] == np.mean([sample.case.label[2] for sample in train])


def test_the_constant_answer_leaves_unknown_labels_out(nih, tmp_path):
    task = chest(nih)
    train = samples(task, task.split("train")[:3], tmp_path)
    labels = [(float(i == 0), float("nan")) + (0.0,) * 12 for i in range(2)] + [(float("nan"),) * 14]
    result = [Sample(Case(s.case.name, "p", s.case.image, y), s.prepared) for s, y in zip(train, labels, strict=True)]
    row = task.constant_baseline(result, result[:1])[0]
    assert (row["p/Atelectasis"], row["p/Cardiomegaly"]) == (0.5, 0.0)


def test_a_classification_scores_every_image_once_and_in_order(nih, tmp_path):
    task = chest(nih)
    test = samples(task, task.split("test"), tmp_path)
    rows = task.measure(lambda image: image.mean(dim=(1, 2, 3))[:, None].expand(-1, 14), test)
    assert [row["case"] for row in rows] == names(task.split("test"))
    assert rows[1]["p/Mass"] == pytest.approx(1 / (1 + np.exp(-test[1].prepared.image().mean())), rel=1e-4)
    assert [row["y/Hernia"] for row in rows] == [case.label[13] for case in task.split("test")]


def test_a_pure_reader_of_the_labels_scores_one_and_undefined_classes_are_counted(nih, tmp_path):
    task = chest(nih)
    test = samples(task, task.split("test"), tmp_path)
    rows = [task.row(sample, sample.case.label) for sample in test]
    summary = task.summary(rows)
    undefined = [name for name in task.classes if len({row[f"y/{name}"] for row in rows}) == 1]
    assert summary["mauc"] == 1.0 and summary["n_undefined"] == len(undefined)
    assert not any(f"auc/{name}" in summary for name in undefined)


def test_pictures_are_drawn_of_both_kinds(nih, tmp_path):
    task = chest(nih)
    some = samples(task, task.split("val")[:3], tmp_path / "cache")
    (path,) = task.pictures(lambda image: torch.zeros(len(image), 14), some, tmp_path)
    assert path.stat().st_size > 1000
    volumes = read_off(labelled_volumes(tmp_path / "data", "LPS", (1.0, 1.0, 1.0)))
    (path,) = volumes.pictures(oracle, samples(volumes, volumes.split("val"), tmp_path / "cache"), tmp_path)
    assert path.stat().st_size > 1000


def test_the_pictures_are_those_of_each_class(nih, tmp_path, monkeypatch):
    task, shown = chest(nih), []
    monkeypatch.setattr("premed.data.figures.probabilities", lambda path, cases: shown.extend(cases) or path)
    some = samples(task, task.split("train"), tmp_path / "cache")
    task.pictures(lambda image: torch.zeros(len(image), 14), some, tmp_path)
    expected = of_each_class(some, 12)
    by_labels = sorted(some, key=lambda sample: -np.nansum(np.array(sample.case.label, float)))[:12]
    assert [case for case, *_ in shown] == names([sample.case for sample in expected])
    assert names([sample.case for sample in by_labels]) != names([sample.case for sample in expected])


def test_pictures_show_each_class_though_a_table_lists_them_one_after_another():
    def picked(labels, most):
        found = of_each_class([SimpleNamespace(case=SimpleNamespace(label=label)) for label in labels], most)
        return [sample.case.label for sample in found]

    a, b, c = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    assert picked([a] * 20 + [b] * 3 + [c] * 2, 12) == [a, b, c, a, b, c, a, b, a, a, a, a]
    both, none, unknown = (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (math.nan, 0.0, 1.0)
    assert picked([none, unknown, a, both], 3) == [both, unknown, a] and len(picked([none, none], 12)) == 2


def test_the_recipes_are_the_papers(nih, decathlon):
    assert chest(nih, size=224, stored=256).preprocessing == Preprocessing(
        dims=2, size=(256, 256), equalize=True, normalise="grey", orientation="RAS"
    )
    assert brain(decathlon).preprocessing.orientation == "RAS"
