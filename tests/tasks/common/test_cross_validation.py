"""Folds: every labelled patient is in the test part of one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import nnunet
from support.image_tables import rows, task
from support.tasks import PARTS, check_parts, names, refused

from premed.data.phantoms.writers import write_msd
from premed.data.splits import shuffled_patients
from premed.tasks import images, msd
from premed.tasks.common.cross_validation import assign_parts

pytest_plugins = ["support.image_tables"]

SHARES = (0.6, 0.15, 0.25)


@given(st.sets(st.integers(0, 500), min_size=4, max_size=60), st.integers(2, 6), st.integers(0, 2**40))
def test_every_patient_is_tested_once_and_the_folds_are_as_large(numbers, folds, key):
    patients = [f"p{number}" for number in numbers]
    if len(patients) < folds:
        refused(lambda: assign_parts(patients, folds, 0, SHARES, key), "task.folds", "set fewer")
        return
    dealt = [assign_parts(patients, folds, fold, SHARES, key) for fold in range(folds)]
    tests = [{who for who, part in each.items() if part == "test"} for each in dealt]
    assert sorted(who for test in tests for who in test) == sorted(patients)
    assert max(map(len, tests)) - min(map(len, tests)) <= 1
    for each in dealt:
        num = {part: list(each.values()).count(part) for part in PARTS}
        assert sum(num.values()) == len(patients) and all(num.values())
        rest = num["train"] + num["val"]
        assert num["val"] == max(1, round(0.2 * rest))  # .15 of .75
    assert set(shuffled_patients(patients, key)) == set(patients)


def test_a_table_s_patients_are_dealt_whatever_its_column_says(folder):
    root = folder(rows(42))
    folds = [task(root, folds=3, fold=fold) for fold in range(3)]
    for each in folds:
        check_parts(each)
    tested = [case.name for each in folds for case in each.split("test")]
    assert len(tested) == len(set(tested)) == 40  # two have no label
    assert len({tuple(names(each.split("val"))) for each in folds}) == 3
    assert names(task(root, folds=3, fold=0, split_seed=1).split("test")) != names(folds[0].split("test"))


def test_the_decathlon_s_cases_are_dealt(tmp_path):
    write_msd(tmp_path, num_cases=7, num_unlabelled=1, seed=0, shape=(12, 12, 12))
    folds = [msd.build(msd.Config(root=tmp_path, folds=3, fold=fold)) for fold in range(3)]
    for each in folds:
        check_parts(each)
    assert sorted(len(each.split("test")) for each in folds) == [2, 2, 3]
    assert len({name for each in folds for name in names(each.split("test"))}) == 7


def test_nnu_net_s_raw_data_is_dealt_where_no_file_gives_the_parts(tmp_path):
    dealt = [nnunet.task(nnunet.raw(tmp_path / "raw"), folds=3, fold=fold) for fold in range(3)]
    for each in dealt:
        check_parts(each)
    assert len({name for each in dealt for name in names(each.split("test"))}) == 10
    assert {each.num_folds for each in dealt} == {3}
    given = nnunet.task(nnunet.folds(nnunet.raw(tmp_path / "listed")), folds=3)
    refused(lambda: given.split("test"), "task.folds: splits_final.json has the folds; leave task.folds out")
    tested = nnunet.task(nnunet.raw(tmp_path / "tested", held_out=2), folds=3)
    refused(lambda: tested.split("test"), "task.folds: labelsTs is the test part")
    with pytest.raises(ValidationError, match="fold: 3 is not one of 0 to 2"):
        nnunet.task(tmp_path / "raw", folds=3, fold=3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"folds": 5}, r"folds needs fold, the test part: fold=0, or fold=\[0,1,2,3,4\] for all"),
        ({"fold": 1}, "fold needs folds"),
        ({"folds": 3, "fold": 3}, "fold: 3 is not one of 0 to 2"),
        ({"folds": 1, "fold": 0}, "greater than or equal to 2"),
        ({"folds": 2, "fold": 0, "split": {"train": ("a",)}}, "folds and split exclude each other"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields, words):
    for config in (images.Config, msd.Config):
        more = {"labels": ("a",)} if config is images.Config else {}
        with pytest.raises(ValidationError, match=words):
            config(**fields, **more)


def test_too_few_patients_are_one_line(folder):
    root = folder(rows(8))
    refused(lambda: task(root, folds=6, fold=0).split("train"), "task.folds", "too few for 6 folds; set fewer")
