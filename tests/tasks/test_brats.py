"""BraTS: five folds, regions that lie in each other, and what a check says of the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from premed.config.image_processing import Preprocessing
from premed.contracts import Case, Sample
from premed.data.cache import Cache
from premed.data.phantoms.brain import write_brats
from premed.errors import UserError
from premed.tasks import brats

PARTS = ("train", "val", "test")
ABOUT = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


@pytest.fixture(scope="module")
def brains(tmp_path_factory) -> Path:
    return write_brats(tmp_path_factory.mktemp("brats"), 7, seed=2, num_unlabelled=1, shape=(40, 40, 28))


@pytest.fixture
def copied(brains, tmp_path):
    return Path(shutil.copytree(brains, tmp_path / "copy"))


def listed(root: Path, num: int, *, there: bool = False, **fields) -> Path:
    """dataset.json of so many labelled cases, and empty files if asked for: a split opens none."""
    entries = [{"image": f"imagesTr/B_{i:03d}.nii.gz", "label": f"labelsTr/B_{i:03d}.nii.gz"} for i in range(num)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(ABOUT | {"training": entries} | fields))
    for entry in entries if there else ():
        for file in entry.values():
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).touch()
    return root


def task(root: Path, **settings) -> brats.Brats:
    return brats.build(brats.Config(root=root, **{"roi": (16, 16, 16), "spacing": (6.0, 6.0, 6.0)} | settings))


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def samples(found, cases: list[Case], cache: Path) -> list[Sample]:
    return [Sample(*pair) for pair in zip(cases, Cache(cache).prepare(cases, found.preprocessing), strict=True)]


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def findings_of(found: brats.Brats, **settings) -> list[tuple[str, str, str]]:
    return [(f.severity, f.where.removeprefix(f"{found.root}/"), f.what) for f in found.check(**settings)]


# Parts ---------------------------------------------------------------------------------------------------------------


def test_the_folds_are_as_large_as_monai_s_and_test_each_case_once(tmp_path):
    from monai.data.utils import partition_dataset

    root = listed(tmp_path, 484)
    folds = [task(root, fold=fold).deal_parts() for fold in range(task(root).num_folds)]
    assert [len(fold["test"]) for fold in folds] == [
        len(part) for part in partition_dataset(range(484), num_partitions=5)
    ]
    assert sorted(name for fold in folds for name in fold["test"]) == sorted(
        folds[0]["train"] + folds[0]["val"] + folds[0]["test"]
    )
    assert all((len(fold["val"]), len({*fold["train"], *fold["val"], *fold["test"]})) == (39, 484) for fold in folds)


def test_the_folds_are_drawn_by_the_split_seed(tmp_path):
    root = listed(tmp_path, 30)
    dealt = [task(root, split_seed=seed).deal_parts() for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] and dealt[0]["test"] != dealt[2]["test"]


def test_parts_are_disjoint_and_pretraining_is_blind(brains):
    found = task(brains)
    parts = {part: set(names(found.split(part))) for part in PARTS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 7 and all(parts.values())
    assert set(names(found.images())) == parts["train"] and not any(case.label for case in found.images())
    assert set(names(task(brains, test_images=True).images())) == {*parts["train"], "BRATS_008"}


def test_partial_leaves_out_what_is_not_there_and_moves_nobody(copied):
    before = {part: names(task(copied).split(part)) for part in PARTS}
    gone = before["train"][0]
    (copied / f"labelsTr/{gone}.nii.gz").unlink()
    refused(lambda: task(copied).split("train"), f"labelsTr/{gone}.nii.gz: is listed and missing", "task.partial=true")
    after = {part: names(task(copied, partial=True).split(part)) for part in PARTS}
    assert after == before | {"train": before["train"][1:]}
    assert [severity for severity, _, _ in findings_of(task(copied, partial=True))] == ["note"]


def test_a_listed_split_takes_the_folds_place(brains):
    split = {"train": ("BRATS_003",), "val": ("BRATS_001",), "test": ("BRATS_002",)}
    assert {part: tuple(names(task(brains, split=split).split(part))) for part in PARTS} == split


def test_the_real_brain_without_a_label_serves_pretraining_only(real, tmp_path):
    found = brats.build(brats.Config(root=real("Task01_BrainTumour"), crop_foreground=True))
    assert names(found.images()) == ["BRATS_001"]
    refused(lambda: found.split("train"), "dataset.json", "no entry has a label")
    (where, what), *_ = [(where, what) for _, where, what in findings_of(found)]
    assert where.endswith("BRATS_001.nii.gz") and what == "has no label; it serves pre-training only"
    (sample,) = samples(found, found.images(), tmp_path)
    crop = sample.prepared.image((10, 30, 10), (96, 96, 96))
    inside = crop != 0
    assert crop.shape == (4, 96, 96, 96) and np.isfinite(crop).all() and inside.mean() > 0.5
    whole = sample.prepared.image()
    assert [channel[channel != 0].mean() for channel in whole] == pytest.approx([0] * 4, abs=0.01)


def test_the_recipe_is_the_paper_s(tmp_path):
    found = brats.build(brats.Config(root=listed(tmp_path, 5)))
    assert found.preprocessing == Preprocessing(dims=3, channels=4, spacing=(1, 1, 1), normalise="zscore_nonzero")
    assert (found.roi, found.channels, found.score) == ((128, 128, 128), 4, "dice")


# What is wrong -------------------------------------------------------------------------------------------------------


def about(**fields):
    def change(root: Path) -> None:
        listed(root, 6, there=True, **fields)

    return change


def entries(*more, skip: int = 0):
    known = [{"image": f"imagesTr/B_{i:03d}.nii.gz", "label": f"labelsTr/B_{i:03d}.nii.gz"} for i in range(6 - skip)]
    return about(training=[*known, *more])


SPOILT = {
    "no image": (lambda r: (r / "imagesTr/B_002.nii.gz").unlink(), ("imagesTr/B_002.nii.gz", "is listed and missing")),
    "no label": (lambda r: (r / "labelsTr/B_002.nii.gz").unlink(), ("labelsTr/B_002.nii.gz", "is listed and missing")),
    "twice": (entries({"image": "imagesTr/B_000.nii.gz"}), ("dataset.json", "B_000 is listed twice")),
    "no name": (entries({"label": "x"}), ("dataset.json", "names no image")),
    "outside": (entries({"image": "../x.nii.gz"}), ("dataset.json", "../x.nii.gz leads out of the folder")),
    "label outside": (
        entries({"image": "x.nii.gz", "label": "/x.nii.gz"}),
        ("dataset.json", "/x.nii.gz leads out of the folder"),
    ),
    "no name of a file": (entries({"image": "a\0b"}), ("dataset.json", r"a\x00b is not a valid file name")),
    "no list": (about(test={"a": 1}), ("dataset.json", "`test` must be a list")),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_check_says_by_file_what_is_wrong_and_a_split_refuses_it(tmp_path, what):
    spoil, (where, words) = SPOILT[what]
    root = listed(tmp_path, 6, there=True)
    assert findings_of(task(root)) == []
    spoil(root)
    ((severity, place, findings),) = findings_of(task(root))
    assert (severity, place) == ("error", where) and words in findings
    with pytest.raises(UserError, match=where):
        for part in PARTS:
            task(root).split(part)


NOT_TASK01 = {
    "swapped": ({"labels": {**ABOUT["labels"], "2": "enhancing tumour", "3": "non-enhancing tumor"}}, "1 edema, 2 non"),
    "BraTS 18": ({"labels": {"0": "background", "1": "necrosis", "2": "edema", "3": "enhancing"}}, "1 edema, 2 non"),
    "no enhancing": ({"labels": {**ABOUT["labels"], "3": "non-enhancing too"}}, "3 enhancing tumour"),
    "one channel": ({"modality": {"0": "FLAIR"}}, "`modality` must be Task01's four"),
    "no labels": ({"labels": None}, "`labels` must number 0 (background)"),
    "no channels": ({"modality": "MRI"}, "`modality` must name each channel"),
}


@pytest.mark.parametrize("what", NOT_TASK01)
def test_labels_or_channels_that_mean_something_else_are_refused(tmp_path, what):
    fields, words = NOT_TASK01[what]
    refused(lambda: task(listed(tmp_path, 6, **fields)).split("train"), "dataset.json", words)


def test_too_few_cases_for_a_fold_are_refused_with_the_mend(tmp_path):
    root = listed(tmp_path, 3, there=True)
    refused(lambda: task(root, fold=4).split("test"), "3 labelled cases leave none", "task.split")


def test_a_check_without_the_test_part_leaves_its_files_alone(tmp_path):
    root = listed(tmp_path, 6, there=True)
    (root / f"imagesTr/{task(root).deal_parts()['test'][0]}.nii.gz").unlink()
    assert findings_of(task(root), test=False) == [] and len(findings_of(task(root))) == 1


# Regions -------------------------------------------------------------------------------------------------------------


def test_enhancing_tumour_is_label_3_and_the_reference_s_error_can_be_asked_for(brains):
    assert task(brains).classes == ("TC", "WT", "ET")
    assert task(brains).regions == {"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)}
    assert task(brains, legacy_et_label2=True).regions == {"TC": (2, 3), "WT": (1, 2, 3), "ET": (2,)}


def test_the_loss_is_monai_s_dice_of_sigmoids(brains):
    from monai.losses.dice import DiceLoss

    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 6, 6, 6), torch.randint(0, 4, (2, 6, 6, 6), dtype=torch.uint8)
    truth = torch.stack([label >= 2, label >= 1, label == 3], dim=1).float()
    monai = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)(logits, truth)
    assert task(brains).loss(logits, label).item() == pytest.approx(monai.item(), rel=1e-6)


def test_the_loss_is_dice_written_out(brains):
    torch.manual_seed(1)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 4, (2, 4, 4, 4), dtype=torch.uint8)
    p, y = logits.sigmoid(), torch.stack([label >= 2, label >= 1, label == 3], dim=1).float()
    overlap, total = (p * y).sum((2, 3, 4)), (p**2).sum((2, 3, 4)) + (y**2).sum((2, 3, 4))
    assert task(brains).loss(logits, label).item() == pytest.approx((1 - 2 * overlap / (total + 1e-6)).mean().item())


@pytest.fixture
def sample(brains, tmp_path) -> tuple[brats.Brats, Sample]:
    """A task and a case with all three labels."""
    found = task(brains, spacing=(3.0, 3.0, 2.5))
    every = samples(found, [case for part in PARTS for case in found.split(part)], tmp_path / "cache")
    return found, next(sample for sample in every if sample.prepared.labels_present == (1, 2, 3))


def answering(found: brats.Brats, scores: np.ndarray):
    """The task with a network that answers so."""
    found.logits = lambda forward, sample: scores  # type: ignore[method-assign]
    return found


def test_the_cached_label_map_holds_whole_numbers(sample):
    _, one = sample
    assert one.prepared.label().dtype == np.uint8 and set(np.unique(one.prepared.label())) == {0, 1, 2, 3}


def test_each_region_is_where_its_own_sigmoid_is_above_one_half(sample):
    found, one = sample
    scores = np.full((3, *one.prepared.shape), -3.0, np.float32)
    scores[0, 8:18, 8:18, 8:18], scores[2, 12:24, 12:24, 12:24] = 2.0, 0.1  # a core without a whole tumour around it
    masks = found.masks(answering(found, scores).predict(None, one))
    assert masks["TC"].shape == one.prepared.native_shape and masks["TC"].dtype == bool
    assert masks["TC"].any() and masks["ET"].any() and not masks["WT"].any()
    assert (masks["TC"] & masks["ET"]).any() and (masks["ET"] & ~masks["TC"]).any()


def truth_of(one: Sample) -> np.ndarray:
    """Scores that are right about every voxel of the prepared grid."""
    label = one.prepared.label()
    return np.stack([label >= 2, label >= 1, label == 3]).astype(np.float32) * 8 - 4


def test_a_right_answer_scores_well_and_the_reference_s_et_is_another(sample):
    found, one = sample
    (row,) = answering(found, truth_of(one)).measure(None, [one])
    assert min(row[f"dice/{name}"] for name in ("TC", "WT", "ET")) > 0.9
    assert found.summary([row])["dice"] == pytest.approx(np.mean([row[f"dice/{name}"] for name in ("TC", "WT", "ET")]))
    legacy = answering(task(found.root, spacing=(3.0, 3.0, 2.5), legacy_et_label2=True), truth_of(one))
    (other,) = legacy.measure(None, [one])
    assert [other[f"dice/{name}"] == row[f"dice/{name}"] for name in ("TC", "WT", "ET")] == [True, True, False]


def test_the_constant_answer_of_alike_cases_is_near_them(brains, tmp_path):
    found = task(brains)
    (one,) = samples(found, found.split("test")[:1], tmp_path)
    summary = found.summary(found.constant_baseline([one, one], [one]))
    assert 0.5 < summary["dice"] < 1 and summary["n_missed"] == 0
    others = samples(found, found.split("train"), tmp_path)
    assert found.summary(found.constant_baseline(others, [one]))["dice"] < summary["dice"]


def test_pictures_paint_the_regions_inside_each_other(sample, tmp_path):
    found, one = sample
    label = one.prepared.label()
    painted = found.paint(found.region_masks(label))
    assert {(int(a), int(b)) for a, b in zip(label.ravel(), painted.ravel(), strict=True)} == {
        (0, 0),
        (1, 2),
        (2, 1),
        (3, 3),
    }
    (path,) = answering(found, truth_of(one)).pictures(None, [one], tmp_path)
    assert path.stat().st_size > 1000


def test_crops_are_led_by_any_tumour_label(sample):
    from premed.config.image_processing import Augmentation
    from premed.rng import SampleRng

    found, one = sample
    for seed in range(8):
        image, label = found.view(one, Augmentation(positive=1.0), SampleRng(seed))
        assert image.shape == (4, 16, 16, 16) and label.any()
