"""What `premed compare` makes of a store: which runs it sets beside each other, and what it says of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.comparing import (
    add,
    arm_of,
    block_of,
    difference_of,
    exclusive,
    score_of,
    stages,
    volumes,
    xrays,
)

from premed.errors import UserError
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.effects import verdict
from premed.reporting.comparison.result import Difference
from premed.reporting.comparison.scores import score_table
from premed.tasks.common.metrics import accuracy_summary, auc_summary, segmentation_summary

pytest_plugins = ["support.store_fixtures"]


# ---- the numbers


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_scores_are_the_task_s_own_numbers():
    rows, classes = xrays(1), ("heart", "lung")
    found = score_table([columns(rows)], "accuracy")
    summary = auc_summary(rows, classes) | accuracy_summary(rows, classes)
    result = {name: found.scores["mauc"].full[k] for k, name in enumerate(["mauc", "auc/heart", "auc/lung"])}
    result |= {"accuracy": found.scores["accuracy"].full[0], "accuracy/lung": found.scores["accuracy"].full[2]}
    assert result == pytest.approx({name: summary[name] for name in result})


def test_a_missed_organ_counts_and_an_absent_one_does_not():
    rows = volumes(0.8)
    found, summary = score_table([columns(rows)], "dice"), segmentation_summary(rows, ("heart", "lung"))
    for name in ("dice", "hd95"):
        message = dict(zip([name, f"{name}/heart", f"{name}/lung"], found.scores[name].full, strict=True))
        assert message == pytest.approx({key: summary[key] for key in message})
    assert found.counts == {name: summary[name] for name in ("n_missed", "n_invented", "n_excluded")}


def test_a_class_that_only_some_runs_count_in_their_mean_is_told(store):
    """No image has a lung. One run of mae finds one all the same: its mean is of two classes, the others' of one."""
    for strategy, seed in [("none", 0), ("none", 1), ("mae", 0), ("mae", 1)]:
        rows = [row | {"dice/lung": np.nan, "hd95/lung": np.nan, "state/lung": "absent"} for row in volumes(0.8, seed)]
        if (strategy, seed) == ("mae", 1):
            rows[0] |= {"dice/lung": 0.0, "hd95/lung": 99.0, "state/lung": "invented"}
        add(store, strategy, seed, rows, score="dice")
    (note,) = [note for note in block_of(compare(store)).notes if "lung" in note]
    assert (
        note == "lung: in no image, and invented by 1 of 4 runs, in whose mean alone it counts; see the scores by class"
    )


def test_the_order_of_the_cases_does_not_matter():
    rows = xrays(1)
    one, two = (score_table([columns(some)], "mauc") for some in (rows, rows[::-1]))
    np.testing.assert_allclose(one.scores["mauc"].pseudo, two.scores["mauc"].pseudo)


def test_a_row_has_mean_and_spread_over_seeds_and_its_paired_difference(trained):
    result = compare(trained)
    values = [auc_summary(xrays(2.5, seed), ("heart", "lung"))["mauc"] for seed in range(3)]
    base = [auc_summary(xrays(1, seed), ("heart", "lung"))["mauc"] for seed in range(3)]
    main = score_of(result)
    assert (main.mean, main.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert main.interval[0] < main.mean < main.interval[1] and main.with_seeds
    assert difference_of(result).value == pytest.approx(np.mean(values) - np.mean(base))
    assert (difference_of(result).pairing, difference_of(result).num_seeds) == ("paired", 3)
    assert difference_of(result).verdict == "better, this pre-training" and difference_of(result, "none") is None
    assert arm_of(result).constant == 0.5


def test_equal_runs_are_not_separable(store):
    for seed in range(3):
        add(store, "none", seed, xrays(1, seed))
        add(store, "mae", seed, xrays(1, seed + 10))
    assert difference_of(compare(store)).verdict == "not separable"


def test_a_p_value_is_corrected_for_all_comparisons_of_the_table(trained):
    for seed in range(3):
        add(trained, "other", seed, xrays(1, seed + 10))
    result = compare(trained)
    one, two = difference_of(result), difference_of(result, "other")
    assert one.p < two.p and one.p_holm == pytest.approx(2 * one.p) and two.p_holm == two.p


@pytest.mark.parametrize(
    ("value", "interval", "p_holm", "words"),
    [
        (0.1, (0.02, 0.18), 0.03, "better"),
        (-0.1, (-0.18, -0.02), 0.03, "worse"),
        (0.1, (-0.02, 0.22), 0.2, "not separable"),
        (0.1, (0.02, 0.18), 0.06, "not separable after correction"),
        (0.1, (math.nan, math.nan), math.nan, "no interval"),
        (0.0, (math.nan, math.nan), math.nan, "not separable"),
    ],
)
def test_the_verdict_takes_the_interval_and_the_corrected_p_value(value, interval, p_holm, words):
    difference = Difference(value, interval, 9.0, True, 0.01, "paired", 3, p_holm, "", (0.0, 0.0), ())
    assert verdict(difference, True) == words
    if words == "better":
        assert verdict(difference, False) == "worse"
        assert verdict(difference, True, once=True) == "better, this pre-training"
        assert verdict(replace(difference, with_seeds=False), True, once=True) == "better, these seeds"


def test_only_the_runs_that_are_named_are_compared(store):
    named = [add(store, strategy, 0) for strategy in ("none", "mae")]
    add(store, "unimiss", 0)
    assert {arm.label for arm in block_of(compare(store, run_ids=named)).rows} == {"none", "mae"}
    assert "unimiss" in {arm.label for arm in block_of(compare(store)).rows}


@pytest.mark.parametrize(("own", "words"), [(False, "better, this pre-training"), (True, "better")])
def test_a_pre_training_that_all_seeds_share_is_one_draw(store, own, words):
    for seed in range(3):
        add(store, "none", seed, xrays(1.0, seed, num=120))
        add(store, "mae", seed, xrays(6.0, seed, num=120), pretrain_seed=seed if own else 0)
    assert difference_of(compare(store)).verdict == words


def test_weights_that_are_given_are_no_draw(store):
    for seed in range(3):
        add(store, "none", seed, xrays(1.0, seed, num=120))
        add(store, "imagenet", seed, xrays(6.0, seed, num=120), weights="w")
    assert difference_of(compare(store), "imagenet").verdict == "better"


def test_of_distances_the_lower_is_better(store):
    for seed in range(3):
        add(store, "none", seed, volumes(0.5, seed), score="hd95")
        add(store, "mae", seed, volumes(0.9, seed), score="hd95")
    result = compare(store)
    assert difference_of(result).value < 0 and not score_of(result).higher_is_better
    assert arm_of(result).counts == {"n_missed": 1, "n_invented": 0, "n_excluded": 1}


# ---- seeds


def test_a_note_says_that_fewer_than_three_seeds_cover_no_other_seed(store):
    for seed in range(2):
        add(store, "none", seed)
        add(store, "mae", seed, xrays(5, seed))
    result = compare(store)
    assert difference_of(result).pairing == "patients" and not score_of(result).with_seeds
    assert difference_of(result).verdict == "better, these seeds"
    assert block_of(result).notes[0].startswith("none, mae: fewer than 3 seeds")


def test_one_seed_that_the_baseline_has_too_is_one(store):
    add(store, "none", 0)
    for seed in (0, 7):
        add(store, "mae", seed)
    assert "mae at 100 %: compared on the 1 seed that the baseline has too" in block_of(compare(store)).notes


def test_seeds_that_the_baseline_has_not_are_left_out_of_the_difference_or_compared_unpaired(store):
    for seed in range(3):
        add(store, "none", seed)
    for seed in (0, 1, 2, 7):
        add(store, "mae", seed)
    for seed in (4, 5, 6):
        add(store, "other", seed)
    result = compare(store)
    assert (difference_of(result).pairing, difference_of(result).num_seeds) == ("paired", 3)
    assert difference_of(result, "other").pairing == "unpaired"
    assert "mae at 100 %: compared on the 3 seeds that the baseline has too" in block_of(result).notes
    for seed in (3, 8):
        add(store, "less", seed - 3 * (seed == 3))
    add(store, "none", 8)
    add(store, "less", 1)
    of_baseline = "further ones of the baseline count in the baseline's mean alone"
    assert f"less at 100 %: compared on the 3 seeds that it has; {of_baseline}" in block_of(compare(store)).notes
    assert "other at 100 %: its seeds are not the baseline's, compared unpaired" in block_of(result).notes


def test_fine_tunings_of_one_of_several_pretrainings_are_no_seeds_of_their_own(store):
    for pretraining in range(3):
        add(store, "none", pretraining)
        for seed in range(2):
            add(store, "mae", seed, pretrain_seed=pretraining)
    arm = arm_of(compare(store))
    assert (arm.num_seeds, len(arm.runs)) == (3, 6)
    assert arm.varied == "pre-training and fine-tuning seed"


def test_a_note_says_that_one_pretraining_covers_no_other(trained):
    assert any(note.startswith("mae: one pre-training") for note in block_of(compare(trained)).notes)


def test_the_same_twice_counts_once_the_newest(trained):
    newest = add(trained, "mae", 0, xrays(2, 0))
    result = compare(trained)
    assert arm_of(result).num_seeds == 3
    assert newest in [run.run_id for run in arm_of(result).runs]
    assert any("there twice" in note for note in result.tasks[0].notes)


# ---- rows, blocks and the baseline


def test_label_fractions_have_a_baseline_each(trained):
    for seed in range(3):
        add(trained, "none", seed, xrays(0.5, seed), fraction=0.1)
        add(trained, "mae", seed, xrays(0.6, seed), fraction=0.1)
    result = compare(trained)
    order = [(arm.label_fraction, arm.label) for arm in block_of(result).rows]
    assert order == [(0.1, "none"), (0.1, "mae"), (1.0, "none"), (1.0, "mae")]
    assert abs(difference_of(result, fraction=0.1).value) < difference_of(result).value


def test_two_pretrainings_that_differ_are_two_rows_called_by_what_differs(trained):
    for seed in range(3):
        add(trained, "mae", seed, pretrain={"pretext": {"mask_ratio": 0.5}})
    labels = [arm.label for arm in block_of(compare(trained)).rows]
    assert labels == ["none", "mae mask_ratio=0.5", "mae mask_ratio=0.75"]
    assert difference_of(compare(trained, baseline="mae mask_ratio=0.5"), "none").value < 1
    with pytest.raises(UserError, match=r"--baseline mae: may be mae mask_ratio=0.5 or mae mask_ratio=0.75; name one"):
        compare(trained, baseline="mae")


def test_another_architecture_is_marked_and_no_baseline(trained):
    for seed in range(3):
        add(trained, "none", seed, change={"encoder": {"name": "pixels", "width": None}})
    result = compare(trained)
    assert {arm.label: arm.same_architecture for arm in block_of(result).rows} == {
        "none vit": True,
        "mae vit": True,
        "none pixels": False,
    }
    assert arm_of(result, "none vit").is_baseline and difference_of(result, "none pixels") is not None


def test_weights_that_were_brought_in_stand_beside_others_and_tell_rows_apart(trained):
    for weights in ("aaa", "bbb"):
        for seed in range(3):
            add(trained, "imagenet", seed, weights=weights)
    result = compare(trained)
    assert difference_of(result, "imagenet weights=aaa").pairing == "paired"
    assert arm_of(result, "imagenet weights=bbb").varied == "fine-tuning seed"


PROBE = {"training": {"head": {"name": "probe"}, "epochs": 1}}


def test_probes_stand_below_compared_with_each_other(trained):
    for strategy in ("none", "mae"):
        for seed in range(2):
            add(trained, strategy, seed, change=PROBE)
    result = compare(trained)
    assert [block.head for block in result.tasks[0].blocks] == ["linear", "probe"]
    assert arm_of(result, number=1).num_seeds == 2 and difference_of(result, number=1).num_seeds == 2
    (block,) = compare(trained, allow=["finetune"], baseline="none linear epochs=4").tasks[0].blocks
    assert block.head == "linear and probe"


def test_without_the_baseline_rows_stand_alone_and_a_named_one_must_be_there(store):
    for seed in range(3):
        add(store, "mae", seed)
    result = compare(store)
    assert difference_of(result) is None and result.tasks[0].baseline is None
    assert any("no run of none" in note for note in result.tasks[0].notes)
    with pytest.raises(UserError, match="--baseline imagenet: no run is called so; there are mae"):
        compare(store, baseline="imagenet")


# ---- refusals


def named(*tasks):
    return {
        "training": {
            "sources": [{"task": {"name": name, "folder": folder}, "group": group} for name, folder, group in tasks]
        }
    }


def test_rows_that_differ_in_what_was_pre_trained_on_are_called_by_the_data_sets(store):
    chest, brain = ("chestxray14", None, None), ("msd", "Task04_Hippocampus", None)
    add(store, "none", 0)
    for pretrain in ({}, named(chest, brain), named(chest), named(brain, ("btcv", None, "CT"))):
        add(store, "mae", 0, pretrain=pretrain)
    assert {arm.label for arm in block_of(compare(store)).rows} == {
        "none",
        "mae sources=own",
        "mae sources=chestxray14+Task04_Hippocampus",
        "mae sources=chestxray14",
        "mae sources=Task04_Hippocampus+CT",
    }


# ---- parts and tasks


def test_runs_that_were_not_tested_are_compared_on_val_or_left_out(store):
    for seed in range(3):
        add(store, "none", seed, tested=False)
        add(store, "mae", seed, tested=False)
    result = compare(store)
    assert result.part == "val" and any("no run was tested" in note for note in result.tasks[0].notes)
    with pytest.raises(UserError, match="--part test: no run of chestxray14 was tested"):
        compare(store, part="test")
    add(store, "none", 0)
    assert arm_of(compare(store, part="val"), "none").num_seeds == 3
    result = compare(store)
    assert result.part == "test" and any("6 runs without a test part" in note for note in result.tasks[0].notes)


def test_tasks_are_compared_each_on_its_own(trained):
    for seed in range(3):
        add(trained, "none", seed, volumes(0.6, seed), change={"task": {"name": "btcv"}}, score="dice")
    assert [task.task for task in compare(trained).tasks] == ["btcv", "chestxray14"]
    assert [task.task for task in compare(trained, task="btcv").tasks] == ["btcv"]


# ---- cost


def test_the_most_frequent_class_alone_is_told_beside_an_accuracy(store):
    """An accuracy of 0.8 looks like a result where four of five images are of one class."""
    rows = exclusive(1.0, num=60)[:50]
    share = max(sum(row[f"y/{name}"] for row in rows) for name in "abc") / 50
    for strategy in ("none", "mae"):
        add(store, strategy, 0, rows, score="accuracy")
    notes = compare(store).tasks[0].notes
    assert f"accuracy: an answer that is always a has {share:.3f}" in notes


def test_precisions_that_differ_are_told(store):
    for strategy in ("none", "mae"):
        add(store, strategy)
    assert not any("precision" in note for note in compare(store).tasks[0].notes)
    for strategy, precision in (("none", "float32"), ("mae", "bfloat16")):
        store.set_tags(stages(store, strategy)["finetune"], {"premed.precision": precision})
    (note,) = (note for note in compare(store).tasks[0].notes if "precision" in note)
    assert note == "trained in several precisions, which may be what differs (bfloat16: mae; float32: none)"


def test_it_is_told_if_some_trainings_were_compiled(store):
    for strategy in ("none", "mae"):
        add(store, strategy)
        store.set_tags(stages(store, strategy)["finetune"], {"premed.compiled": "True"})
    assert not any("compile" in note for note in compare(store).tasks[0].notes)
    store.set_tags(stages(store, "none")["finetune"], {"premed.compiled": "False"})
    (note,) = (note for note in compare(store).tasks[0].notes if "compile" in note)
    assert note == "trained with torch.compile and without, which may be what differs (with: mae; without: none)"


def test_a_shared_pretraining_is_paid_once(store):
    add(store, "none", 0)
    add(store, "mae", 0)
    shared = next(run for run in store.search({"premed.kind": "pretrain"})).run_id
    for seed in (1, 2):
        add(store, "mae", seed, shared=shared)
    cost = arm_of(compare(store)).cost
    assert (cost.pretrain.runs, cost.pretrain.device_hours) == (1, 2.0)
    assert (cost.finetune.runs, cost.finetune.seconds, cost.finetune.device) == (3, 180.0, "CPU")
    assert arm_of(compare(store), "none").cost.pretrain is None


def test_a_task_whose_runs_cannot_be_compared_is_left_out_with_a_word_and_the_others_are_compared(store):
    for epochs in (4, 8):
        add(
            store,
            "none",
            0,
            volumes(0.5),
            change={"task": {"name": "btcv"}, "training": {"epochs": epochs}},
            score="dice",
        )
    with pytest.raises(UserError, match="btcv: runs differ in finetune.epochs"):
        compare(store)
    add(store, "none"), add(store, "mae")
    result = compare(store)
    assert [each.task for each in result.tasks] == ["chestxray14"]
    assert [note for note in result.notes if note.startswith("left out: btcv: runs differ in finetune.epochs")]
