"""Which runs `premed compare` refuses to set beside each other, and how it says so."""

import pytest
from support.comparing import add, arm_of, block_of, difference_of

from premed.errors import UserError
from premed.reporting.comparison.compare import compare

# ---- rows, blocks and the baseline


def test_another_head_that_keeps_a_strategy_from_the_baseline_is_refused_unless_allowed(trained):
    for seed in range(3):
        add(trained, "imagenet", seed, change={"training": {"head": {"name": "unetr"}}})
    with pytest.raises(
        UserError, match=r"differ in finetune.head.name: linear \(6 runs\), unetr \(3 runs\), and imagenet"
    ):
        compare(trained)
    result = compare(trained, allow=["head"])
    assert difference_of(result, "imagenet") is not None
    assert any("finetune.head.name differs and was allowed to" in note for note in result.tasks[0].notes)
    assert len(block_of(compare(trained, where=["head=linear"])).rows) == 2


# ---- refusals


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"change": {"task": {"size": 32}}}, "task.size"),
        ({"change": {"training": {"lr": 0.5}}}, "finetune.lr"),
        ({"change": {"training": {"head": {"pool": "cls"}}}}, "finetune.head.pool"),
        ({"data": "train:zz val:dd"}, "data.train"),
        ({"test": "zz"}, "data.test"),
    ],
)
def test_runs_of_another_protocol_are_refused_in_one_line_that_names_the_field(trained, change, field):
    add(trained, "mae", 9, **change)
    with pytest.raises(
        UserError, match=rf"^chestxray14: runs differ in {field}: .*\(6 runs\), .*\(1 run\); --where {field}="
    ) as caught:
        compare(trained)
    assert "\n" not in str(caught.value)
    usual = {"size": 16, "lr": 0.001, "pool": "mean", "train": "cc", "test": "ee"}[field.rpartition(".")[2]]
    assert arm_of(compare(trained, where=[f"{field}={usual}"])).num_seeds == 3


def test_what_is_allowed_to_differ_distinguishes_rows_and_is_noted(trained):
    add(trained, "mae", 0, change={"training": {"lr": 0.5}})
    result = compare(trained, allow=["finetune.lr"])
    assert {arm.label for arm in block_of(result).rows} == {"none", "mae lr=0.001", "mae lr=0.5"}
    assert "finetune.lr differs and was allowed to: 0.001 and 0.5" in result.tasks[0].notes


def test_scores_of_other_cases_are_refused_whatever_is_allowed(trained):
    add(trained, "mae", 9, test="zz")
    with pytest.raises(UserError, match="for other cases cannot be paired"):
        compare(trained, allow=["data"])


def test_a_field_that_only_says_where_data_lies_may_differ(trained):
    add(trained, "mae", 3, change={"task": {"root": "elsewhere"}})
    assert arm_of(compare(trained)).num_seeds == 4


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"where": ["finetune.lr"]}, "write FIELD=VALUE, as in --where finetune.lr=0.001"),
        ({"where": ["lr=0.1"]}, r"--where lr: no run has this field; is it finetune.lr or pretrain.lr\?"),
        ({"where": ["finetune.epoch=3"]}, r"--where finetune.epoch: no run has this field; is it finetune.epochs\?"),
        ({"where": ["finetune.lr=7"]}, "no run has it; finetune.lr is 0.001"),
        ({"allow": ["nonsense"]}, "--allow nonsense: no run has this field; write it as in the YAML: finetune.lr"),
        ({"task": "btcv"}, "--task btcv: the store has no run of it; it has chestxray14"),
        ({"baseline": "imagenet"}, "--baseline imagenet: no run is called so; there are mae and none"),
    ],
)
def test_invalid_options_are_one_line_with_the_remedy(trained, asked, words):
    with pytest.raises(UserError, match=words):
        compare(trained, **asked)


def test_an_empty_store_says_so(store):
    with pytest.raises(UserError, match="holds no finished run to compare; premed run makes one"):
        compare(store)
    add(store, "none", status="RUNNING")
    with pytest.raises(UserError, match=r"compare; 1 run not finished, left out .*; premed run"):
        compare(store)


# ---- files that are gone


def test_a_run_whose_scores_are_gone_is_left_out_with_a_word(trained):
    assert compare(trained).tasks[0].notes == []
    del trained.tables[trained.search({"premed.kind": "test", "strategy": "mae"})[0].run_id]
    result = compare(trained)
    assert arm_of(result).num_seeds == 2
    assert len(result.tasks[0].notes) == 1 and "1 run left out: run " in result.tasks[0].notes[0]
    assert "has no scores.json any more" in result.tasks[0].notes[0]


def test_a_store_without_its_artifacts_is_one_line_with_the_mend(trained):
    trained.tables.clear()
    with pytest.raises(UserError, match="no run has its scores any more: run .* put the files back, or run it again$"):
        compare(trained)
