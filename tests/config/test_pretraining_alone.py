"""YAMLs of a pre-training alone, and of a fine-tuning of one that is finished."""

import pytest

from premed.config.compose import merge, validate_experiment
from premed.config.expand import load_all, title
from premed.config.settings import Pretrained
from premed.errors import UserError

SCANS = {"name": "unlabelled", "root": "/scans", "dims": 3, "roi": [32, 32, 32]}
LABELLED = {"name": "msd", "root": "/labelled", "roi": [32, 32, 32]}
ALONE = {
    "encoder": {"name": "vit", "width": 48, "depth": 4, "heads": 3, "patch": 8},
    "pretext": {"name": "mae", "mask_ratio": 0.5},
    "pretrain": {"epochs": 2, "batch": 64, "lr": 1e-3},
}
FINE = {"epochs": 2, "batch": 64, "lr": 1e-3, "head": {"name": "linear", "pool": "mean"}}


def stages(tree) -> list:
    return list(validate_experiment(tree).stages(lambda kind: "data"))


def test_without_a_fine_tuning_there_is_the_pre_training_and_no_test():
    alone = validate_experiment(ALONE | {"task": SCANS})
    assert alone.kinds == ["pretrain"] and not alone.tested
    assert title(alone) == "mae pre-training"


def test_the_stage_is_the_one_of_an_experiment_with_a_fine_tuning():
    whole = stages(ALONE | {"task": SCANS, "finetune": FINE})
    assert [stages(ALONE | {"task": SCANS})[0].digest()] == [whole[0].digest()]


def test_the_task_may_be_left_out_where_sources_are_named():
    sources = merge(ALONE, {"pretrain": {"sources": [{"task": SCANS}]}})
    (without,), (named,) = stages(sources), stages(sources | {"task": SCANS})
    (question,) = stages(sources | {"task": LABELLED})
    assert without.digest() == named.digest() == question.digest()
    with pytest.raises(UserError, match="^task: is missing"):
        validate_experiment(sources | {"finetune": FINE})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretext": "none"}, "^finetune: is missing, and none trains nothing before it"),
        ({"pretrain": {"encoder": "models:/x/1"}}, "^finetune: is missing, and pretrain.encoder is trained already"),
        ({"pretrain": {"encoder": "models:/x/1", "epocs": 3}, "finetune": FINE}, "^pretrain: epocs: no such field"),
        ({"pretrain": {"encoder": ""}, "finetune": FINE}, "^pretrain.encoder: .* at least 1 character"),
        ({"pretrain": {"encoder": None, "lr": 1}}, "^pretrain.epochs: is missing"),
        ({"pretrain": "fast"}, "^pretrain: .*valid dictionary.* \\(it is 'fast'\\)"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_field(change, words):
    with pytest.raises(UserError, match=words):
        validate_experiment(ALONE | {"task": SCANS} | change)


def test_a_finished_pre_training_is_the_parent_of_the_fine_tuning():
    """As that of a stage of one's own is: the same digest, so that nothing is trained twice."""
    own = stages(ALONE | {"task": LABELLED, "finetune": FINE})
    named = validate_experiment(ALONE | {"task": LABELLED, "finetune": FINE, "pretrain": {"encoder": own[0].digest()}})
    assert isinstance(named.pretrain, Pretrained) and named.kinds == ["finetune", "test"]
    assert [stage.digest() for stage in named.stages(lambda kind: "data")] == [stage.digest() for stage in own[1:]]
    assert validate_experiment(named.model_dump(mode="json")).digest() == named.digest()


def test_one_yaml_is_the_scratch_and_the_fine_tuned(tmp_path):
    import yaml

    tree = ALONE | {"task": LABELLED, "finetune": FINE, "pretext": ["none", "mae"]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree | {"pretrain": {"encoder": "models:/x@newest"}}))
    none, mae = load_all([tmp_path / "a.yaml"], ["seeds=[0]"])
    assert none.pretrained is None and mae.pretrained.encoder == "models:/x@newest"
    with pytest.raises(UserError, match="^seeds: are the fine-tuning's, and there is no finetune"):
        load_all([tmp_path / "a.yaml"], ["seeds=[0,1]", "finetune=null", "pretext=mae", "pretrain.encoder=null"])
