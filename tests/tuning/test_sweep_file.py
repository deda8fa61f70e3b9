"""A sweep file: what its space comes to, and what is refused by name before anything starts."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.suite import REPOSITORY

from premed.errors import UserError
from premed.tuning.space import MAX_CHECKED
from premed.tuning.sweep_file import load_sweep

EXPERIMENTS = REPOSITORY / "experiments"
STEPS = {"epochs": 2, "batch": 4, "lr": 1e-3}
BASE = {
    "task": "msd",
    "encoder": {"name": "vit", "patch": 8},
    "pretext": {"name": "mae", "mask_ratio": 0.5},
    "pretrain": STEPS,
    "finetune": {**STEPS, "head": "unetr"},
}
GRID = {"base": "base.yaml", "space": {"pretext.mask_ratio": [0.25, 0.5], "finetune.layer_decay": [0.65, 0.75, 0.85]}}


@pytest.fixture
def write(tmp_path):
    def write(*changes, base=BASE):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        sweep = dict(GRID)
        for change in changes:
            sweep |= change
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
        return tmp_path / "sweep.yaml"

    return write


def load_valid(file, *overrides):
    sweep = load_sweep(file, (), overrides)
    sweep.validate()
    return sweep


def test_a_grid_is_all_combinations_of_the_base_with_the_values(write):
    sweep = load_valid(write())
    settings = list(sweep.combinations())
    assert len(settings) == sweep.num_trials == 6
    assert settings[1] == {"pretext.mask_ratio": 0.25, "finetune.layer_decay": 0.75}
    (experiment,) = sweep.experiments(settings[1])
    assert (experiment.pretext.mask_ratio, experiment.finetune.layer_decay, experiment.pretrain.epochs) == (
        0.25,
        0.75,
        2,
    )
    pre_trainings = {next(sweep.experiments(each)[0].stages(str)).digest() for each in settings}
    assert len(pre_trainings) == 2  # layer decay is the fine-tuning's alone


def test_a_policy_of_fine_tuning_is_swept_and_so_are_its_fields(write):
    policies = ["full", "head", {"name": "lora", "rank": 4}]
    sweep = load_valid(write({"space": {"finetune.policy": policies}}))
    found = [sweep.experiments(each)[0].finetune.policy for each in sweep.combinations()]
    assert [each.name for each in found] == ["full", "head", "lora"] and found[2].rank == 4
    base = {**BASE, "finetune": {**BASE["finetune"], "policy": "lora"}}
    sweep = load_valid(write({"space": {"finetune.policy.rank": [3, 6]}}, base=base))
    assert sweep.experiments({"finetune.policy.rank": 3})[0].finetune.policy.rank == 3


def test_no_experiment_of_a_sweep_opens_the_test_part_and_the_best_one_s_yaml_does(write):
    sweep = load_valid(write())
    setting = next(sweep.combinations())
    assert "test" not in sweep.experiments(setting)[0].kinds and "test" in sweep.experiments_with_test(setting)[0].kinds


def test_with_seeds_auto_a_trial_has_as_many_as_it_may_get(write):
    sweep = load_valid(write(), "seeds=auto", "decide.max_seeds=6")
    assert [each.finetune.seed for each in sweep.experiments(next(sweep.combinations()))] == list(range(6))
    assert list(sweep.search.looks) == [4, 6] and load_valid(write()).search.looks == ()


def test_a_seed_that_the_sweep_s_would_override_is_refused(write):
    with pytest.raises(UserError, match=r"finetune.seed: the seeds of a sweep .*; set seeds=\[3\]"):
        load_valid(write(), "finetune.seed=3")


def test_lists_of_the_base_may_be_swept(write):
    several = {"pretext": ["none", "mae"], "finetune.label_fraction": [0.5, 1.0]}
    lists = {"pretext": ["none", "mae"], "finetune": {"label_fraction": [0.5, 1.0]}}
    assert load_valid(write({"set": lists, "space": several})).num_trials == 4


def test_seeds_are_experiments_of_one_trial(write):
    sweep = load_valid(write({"seeds": [0, 4]}))
    assert [each.finetune.seed for each in sweep.experiments(next(sweep.combinations()))] == [0, 4]
    assert sweep.num_trials == 6


def test_the_base_s_seeds_are_told_where_no_trial_has_them(write):
    """`premed init` writes three of them: trials had one each, without a word."""
    base = {**BASE, "seeds": [0, 1, 2]}
    said = ["seeds: the base has [0, 1, 2], and each trial [0]: a sweep's own stand beside space:"]
    assert [*load_valid(write(base=base)).notes()] == said
    assert [*load_valid(write({"seeds": [0]}, base=base)).notes()] == [] == [*load_valid(write()).notes()]


def test_any_value_that_a_yaml_may_hold_can_be_swept_a_strategy_too(write):
    sweep = load_valid(
        write(
            {
                "space": {
                    "pretext": ["none", "mae"],
                    "finetune.augment": [{"flip": 0.5}, {}],
                    "finetune.clip": [None, 1.0],
                }
            }
        )
    )
    kinds = {tuple(sweep.experiments(each)[0].kinds) for each in sweep.combinations()}
    assert kinds == {("finetune",), ("pretrain", "finetune")}


def test_overrides_are_the_sweep_s_or_the_experiment_s_by_their_first_word(write):
    overrides = "seeds=[1]", "space.finetune.lr=[0.1, 0.2]", "finetune.batch=8", "train.workers=2"
    sweep = load_valid(write(), *overrides)
    experiment = sweep.experiments(next(sweep.combinations()))[0]
    assert (experiment.finetune.seed, experiment.finetune.lr, experiment.finetune.batch, experiment.train.workers) == (
        1,
        0.1,
        8,
        2,
    )
    assert sweep.num_trials == 12


def test_a_setting_is_called_by_what_tells_its_fields_apart(write):
    sweep = load_valid(
        write({"space": {"pretrain.lr": [0.1], "finetune.lr": [0.1 + 0.2], "finetune.layer_decay": [1.0]}})
    )
    assert sweep.label(next(sweep.combinations())) == "pretrain.lr=0.1 finetune.lr=0.3 layer_decay=1"


RANDOM = {"search": "random", "trials": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"space": {"pretext.maskratio": [0.5]}},
            "space.pretext.maskratio: 0.5 does not fit: pretext.maskratio: no such",
        ),
        (
            {"space": {"pretext.mask_ratio": [0.5, 1.5]}},
            "space.pretext.mask_ratio: 1.5 does not fit: pretext.mask_ratio",
        ),
        ({"space": {"finetune.lr": {"uniform": [-1.0, 1.0]}}} | RANDOM, "space.finetune.lr: -1.0 does not fit"),
        ({"space": {"pretrain.epochs": {"int": [0, 4]}}} | RANDOM, "space.pretrain.epochs: 0 does not fit"),
        ({"space": {"finetune.lr": {"loguniform": [0.0, 1.0]}}} | RANDOM, "loguniform: 0.0 has no logarithm"),
        ({"space": {"finetune.lr": {"uniform": [1.0, 0.5]}}} | RANDOM, "1.0 is not below 0.5"),
        ({"space": {"finetune.lr": {"normal": [0, 1]}}} | RANDOM, "space.finetune.lr.normal: no such field"),
        ({"space": {"finetune.lr": {"uniform": [0.1, 1.0]}}}, "space.finetune.lr: a grid needs a list of values"),
        ({"space": {"finetune.lr": [0.1, 0.1]}}, "0.1 is listed twice"),
        (
            {"space": {"finetune.lr": ["1e-3", 0.001]}},  # YAML 1.1 reads 1e-3, without a dot, as text
            "space.finetune.lr: '1e-3' and 0.001 are the same value; keep one",
        ),
        ({"space": {"pretext": ["mae", {"name": "mae"}]}}, "are the same value; keep one"),
        ({"space": {"finetune.lr": []}}, "must be a list of at least one"),
        ({"set": {"pretext": ["none", "mae"]}}, "pretext: lists 2 strategies, and a trial has one; name one of them"),
        (
            {"set": {"finetune": {"label_fraction": [0.5, 1.0]}}},
            "finetune.label_fraction: lists 2 shares, and a trial has one; name one of them",
        ),
        ({"set": {"task": {"fold": [0, 1]}}}, "task.fold: lists 2 folds, and a trial has one; name one of them"),
        ({"set": {"finetune": {"seed": 3}}}, "finetune.seed: the seeds of a sweep stand beside space:; set seeds=[3]"),
        ({"set": {"seeds": [0, 1]}}, "set.seeds: stands beside space: in a sweep, and not below set:"),
        ({"space": {}}, "space"),
        ({"space": {"test": [True]}}, "space.test: no trial opens the test part"),
        (
            {"space": {"finetune.seed": [0, 1]}},
            "space.finetune.seed: seeds are no part of the space; set seeds: beside space:",
        ),
        ({"metric": "test/dice"}, "metric: 'test/dice' is neither a val/… score nor one of seconds"),
        ({"metric": ["val/dice", "seconds"], "scheduler": "asha"} | RANDOM, "scheduler: asha needs a single metric"),
        ({"metric": "seconds", "scheduler": "asha"}, "scheduler: asha needs a score"),
        ({"metric": ["val/dice", "seconds"], "mode": "max"}, "mode: has 1 for 2 metrics"),
        ({"search": "random"}, "trials: is missing"),
        ({"trials": 4}, "trials: a grid runs every combination"),
        ({"search": "bayes"}, "search"),
        ({"scheduler": "hyperband"}, "scheduler.name"),
        ({"base": None}, "base: must name the YAML files"),
        ({"base": "absent.yaml"}, "absent.yaml: cannot be read"),
        ({"snapshots": "trunk"}, "snapshots: a trunk needs space.pretrain.epochs as a list of values"),
        ({"space": None}, "has no space"),
        ({"trails": 3}, "trails: no such field"),
        ({"seeds": "all"}, "seeds: must be a list of at least one, as in [0, 1, 2], or auto"),
        ({"seeds": [0, "a"]}, "seeds"),
        ({"decide": {"margin": 0.1}}, "decide: is for seeds: auto, and the seeds are listed"),
        ({"seeds": "auto", "decide": {"baseline": "mae"}}, "decide.baseline: is for premed run"),
        ({"seeds": "auto", "decide": {"hours": 2}}, "decide.hours: is for premed run"),
        ({"seeds": "auto", "decide": {"max_seeds": 3}}, "decide.max_seeds"),
        (
            {"space": {"pretrain.batch": {"uniform": [4, 16]}}} | RANDOM,  # both bounds are whole, and no draw is
            "with a fractional part (it is 7.243243243243243); for whole numbers write {int: [4, 16]}",
        ),
        (
            {"space": {"finetune.base_lr": [0.1], "finetune.lr": [0.2]}},
            "finetune.lr and finetune.base_lr are one field",
        ),
        ({"name": "../../elsewhere"}, "name: names the sweep's folder: a word or some, with no /"),
        ({"name": "one\ntwo"}, "name: names the sweep's folder"),
        ({"name": "ü" * 101}, "name: names the sweep's folder"),
        ({"seeds": "auto", "metric": "seconds"}, "seeds: auto needs a score, and seconds is a cost"),
        ({"seeds": "auto", "metric": ["val/dice", "seconds"]}, "seeds: auto needs a single metric"),
    ],
)
def test_what_is_wrong_is_refused_by_name_before_anything_starts(write, change, words):
    with pytest.raises(UserError) as error:
        load_valid(write(change))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["finetune.layer_decay=0.9", "pretext.mask_ratio=0.5"])
def test_a_field_of_the_space_that_is_set_for_all_trials_too_is_refused_and_not_ignored(write, override):
    with pytest.raises(UserError, match=f"{override}: is a field of the space, whose values each trial takes"):
        load_sweep(write(), (), [override])


def test_a_strategy_s_fields_are_swept_whichever_of_both_stands_first_in_the_space(write):
    sweep = load_valid(write({"space": {"pretext.mask_ratio": [0.25, 0.375], "pretext": ["mae"]}}))
    ratios = [sweep.experiments(each)[0].pretext.mask_ratio for each in sweep.combinations()]
    assert ratios == [0.25, 0.375]  # both were the base's


def test_a_value_that_fits_in_some_combination_is_no_mistake(write):
    """No width of 96 with 5 heads, but with 3: such a trial fails alone, and says so."""
    load_valid(write({"space": {"encoder.width": [60, 96], "encoder.heads": [3, 5]}}))


@given(st.integers(1, 50), st.integers(1, MAX_CHECKED // 2))
def test_of_a_range_of_integers_every_one_is_validated(tmp_path_factory, low, more):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    tree = GRID | RANDOM | {"space": {"pretrain.epochs": {"int": [low, low + more]}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    values = load_sweep(folder / "sweep.yaml").search.space["pretrain.epochs"]
    assert list(values.grid_values) == list(range(low, low + more + 1))


SWEEPS = sorted(path for path in EXPERIMENTS.glob("*/*.yaml") if "\nspace:" in path.read_text())


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_sweeps_in_experiments_are_right(file):
    sweep = load_valid(file)
    assert sweep.num_trials > 2 and sweep.label(next(sweep.combinations()))


def test_what_is_set_holds_for_all_trials_and_gives_way_to_the_space(write):
    sweep = load_valid(write({"set": {"finetune": {"steps": 7, "layer_decay": 0.5}, "pretrain": {"batch": 2}}}))
    experiment = sweep.experiments(next(sweep.combinations()))[0]
    assert (experiment.finetune.steps, experiment.finetune.layer_decay, experiment.pretrain.batch) == (7, 0.65, 2)


def test_several_lengths_of_pre_training_are_whole_ones_unless_a_trunk_is_asked_for(write):
    lengths = {"space": {"pretrain.epochs": [40, 10, 20], "finetune.lr": [0.1, 0.2]}}
    kinds = {"full": ["pretrain", "finetune"], "trunk": ["trunk", "trunk", "cooldown", "finetune"]}
    for snapshots, expected in kinds.items():
        sweep = load_valid(write(lengths | {"snapshots": snapshots}))
        (experiment,) = sweep.experiments({"pretrain.epochs": 20, "finetune.lr": 0.1})
        assert experiment.kinds == expected
