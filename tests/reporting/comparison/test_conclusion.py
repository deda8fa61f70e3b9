"""The one sentence that a comparison opens with: which arm, in what, by how much, how sure, from how many."""

import re
import sys
from functools import lru_cache

import pytest
from support.comparing import add, arm_of, difference_of, score_of, volumes, xrays

from premed.reporting.comparison import terminal
from premed.reporting.comparison.compare import compare

OPTIMISTIC = "; these images also chose the weights, so the scores are optimistic, and this is no test"


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """A store is compared once in a test."""
    monkeypatch.setattr(sys.modules[__name__], "compare", lru_cache(compare))


def answer(store):
    (task,) = compare(store).tasks
    (block,) = task.blocks
    return block.conclusion


def runs(store, value, *, num_pretrainings=4, seeds=4, **more):
    for seed in range(seeds):
        add(store, "none", seed, xrays(1.5, seed, num=120), **more)
        add(store, "mae", seed, xrays(value, seed + 50, num=120), pretrain_seed=seed % num_pretrainings, **more)


def ends(store):
    low, high = difference_of(compare(store)).interval
    return f"{low:+.3f} to {high:+.3f}"


# ---- one comparison

HINT = "it cannot be checked that differences are near normal, as interval and p assume: take it as a hint"


def several_patients(store, num, seeds, gain=0.3):
    """So many patients with an image each; mae is better by far, or not at all."""
    for seed in range(seeds):
        for strategy, value in (("none", 0.4), ("mae", 0.4 + gain)):
            rows = [
                {"case": f"v{i}", "patient": f"p{i}", "state/organ": "both", "hd95/organ": 5.0}
                | {"dice/organ": value + 0.01 * ((7 * i + 3 * seed + (2 * i * i + seed) * (strategy == "mae")) % 5)}
                for i in range(num)
            ]
            add(store, strategy, seed, rows, score="dice", pretrain_seed=seed)


@pytest.mark.parametrize(
    ("patients", "seeds", "words"),
    [
        (3, 2, f"; with 2 seeds and 3 patients {HINT}"),
        (3, 3, f"; with 3 patients {HINT}"),
        (9, 3, f"; with 9 patients {HINT}"),
        (10, 2, f"; with 2 seeds {HINT}"),
        (10, 3, ""),
    ],
)
def test_a_verdict_from_few_seeds_or_patients_is_a_hint(store, patients, seeds, words):
    several_patients(store, patients, seeds)
    assert "mae has a better Dice" in answer(store)
    assert words in answer(store) and (HINT in answer(store)) is bool(words)


def test_of_what_is_not_told_apart_no_hint_is_given(store):
    several_patients(store, 3, 2, gain=0.0)
    assert "cannot be told apart" in answer(store) and HINT not in answer(store)


def test_better_on_several_pre_trainings_is_said_without_reserve(store):
    runs(store, 4.0)
    ours, theirs, difference = score_of(compare(store)), score_of(compare(store), "none"), difference_of(compare(store))
    assert answer(store) == (
        "On chestxray14 with 100 % of the labels, mae has a better mean AUC than none (no pre-training): "
        f"{ours.mean:.3f} against {theirs.mean:.3f}, a difference of {difference.value:+.3f} (95 % interval for other "
        f"patients and seeds: {ends(store)}, p < 0.001); 120 test images of 10 patients, 4 pre-trainings with 4 "
        "fine-tunings of mae and 4 trainings of none"
    )


def test_one_pre_training_is_never_said_to_be_better_plainly(store):
    runs(store, 4.0, num_pretrainings=1)
    assert "better mean AUC than none (no pre-training) with the one pre-training that there is (another may" in answer(
        store
    )
    assert "1 pre-training with 4 fine-tunings of mae" in answer(store)


def test_fewer_than_three_seeds_are_said_to_be_so(store):
    runs(store, 4.0, seeds=2)
    sentence = answer(store)
    assert "better mean AUC than none (no pre-training) in these trainings (fewer than three seeds: others" in sentence
    assert "95 % interval for other patients, with these seeds:" in sentence


def test_worse_is_said(store):
    runs(store, -2.0)
    assert "mae has a worse mean AUC than none" in answer(store) and "a difference of -" in answer(store)


def test_what_cannot_be_told_apart_keeps_both_ends_of_its_interval(store):
    runs(store, 1.5)
    assert "mae and none (no pre-training) cannot be told apart in mean AUC: " in answer(store)
    assert f"patients and seeds: {ends(store)}, p = " in answer(store) and "+" in ends(store) and "-" in ends(store)


def test_val_alone_is_never_said_like_a_test(store):
    runs(store, 4.0, tested=False)
    assert answer(store).endswith(OPTIMISTIC) and "120 validation images of 10 patients" in answer(store)
    assert "test images of" not in answer(store)


def test_a_score_of_which_lower_is_better_says_so(store):
    for seed in range(3):
        add(store, "none", seed, volumes(0.5, seed), score="hd95")
        add(store, "mae", seed, volumes(0.8, seed + 7), score="hd95", pretrain_seed=seed)
    assert "mae has a better HD95 (mm, lower is better) than none" in answer(store)
    assert "a difference of -" in answer(store)


def test_a_difference_without_an_interval_is_no_verdict(store):
    for strategy in ("none", "mae"):
        add(store, strategy, 0, [row | {"patient": "p"} for row in xrays(0.3 * len(strategy))])
    assert "how mae compares with none (no pre-training) in mean AUC cannot be said: 0." in answer(store)
    assert "to which no interval can be given; 30 test images of 1 patient" in answer(store)


def means_in(sentence):
    """The two scores and the difference that a sentence has."""
    found = re.search(r"([\d.]+) against ([\d.]+), a difference of ([+-][\d.]+)", sentence)
    return [float(each) for each in found.groups()]


def test_of_other_numbers_of_seeds_the_means_are_of_those_that_are_compared(store):
    """The baseline has three further seeds, which are much better, and the arm one."""
    runs(store, 4.0)
    for seed in (4, 5, 6):
        add(store, "none", seed, xrays(6.0, seed, num=120))
    add(store, "mae", 9, xrays(0.0, 9, num=120), pretrain_seed=9)
    ours, theirs, gain = means_in(answer(store))
    difference = difference_of(compare(store))
    assert ours - theirs == pytest.approx(gain, abs=0.0015) and gain == pytest.approx(difference.value, abs=0.0005)
    assert difference.means[0] - difference.means[1] == pytest.approx(difference.value)
    assert theirs < score_of(compare(store), "none").mean - 0.05 and ours > score_of(compare(store)).mean
    assert "4 pre-trainings with 4 fine-tunings of mae and 4 trainings of none" in answer(store)
    arm, base = (arm_of(compare(store), name) for name in ("mae", "none"))
    seeds_left = [(arm.label, run.seed) for arm in (arm, base) for run in arm.runs if run.run_id in difference.left_out]
    assert sorted(seeds_left) == [("mae", "9"), ("none", "4"), ("none", "5"), ("none", "6")]


def test_of_several_the_trainings_are_those_that_any_comparison_has(store):
    many(store, {"mae": 4.0, "unimiss": 1.5})
    for share in (0.1, 1.0):
        add(store, "none", 7, xrays(6.0, 7, num=120), fraction=share)
    ours, theirs, gain = means_in(answer(store))
    assert ours - theirs == pytest.approx(gain, abs=0.0015)
    assert "8 trainings of none" in answer(store) and "4 pre-trainings with 8 fine-tunings of mae" in answer(store)


def test_given_weights_are_no_pre_training(store):
    for seed in range(3):
        add(store, "none", seed)
        add(store, "imagenet", seed, weights="aaa")
    assert answer(store).endswith("3 trainings of imagenet and 3 trainings of none")


# ---- several


def many(store, values, num_pretrainings=4):
    for seed in range(4):
        for share in (0.1, 1.0):
            add(store, "none", seed, xrays(1.5, seed, num=120), fraction=share)
            for strategy, value in values.items():
                add(store, strategy, seed, xrays(value, seed + 50, num=120), fraction=share,
                    pretrain_seed=seed % num_pretrainings)  # fmt: skip


def test_several_are_grouped_by_their_outcome_with_the_largest_clear_difference(store):
    many(store, {"mae": 4.0, "unimiss": 1.5, "hssl": -2.0})
    (most,) = {f"{d.value:+.3f}" for f in (0.1, 1.0) if (d := difference_of(compare(store), "hssl", fraction=f))}
    assert answer(store).startswith(
        "On chestxray14, compared with none (no pre-training) in mean AUC, mae with 10 % and 100 % of the labels is "
        "better; hssl with 10 % and 100 % of the labels is worse; unimiss with 10 % and 100 % of the labels is not "
        "told apart from it (the largest clear difference: hssl with 10 % of the labels, "
    )
    assert f"a difference of {most} (95 %" in answer(store) and "Holm's correction for 6 comparisons" in answer(store)
    assert "4 pre-trainings with 8 fine-tunings of mae" in answer(store)


def test_of_several_on_one_pre_training_none_is_better_plainly(store):
    many(store, {"mae": 4.0, "unimiss": -2.0}, num_pretrainings=1)
    assert not re.search("(better|worse)(?! with the one pre-training)", answer(store))


def test_of_several_none_of_which_is_clear_that_is_said(store):
    many(store, {"mae": 1.5, "unimiss": 1.5})
    assert "none of 4 comparisons with none (no pre-training) shows a difference in mean AUC (the largest" in answer(
        store
    )


def test_a_head_is_named_where_there_are_several(store):
    for head in ("linear", "probe"):
        runs(store, 4.0, change={"training": {"head": {"name": head}}})
    sentences = [block.conclusion for block in compare(store).tasks[0].blocks]
    assert [sentence.partition(" with")[0] for sentence in sentences] == [
        "On chestxray14 (head probe)",
        "On chestxray14 (head linear)",
    ]


# ---- nothing to compare


@pytest.mark.parametrize("score", ["dice", "hd95"])
def test_without_a_baseline_the_best_is_named_by_the_score_s_own_direction(store, score):
    for strategy, dice in (("mae", 0.5), ("unimiss", 0.8)):
        add(store, strategy, 0, volumes(dice), score=score)
    best = arm_of(compare(store), "unimiss").scores[score].mean
    assert "On chestxray14, unimiss with 100 % of the labels has a" in answer(store) and f"of {best:.3f}" in answer(
        store
    )
    assert ", the best of 2 rows" in answer(store)
    assert answer(store).endswith(
        "there is no baseline to set it against, so whether pre-training helps cannot be said"
    )


def test_an_undefined_score_is_called_so(store):
    add(store, "none", 0, [{"case": c, "patient": "p", "y/x": 0.0, "p/x": 0.2} for c in "ab"], tested=False)
    assert answer(store) == "On chestxray14, mean AUC is undefined for these images, so nothing can be said"


# ---- where it stands


def test_it_is_the_first_that_the_terminal_shows(store, capsys):
    runs(store, 4.0)
    for seed in range(3):
        add(store, "none", seed, volumes(0.5, seed), change={"task": {"name": "btcv"}}, score="dice")
    result = compare(store)
    terminal.show(result)
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    expected = " ".join(f"{task.blocks[0].conclusion}." for task in result.tasks).replace("- ", "-")
    assert shown.startswith(expected)


@pytest.mark.parametrize(
    ("none", "mae", "words"),
    [
        (0.7, 0.8, ""),
        (0.4, 0.8, "; none with 100 % of the labels does not beat an answer that ignores the image (0.500)"),
        (
            0.4,
            0.3,
            "; no arm beats an answer that ignores the image (0.500), so train longer before you conclude",
        ),
    ],
)
def test_an_arm_that_does_not_beat_an_answer_that_ignores_the_image_is_named(store, none, mae, words):
    for seed in range(3):
        add(store, "none", seed, volumes(none, seed), score="dice")
        add(store, "mae", seed, volumes(mae, seed), score="dice", pretrain_seed=seed)
    assert (words in answer(store)) if words else ("ignores the image" not in answer(store))
