"""`seeds: auto`: what it expands to, when it looks, and what is refused."""

import pytest
import yaml

from premed.config.decide import Decide
from premed.config.expand import load_all, load_command
from premed.errors import UserError

STEPS = {"epochs": 1, "batch": 4, "lr": 1e-3}
TREE = {
    "task": "msd",
    "encoder": {"name": "vit", "patch": 8},
    "pretext": ["none", "mae"],
    "pretrain": STEPS,
    "finetune": {**STEPS, "head": "unetr"},
    "seeds": "auto",
}


@pytest.fixture
def written(tmp_path):
    def write(tree=TREE):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "a.yaml"

    return write


def seeds_of(experiments, strategy="mae"):
    found = [each for each in experiments if each.strategy == strategy]
    return [(each.finetune.seed, each.pretrain and each.pretrain.seed) for each in found]


def test_auto_stands_for_all_seeds_that_there_may_be_of_pre_training_and_fine_tuning(written):
    experiments, decide = load_command([written()], ["decide.max_seeds=5", "decide.margin=0.02"])
    assert seeds_of(experiments) == [(seed, seed) for seed in range(5)]
    assert seeds_of(experiments, "none") == [(seed, None) for seed in range(5)]
    assert decide == Decide(margin=0.02, max_seeds=5)
    listed = load_all([written()], ["seeds=[0,1,2,3,4]", "vary=[pretrain,finetune]"])
    assert [each.digest() for each in listed] == [each.digest() for each in experiments]


def test_the_pre_training_is_pinned_by_vary_and_where_it_is_finished(written):
    assert seeds_of(load_all([written()], ["vary=finetune", "decide.max_seeds=4"])) == [(seed, 0) for seed in range(4)]
    finished = load_all([written(TREE | {"pretrain": {"encoder": "models:/mae/1"}})], ["decide.max_seeds=4"])
    assert seeds_of(finished) == [(seed, None) for seed in range(4)]


def test_listed_seeds_have_no_decision(written):
    assert load_command([written()], ["seeds=[0,1]"])[1] is None


@pytest.mark.parametrize(
    ("most", "looks"),
    [
        (4, [4]),
        (5, [5]),
        (6, [4, 6]),
        (7, [4, 7]),
        (12, [4, 6, 8, 10, 12]),
        (13, [4, 6, 8, 10, 13]),
        (24, [4, 6, 8, 10, 12, 15, 18, 22, 24]),
    ],
)
def test_it_is_looked_after_four_seeds_then_after_a_quarter_more_and_at_the_last(most, looks):
    assert list(Decide(max_seeds=most).planned) == looks


def test_looks_may_be_stated():
    assert Decide(max_seeds=16, looks=(8, 16)).planned == (8, 16)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pretext=mae"], r"seeds: auto compares strategies, and there is one; list them, as in pretext=\[none,mae\]"),
        (["decide.baseline=hssl"], "decide.baseline: no strategy is called hssl; name one .* of none, mae"),
        (
            ["pretext=[mae, {name: mae, mask_ratio: 0.5}]", "decide.baseline=mae"],
            "decide.baseline: several strategies are called mae",
        ),
        (["decide.max_seeds=3"], "decide.max_seeds: Input should be greater than or equal to 4"),
        (["decide.margin=0"], "decide.margin: Input should be greater than 0"),
        (["decide.hours=-1"], "decide.hours: Input should be greater than 0"),
        (["decide.looks=[6, 4]", "decide.max_seeds=4"], "decide.looks: must be different numbers .* ascending"),
        (["decide.looks=[4, 8]"], "decide: looks: the last is at 8 seeds and max_seeds is 12; make them one number"),
        (["decide.max_seed=8"], "decide.max_seed: no such field; did you mean max_seeds?"),
        (["vary=pretrain"], "vary: strategies are compared seed by seed; with seeds: auto, finetune must be in it"),
        (["pretrain.seed=3"], "pretrain.seed: varies with seeds: auto; leave it out, or pin it with vary=finetune"),
        (["finetune=null"], "finetune: is missing, and seeds: auto compares fine-tunings; set it in a YAML"),
        (["seeds=[0,1]", "decide.margin=0.1"], "decide: is for seeds: auto, and the seeds are listed"),
        (["seeds=automatic"], r"seeds: 'automatic' is neither a list, as in \[0, 1, 2\], nor auto"),
    ],
)
def test_mistakes_are_refused_in_one_line_that_names_the_field(written, overrides, words):
    with pytest.raises(UserError, match=words) as error:
        load_all([written()], overrides)
    assert "\n" not in str(error.value)
