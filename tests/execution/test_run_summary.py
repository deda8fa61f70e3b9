"""The few parameters and the numbers of an experiment's own run."""

import pytest
from support.experiments import SCRATCH, experiment

from premed.execution.run_summary import arm_digest, summary_params, totals

FINISHED = {"pretext": {"name": "mae", "mask_ratio": 0.5}, "pretrain": {"encoder": "models:/vit/1", "seed": 3}}


def params(*changes):
    return summary_params(experiment("chest", *changes))


def test_parameters_are_those_that_the_experiment_has():
    scratch = params(SCRATCH, {"finetune": {"seed": 2, "label_fraction": 0.1}})
    assert scratch["strategy"] == "none" and (scratch["seed"], scratch["label_fraction"]) == (2, 0.1)
    absent = {scratch[name] for name in ("mask_ratio", "pretrain_seed", "pretrain_epochs")}  # its `pretrain` is unused
    assert scratch["arm"] == "none 10 %" and absent == {"none"}


def test_another_policy_of_fine_tuning_is_in_the_arm_s_name():
    assert (params()["arm"], params()["policy"]) == ("mae 100 %", "full")
    of = params({"finetune": {"policy": {"name": "lora", "rank": 4}}})
    assert (of["arm"], of["policy"]) == ("mae lora 100 %", "lora")


def test_what_an_arm_does_not_use_does_not_tell_it_apart():
    long = experiment("chest", SCRATCH, {"pretrain": {"epochs": 9}})
    assert arm_digest(long, "d") == arm_digest(experiment("chest", SCRATCH), "d")


def test_the_length_is_in_steps_where_epochs_say_nothing():
    summary = params({"pretrain": {"steps": 7}})
    assert summary["pretrain_steps"] == 7 and "pretrain_epochs" not in summary and summary["finetune_epochs"] == 4


def test_of_a_finished_pre_training_only_what_is_stated_is_told():
    tree = experiment("chest").model_dump(mode="json", include={"task", "encoder", "finetune", "train"}) | FINISHED
    summary = summary_params(type(experiment("chest")).model_validate(tree))
    assert summary["pretrain_seed"] == 3 and summary["mask_ratio"] == 0.5 and "pretrain_epochs" not in summary


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"finetune": {"seed": 1}}, True),
        ({"pretrain": {"seed": 1}}, True),
        ({"train": {"log_steps": 3}}, True),
        ({"finetune": {"label_fraction": 0.5}}, False),
        ({"finetune": {"lr": 0.5}}, False),
        ({"pretext": {"mask_ratio": 0.5}}, False),
        ({"encoder": {"depth": 3}}, False),
    ],
)
def test_an_arm_is_what_differs_in_seeds_alone(change, is_same):
    assert (arm_digest(experiment("chest", change), "d") == arm_digest(experiment("chest"), "d")) == is_same
    assert arm_digest(experiment("chest", change), "d") != arm_digest(experiment("chest", change), "other data")


def result(kind, seconds, gate=None, **summary):
    return {"kind": kind, "seconds": seconds, "gate": gate, "summary": summary}


def test_the_totals_of_a_trunk_count_all_segments_and_its_last_gate():
    """The scores of each class stay with the stages."""
    gates = [{"below": 0.1}, {"below": 0.3}]
    stages = [result("trunk", 1.0, gates[0]), result("cooldown", 2.0, gates[1], **{"val/loss": 7.0})]
    stages += [result("finetune", 4.0, **{"val/mauc": 0.5}), result("test", 8.0, **{"test/mauc": 0.6, "test/auc/a": 1})]
    wanted = {"pretrain_val/loss": 7.0, "val/mauc": 0.5, "test/mauc": 0.6, "below_gate": 0.3, "seconds": 15.0}
    assert totals(stages) == wanted | {"pretrain_seconds": 3.0, "finetune_seconds": 4.0, "test_seconds": 8.0}


def test_the_score_on_the_test_part_is_the_first_number_which_mlflow_plots():
    stages = [result("import", 1.0), result("finetune", 2.0, **{"val/mauc": 0.5}), result("test", 3.0, **{"test/a": 1})]
    assert list(totals(stages))[:3] == ["test/a", "val/mauc", "seconds"]


def test_a_pre_training_above_its_gate_is_below_it_by_less_than_nothing():
    assert totals([result("pretrain", 1.0, {"below": -0.2})])["below_gate"] == -0.2


def test_without_a_gate_there_is_no_number_for_it():
    assert totals([result("pretrain", 1.0)]) == {"pretrain_seconds": 1.0, "seconds": 1.0}
