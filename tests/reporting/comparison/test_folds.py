"""Cross-validation: runs of several folds are compared as one, on the cases of all."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.comparing import add, arm_of, difference_of, in_order, score_of, volumes, xrays
from support.folds import FOLDS, add_fold, of_fold
from support.memory_store import MemoryStore

from premed.config.decide import Decide
from premed.errors import UserError
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.interim import design_tags
from premed.reporting.comparison.scores import score_table


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_a_seed_s_score_is_that_of_its_networks_of_all_folds(folded):
    result = compare(folded)
    (task,) = result.tasks
    assert (task.num_cases, task.num_patients, task.num_folds) == (90, 30, 3)
    by_hand = {}
    for seed in range(3):
        rows = [xrays(2.5, 10 * seed + fold) for fold in range(FOLDS)]
        each = [
            roc_auc_score([row[f"y/{name}"] for row in some], [row[f"p/{name}"] for row in some])
            for some in rows
            for name in ("heart", "lung")
        ]
        by_hand[str(seed)] = np.mean(each)
    assert {run.seed: run.value for run in arm_of(result).runs} == pytest.approx(by_hand)
    assert score_of(result).mean == pytest.approx(np.mean([*by_hand.values()]))
    assert [len(run.experiments) for run in arm_of(result).runs] == [3, 3, 3]


def test_the_interval_is_that_of_all_patients_and_says_what_it_leaves_out(folded, tmp_path):
    alike = MemoryStore(tmp_path / "alike")  # seeds do not vary: patients alone do
    for seed, fold in product(range(3), range(FOLDS)):
        add_fold(alike, "none", seed, fold, xrays(1, fold))
        add_fold(alike, "mae", seed, fold, xrays(2.5, fold + 7), pretrain_seed=seed)
    ones = [difference_of(compare(alike, where=[f"task.fold={fold}"])) for fold in range(FOLDS)]
    whole = difference_of(compare(alike))
    assert whole.value == pytest.approx(np.mean([one.value for one in ones]))
    assert np.diff(whole.interval) < 0.7 * np.mean([np.diff(one.interval) for one in ones])
    (note,) = [note for note in compare(folded).tasks[0].notes if "cross-validated" in note]
    assert note.startswith("cross-validated in 3 folds") and "not for other training images" in note
    assert compare(folded, where=["task.fold=1"]).tasks[0].num_folds == 1


def test_of_a_mean_over_images_all_images_count_alike_whatever_their_fold():
    tables = [columns(of_fold(volumes(value, 3, num), fold)) for fold, (value, num) in enumerate([(0.3, 4), (0.9, 12)])]
    found = score_table(tables, "dice").scores["dice"]
    lungs = [value for table in tables for value in table["dice/lung"] if not np.isnan(value)]
    assert found.full[2] == pytest.approx(np.mean(lungs)) and len(found.pseudo) == 16
    np.testing.assert_allclose(found.pseudo.mean(axis=0), found.full)


def test_answers_of_two_networks_are_not_ranked_together(store):
    """One that answers higher throughout would spoil an AUC of all folds' answers together."""
    rows = xrays(2, 0)
    higher = [row | {f"p/{name}": 0.5 + row[f"p/{name}"] / 2 for name in ("heart", "lung")} for row in xrays(2, 1)]
    alone = [score_table([columns(some)], "mauc").scores["mauc"] for some in (rows, higher)]
    both = score_table([columns(of_fold(some, fold)) for fold, some in enumerate([rows, higher])], "mauc")
    assert both.scores["mauc"].full == pytest.approx(np.mean([each.full for each in alone], axis=0))
    np.testing.assert_allclose(both.scores["mauc"].pseudo.mean(axis=0), both.scores["mauc"].full)


def test_a_class_that_a_fold_has_not_is_that_of_the_others():
    rows, without = xrays(2, 0), [row | {"y/lung": 0.0} for row in xrays(2, 1)]
    alone = score_table([columns(rows)], "mauc").scores["mauc"]
    both = score_table([columns(of_fold(some, fold)) for fold, some in enumerate([rows, without])], "mauc")
    assert both.scores["mauc"].full[2] == alone.full[2] and both.counts["n_undefined"] == 0


def test_folds_without_an_auc_of_a_class_are_told(store):
    rows, without = xrays(2, 0), [row | {"y/lung": 0.0} for row in xrays(2, 1)]
    for fold in range(FOLDS):
        add_fold(store, "none", 0, fold, rows if fold < 2 else without)
    words = "folds without an AUC of a class, since all labels are alike; it is that of the others (lung: 1 fold)"
    assert words in compare(store).tasks[0].notes
    assert words not in compare(store, where=["task.fold=0"]).tasks[0].notes


def test_a_class_that_one_patient_of_a_fold_has_is_told(folded, tmp_path):
    store = MemoryStore(tmp_path / "alone")
    rows = [row | {"y/lung": float(row["case"] == "c000")} for row in xrays(2, 1)]
    for strategy, fold in product(("none", "mae"), range(FOLDS)):
        add_fold(store, strategy, 0, fold, rows if fold == 1 else xrays(2, fold))
    words = "lung: computed from one patient in some folds; the interval does not cover other patients"
    assert words in compare(store).tasks[0].notes
    assert not any("one patient" in note for note in compare(folded).tasks[0].notes)


def test_a_training_without_a_run_of_each_fold_is_left_out_with_the_command_that_completes_it(folded):
    add_fold(folded, "mae", 3, 0, xrays(2.5, 30), pretrain_seed=3)
    result = compare(folded)
    (note,) = [note for note in result.tasks[0].notes if "folds are missing" in note]
    assert note == (
        "1 run of 1 training left out, for folds are missing: run task.fold=[1,2], or compare one fold: "
        "--where task.fold=0"
    )
    assert arm_of(result).num_seeds == 3
    alone = compare(folded, where=["task.fold=0"])
    assert arm_of(alone).num_seeds == 4


def test_given_weights_are_arms_of_their_own(store):
    """Of one name, from two files."""
    for seed, fold in product(range(3), range(FOLDS)):
        for value, weights in ((1, "aaa"), (3, "bbb")):
            add_fold(store, "timm", seed, fold, xrays(value, 10 * seed + fold), weights=weights)
    (block,) = compare(store).tasks[0].blocks
    assert [(arm.label, arm.num_seeds) for arm in block.rows] == [("timm weights=aaa", 3), ("timm weights=bbb", 3)]
    assert block.rows[0].scores["mauc"].mean < block.rows[1].scores["mauc"].mean


def test_pre_trainings_on_other_data_sets_are_arms_and_on_other_images_of_the_fold_the_newest_counts(store, tmp_path):
    def add_twice(store, images):
        in_order(store)
        for value, version in ((3, "old"), (1, "new")):
            for seed, fold in product(range(3), range(FOLDS)):
                more = {"learnt": images(version, fold), "pretrain_seed": seed}
                add_fold(store, "mae", seed, fold, xrays(value, 10 * seed + fold), **more)
        (task,) = compare(store).tasks
        return task.blocks[0].rows, [note for note in task.notes if "newest" in note]

    arms, notes = add_twice(store, lambda version, fold: version)
    assert [arm.label for arm in arms] == ["mae images=new", "mae images=old"] and not notes
    (arm,), (note,) = add_twice(MemoryStore(tmp_path / "own"), lambda version, fold: f"{version}{fold}")
    assert note.startswith("9 runs left out, for another of the same training and fold has other data")
    assert arm.scores["mauc"].mean == pytest.approx(arms[0].scores["mauc"].mean)


def test_a_fold_that_nothing_ran_is_told(store):
    for strategy, fold in product(("none", "mae"), (0, 2)):
        add_fold(store, strategy, 0, fold, xrays(1 + (strategy == "mae"), fold))
    (task,) = compare(store).tasks
    (note,) = [note for note in task.notes if "no run" in note]
    assert note == "no run has the fold 1, so that its patients do not count: run task.fold=[1]"
    assert (task.num_folds, task.num_cases) == (2, 60)


@pytest.mark.parametrize("task", ["brats", "nnunet"])
def test_of_a_data_set_with_folds_of_its_own_a_fold_that_nothing_ran_is_told_too(store, task):
    for fold in (0, 1, 3):
        change = {"task": {"name": task, "folds": "None", "fold": fold}}
        add_fold(store, "none", 0, fold, xrays(1, fold), change=change, tags={"folds": "5"})
    (note,) = [note for note in compare(store).tasks[0].notes if "no run" in note]
    assert note == "no run has the fold 2,4, so that its patients do not count: run task.fold=[2,4]"


def test_none_with_all_folds_is_an_error(store):
    add_fold(store, "none", 0, 0, xrays(1, 0))
    add_fold(store, "mae", 1, 1, xrays(1, 0))
    with pytest.raises(UserError, match=r"no training has a run of each of the 2 folds: run task.fold=\[0,1\], or"):
        compare(store)


def test_where_a_fold_s_scores_are_gone_an_older_run_of_it_counts_else_the_training_is_left_out(folded):
    ids = in_order(folded)
    ids += folded.runs
    before = compare(folded)
    add_fold(folded, "mae", 1, 1, xrays(9, 11), pretrain_seed=1)
    lost = {run.params["stage.task.fold"]: run for run in folded.search({"premed.kind": "test", "strategy": "mae"})[:1]}
    del folded.tables[lost.pop("1").run_id]
    after = compare(folded)
    assert score_of(after) == score_of(before)
    assert any(note.startswith("1 run left out: run ") for note in after.tasks[0].notes)
    for run in folded.search({"premed.kind": "test", "strategy": "mae"}):
        if run.params["stage.task.fold"] == "1" and run.run_id in folded.tables:
            lost[run.tags["seed"]] = run
    del folded.tables[lost["1"].run_id]
    assert arm_of(compare(folded)).num_seeds == 2
    for seed in ("0", "2"):
        del folded.tables[lost[seed].run_id]
    result = compare(folded)
    assert [arm.label for arm in result.tasks[0].blocks[0].rows] == ["none"]
    assert any(note.startswith("4 runs left out: run ") for note in result.tasks[0].notes)


def test_folds_that_were_scored_on_the_same_cases_are_no_cross_validation(store):
    """nnU-Net's labelsTs: the folds differ in their training images alone."""
    for fold in range(2):
        add(store, "none", 0, xrays(1, fold), change={"task": {"name": "nnunet", "fold": fold}}, data=f"train:c{fold}")
    with pytest.raises(UserError, match="runs differ in"):
        compare(store)


def test_a_fold_whose_data_changed_between_runs_is_refused(folded):
    add_fold(folded, "unimiss", 0, 1, xrays(1, 0), test="changed")
    with pytest.raises(UserError, match="runs differ in data.test: ee1 .6 runs., changed .1 run"):
        compare(folded)


@pytest.mark.parametrize(("kind", "first"), [("case", "c000"), ("patient", "p0")])
def test_cases_and_patients_in_two_folds_are_refused(store, kind, first):
    """The data changed between the folds, so that they were dealt in another way: each fold's networks have seen the
    other's patients."""
    for fold in range(FOLDS):
        more = {"change": {"task": {"name": "images", "folds": FOLDS, "fold": fold}}, "test": f"ee{fold}"}
        rows = [row | ({"case": f"f{fold}{row['case']}"} if kind == "patient" else {}) for row in xrays(1, fold)]
        add(store, "none", 0, rows, **more)
    with pytest.raises(UserError, match=f"{first}: the {kind} is in the test part of two folds; .*--where task.fold=0"):
        compare(store)


def test_seeds_that_were_added_fold_by_fold_are_refused(folded):
    for run in folded.search({"premed.kind": "experiment"}):
        folded.set_tags(run.run_id, design_tags(Decide()))
    with pytest.raises(UserError, match=r"seeds were added fold by fold .*list the seeds, or .*--where task.fold=0"):
        compare(folded)


def test_runs_of_one_split_and_of_folds_are_refused_with_the_field_that_tells_them_apart(folded):
    """The data differ because the field does; of runs that were made before there were folds, too."""
    for fields in ({"folds": "None", "fold": "None"}, {}):
        add(folded, "none", 0, xrays(1, 0), change={"task": {"name": "images", **fields}})
        with pytest.raises(UserError, match="differ in task.fold: .*; --where task.fold=., for other cases cannot be"):
            compare(folded)
    assert compare(folded, where=[f"task.folds={FOLDS}"]).tasks[0].num_folds == FOLDS
