"""BTCV: TransUNet's split, folders as they come, what a check says of them, and the two sets of organs."""

from pathlib import Path

import numpy as np
import pytest

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data.cache import Cache
from premed.data.splits import carve_val
from premed.errors import UserError
from premed.tasks import btcv

PARTS = ("train", "val", "test")
TRAINING = [f"{n:04d}" for n in (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)]
TESTING = [f"{n:04d}" for n in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)]


def laid_out(root: Path, numbers, folder: str = "", labels=None) -> Path:
    """Empty files under the right names: a split opens none."""
    for kind, some in (("img", numbers), ("label", numbers if labels is None else labels)):
        (root / folder / kind).mkdir(parents=True, exist_ok=True)
        for number in some:
            (root / folder / kind / f"{kind}{number}.nii.gz").touch()
    return root


def task(root: Path, **settings) -> btcv.BTCV:
    return btcv.build(btcv.Config(root=root, **settings))


def numbers(cases: list[Case]) -> list[str]:
    return [case.name.removeprefix("img") for case in cases]


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def findings_of(task: btcv.BTCV, **settings) -> list[tuple[str, str, str]]:
    """(severity, place below the root, what)"""
    return [(f.severity, f.where.removeprefix(f"{task.root}/"), f.what) for f in task.check(**settings)]


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "Training"])
def test_the_parts_are_transunet_s_with_val_carved_from_its_training_cases(tmp_path, folder):
    found = task(laid_out(tmp_path, TRAINING + TESTING, folder))
    parts = {part: numbers(found.split(part)) for part in PARTS}
    assert parts["test"] == TESTING
    assert sorted(parts["train"] + parts["val"]) == TRAINING and len(parts["val"]) == 3
    assert numbers(found.images()) == parts["train"] and not any(case.label for case in found.images())
    assert list(found.check()) == []


def test_val_is_drawn_by_the_seed_and_its_share_is_documented(tmp_path):
    root = laid_out(tmp_path, TRAINING + TESTING)
    drawn = [numbers(task(root, split_seed=seed).split("val")) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(task(root, val_share=0.5).split("val")) == 9


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_carved_val_leaves_a_training_case_and_takes_one_if_there_are_two(share):
    names = ["a", "b", "c", "d"]
    for there in (names, ["b", "d"]):
        train, val = carve_val(names, {name: Case(name, name, ()) for name in there}, share, of=7)
        assert train and val and sorted(train + val) == there
    assert carve_val(names, {"c": Case("c", "c", ())}, share, of=7) == (["c"], [])
    assert carve_val(names, {}, share, of=7) == ([], [])


def test_what_is_missing_is_named_and_partial_leaves_it_out(tmp_path):
    there = [number for number in TRAINING + TESTING if number not in ("0007", "0022")]
    root = laid_out(tmp_path, there)
    refused(lambda: task(root).split("train"), "img/img0007.nii.gz: is missing", "task.partial=true")
    refused(lambda: task(root).split("test"), "img/img0022.nii.gz: is missing")
    partial = task(root, partial=True)
    assert numbers(partial.split("test")) == [n for n in TESTING if n != "0022"]
    assert sorted(numbers(partial.split("train") + partial.split("val"))) == [n for n in TRAINING if n != "0007"]
    whole = task(laid_out(tmp_path / "whole", TRAINING + TESTING))
    assert set(numbers(partial.split("val"))) & set(numbers(whole.split("val")))  # one more case moves little
    findings = findings_of(partial)
    assert {severity for severity, _, _ in findings} == {"note"}
    assert [where for _, where, _ in findings] == ["img/img0007.nii.gz", "img/img0022.nii.gz"]


def test_cases_of_one_s_own_are_listed(tmp_path):
    root = laid_out(tmp_path, ["0101", "0102", "0103", "0104"], labels=["0101", "0102", "0103"])
    refused(lambda: task(root, partial=True).split("train"), "none of TransUNet's cases", "task.split")
    own = task(root, split={"train": ("img0102",), "val": ("img0101",), "test": ("img0103",)})
    assert [numbers(own.split(part)) for part in PARTS] == [["0102"], ["0101"], ["0103"]]
    assert numbers(own.images()) == ["0102", "0104"]
    assert findings_of(own) == [("note", "img/img0104.nii.gz", "has no label; it serves pre-training only")]


SPLITS = {
    "two parts": ({"train": ("img0005",), "val": ("img0005",)}, ["task.split: img0005 is in two parts"]),
    "unknown": ({"train": ("img0099",)}, ["task.split.train: img0099 is not a labelled case"]),
    "empty": ({"val": ("img0005",)}, ["task.split.train is empty"]),
}


@pytest.mark.parametrize("what", SPLITS)
def test_a_wrong_list_is_refused(tmp_path, what):
    split, words = SPLITS[what]
    refused(lambda: task(laid_out(tmp_path, ["0005"]), split=split).split("train"), *words)


def test_one_real_case_alone_can_be_listed_but_not_split(real):
    root = real("btcv")
    refused(lambda: task(root).split("train"), "img0006.nii.gz: is missing")
    refused(lambda: task(root, partial=True).split("train"), "img0005 alone cannot be both train and val")
    assert (
        sum(severity == "error" for severity, _, _ in findings_of(task(root))) == 18
    )  # 17, and all of the test part at once
    own = task(root, split={"train": ("img0005",)})
    assert numbers(own.split("train")) == numbers(own.images()) == ["0005"]
    refused(lambda: own.split("val"), "task.split.val is empty")
    assert findings_of(own) == []


def test_pretraining_sees_no_image_of_another_part_that_lost_its_label(tmp_path):
    root = laid_out(tmp_path, TRAINING + TESTING + ["0050"], labels=TRAINING[1:] + TESTING[1:])
    laid_out(root, ["0061"], "Testing", labels=[])
    found = task(root, partial=True)
    assert set(numbers(found.images())) == {*numbers(found.split("train")), "0050"}
    assert "0061" in numbers(task(root, partial=True, test_images=True).images())


def test_unlabelled_images_alone_serve_pretraining(tmp_path):
    root = laid_out(tmp_path, ["0061", "0062"], labels=[])
    assert numbers(task(root).images()) == ["0061", "0062"]
    refused(lambda: task(laid_out(tmp_path / "x", [])).images(), "none of TransUNet's cases")


# What a check says ---------------------------------------------------------------------------------------------------


def spoilt(root: Path) -> dict[str, tuple]:
    """What is done to a whole folder, and what is then said."""
    return {
        "no image": (
            lambda: (root / "img/img0005.nii.gz").unlink(),
            ("error", "img/img0005.nii.gz", "is missing: get it, or set task.partial=true"),
        ),
        "no label": (
            lambda: (root / "label/label0001.nii.gz").unlink(),
            ("error", "label/label0001.nii.gz", "is missing, and img0001.nii.gz is there: get it"),
        ),
        "twice": (
            lambda: laid_out(root, ["0005"], "Training", labels=[]),
            ("error", "Training/img/img0005.nii.gz", "img0005 is there twice"),
        ),
        "packed and unpacked": (
            lambda: (root / "label/label0005.nii").touch(),
            ("error", "label/label0005.nii.gz", "img0005 is there twice"),
        ),
        "name": (
            lambda: (root / "img/img5.nii.gz").touch(),
            ("note", "img/img5.nii.gz", "is not named imgNNNN.nii.gz"),
        ),
        "more": (
            lambda: laid_out(root, ["0041"]),
            ("note", "img/img0041.nii.gz", "is not in TransUNet's split and is not used; list it in task.split"),
        ),
        "label alone": (
            lambda: laid_out(root, [], labels=["0041"]),
            ("note", "label/label0041.nii.gz", "has no image img0041.nii.gz"),
        ),
    }


def test_hidden_files_are_not_spoken_of(tmp_path):
    root = laid_out(tmp_path, TRAINING + TESTING)
    for name in ("img/._img0005.nii.gz", "label/.DS_Store"):
        (root / name).touch()
    assert findings_of(task(root)) == []


@pytest.mark.parametrize("what", spoilt(Path()))
def test_a_check_says_by_file_what_is_wrong_and_nothing_else(tmp_path, what):
    root = laid_out(tmp_path, TRAINING + TESTING)
    spoil, (severity, where, words) = spoilt(root)[what]
    spoil()
    (finding,) = findings_of(task(root))
    assert finding[:2] == (severity, where) and words in finding[2]


def test_a_check_without_the_test_part_leaves_its_cases_alone(tmp_path):
    found = task(laid_out(tmp_path, TRAINING))
    assert findings_of(found, test=False) == []
    assert [severity for severity, _, _ in findings_of(found)] == ["error"]


# Images and scores ---------------------------------------------------------------------------------------------------


def test_the_recipe_is_the_paper_s(tmp_path):
    window = {"window": (-175, 250), "normalise": "window", "crop_foreground": True}
    assert task(tmp_path).preprocessing == Preprocessing(
        dims=3, channels=1, orientation="RAS", spacing=(1.5, 1.5, 2.0), **window
    )


def test_the_real_ct_is_prepared_between_0_and_1_at_the_recipe_s_spacing(real, tmp_path):
    found = task(real("btcv"), split={"train": ("img0005",)})
    (entry,) = Cache(tmp_path).prepare(found.split("train"), found.preprocessing)
    assert entry.spacing == pytest.approx((1.5, 1.5, 2.0))
    image = entry.image((60, 60, 40), (96, 96, 96))
    assert image.shape == (1, 96, 96, 96) and image.min() >= 0 and image.max() <= 1 and image.std() > 0.1
    assert entry.labels_present == (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13)  # this patient's oesophagus is not labelled


def test_eight_organs_are_reported_beside_the_thirteen(tmp_path):
    found = task(tmp_path)
    assert len(found.classes) == 14 and list(found.regions) == list(btcv.ORGANS)
    assert [btcv.ORGANS.index(organ) for organ in btcv.EIGHT] == [0, 1, 2, 3, 5, 6, 7, 10]  # as SelfMedMAE counts them
    row = {"case": "a", "patient": "a"}
    for number, organ in enumerate(btcv.ORGANS):
        row |= {f"dice/{organ}": number / 100, f"hd95/{organ}": float(number), f"state/{organ}": "both"}
    row |= {"dice/esophagus": float("nan"), "hd95/esophagus": float("nan"), "state/esophagus": "absent"}
    summary = found.summary([row])
    eight = [0, 1, 2, 3, 5, 6, 7, 10]
    assert summary["dice_8"] == pytest.approx(np.mean(eight) / 100) and summary["hd95_8"] == pytest.approx(
        np.mean(eight)
    )
    twelve = [number for number in range(13) if number != 4]
    assert summary["dice"] == pytest.approx(np.mean(twelve) / 100) and summary["n_excluded"] == 1
    assert found.score == "dice"
