"""The reference of all fields."""

from pathlib import Path

import pytest

from premed.config.experiment import Experiment
from premed.config.fields import KINDS, field_docs, page, reference
from premed.config.plugins import plugin, plugin_names
from premed.config.settings import Finetune, Pretrain, Train
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
