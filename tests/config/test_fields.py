"""The reference of all fields."""

from pathlib import Path
from typing import Annotated

import pytest

from premed.config.experiment import Experiment
from premed.config.fields import KINDS, entries, field_docs, page, reference
from premed.config.plugins import plugin, plugin_names
from premed.config.settings import Finetune, Pretrain, Pretrained, Train
from premed.config.spec import Spec
from premed.errors import UserError


def by_path(path=None):
    return {entry.path: entry for entry in reference(path)}


def test_every_field_of_a_yaml_is_there_with_type_range_default_and_meaning():
    found = by_path()
    for section, kind in (("", Experiment), ("finetune.", Finetune), ("pretrain.", Pretrain), ("train.", Train)):
        assert {f"{section}{name}" for name in kind.model_fields} <= found.keys()
    lr, fraction, precision = (found[name] for name in ("finetune.lr", "finetune.label_fraction", "train.precision"))
    assert (lr.type, lr.default) == ("number, above 0", "")
    assert (fraction.type, fraction.default) == (
        "number, above 0 to 1",
        "1.0",
    ) and "training patients" in fraction.meaning
    assert (precision.type, precision.default) == ("auto or fp32 or bf16", "auto")
    assert (found["train.resident"].type, found["train.resident"].default) == ("auto or true or false", "auto")
    assert found["finetune.augment.scale"].type == "[number, number] or null"
    assert {"seeds", "vary", "pretrain.sources[].task"} <= found.keys()


@pytest.mark.parametrize(("field", "kind"), KINDS.items())
def test_every_plug_in_s_fields_are_there(field, kind):
    for name in plugin_names(kind):
        config = plugin(kind, name).Config
        expected = {f"{field}.{each}" for each in config.model_fields if each != "name"}
        assert not expected or expected <= by_path(f"{field}.{name}").keys()


def test_a_section_or_a_single_field_can_be_asked_for():
    assert all(path == "finetune" or path.startswith("finetune.") for path in by_path("finetune"))
    assert list(by_path("finetune.layer_decay")) == ["finetune.layer_decay"]
    assert list(by_path("pretext.mae.mask_ratio")) == ["pretext.mask_ratio"]


def test_fields_of_every_member_of_a_union_are_there():
    """Of `Pretrain | Pretrained`, too: `pretrain.encoder` names a finished pre-training."""
    found = by_path("pretrain")
    for kind in (Pretrain, Pretrained):
        assert {f"pretrain.{name}" for name in kind.model_fields} <= found.keys()
    (encoder,) = reference("pretrain.encoder")
    assert encoder.type == "text" and "in place of training one" in encoder.meaning and "digest" in encoder.meaning
    assert len(reference("pretrain.seed")) == 1 and found["pretrain.seed"].default == "0"  # of the first that has it

    class One(Spec):
        both: int = 1
        first: int = 1

    class Other(Spec):
        """Another way."""

        both: str = ""
        second: tuple[One, ...] = ()
        """Twos."""

    class Whole(Spec):
        part: Annotated[One | Other | int | None, "checked"] = None

    result = {each.path: each for each in entries(Whole)}
    assert [*result] == [
        "part",
        *(f"part.{name}" for name in ("both", "first", "second", "second[].both", "second[].first")),
    ]
    assert result["part.both"].type == "whole number" and result["part.second"].meaning == "Another way. Twos."


def test_what_a_file_says_of_other_files_and_of_strategies_is_a_field():
    """Each key that `compose` takes out of a file."""
    whole = [each.path for each in reference()]
    assert whole[-2:] == ["base", "only"] and all(by_path(name)[name].meaning for name in ("base", "only"))
    assert (by_path("base")["base"].type, by_path("only")["only"].type) == ("text or null", "strategy: fields")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("pretext.mask_ratio", "pretext.mask_ratio"),
        ("pretrain.sources.task", "pretrain.sources[].task"),
        ("finetune.base_lr", "finetune.lr"),
    ],
)
def test_a_field_is_found_as_overrides_write_it(asked, expected):
    assert {each.path for each in reference(asked)} == {expected}


def test_of_a_field_that_several_plug_ins_have_each_is_told():
    fields = {name: plugin("tasks", name).Config.model_fields for name in plugin_names("tasks")}
    having = [name for name in fields if "spacing" in fields[name]]
    assert [each.meaning.split(":")[0] for each in reference("task.spacing")] == having and len(having) > 1


def test_only_what_must_be_set_has_no_default():
    found = by_path()
    assert {found[name].default for name in ("train", "tracking", "finetune.augment")} == {"{}"}
    assert found["task"].default == found["finetune.lr"].default == "" != found["pretrain.encoder"].default


def test_a_plug_in_without_fields_is_said_to_have_none():
    with pytest.raises(UserError, match="^pretext.none: has no fields of its own; write it as it is"):
        reference("pretext.none")


def test_what_is_no_field_gets_a_guess():
    with pytest.raises(UserError, match="^finetun: no such field; did you mean finetune"):
        reference("finetun")


def test_settings_that_are_not_plain_say_what_they_mean():
    for kind in (Pretrain, Finetune, Train):
        plain = {"epochs", "warmup_epochs", "batch", "lr", "weight_decay", "betas", "seed", "augment", "head"}
        plain |= {"layer_decay", "drop_path"}
        assert kind.model_fields.keys() - plain <= field_docs(kind).keys()


def test_the_page_of_all_fields_is_as_the_schema_has_it():
    """premed fields --markdown > docs/fields.md"""
    assert Path(__file__).parents[2].joinpath("docs", "fields.md").read_text() == page()
