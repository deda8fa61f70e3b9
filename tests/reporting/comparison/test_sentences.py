"""A comparison in sentences: better, worse or not separable, in the score's own direction, and after what."""

import pytest
from support.comparing import add, xrays

from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.sentences import FEW, Pretraining, evidence, sentences

PAST = {"chestxray14": Pretraining(957, loss=0.55, gate=0.80, passed=True)}


def sentence_of(store, pretrainings=PAST):
    result = compare(store)
    (arm,) = (arm for arm in result.tasks[0].blocks[0].rows if not arm.is_baseline)
    (line,) = sentences(result, pretrainings)
    return line, arm.scores["mauc"].difference


def runs(store, value, num=30):
    for seed in range(4):
        add(store, "none", seed, xrays(1.5, seed, num=num))
        add(store, "mae", seed, xrays(value, seed + 50, num=num))


def test_better_is_said_with_its_difference_and_what_it_took(store):
    runs(store, 4.0, num=120)
    line, difference = sentence_of(store)
    low, high = difference.interval
    assert difference.verdict == "better, this pre-training" and low > 0
    assert line == (
        f"chestxray14: mae better than none by {difference.value:.3f} [{low:.3f}, {high:.3f}] mean AUC with 100 % of "
        "the labels with this pre-training; this pre-training helps on these images, after 60.0 min of pre-training on "
        "957 images, past its gate by 31%"
    )


def test_worse_is_said_as_a_positive_number_from_small_to_large(store):
    runs(store, -2.0, num=120)
    line, difference = sentence_of(store, {"chestxray14": Pretraining(957, loss=0.799, gate=0.80, passed=False)})
    low, high = difference.interval
    assert difference.verdict == "worse, this pre-training" and high < 0
    assert f"mae worse than none by {-difference.value:.3f} [{-high:.3f}, {-low:.3f}] mean AUC" in line
    assert line.endswith("after 60.0 min of pre-training on 957 images, not past its gate") and "helps" not in line


def test_what_is_not_separable_keeps_its_sign_and_an_interval_around_zero(store):
    runs(store, 1.5)
    line, difference = sentence_of(store)
    low, high = difference.interval
    assert low <= 0 <= high and f"mean AUC {difference.value:+.3f} [{low:+.3f}, {high:+.3f}]" in line
    assert "mae and none not separable with 100 % of the labels" in line and "helps" not in line


def test_it_is_no_surprise_after_a_short_pre_training_alone(store):
    runs(store, 1.5)
    assert "; after 60.0 min of pre-training" in sentence_of(store)[0]
    for run in store.search({"premed.kind": "pretrain"}):
        run.metrics["seconds"] = 40.0
    assert "; expected after 40 s of pre-training on 957 images" in sentence_of(store)[0]


def test_one_seed_is_told_as_such(store):
    add(store, "none", 0, xrays(1.0, 0, num=120))
    add(store, "mae", 0, xrays(6.0, 0, num=120))
    line, difference = sentence_of(store)
    assert difference.verdict == "better, these seeds" and "of the labels with these seeds;" in line


@pytest.mark.parametrize(
    ("loss", "passed", "words"),
    [
        (0.60, True, "on 957 images, past its gate by 25%"),
        (0.784, False, "on 957 images, 2.0% below its gate, and past it only from 5% on"),
        (0.80, False, "on 957 images, not past its gate"),
        (1.20, False, "on 957 images, not past its gate"),
        (None, False, "on 957 images"),
    ],
)
def test_how_far_a_pre_training_came(loss, passed, words):
    assert str(Pretraining(957, loss, 0.8 if loss else None, passed)) == words


def test_weights_that_were_given_are_not_told_as_a_short_pre_training(store):
    for seed in range(4):
        add(store, "none", seed, xrays(1.5, seed))
        add(store, "imagenet", seed, xrays(1.5, seed + 50), weights="aaa")
    (line,) = sentences(compare(store), {})
    assert "pre-training" not in line and "expected" not in line


# ---- below the conclusion


def below(store, pretrainings=None):
    (task,) = compare(store).tasks
    return evidence(task, task.blocks[0], pretrainings or {})


def many(store, values):
    """Four seeds of `none` and of other strategies with these values, at two shares of the labels."""
    for seed in range(4):
        for share, less in ((0.1, 0.5), (1.0, 0.0)):
            add(store, "none", seed, xrays(1.5 - less, seed, num=120), fraction=share)
            for strategy, value in values.items():
                add(store, strategy, seed, xrays(value - less, seed + 50, num=120), fraction=share)


def test_a_few_comparisons_have_a_sentence_each(store):
    many(store, {"mae": 4.0})
    result = below(store, {"mae": Pretraining(957, loss=0.55, gate=0.80, passed=True)})
    assert len(result) == 2 <= FEW and all("on 957 images, past its gate by 31%" in each for each in result)
    assert "with 10 % of the labels" in result[0] and "with 100 % of the labels" in result[1]


def test_one_comparison_has_its_pre_training_alone(store):
    runs(store, 1.5)
    assert below(store, {"mae": PAST["chestxray14"]}) == [
        "After 60.0 min of pre-training on 957 images, past its gate by 31%"
    ]
    for run in store.search({"premed.kind": "pretrain"}):
        run.metrics["seconds"] = 40.0
    assert below(store) == ["That is expected after 40 s of pre-training"]


def test_of_many_comparisons_the_largest_clear_difference_has_its_sentence(store):
    many(store, {"mae": 4.0, "unimiss": -2.0})
    rows = [arm for arm in compare(store).tasks[0].blocks[0].rows if not arm.is_baseline]
    (largest,) = below(store)
    most = max(rows, key=lambda arm: abs(arm.scores["mauc"].difference.value))
    value = abs(most.scores["mauc"].difference.value)
    assert largest.startswith(f"The largest of these differences: {most.label} ") and f"{value:.3f}" in largest


def test_of_many_comparisons_of_which_none_is_clear_nothing_more_is_said(store):
    many(store, {"mae": 1.5, "unimiss": 1.5})
    assert below(store) == []
