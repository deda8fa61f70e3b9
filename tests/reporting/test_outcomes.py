"""The table that a run ends with, as a person sees it."""

import pytest

from premed.reporting.outcomes import show_outcomes

GATE = {"loss": 0.6, "gate": 0.9, "below": 1 / 3, "passed": True}

TESTED = {
    "task": "chestxray14",
    "strategy": "imagenet",
    "score": "mauc",
    "stages": [
        {"kind": "pretrain", "seconds": 11111.0, "gate": GATE, "summary": {"val/loss": 0.6}},
        {"kind": "finetune", "seconds": 1.0, "gate": None, "summary": {"val/mauc": 0.6}},
        {
            "kind": "test",
            "seconds": 1.0,
            "summary": {"test/mauc": 0.594},
            "interval": [0.532, 0.701],
            "constant": 0.5,
            "where": "/tested",
        },
    ],
}


@pytest.mark.parametrize("columns", [80, 120])
def test_a_row_of_the_table_is_one_line(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_outcomes([TESTED])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "test mean AUC" in line]
    words = "chestxray14 imagenet test mean AUC 0.594 [0.532, 0.701] 0.500 33% 11113"
    assert " ".join(row.split()) == words and len(row) <= 80
    assert lines[-1].endswith("/tested")


def test_a_validated_outcome_shows_its_own_score(capsys):
    stage = {"kind": "finetune", "seconds": 1.0, "summary": {"val/accuracy": 0.75}, "where": "/x"}
    show_outcomes([{"task": "images", "strategy": "none", "score": "accuracy", "stages": [stage]}])
    assert "val accuracy 0.750" in capsys.readouterr().out


def seeded(seed, mauc, **more):
    *before, test = TESTED["stages"]
    about = {"name": f"mae 5 % seed {seed}", "label_fraction": 0.05, "seed": seed}
    return TESTED | about | {"stages": [*before, test | {"summary": {"test/mauc": mauc}}]} | more


def of_seed(seed, step, value, constant=0.5, score="mauc"):
    stages = [
        {"kind": "finetune", "seconds": 1.0, "gate": None, "summary": {}, "best_step": step, "num_steps": 40},
        TESTED["stages"][-1]
        | {"value": value, "score": score, "constant": constant, "summary": {f"test/{score}": value}},
    ]
    return TESTED | {"stages": stages, "label_fraction": 1.0, "seed": seed, "score": score}


def test_it_says_of_which_step_the_weights_are_that_were_scored(capsys):
    show_outcomes([of_seed(0, 7, 0.7)])
    assert "scored: the weights that were best on val, of step 7 of 40" in capsys.readouterr().out.splitlines()
    show_outcomes([of_seed(0, 7, 0.7), of_seed(1, 27, 0.7)])
    assert "best on val, of steps 7 to 27 of 40" in capsys.readouterr().out
    show_outcomes([of_seed(0, 3, 0.7) | {"head": "probe"}, of_seed(0, 7, 0.7)])  # a probe's steps are its strengths
    assert "best on val, of step 7 of 40" in capsys.readouterr().out


def test_scores_no_better_than_an_answer_that_ignores_the_image_are_counted(capsys):
    show_outcomes([of_seed(0, 7, 0.7), of_seed(1, 7, 0.5), of_seed(2, 7, 0.4)])
    words = "2 of 3 tests are no better than an answer that ignores the image (0.500): train longer before you conclude"
    assert words in capsys.readouterr().out.splitlines()
    show_outcomes([of_seed(0, 7, 9.0, constant=4.0, score="hd95")])  # lower is better
    assert "the test is no better than" in capsys.readouterr().out
    show_outcomes([of_seed(0, 7, 0.7), of_seed(1, 7, None), of_seed(2, 7, 0.4, constant=None)])
    assert "no better" not in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_several_have_their_share_of_labels_their_seed_and_the_mean_over_seeds(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    failed = seeded(2, 0.0, stages=[], failure="finetune: the loss is not finite")
    show_outcomes([seeded(0, 0.6, run_id="1" * 32), failed | {"run_id": "2" * 32}, seeded(1, 0.7, run_id="3" * 32)])
    output = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "Scores: test mean AUC" in lines[0]
    assert "chestxray14 imagenet 5 % 1 0.700 [0.532, 0.701] 0.500 33% 11113" in lines
    assert "chestxray14 imagenet 5 % 2 failed - - - -" in lines
    assert "chestxray14 imagenet 5 % test mean AUC 2 0.650 ± 0.071" in lines  # of those that did not fail
    assert "mae 5 % seed 2 FAILED: finetune: the loss is not finite" in lines
    assert "for other images: premed predict 11111111 IMAGE… --out DIR (or 33333333" in output
    assert "premed compare" in lines[-1]


def test_arms_that_differ_in_more_than_their_name_are_told_apart_and_have_a_mean_each(capsys):
    """As of pretext=[{mae, 0.5}, {mae, 0.75}] with two seeds."""
    arms = {ratio: {"arm": {"name": "mae", "digest": f"of {ratio}"}} for ratio in (0.5, 0.75)}
    show_outcomes([seeded(seed, ratio + 0.1 * seed, **arms[ratio]) for ratio in arms for seed in (0, 1)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "chestxray14 mae (1) 5 % test mean AUC 2 0.550 ± 0.071" in lines
    assert "chestxray14 mae (2) 5 % test mean AUC 2 0.800 ± 0.071" in lines
    assert "chestxray14 mae (2) 5 % 1 0.850 [0.532, 0.701] 0.500 33% 11113" in lines


def test_a_class_without_an_auc_is_named(capsys):
    *before, test = TESTED["stages"]
    show_outcomes([TESTED | {"stages": [*before, test | {"undefined": ["Hernia", "Edema"]}]}])
    assert "no AUC, and left out of the mean: Hernia, Edema" in capsys.readouterr().out


def test_classes_without_an_auc_are_named_once_for_all_experiments_on_a_task(capsys):
    seeds = [seeded(seed, 0.6) for seed in (0, 1)]
    for outcome in seeds:
        outcome["stages"][-1]["undefined"] = ["Hernia"]
    show_outcomes(seeds)
    assert capsys.readouterr().out.count("chestxray14: no AUC, and left out of the mean: Hernia") == 1


def test_scores_that_are_undefined_are_called_so(capsys):
    test = TESTED["stages"][2] | {"summary": {}, "interval": [float("nan"), float("nan")], "constant": None}
    failed = {"kind": "pretrain", "seconds": 1, "gate": GATE | {"below": 0.03, "passed": False}, "summary": {}}
    show_outcomes([TESTED | {"stages": [failed, test]}])
    row = next(line for line in capsys.readouterr().out.splitlines() if "test mean AUC" in line)
    assert row.split()[-6:] == ["undefined", "-", "undefined", "not", "past", "2"]


def test_a_pre_training_that_collapsed_is_called_so(capsys):
    *_, test = TESTED["stages"]
    collapsed = {"kind": "pretrain", "seconds": 1, "gate": None, "collapse": {"into": "one"}, "summary": {}}
    show_outcomes([TESTED | {"stages": [collapsed, test]}])
    assert "collapsed" in next(line for line in capsys.readouterr().out.splitlines() if "test mean AUC" in line)
