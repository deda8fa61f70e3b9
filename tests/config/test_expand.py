"""What lists in a YAML or on the command line fan out to, what is refused, and what a fraction of the labels is."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from premed.config.compose import load
from premed.config.expand import distinct_titles, load_all, percent, title
from premed.contracts import Case
from premed.data.datamodule import label_subset
from premed.errors import UserError

STEPS = {"epochs": 1, "batch": 4, "lr": 1e-3}
NONE = {
    "task": "msd",
    "encoder": {"name": "vit", "patch": 8},
    "pretext": "none",
    "finetune": {**STEPS, "head": "unetr"},
}
MAE = NONE | {"pretext": {"name": "mae", "mask_ratio": 0.5}, "pretrain": STEPS}


@pytest.fixture
def written(tmp_path):
    def write(tree, name="a"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def summaries(experiments):
    """(strategy, label fraction, fine-tuning's seed, pre-training's seed) of each."""
    return [
        (each.strategy, each.finetune.label_fraction, each.finetune.seed, each.pretrain and each.pretrain.seed)
        for each in experiments
    ]


def test_without_lists_there_is_one_experiment_the_same_as_ever(written):
    assert load_all([written(MAE)]) == [load([written(MAE)])]


def test_seeds_are_the_fine_tuning_s_so_that_the_pre_training_is_shared(written):
    found = load_all([written(MAE)], ["seeds=[3, 5]"])
    assert summaries(found) == [("mae", 1.0, 3, 0), ("mae", 1.0, 5, 0)]
    assert len({next(each.stages(str)).digest() for each in found}) == 1


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        ("pretrain", [(0, 3), (0, 5)]),
        ("[pretrain]", [(0, 3), (0, 5)]),
        ("[pretrain, finetune]", [(3, 3), (5, 5)]),
    ],
)
def test_seeds_are_for_the_stages_that_vary_names(written, vary, expected):
    found = load_all([written(MAE)], ["seeds=[3, 5]", f"vary={vary}"])
    assert [(finetune, pretrain) for _, _, finetune, pretrain in summaries(found)] == expected


def test_lists_multiply_and_may_stand_in_a_yaml(written):
    lists = {"seeds": [0, 1], "finetune": {"label_fraction": [0.05, 1]}, "pretext": ["none", "mae"]}
    found = load_all([written(MAE), written(lists, "b")])
    expected = [(fraction, seed) for fraction in (0.05, 1.0) for seed in (0, 1)]
    assert summaries(found) == [(s, *each, p) for s, p in (("none", None), ("mae", 0)) for each in expected]
    assert load_all([written(MAE)], ["seeds=[0,1]", "finetune.label_fraction=[0.05,1]", "pretext=[none,mae]"]) == found


def test_folds_multiply_and_are_named(written):
    folds = {"task": {"name": "images", "label": "tumour", "folds": 3}}
    found = load_all([written(MAE | folds)], ["task.fold=[0,2]", "seeds=[0,1]"])
    assert [(each.task.fold, each.finetune.seed) for each in found] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert [title(each) for each in found[1:3]] == ["mae fold 0 100 % seed 1", "mae fold 2 100 % seed 0"]
    assert distinct_titles(found, ["x"] * 4)[:3] == ["mae fold 0 seed 0", "mae fold 0 seed 1", "mae fold 2 seed 0"]
    digests = {next(each.stages(str)).digest() for each in found}
    assert len(digests) == 2  # a pre-training of each fold


def test_folds_with_seeds_of_their_own_are_refused(written):
    folds = {"task": {"name": "images", "label": "tumour", "folds": 2}}
    auto = ["pretext=[none,mae]", "seeds=auto"]
    with pytest.raises(UserError, match="^task.fold: with seeds: auto each fold would have seeds of its own"):
        load_all([written(MAE | folds)], ["task.fold=[0,1]", *auto])
    assert {each.task.fold for each in load_all([written(MAE | folds)], ["task.fold=1", *auto])} == {1}


def test_a_data_set_s_first_fold_is_not_named(written):
    found = load_all([written(MAE | {"task": {"name": "brats"}})], ["task.fold=[0,1]"])
    assert [title(each) for each in found] == ["mae 100 % seed 0", "mae fold 1 100 % seed 0"]


def test_each_of_several_strategies_is_what_it_is_alone(written):
    only = {"only": {"mae": {"pretrain": {"steps": 7}}}}
    files = [written(MAE), written(only, "b")]
    none, mae = load_all(files, ["pretext=[none,mae]"])
    assert mae == load(files) and mae.pretrain.steps == 7 and mae.pretext.mask_ratio == 0.5
    assert none == load([written(NONE, "c")])  # nothing of a pre-training that it has not


def test_a_strategy_may_be_listed_with_its_fields(written):
    found = load_all([written(MAE)], ["pretext=[{name: mae, mask_ratio: 0.75}, mae]"])
    assert [each.pretext.mask_ratio for each in found] == [0.75, 0.5]


def test_a_later_file_s_one_strategy_takes_the_place_of_a_list(written):
    assert len(load_all([written(MAE | {"pretext": ["none", "mae"]}), written({"pretext": "none"}, "b")])) == 1


def test_where_only_the_pre_training_varies_a_strategy_without_one_runs_once(written):
    found = load_all([written(MAE)], ["pretext=[none,mae]", "seeds=[0,1]", "vary=pretrain"])
    assert summaries(found) == [("none", 1.0, 0, None), ("mae", 1.0, 0, 0), ("mae", 1.0, 0, 1)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seeds=[0,1,0]"], "seeds: 0 is listed twice"),
        (["seeds=[]"], "seeds: must be a list of at least one"),
        (["seeds=3"], r"seeds: must be a list of at least one, as in \[0, 1, 2\] \(it is 3\)"),
        (["seeds=[0, a]"], "seeds.1: Input should be a valid integer"),
        (["vary=pretrain"], "seeds: is missing"),
        (["seeds=[0,1]", "vary=[test]"], "vary.0: Input should be 'pretrain' or 'finetune'"),
        (["seeds=[0,1]", "vary=[]"], "vary: must be a list"),
        (
            ["seeds=[0,1]", "vary=pretrain", "pretext=none"],
            "vary: names the pre-training, and none of these strategies has one",
        ),
        (["finetune.label_fraction=[0.1, 1.5]"], r"finetune.label_fraction: .*less than or equal to 1 \(it is 1.5\)"),
        (["finetune.label_fraction=[0.1, 0]"], "finetune.label_fraction: .*greater than 0"),
        (["task.fold=[0,0]"], "task.fold: 0 is listed twice"),
        (["task.fold=[0,9]"], "task: fold needs folds|task.fold"),
        (["finetune.label_fraction=[]"], "finetune.label_fraction: must be a list of at least one"),
        (["finetune.label_fraction=[1, 1.0]"], "finetune.label_fraction: 1.0 is listed twice"),
        (["pretext=[none, mea]"], "pretext: 'mea' is not one of"),
        (["pretext=[mae, mae]"], "pretext: mae is listed twice"),
        (
            ["pretext=[none, mae]", "pretext.mask_ratio=0.5"],
            "pretext: is a list, which pretext.mask_ratio cannot be set",
        ),
    ],
)
def test_a_mistake_anywhere_in_a_list_is_one_line_that_names_the_field(written, overrides, words):
    with pytest.raises(UserError, match=f"^{words}"):
        load_all([written(MAE)], overrides)


# ---- names


@pytest.mark.parametrize(("share", "words"), [(0.05, "5 %"), (0.07, "7 %"), (0.125, "12.5 %"), (1.0, "100 %")])
def test_a_share_of_the_labels_is_told_in_percent(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(
    "overrides",
    [
        ["pretext=[none,{name: none}]"],
        ["finetune.label_fraction=[0.5,5e-1]"],
        ['finetune.label_fraction=[0.5,"0.5"]'],
        ["pretext=[none,{name: none}]", "seeds=[0,1]"],
    ],
)
def test_one_experiment_in_two_spellings_is_refused_and_not_counted_as_two_seeds(written, overrides):
    with pytest.raises(UserError, match=r"^none .* seed 0: is listed twice"):
        load_all([written(NONE)], overrides)


@pytest.mark.parametrize(
    ("files", "overrides"),
    [
        ([NONE | {"seeds": [0, 1]}], ["finetune.seed=5"]),
        ([NONE | {"seeds": [0, 1]}], ["finetune.seed=1"]),
        ([NONE | {"seeds": [0, 1]}, {"finetune": {"seed": 1}}], []),
        ([NONE], ["seeds=[0,1]", "finetune.seed=1"]),
        ([NONE | {"seeds": [0, 1], "finetune": NONE["finetune"] | {"seed": 5}}], []),
    ],
)
def test_a_seed_that_seeds_would_override_is_refused(written, files, overrides):
    with pytest.raises(UserError, match=r"^finetune\.seed: .* seeds: \[0, 1\]"):
        load_all([written(tree, f"f{i}") for i, tree in enumerate(files)], overrides)


def test_seeds_may_override_the_seed_of_an_earlier_file(written):
    """As of a sweep's best.yaml, which states all fields."""
    best = written(NONE | {"finetune": NONE["finetune"] | {"seed": 3}})
    assert [each.finetune.seed for each in load_all([best], ["seeds=[0,1]"])] == [0, 1]
    one = load_all([best, written({"seeds": [0]}, "b")], ["seeds=[7,8]", "vary=finetune"])
    assert [each.finetune.seed for each in one] == [7, 8]


def test_a_pre_training_s_seed_that_seeds_would_override_is_refused(written):
    with pytest.raises(UserError, match=r"^pretrain\.seed: "):
        load_all([written(MAE | {"seeds": [0, 1], "vary": "pretrain"})], ["pretrain.seed=4"])
    shared = load_all([written(MAE | {"seeds": [0, 1]})], ["pretrain.seed=4"])
    assert [(each.pretrain.seed, each.finetune.seed) for each in shared] == [(4, 0), (4, 1)]


def test_titles_say_all_that_a_fan_out_varies(written):
    found = load_all([written(MAE)], ["seeds=[0,1]", "vary=[pretrain,finetune]", "finetune.label_fraction=[0.05]"])
    assert [title(each) for each in found] == ["mae 5 % seed 0", "mae 5 % seed 1 pre-training seed 1"]


def test_experiments_are_told_apart_by_what_differs_and_no_more(written):
    found = load_all([written(MAE)], ["pretext=[none,mae]", "seeds=[0,1]"])
    assert distinct_titles(found, ["mri"] * 4) == ["none seed 0", "none seed 1", "mae seed 0", "mae seed 1"]
    assert distinct_titles(found[::2], ["mri", "chest"]) == ["mri none", "chest mae"]
    twice = load_all([written(MAE)], ["pretext=[{name: mae, mask_ratio: 0.75}, mae]"])
    assert distinct_titles(twice, ["mri", "mri"]) == ["mae (1)", "mae (2)"]


# ---- a fraction of the labels

patients = st.lists(st.integers(0, 30), min_size=1, max_size=60)
shares = st.floats(0.001, 1.0)


def dealt(owners):
    return [Case(f"{i}", f"patient {owner}", (Path("x"),)) for i, owner in enumerate(owners)]


@given(patients, shares, shares, st.integers(0, 5))
def test_a_smaller_fraction_is_part_of_a_larger_one_and_no_patient_is_split(owners, one, other, seed):
    cases = dealt(owners)
    few, many = (label_subset(cases, share, seed) for share in sorted((one, other)))
    assert {case.name for case in few} <= {case.name for case in many}
    taken = {case.patient for case in few}
    assert few == [case for case in cases if case.patient in taken]


@given(patients, shares, st.integers(0, 5))
def test_a_fraction_is_that_share_of_the_patients_and_one_at_least(owners, share, seed):
    num = len({case.patient for case in label_subset(dealt(owners), share, seed)})
    assert num == max(1, round(share * len(set(owners))))


def test_other_seeds_draw_other_patients_and_all_labels_are_all():
    cases = dealt(range(40))
    assert label_subset(cases, 0.1, 0) != label_subset(cases, 0.1, 1) and label_subset(cases, 1.0, 0) == cases


@pytest.mark.parametrize(
    "overrides",
    [
        ["pretext.mask_ratio=0.25", "pretext=mae"],
        ["pretext.mask_ratio=0.25", "pretext.name=mae"],
        ["pretext=mae", "pretext.mask_ratio=0.25"],
    ],
)
def test_a_strategy_and_its_fields_may_be_named_in_any_order(written, overrides):
    (experiment,) = load_all([written(MAE)], overrides)
    assert experiment.pretext.mask_ratio == 0.25


@pytest.mark.parametrize("later", ["pretext=[none,mae]", "pretext=null"])
def test_an_override_that_would_undo_an_earlier_one_without_a_word_is_refused(written, later):
    with pytest.raises(UserError, match="undoes pretext.mask_ratio=0.25, which stands before it"):
        load_all([written(MAE)], ["pretext.mask_ratio=0.25", later])


def test_epochs_that_decide_nothing_beside_a_file_s_steps_are_refused(written):
    file = written(MAE | {"finetune": {**STEPS, "head": "unetr", "steps": 40}})
    with pytest.raises(UserError, match=r"^finetune.epochs: the file sets finetune.steps=40, which decides how long"):
        load_all([file], ["finetune.epochs=28"])
    (experiment,) = load_all([file], ["finetune.epochs=28", "finetune.steps=null"])
    assert experiment.finetune.steps is None and experiment.finetune.epochs == 28
    (experiment,) = load_all([file], ["pretrain.epochs=3", "finetune.epochs=2", "finetune.steps=7"])
    assert (experiment.pretrain.epochs, experiment.finetune.steps) == (3, 7)
