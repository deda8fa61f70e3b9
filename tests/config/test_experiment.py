"""From YAML files and overrides to an Experiment, its stages and their digests; and one line for whatever is wrong."""

from pathlib import Path

import pytest
import yaml

from premed.config import experiment
from premed.config.compose import load, parse_value, read_yaml, validate_experiment
from premed.config.experiment import Experiment, Stage
from premed.errors import UserError
from premed.pretext import mae

TREE = {
    "task": {"name": "chestxray14", "size": 32, "stored": 64},
    "encoder": {"name": "vit", "width": 48, "depth": 4, "heads": 3, "patch": 8},
    "pretext": {"name": "mae", "mask_ratio": 0.5},
    "pretrain": {"epochs": 2, "batch": 64, "lr": 1e-3},
    "finetune": {"epochs": 2, "batch": 64, "lr": 1e-3, "head": {"name": "linear", "pool": "mean"}},
}


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file below tmp_path: its path."""

    def put(name: str, content) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return put


@pytest.fixture
def base(write) -> Path:
    return write("base.yaml", TREE)


def stages(of: Experiment, data: str = "data") -> dict[str, Stage]:
    return {stage.kind: stage for stage in of.stages(lambda kind: data)}


def digests(*overrides: str, path: Path, data: str = "data") -> dict[str, str]:
    return {kind: stage.digest() for kind, stage in stages(load([path], overrides), data).items()}


# Files and overrides -------------------------------------------------------------------------------------------------


def test_overrides_reach_a_field_by_its_dotted_path_and_win_over_the_files(base):
    loaded = load([base], ["pretext.mask_ratio=0.75", "train.workers=4", "finetune.head.pool=cls", "test=false"])
    assert (loaded.pretext.mask_ratio, loaded.train.workers) == (0.75, 4)
    assert (loaded.finetune.head.pool, loaded.test) == ("cls", False)


def test_workers_may_be_the_fewest_and_the_most_and_hold_no_more_at_once_where_they_are_few(base):
    train = load([base], ["train.workers=[2,8]", "train.accumulate=3"]).train
    assert (train.workers, train.min_workers, train.max_workers, train.elastic) == ((2, 8), 2, 8, True)
    assert [train.micro_batches(workers) for workers in (8, 5, 2)] == [3, 5, 12]
    train = load([base], ["train.workers=4", "train.accumulate=3"]).train
    assert (train.min_workers, train.max_workers, train.elastic, train.micro_batches(4)) == (4, 4, False, 3)


def test_later_files_win_key_by_key(base, write):
    later = write("later.yaml", {"finetune": {"epochs": 9}, "task": {"size": 16}})
    loaded = load([base, later], ["finetune.epochs=11"])
    assert (loaded.finetune.epochs, loaded.finetune.batch, loaded.task.size) == (11, 64, 16)


def test_a_base_is_found_beside_the_file_that_names_it(base, write):
    strategy = write("strategies/short.yaml", "base: ../base.yaml\npretrain: {epochs: 1}\n")
    assert load([strategy]).pretrain.epochs == 1
    assert load([strategy]).pretrain.batch == 64


def test_a_base_of_a_base_is_refused(base, write):
    write("middle.yaml", "base: base.yaml\n")
    top = write("top.yaml", "base: middle.yaml\n")
    with pytest.raises(UserError, match=r"middle.yaml: is a base itself .* a base is followed once"):
        load([top])


def test_another_plugin_name_replaces_the_whole_plugin(base):
    assert load([base], ["pretext.name=none"]).pretext.model_dump() == {"name": "none"}
    assert load([base], ["pretext.name=mae"]).pretext.mask_ratio == 0.5


def test_a_plugin_s_bare_name_stands_for_it(base, write):
    plain = write("plain.yaml", {**TREE, "pretext": "mae"})
    assert load([plain], ["pretext.mask_ratio=0.25"]).pretext.mask_ratio == 0.25
    assert load([base], ["pretext=none"]).strategy == "none"
    assert load([base], ["pretext=mae"]).pretext.mask_ratio == 0.5


def test_numbers_that_yaml_takes_for_words_are_numbers(base, write):
    assert yaml.safe_load("1e-3") == "1e-3", "PyYAML reads it as a word: this is why"
    later = write("later.yaml", "pretrain: {lr: 1e-3}\ntest: no\n")
    assert load([base, later], ["finetune.lr=2e-4"]).finetune.lr == 2e-4
    assert load([base, later]).pretrain.lr == 1e-3
    assert load([base, later]).test is False


def test_an_empty_file_says_nothing(base, write):
    assert load([base, write("empty.yaml", "# all of it a comment\n")]) == load([base])


def test_what_was_resolved_loads_back_as_the_same_experiment(base, write):
    loaded = load([base], ["task.root=~/x", "train.storage=s3://bucket/x", "finetune.augment.scale=[0.5, 1]"])
    again = load([write("resolved.yaml", loaded.model_dump(mode="json"))])
    assert again == loaded
    assert stages(again) == stages(loaded)


# Mistakes ------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "pretext.mask_ration=0.5": r"pretext\.mask_ration: no such field; did you mean mask_ratio\?",
    "pretext.mask_ratio=1.5": r"pretext\.mask_ratio: Input should be less than 1 \(it is 1\.5\)",
    "pretext.mask_ratio=much": r"pretext\.mask_ratio: .*valid number.* \(it is 'much'\)",
    "pretext.name=mea": r"pretext: 'mea' is not one of .*imagenet, mae, none",
    "pretext=": r"pretext: is missing; name one of .*imagenet, mae, none",
    "task.name=chest": r"task: 'chest' is not one of brats, btcv, chestxray14, images, msd",
    "encoder.name=resnet": r"encoder: 'resnet' is not one of .*vit",
    "encoder.heads=5": r"encoder: width 48 is not a multiple of heads 5",
    "encoder.size=huge": r"encoder: size: 'huge' is not one of tiny, small, base",
    "encoder.patch=0": r"encoder\.patch: 0 is not an edge in voxels",
    "finetune.head.name=liner": r"finetune\.head: 'liner' is not one of conv, linear, patch_decoder, .*",
    "finetune.head.pool=max": r"finetune\.head\.pool: Input should be 'cls' or 'mean' \(it is 'max'\)",
    "train.workers=[2]": r"train\.workers: must be a number, or the minimum and the maximum, as in \[2, 8\] \(it is .*",
    "train.workers=[8, 2]": r"train\.workers: must be a number, or the minimum and the maximum",
    "train.workers=[0, 2]": r"train\.workers: must be a number, or the minimum and the maximum",
    "train.workers=[a, 2]": r"train\.workers: .*valid integer.* \(it is 'a'\)",
    "train.workers=-1": r"train\.workers: Input should be greater than or equal to 0 \(it is -1\)",
    "finetune.epochs=0": r"finetune\.epochs: Input should be greater than or equal to 1 \(it is 0\)",
    "finetune.lr=[1.0e-3, 8e-3]": r"finetune\.lr: takes one value \(it is \[.*\]\); premed sweep tries several",
    "finetune.epochs=2.5": r"finetune\.epochs: .*valid integer.* \(it is 2\.5\)",
    "finetune.lr=-1": r"finetune\.lr: Input should be greater than 0",
    "finetune.betas=[0.9, 1.5]": r"finetune\.betas\.1: Input should be less than 1",
    "finetune.label_fraction=5": r"finetune\.label_fraction: Input should be less than or equal to 1",
    "finetune.augment.flip=2": r"finetune\.augment\.flip: Input should be less than or equal to 1",
    "finetune.augment.scale=[2, 3]": r"finetune\.augment\.scale: .* not shares of the area: give \[low, high\]",
    "finetune.augment.rand=strong": r"finetune\.augment\.rand: .* \(it is 'strong'\)",
    "finetune=fast": r"finetune: .*valid dictionary.* \(it is 'fast'\)",
    "pretrain=": r"pretrain: is missing, and mae needs it \(epochs, batch, lr, …\)",
    "pretrain.augment.positive=0.5": r"pretrain: augment\.positive: .*not self-supervised; leave it out",
    "train.precision=fp16": r"train\.precision: Input should be 'auto', 'fp32' or 'bf16' \(it is 'fp16'\)",
    "train.worker=2": r"train\.worker: no such field; did you mean workers\?",
    "pretxt=mae": r"pretxt: no such field; did you mean pretext\?",
    "finetune.learning_rate=1": r"finetune\.learning_rate: no such field; did you mean lr\?",
    "finetune.batch_size=1": r"finetune\.batch_size: no such field; did you mean batch\?",
    "task.size=[3, 4, 5]": r"task\.size: ",
    "seed=3": r"seed: no such field; did you mean seeds\?",
    "steps=3": r"steps: no such field; did you mean pretrain\.steps or finetune\.steps\?",
    "name=no": r"name: Input should be a valid string \(it is False\)",
    "test": r"test: is neither a YAML file nor key=value; overrides read",
    "=3": r"=3: names no field; overrides read",
    "task..size=3": r"task\.\.size=3: names no field; overrides read",
    "task.size=[3": r"task\.size=\[3: the value is not YAML; quote it",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field_and_the_mend(base, override):
    with pytest.raises(UserError, match=MISTAKES[override]) as caught:
        load([base], [override])
    assert "\n" not in str(caught.value)


FILES = {
    "task: [": r"wrong\.yaml: is not YAML \(while parsing",
    "- task\n": r"wrong\.yaml: must hold `field: value` lines",
    "base: nowhere.yaml\n": r"nowhere\.yaml: cannot be read \(No such file or directory\); check the path",
    "base: [base.yaml]\n": r"wrong\.yaml: base is \['base\.yaml'\]; name one YAML file, relative to this one",
    "task: {name: msd, window: [0, 1]}\n": r"task: window and percentiles exclude each other; set percentiles: null",
    "task: {name: msd, shares: [0.5, 0.5, 0.5]}\n": r"task: shares: .* do not add up to 1",
    "task: {name: msd, spacing: [1, 1, 0]}\n": r"task\.spacing\.2: Input should be greater than 0",
    "task: {name: msd, percentiles: [99, 1]}\n": r"task: percentiles: the first must be below the second",
    "task: {name: msd, split: {training: [a]}}\n": r"task\.split\.training.*: Input should be 'train', 'val' or 'test'",
    "1: 2\n": r"1: no such field|Keys should be strings",
}


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_file_is_one_line_that_names_it_and_the_mend(base, write, text):
    with pytest.raises(UserError, match=FILES[text]) as caught:
        load([base, write("wrong.yaml", text)])
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_told_before_those_that_are_missing_for_it():
    tree = {("pretxt" if name == "pretext" else name): part for name, part in TREE.items()}
    with pytest.raises(UserError, match=r"^pretxt: no such field; did you mean pretext\?$"):
        validate_experiment(tree)


@pytest.mark.parametrize("item", ["finetune.lr", "finetune.lr:0.1", "finetune", "lr:0.1"])
def test_a_field_that_is_set_in_another_way_is_told_how(base, item):
    with pytest.raises(UserError, match=f"is no YAML file; to set a field write {item.split(':')[0]}=VALUE, without"):
        load([base, item])


def test_a_tab_is_told_to_be_spaces(base, write):
    with pytest.raises(UserError, match=r"tab\.yaml, line 2: has a tab; YAML is indented with spaces"):
        load([base, write("tab.yaml", "finetune:\n\tlr: 0.1\n")])


def test_base_lr_is_another_name_of_lr(base, write):
    later = write("later.yaml", "finetune: {base_lr: 3.0e-4}\n")
    assert load([base, later]) == load([base], ["finetune.lr=3e-4"]) == load([base], ["finetune.base_lr=3e-4"])
    with pytest.raises(UserError, match=r"later\.yaml: lr and base_lr are one field; keep base_lr"):
        load([base, write("later.yaml", "finetune: {base_lr: 3.0e-4, lr: 1.0}\n")])


def test_steps_need_no_epochs():
    tree = {**TREE, "finetune": {name: each for name, each in TREE["finetune"].items() if name != "epochs"}}
    assert validate_experiment(tree | {"finetune": tree["finetune"] | {"steps": 150}}).finetune.steps == 150
    with pytest.raises(UserError, match=r"finetune\.epochs: is missing"):
        validate_experiment(tree)


@pytest.mark.parametrize("field", ["task", "encoder", "pretext"])
def test_a_missing_part_is_named(field):
    with pytest.raises(UserError, match=f"{field}: is missing; set it in a YAML or on the command line"):
        validate_experiment({name: part for name, part in TREE.items() if name != field})


# Stages and digests --------------------------------------------------------------------------------------------------

SAME = [
    *("train.workers=3", "train.gpu=true", "train.cpus=2", "train.accumulate=2", "train.precision=bf16"),
    *(
        "train.loaders=2",
        "train.resident=true",
        "train.log_steps=7",
        "train.save_minutes=0",
        "train.storage=s3://b",
        "train.max_failures=0",
    ),
    *("task.root=/elsewhere", "name=evening"),
]
CHANGES = {  # what is changed, and the first stage that this makes another one
    "task.size=16": "pretrain",
    "task.equalize=false": "pretrain",
    "task.split_seed=1": "pretrain",
    "encoder.depth=5": "pretrain",
    "pretext.mask_ratio=0.6": "pretrain",
    "pretrain.epochs=3": "pretrain",
    "pretrain.seed=1": "pretrain",
    "pretrain.augment.flip=0.5": "pretrain",
    "finetune.seed=1": "finetune",
    "finetune.lr=2e-3": "finetune",
    "finetune.label_fraction=0.5": "finetune",
    "finetune.layer_decay=0.75": "finetune",
    "finetune.head.pool=cls": "finetune",
    "finetune.augment.flip=0.5": "finetune",
}


@pytest.mark.parametrize("override", SAME)
def test_where_a_stage_runs_is_not_in_its_digest(base, override):
    assert digests(override, path=base) == digests(path=base)


@pytest.mark.parametrize("override", CHANGES)
def test_what_changes_a_result_changes_the_digest_from_its_stage_on(base, override):
    before, after = digests(path=base), digests(override, path=base)
    order = ["pretrain", "finetune", "test"]
    first = order.index(CHANGES[override])
    assert [before[kind] != after[kind] for kind in order] == [number >= first for number in range(3)]


def test_other_data_makes_other_stages(base):
    before, after = digests(path=base), digests(path=base, data="other")
    assert not set(before.values()) & set(after.values())


def test_a_stage_hangs_on_its_parent(base):
    found = stages(load([base]))
    assert found["pretrain"].parent is None
    assert found["finetune"].parent == found["pretrain"].digest()
    assert found["test"].parent == found["finetune"].digest()
    other = found["finetune"].model_copy(update={"parent": "0" * 64})
    assert other.digest() != found["finetune"].digest()


def test_a_raised_version_of_a_plugin_makes_other_stages(base, monkeypatch):
    before = digests(path=base)
    monkeypatch.setattr(mae.Config, "version", mae.Config.version + 1)
    assert not set(before.values()) & set(digests(path=base).values())


def test_fine_tunings_share_one_pretraining(base):
    seeds = [digests(f"finetune.seed={seed}", path=base) for seed in range(3)]
    assert len({each["pretrain"] for each in seeds}) == 1
    assert len({each["finetune"] for each in seeds}) == 3


def test_a_stage_s_folder_is_named_by_kind_and_digest(base):
    stage = stages(load([base]))["pretrain"]
    assert stage.folder == f"pretrain-{stage.digest()[:16]}"


def test_data_is_asked_for_when_a_stage_s_turn_comes_and_the_test_part_last(base):
    asked = []
    turns = load([base]).stages(lambda kind: asked.append(kind) or kind)
    assert [(next(turns).kind, list(asked)) for _ in range(3)] == [
        ("pretrain", ["pretrain"]),
        ("finetune", ["pretrain", "finetune"]),
        ("test", ["pretrain", "finetune", "test"]),
    ]


def test_without_a_test_its_data_is_never_asked_for(base):
    asked = []
    list(load([base], ["test=false"]).stages(lambda kind: asked.append(kind) or kind))
    assert asked == ["pretrain", "finetune"]


def test_a_strategy_without_training_has_no_pretraining_stage(base):
    assert [*stages(load([base], ["pretext=none", "pretrain="]))] == ["finetune", "test"]


def test_a_strategy_that_brings_weights_imports_them_once_for_all_fine_tunings(base):
    imported = ["pretext={name: imagenet, weights: a.bin}", "pretrain="]
    found = stages(load([base], imported))
    assert [*found] == ["import", "finetune", "test"] and found["finetune"].parent == found["import"].digest()
    assert found["import"].training is None and found["finetune"].pretext is None
    assert found["import"].folder == f"import-{found['import'].digest()[:16]}"
    before = digests(*imported, path=base)
    assert digests(*imported, "pretext.weights=b.bin", path=base) == before  # it is the content that counts
    for change, same in (("finetune.seed=1", True), ("encoder.patch=16", False), ("pretext.mean=[0,0,0]", False)):
        assert (digests(*imported, change, path=base)["import"] == before["import"]) is same
    assert digests(*imported, path=base, data="other")["import"] != before["import"]


def test_a_plugin_is_the_file_of_its_name():
    assert experiment.plugin("pretext", {"name": "mae"}) is mae


def test_a_shared_file_sets_what_only_one_strategy_has(base, write):
    shared = write("small", "only: {mae: {pretext: {decoder_depth: 3}}}\nfinetune: {lr: 0.5}\n")
    mae, none = load([base, shared], ["pretext=mae"]), load([base, shared], ["pretext=none"])
    assert (mae.pretext.decoder_depth, none.strategy, none.finetune.lr) == (3, "none", 0.5)


def test_only_names_strategies_that_there_are(base, write):
    with pytest.raises(UserError, match="only: 'mea' is not one of .*imagenet, mae, none"):
        load([base, write("small", "only: {mea: {}}\n")])


def test_a_later_file_overrides_what_an_earlier_one_sets_for_one_strategy(base, write):
    shared = write("small", "only: {mae: {pretext: {decoder_depth: 3}}}\n")
    mine = write("mine", "pretext: {decoder_depth: 4}\n")
    assert load([base, shared, mine], ["pretext.name=mae"]).pretext.decoder_depth == 4


def test_how_answers_are_scored_is_no_part_of_a_pre_training(tmp_path):
    def digests(**task):
        tree = {
            "task": {"name": "msd", "root": str(tmp_path), **task},
            "encoder": {"name": "vit", "width": 24, "depth": 3, "heads": 2, "patch": 8},
            "pretext": "mae",
            "pretrain": {"epochs": 1, "batch": 4, "lr": 1e-3},
            "finetune": {"head": "unetr", "epochs": 1, "batch": 4, "lr": 1e-3},
        }
        return {stage.kind: stage.digest() for stage in validate_experiment(tree).stages(lambda kind: "data")}

    plain, other, roi = digests(), digests(overlap=0.7), digests(roi=[64, 64, 64])
    assert plain["pretrain"] == other["pretrain"] != roi["pretrain"]
    assert plain["finetune"] != other["finetune"] and plain["test"] != other["test"]


def test_a_field_that_is_set_twice_is_refused_by_name_and_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("finetune:\n  lr: 1.0e-3\n  epochs: 2\n  lr: 1.0e-2\n")
    with pytest.raises(UserError, match=r"twice\.yaml, line 4: lr is set in line 2 already; keep one of them"):
        read_yaml(file)
    file.write_text("finetune: {lr: 1, augment: {flip: 0, flip: 1}}\n")
    with pytest.raises(UserError, match="line 1: flip is set in line 1 already"):
        read_yaml(file)
    with pytest.raises(UserError, match=r"finetune=\{lr: 1, lr: 2\}: lr is set in line 1 already"):
        parse_value("{lr: 1, lr: 2}", "finetune={lr: 1, lr: 2}")
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")  # a merge is overridden, not set twice
    assert read_yaml(file)["b"] == {"x": 3, "y": 2}
