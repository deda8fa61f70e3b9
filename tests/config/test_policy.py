"""config/policy.py: how `finetune.policy` is written, what is refused, and whose digest it changes."""

import pytest
from support.experiments import experiment

from premed.config.policy import Full, HeadOnly, LastN, LoRA, WarmupThenFull
from premed.config.spec import canonical
from premed.errors import UserError


def with_policies(*values):
    """The tiny experiment with one policy merged over the other, as YAMLs and overrides are."""
    return experiment("chest", *({"finetune": {"policy": value}} for value in values))


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], Full()),
        (["full"], Full()),
        (["head"], HeadOnly()),
        ([{"name": "last_n", "blocks": 4}], LastN(blocks=4)),
        (["lora", {"rank": 4}], LoRA(rank=4, alpha=16)),
        ([{"name": "lora", "rank": 4}, "warmup_then_full"], WarmupThenFull(share=0.1)),
    ],
)
def test_a_policy_is_a_word_or_a_mapping_with_its_fields(values, expected):
    assert with_policies(*values).finetune.policy == expected


@pytest.mark.parametrize(
    "value, message",
    [
        ("lorra", "finetune.policy: 'lorra' is not one of full, head, last_n, lora, warmup_then_full"),
        (["head"], "finetune.policy: ['head'] is not one of full, head, last_n, lora, warmup_then_full"),
        (
            {"rank": 4},
            "finetune.policy: name is missing; rank of lora: set finetune.policy.name=lora, too",
        ),
        (
            {"rang": 4},
            "finetune.policy: name is missing; it is one of full, head, last_n, lora, warmup_then_full",
        ),
        ({"name": "head", "blocks": 4}, "finetune.policy.blocks: no such field; check its spelling"),
        ({"name": "lora", "rank": 0}, "finetune.policy.rank: Input should be greater than or equal to 1 (it is 0)"),
        ({"name": "warmup_then_full", "share": 1}, "finetune.policy.share: Input should be less than 1 (it is 1)"),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_field(value, message):
    with pytest.raises(UserError) as raised:
        with_policies(value)
    assert str(raised.value) == message


def test_full_is_in_no_digest_and_another_policy_changes_those_of_fine_tuning_and_test_alone():
    def digests(*values):
        return {stage.kind: stage.digest() for stage in with_policies(*values).stages(lambda kind: "data")}

    before = digests()
    assert digests("full") == before and "policy" not in canonical(with_policies("full").finetune)
    others = [digests(value) for value in ("head", "last_n", "lora", "warmup_then_full", {"name": "lora", "rank": 4})]
    assert {each["pretrain"] for each in others} == {before["pretrain"]}
    for kind in ("finetune", "test"):
        assert len({before[kind], *(each[kind] for each in others)}) == 6
