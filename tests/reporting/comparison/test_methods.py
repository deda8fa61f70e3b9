"""The methods paragraph: what it says of a design is what the runs are, and what they are not is not said."""

import numpy as np
import pytest
from support.comparing import add, leave, volumes, xrays

from premed.reporting import statistics
from premed.reporting.comparison.compare import compare
from premed.reporting.comparison.design import stage_records
from premed.reporting.comparison.methods import methods


def written(store, block=0, **more):
    (task,) = compare(store, **more).tasks
    records = stage_records(store, (arm for each in task.blocks for arm in each.rows))
    return methods(task, task.blocks[block], records, store)


def runs(store, seeds=3, num_pretrainings=3, **more):
    for seed in range(seeds):
        add(store, "none", seed, **more)
        add(store, "mae", seed, xrays(2.5, seed), pretrain_seed=seed % num_pretrainings, **more)


def has(text, *parts):
    return [part for part in parts if part not in text] == []


def test_of_a_classification_with_several_pre_trainings(store, tmp_path):
    runs(store)
    for number, run in enumerate(store.search({})):
        run.tags.update({"version.torch": "2.15.0", "mlflow.source.git.commit": "e89c848"})
        run.tags["premed.digest"] = f"{number:03d}abcdef0123456789"
        if run.tags["premed.kind"] in ("pretrain", "finetune"):
            images = {"pretrain": 957, "finetune": 120}[run.tags["premed.kind"]]
            leave(store, run.run_id, tmp_path / run.run_id, [1.0], result={"num_cases": images})
    text = written(store)
    assert has(
        text,
        "On chestxray14, a classification with 2 labels (heart, lung), of which an image may have several, we compared "
        "mae and none (no pre-training); the baseline was none. Networks had the encoder vit and the head linear.",
        "The pre-training of mae learnt from 957 images, without labels. Fine-tuning used 120 images (100 % of the "
        "labels).",
        "Validation had 30 images of 10 patients and selected the weights. All were scored on the same 30 test images",
        "The trainings were 3 pre-trainings with 3 fine-tunings of mae and 3 trainings of none.",
        "differed by fine-tuning seed (none) or by pre-training and fine-tuning seed (mae) alone.",
        "The score was the area under the ROC curve, the mean over classes.",
        "DeLong et al.", "two-way analysis of variance", "for other patients and other seeds",
        "Differences to none were taken on the same patients and the same seeds.",
        "There was one comparison, two-sided at 0.05, and thus no correction for several.",
        "the mean over classes of the error of each, in 10 bins of equal mass (Nixon et al.",
        "The runs were made with torch 2.15.0. The commit of premed was e89c848.",
    )  # fmt: skip
    digests = {store.get(run.run_id).tags["premed.digest"][:12] for run in store.search({"premed.kind": "experiment"})}
    assert len(digests) == 6 and all(digest in text for digest in digests)
    for absent in ("Holm", "one pre-training", "fewer than", "optimistic", "drawn by patient", "were averaged", "None"):
        assert absent not in text


def test_trainings_that_a_difference_leaves_out_are_told(store):
    runs(store)
    add(store, "mae", 5, xrays(2.5, 5), pretrain_seed=5)
    for seed in (6, 7):
        add(store, "none", seed)
    assert has(
        written(store),
        "The difference of mae is of 3 seeds; 1 training of mae and 2 trainings of none are in the arms' own scores",
    )


def test_a_pre_training_whose_length_labels_decided_is_told(store, tmp_path):
    runs(store)
    for run in store.search({"premed.kind": "pretrain"}):
        result = {"num_cases": 957, "selected_by": "probe_mauc"}
        leave(store, run.run_id, tmp_path / run.run_id, [1.0], result=result)
    assert has(
        written(store),
        "The pre-training of mae learnt from 957 images, without labels. A linear probe, with labels of training and "
        "validation images, decided how long it was.",
    )


def test_patients_of_val_and_test_are_apart_only_where_they_are(store):
    runs(store)
    apart = ", none of whom is in the validation part"
    assert apart not in written(store)  # these made-up parts are the same
    for run in store.search({"premed.kind": "finetune"}):
        table = store.tables[run.run_id]
        store.tables[run.run_id] = table | {"patient": [f"val {each}" for each in table["patient"]]}
    assert f"30 test images of 10 patients{apart}." in written(store)


def test_one_pre_training_for_all_seeds_is_told(store):
    runs(store, num_pretrainings=1)
    assert has(
        written(store),
        "1 pre-training with 3 fine-tunings of mae",
        "differed by fine-tuning seed (mae and none) alone.",
        "All seeds of mae stand on one pre-training, and no interval covers another one.",
    )


def test_fine_tunings_of_each_pre_training_are_averaged(store):
    for seed in range(3):
        add(store, "none", seed)
        for fine in range(2):
            add(store, "mae", 10 + fine, xrays(2.0, seed), pretrain_seed=seed)
    assert "Fine-tunings of one pre-training of mae were averaged and count as one seed." in written(store)


def test_one_seed_has_intervals_over_patients_alone(store):
    runs(store, seeds=1)
    text = written(store)
    assert has(text, "whose variation over patients gives the intervals (Student's t)", "over patients alone",
               "With fewer than 3 seeds the intervals are for other patients alone and cover no other seed.",
               "There was one training of mae and none.")  # fmt: skip
    assert "analysis of variance" not in text and "differed by" not in text


def test_several_comparisons_are_corrected_and_counted(store):
    for share in (0.1, 1.0):
        runs(store, fraction=share)
    for seed in range(3):
        add(store, "unimiss", seed, pretrain_seed=seed)
    assert has(
        written(store),
        "Fine-tuning used 10 % of the labels and 100 %; a smaller share of the labels was drawn by patient.",
        "The 3 p-values, two-sided, were corrected by Holm's method",
        "we compared mae, none (no pre-training) and unimiss",
    )


def test_seeds_that_are_not_the_same_are_told(store):
    for seed in range(3):
        add(store, "none", seed)
        add(store, "mae", seed + 7, xrays(2.0, seed), pretrain_seed=seed)
    assert "on the same patients, with seeds that are not the same" in written(store)


def test_val_alone_is_called_optimistic(store):
    runs(store, tested=False)
    text = written(store)
    assert "30 validation images of 10 patients, which also selected the weights, so that scores are" in text
    assert "test images" not in text


@pytest.mark.parametrize(("score", "scale"), [("dice", "logit"), ("hd95", "logarithmic")])
def test_of_a_segmentation(store, score, scale):
    for seed in range(3):
        for strategy in ("none", "mae"):
            add(store, strategy, seed, volumes(0.6, seed), score=score, pretrain_seed=seed)
    text = written(store)
    assert has(text, "a segmentation of 2 structures (heart, lung)", f"symmetric on the {scale} scale")
    assert "alibration" not in text and "DeLong" not in text


def test_one_arm_is_evaluated_and_not_compared(store):
    for seed in range(3):
        add(store, "mae", seed, pretrain_seed=seed)
    text = written(store)
    assert "we evaluated mae." in text and "ifference" not in text.partition("those of differences")[0]
    assert "p-value" not in text and "baseline" not in text


def test_scores_that_are_gone_are_not_told_of(store):
    runs(store)
    for run in store.search({"premed.kind": "finetune"}):
        del store.tables[run.run_id]
    assert "Validation had" not in written(store)


def test_no_label_of_an_arm_is_capitalised(store):
    runs(store, num_pretrainings=1)
    assert "Mae" not in written(store) and "None " not in written(store)


def test_the_degrees_of_freedom_are_those_that_it_names():
    """Satterthwaite's, with the seeds' share w of the variance in place of w²: 1/df = w/(S-1) + (1-w)²/(P-1)."""
    variance, df = statistics.combined([0.3], [4], 0.9, 0.2, 21)
    w = 0.3 / (0.3 + 0.9 - 0.2)
    assert variance == pytest.approx(1.0) and 1 / df == pytest.approx(w / 3 + (1 - w) ** 2 / 20)
    assert np.isfinite(df)
