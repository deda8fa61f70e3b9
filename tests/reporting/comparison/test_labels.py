"""labels.py: arms are called by what they are, where that tells them apart; what a difference is due to."""

import pytest
from support.comparing import add, arm_of, block_of, xrays

from premed.errors import UserError
from premed.reporting.comparison.compare import compare

PYRAMID = {"encoder": {"name": "unet", "width": None, "widths": [8, 16]}}


def policy(**fields):
    return {"training": {"policy": fields}}


LORA = policy(name="lora", rank=8)


def seeds(store, *args, **more):
    for seed in range(3):
        add(store, *args, seed, **more)


def labels(store, **more):
    return {arm.label for arm in block_of(compare(store, **more)).rows}


def notes(store, **more):
    return block_of(compare(store, **more)).notes


def test_an_architecture_is_named_where_any_other_arm_has_another(store):
    seeds(store, "none")
    seeds(store, "mae", change=PYRAMID)
    assert labels(store) == {"none vit", "mae unet"}
    seeds(store, "none", change={"encoder": {"width": 48}})
    assert labels(store) == {"none vit width=24", "none vit width=48", "mae unet"}
    seeds(store, "mae", change={"encoder": {"name": "timm", "model": "convnext_tiny", "width": None}})
    assert "mae convnext_tiny" in labels(store)


def test_a_policy_makes_an_arm_and_runs_of_before_there_were_any_are_full(store):
    seeds(store, "none")
    for value in (policy(name="full"), LORA, policy(name="lora", rank=4), policy(name="head")):
        seeds(store, "mae", change=value)
    names = {"mae full", "mae lora rank=8", "mae lora rank=4", "mae head"}
    assert labels(store) == {"none full", *names}
    result = compare(store)
    assert arm_of(result, "none full").is_baseline and arm_of(result, "mae head").policy == "head"
    assert labels(store, where=["finetune.policy.name=full"]) == {"none", "mae"}


def test_the_baseline_has_the_policy_that_most_have(store):
    for strategy in ("none", "mae"):
        seeds(store, strategy, change=LORA)
        seeds(store, strategy)
    seeds(store, "unimiss", change=LORA)
    assert arm_of(compare(store), "none lora").is_baseline
    assert arm_of(compare(store, baseline="none full"), "none full").is_baseline


def test_weights_are_called_by_their_models_names(store):
    seeds(store, "none")
    for model in ("dinov2-b", "biomedclip"):
        for seed in range(2):
            add(store, "mae", seed, pretrain={"pretext": {"init": {"name": "pretrained", "model": model}}})
    seeds(store, "mae")
    assert labels(store) == {"none", "mae from dinov2-b", "mae from biomedclip", "mae from scratch"}


@pytest.mark.parametrize(
    "strategy, change, words",
    [
        ("mae", PYRAMID, "mae unet: the difference is of architecture and pre-training together"),
        ("none", PYRAMID, "none unet: the difference is of architecture, not of pre-training"),
        ("none", LORA, "none lora: the difference is of fine-tuning policy, not of pre-training"),
        ("mae", LORA, "mae lora: the difference is of fine-tuning policy and pre-training together"),
        (
            "mae",
            LORA | PYRAMID,
            "mae unet lora: the difference is of architecture, fine-tuning policy and pre-training together",
        ),
        (
            "none",
            LORA | PYRAMID,
            "none unet lora: the difference is of architecture and fine-tuning policy together, not of pre-training",
        ),
    ],
)
def test_a_difference_that_is_not_the_pre_training_s_alone_is_said_to_be_so(strategy, change, words, store):
    for fraction in (0.1, 1.0):
        seeds(store, "none", fraction=fraction)
        seeds(store, strategy, change=change, fraction=fraction)
        seeds(store, "unimiss", fraction=fraction)
    assert [note for note in notes(store) if "the difference is of" in note] == [words]


def test_the_answer_says_so_too_and_a_difference_of_pre_training_alone_needs_no_words(store):
    seeds(store, "none")
    seeds(store, "mae", change=PYRAMID)
    sentence = block_of(compare(store)).conclusion
    assert "; the difference is of architecture and pre-training together; 30 test images" in sentence


def test_other_fields_of_fine_tuning_must_be_the_same_as_before(store):
    seeds(store, "none")
    for seed in range(3):
        add(store, "mae", seed, xrays(2, seed), change={"training": {"lr": 0.5, **LORA["training"]}})
    with pytest.raises(UserError, match="runs differ in finetune.lr"):
        compare(store)
