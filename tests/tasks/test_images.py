"""The images task: any folder and its CSV. Who is in which part, what is asked, what is refused, what `check` says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score
from support.image_tables import findings_of, rows, task, write_table
from support.made_up import ct_series, radiograph
from support.tasks import PARTS, check_parts, names, refused, samples

from premed.config.image_processing import Augmentation, Preprocessing
from premed.contracts import Case, Sample
from premed.rng import SampleRng
from premed.tasks import images
from premed.tasks.common.metrics import accuracy_summary

pytest_plugins = ["support.image_tables"]


# What is asked -------------------------------------------------------------------------------------------------------


def labels(one: images.Images, part="train") -> dict[str, tuple[float, ...] | None]:
    return {case.name: case.label for case in one.split(part)}  # type: ignore[misc]


def test_one_column_per_class_is_yes_no_or_not_known(folder):
    table = rows()
    table[0]["b"], table[1]["a"] = "", "1.0"
    one = task(folder(table))
    assert (one.classes, one.score, one.exclusive) == (("a", "b"), "mauc", False)
    found = labels(one)
    np.testing.assert_array_equal(found["pictures/0.png"], (0, np.nan))
    assert found["pictures/1.png"] == (1, 1) and found["pictures/4.png"] == (0, 0)


def test_names_joined_by_a_separator_are_several_classes(folder):
    table = rows()
    table[0]["both"], table[4]["both"] = "Nothing", "b | a"
    one = task(folder(table), label="both", separator="|", none="Nothing")
    assert (one.classes, one.score, one.exclusive) == (("a", "b"), "mauc", False)
    found = labels(one)
    assert (found["pictures/0.png"], found["pictures/1.png"], found["pictures/4.png"]) == ((0, 0), (1, 0), (1, 1))


def test_one_column_of_names_is_one_class_each(folder):
    one = task(folder(), label="kind")
    assert (one.classes, one.score, one.exclusive) == (("covid", "normal", "other"), "accuracy", True)
    assert labels(one)["pictures/0.png"] == (0, 1, 0) and labels(one)["pictures/4.png"] == (0, 0, 1)
    assert task(folder(), label="kind", classes=("other", "normal", "covid")).classes == ("other", "normal", "covid")


def test_of_two_classes_the_auc_picks_the_checkpoint(folder):
    one = task(folder(), label="a")
    assert (one.classes, one.score, one.exclusive) == (("0", "1"), "mauc", True)


def test_numbers_are_sorted_as_numbers_and_names_are_cleaned(folder):
    table = rows()
    for i, row in enumerate(table[:-2]):
        row["kind"] = ["10", "9", "stage II (b)"][i // 2 % 3]
    assert task(folder(table), label="kind").classes == ("9", "10", "stage_II_b")


def test_more_words_may_mean_not_known(folder):
    table = rows()
    table[0]["b"], table[4]["kind"], table[5]["kind"] = "-1.0", "?", "?"
    np.testing.assert_array_equal(labels(task(folder(table), unknown=("-1.0",)))["pictures/0.png"], (0, np.nan))
    assert "pictures/4.png" not in labels(task(folder(table), label="kind", unknown=("?",)))


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("part",), ("part", "patient"), ("patient",)])
def test_parts_are_disjoint_by_patient_and_pretraining_is_blind(folder, without):
    check_parts(task(folder(without=without)))


def test_a_column_deals_the_parts_in_its_own_words(folder):
    table = rows()
    for row in table:
        row["part"] = {"train": "Training", "val": "dev", "test": "held out"}.get(row["part"], "")
    words = {"train": ("Training",), "val": ("dev",), "test": ("held out", "never met")}
    one, plain = task(folder(table), parts=words), task(folder())
    assert {part: names(one.split(part)) for part in PARTS} == {part: names(plain.split(part)) for part in PARTS}


def test_where_a_column_names_no_val_it_is_carved_from_train_by_patient(folder):
    table = [row | {"part": row["part"].replace("val", "train")} for row in rows(44)]
    one = task(folder(table))
    patients = {part: {case.patient for case in one.split(part)} for part in PARTS}
    assert [len(patients[part]) for part in PARTS] == [13, 3, 5] and not patients["train"] & patients["val"]
    assert names(task(folder(table), split_seed=1).split("val")) != names(one.split("val"))


def test_without_a_column_the_patients_are_dealt_60_15_25(folder):
    one = task(folder(rows(42), without=("part",)))
    assert [len({case.patient for case in one.split(part)}) for part in PARTS] == [12, 3, 5]
    assert [len(one.split(part)) for part in PARTS] == [24, 6, 10]
    again, other = (names(task(one.root, split_seed=seed).split("val")) for seed in (0, 1))
    assert again == names(one.split("val")) != other


def test_a_listed_split_is_taken_and_the_rest_left_out(folder):
    split = {"train": ("p00", "p05"), "val": ("p01",), "test": ("p02",)}
    one = task(folder(), split=split)
    assert {part: {case.patient for case in one.split(part)} for part in PARTS} == {k: set(v) for k, v in split.items()}
    assert {case.patient for case in one.images()} == {"p00", "p05", "p13"}  # and the patient without a label
    assert "note: labels.csv: 18 labelled images are in no part and are left out" in findings_of(one.root, split=split)


def test_an_unlabelled_row_serves_pretraining_only_and_not_if_its_patient_is_held_out(folder):
    table = rows()
    for row in (table[2], table[4]):  # of a patient of val, of one of train
        row |= {"a": "", "b": "", "part": ""}
    one = task(folder(table))
    labelled = {case.name for part in PARTS for case in one.split(part)}
    assert set(names(one.images())) - labelled == {"pictures/4.png", "pictures/26.png", "pictures/27.png"}
    assert "note: labels.csv: 1 of these belong to patients of val or test and are left out" in findings_of(one.root)


def test_partial_leaves_out_what_is_not_on_disk(folder):
    root = folder()
    (root / "pictures/0.png").unlink()
    refused(lambda: task(root).split("train"), f"{root}/pictures/0.png: is missing", "task.partial=true")
    assert names(task(root).split("test"))  # that part is whole
    assert names(task(root, partial=True).split("train"))[0] == "pictures/1.png"
    assert "note: pictures/0.png: is missing; copy it there, or set task.partial=true" in findings_of(
        root, partial=True
    )


def test_absolute_paths_below_the_root_are_taken_by_their_relative_names(folder):
    root = folder()
    write_table(root, [row | {"path": f"{root}/./{row['path']}"} for row in rows()])
    assert names(task(root).split("train"))[0] == "pictures/0.png"


# Scores --------------------------------------------------------------------------------------------------------------


def answered(one: images.Images, num: int = 40) -> tuple[list[Sample], torch.Tensor]:
    seed = np.random.default_rng(0)
    truth = np.eye(3)[seed.integers(0, 3, num)]
    cases = [Case(str(i), str(i), (), tuple(row)) for i, row in enumerate(truth.tolist())]
    logits = torch.from_numpy(truth + seed.normal(0, 1.5, truth.shape))
    return [Sample(case, None) for case in cases], logits  # type: ignore[arg-type]


def test_one_class_each_is_scored_as_scikit_learn_does(folder):
    one = task(folder(), label="kind")
    some, logits = answered(one)
    rows_ = [one.row(sample, p) for sample, p in zip(some, logits.softmax(1).tolist(), strict=True)]
    summary, truth = one.summary(rows_), np.array([sample.case.label for sample in some])
    assert summary["accuracy"] == pytest.approx(accuracy_score(truth.argmax(1), logits.argmax(1)))
    assert summary["mauc"] == pytest.approx(roc_auc_score(truth, logits.softmax(1), average="macro"))
    assert summary["accuracy/covid"] == pytest.approx((logits.argmax(1).numpy() == 0)[truth[:, 0] == 1].mean())


def test_rows_of_an_unknown_class_have_no_accuracy(folder):
    known = {"y/a": 1.0, "y/b": 0.0, "p/a": 0.9, "p/b": 0.1}
    unknown = {"y/a": float("nan"), "y/b": float("nan"), "p/a": 0.1, "p/b": 0.9}
    assert (
        accuracy_summary([known, unknown], ("a", "b"))["accuracy"] == 1
        and accuracy_summary([unknown], ("a", "b")) == {}
    )


def test_one_class_each_is_learnt_by_cross_entropy(folder):
    one = task(folder(), label="kind")
    some, logits = answered(one)
    truth = torch.tensor([sample.case.label for sample in some])
    expected = -(truth * logits.log_softmax(1)).sum(1).mean()
    assert one.loss(logits, truth).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_constant_answer_is_the_most_frequent_class(folder, tmp_path):
    one = task(folder(), label="kind")
    train, test = (samples(one, one.split(part), tmp_path / "cache") for part in ("train", "test"))
    counts = np.sum([sample.case.label for sample in train], axis=0)
    truth = np.array([sample.case.label for sample in test])
    summary = one.summary(one.constant_baseline(train, test))
    assert summary["accuracy"] == pytest.approx(truth[:, counts.argmax()].mean()) and summary["mauc"] == 0.5


def test_of_classes_that_are_as_frequent_in_training_the_constant_answer_is_the_one_that_answers_better(
    folder, tmp_path
):
    one = task(folder(), label="kind")
    some = samples(one, one.split("train"), tmp_path / "cache")[:2]
    num = len(one.classes)

    def of(numbers):
        labels = [tuple(float(number == k) for k in range(num)) for number in numbers]
        return [Sample(replace(some[i % 2].case, label=y), some[i % 2].prepared) for i, y in enumerate(labels)]

    train = of(2 * list(range(num)))
    for best in range(num):
        summary = one.summary(one.constant_baseline(train, of([*range(num), best])))
        assert summary["accuracy"] == pytest.approx(2 / (num + 1)) and summary["mauc"] == 0.5


def test_a_large_volume_is_scored_by_the_mean_over_its_views(tmp_path):
    (tmp_path / "a").mkdir()
    values = np.zeros((8, 8, 16), np.int16)
    values[..., 8:] = 100
    for name in ("x", "y", "z"):
        ct_series(tmp_path / name, values)
    write_table(tmp_path, [{"path": name, "a": str(i % 2), "part": "test"} for i, name in enumerate("xyz")])
    one = task(tmp_path, labels=("a",), dims=3, roi=(8, 8, 8), normalise="window", window=(0, 100))
    means = []

    def forward(image: torch.Tensor) -> torch.Tensor:
        means.extend(image.mean(dim=(1, 2, 3, 4)).tolist())
        return 4 * image.mean(dim=(2, 3, 4)) - 2

    found = one.measure(forward, samples(one, one.split("test"), tmp_path / "cache"))
    assert sorted(means) == [0, 0, 0, 1, 1, 1] and [row["case"] for row in found] == ["x", "y", "z"]
    assert [row["p/a"] for row in found] == pytest.approx([(1 / (1 + np.e**2) + 1 / (1 + np.e**-2)) / 2] * 3)


def test_pictures_are_drawn_of_volumes_too(tmp_path):
    ct_series(tmp_path / "x", np.random.default_rng(0).integers(0, 99, (8, 8, 8)).astype(np.int16))
    write_table(tmp_path, [{"path": "x", "a": "1", "part": "test"}])
    one = task(tmp_path, labels=("a",), dims=3, roi=(8, 8, 8))
    (path,) = one.pictures(lambda x: torch.zeros(len(x), 1), samples(one, one.split("test"), tmp_path / "c"), tmp_path)
    assert path.stat().st_size > 1000


# Preparation and views -----------------------------------------------------------------------------------------------


def test_the_recipe_is_what_the_fields_ask_for(folder):
    root = folder()
    assert task(root, stored=(10, 9)).preprocessing == Preprocessing(dims=2, size=(10, 9), normalise="grey")
    window = {"window": (-1000, 400), "normalise": "window"}
    ct = task(root, dims=3, roi=(8, 8, 8), spacing=(2, 2, 2), **window)
    assert ct.preprocessing == Preprocessing(dims=3, spacing=(2, 2, 2), **window)
    assert task(root, dims=3, roi=(8, 8, 8)).preprocessing == Preprocessing(dims=3, normalise="zscore")


def test_views_carry_the_label_and_pictures_of_all_kinds_stand_side_by_side(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 16)).astype(np.uint16)
    radiograph(tmp_path / "a.dcm", values)
    Image.fromarray((values >> 4).astype(np.uint8)).save(tmp_path / "b.png")
    Image.fromarray((values >> 4).astype(np.uint8)).convert("RGB").save(tmp_path / "c.jpg")
    write_table(tmp_path, [{"path": name, "a": "1", "part": "train"} for name in ("a.dcm", "b.png", "c.jpg")])
    one = task(tmp_path, labels=("a",))
    some = samples(one, one.rows("train"), tmp_path / "cache")
    assert {sample.prepared.shape for sample in some} == {(8, 8)}
    image, label = one.view(some[0], Augmentation(scale=(0.5, 1)), SampleRng(3))
    assert image.shape == (1, 8, 8) and label is not None and label.tolist() == [1.0]
