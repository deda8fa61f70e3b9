"""A pre-training on other data sets than the task's: whose images they are, what it is known by, what is refused; which
labels a share of them is."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.experiments import runs_of, tree

from premed.config.compose import merge, validate_experiment
from premed.config.image_processing import Augmentation
from premed.config.spec import canonical
from premed.contracts import BatchIndices, Case, DataSet, Sample
from premed.data.datamodule import Tasks, absent_classes, label_subset, universal_classes
from premed.data.loader import PreparedLoader
from premed.data.phantoms.thorax import write_images
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.events import TrainingStarted
from premed.execution import runner
from premed.execution.preflight import resolve, validate
from premed.rng import sample_keys
from premed.tasks import msd

pytest_plugins = ["support.experiment_fixtures"]


class Noise:
    """A task whose views are nothing but draws."""

    def view(self, sample, augment, draw):
        return draw.uniform("image", 12, -1, 1).reshape(1, 3, 4), None


def batch(indices, sizes=(5, 4), crops=(1, 1)):
    data_sets = [DataSet(Noise(), "", Augmentation(crops=number)) for number in crops]  # type: ignore[arg-type]
    samples = [Sample(Case(f"{n} {i}", "", ()), None, n) for n, size in enumerate(sizes) for i in range(size)]  # type: ignore[arg-type]
    (found,) = PreparedLoader(data_sets, samples, seed=0, stage="pretrain", device=torch.device("cpu")).batches(
        [indices]
    )
    return found


# ---- views


def test_a_batch_says_which_data_set_each_view_is_of():
    found = batch(BatchIndices(0, np.array([1, 6, 4])), crops=(2, 1))
    assert found.names == ("0 1", "0 1", "1 1", "0 4", "0 4")
    assert found.data_set.tolist() == [0, 0, 1, 0, 0]


def test_draws_of_a_data_set_do_not_depend_on_the_size_of_another():
    one, other = batch(BatchIndices(2, np.array([3, 6]))), batch(BatchIndices(2, np.array([3, 31])), sizes=(30, 9))
    assert one.names == other.names == ("0 3", "1 1")
    assert torch.equal(one.keys, other.keys) and torch.equal(one.image, other.image)


def test_each_data_set_each_view_and_each_epoch_has_draws_of_its_own():
    numbers = np.arange(9)
    keys = torch.cat([batch(BatchIndices(epoch, numbers), crops=(3, 3)).keys for epoch in (0, 1)])
    assert len(keys.unique()) == len(keys) == 2 * 9 * 3


def test_the_first_data_set_s_draws_are_those_of_one_data_set_alone():
    alone, several = batch(BatchIndices(1, np.arange(5)), (5,), (1,)), batch(BatchIndices(1, np.arange(5)))
    assert torch.equal(alone.keys, several.keys) and alone.data_set is None


def test_samples_of_one_step_may_be_in_different_epochs():
    mixed = sample_keys(0, "pretrain", np.array([3, 0, 3]), np.array([1, 1, 2]))
    each = [sample_keys(0, "pretrain", epoch, np.array([i]))[0] for epoch, i in ((3, 1), (0, 1), (3, 2))]
    assert mixed.tolist() == each


# ---- digests

CHILDREN = {"name": "images", "labels": ["pneumonia"], "roi": [16, 16]}


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "children", 24, 0, size=16)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    return write_msd(tmp_path_factory.mktemp("data") / "brains", 8, 0, shape=(16, 20, 16))


def on(children, **more):
    """Changes: MAE on the children's X-rays. more: of their task."""
    return {"pretrain": {"sources": [{"task": CHILDREN | {"root": str(children)} | more}]}}


def volumes(brains):
    """Changes: fine-tuned on volumes."""
    return {
        "task": {"name": "msd", "root": str(brains), "roi": [16, 16, 16]},
        "finetune": {"head": {"name": "unetr", "feature_size": 2}, "augment": {}},
        "pretrain": {"augment": {}},
        "encoder": {"depth": 3},
    }


def stages(whole, data=lambda kind: "data"):
    return {stage.kind: stage for stage in validate_experiment(whole).stages(data)}


def test_a_pre_training_on_named_data_sets_is_the_same_whatever_task_it_is_for(chest, children, brains):
    both = merge(on(children), {"encoder": {"depth": 3}, "pretrain": {"augment": {}}})
    ours, theirs = stages(tree(chest, both)), stages(tree(chest, volumes(brains), both))
    assert ours["pretrain"].digest() == theirs["pretrain"].digest()
    assert ours["finetune"].digest() != theirs["finetune"].digest()
    assert ours["pretrain"].task.name == "images" and ours["finetune"].task.name == "chestxray14"


@pytest.mark.parametrize(
    ("change", "same"), [({"window_batch": 8, "overlap": 0.1}, True), ({"roi": [16, 16, 8]}, False)]
)
def test_how_a_data_set_is_scored_or_where_it_lies_is_not_what_a_pre_training_is_known_by(chest, brains, change, same):
    def known(task):
        return stages(tree(chest, {"pretrain": {"sources": [{"task": task}]}}))["pretrain"].digest()

    task = {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}
    assert (known(task) == known(task | {"root": "/elsewhere"} | change)) is same


def test_a_pre_training_on_the_task_s_own_images_is_known_as_before_there_were_others(chest):
    assert "sources" not in canonical(validate_experiment(tree(chest))) + canonical(stages(tree(chest))["pretrain"])


def test_the_order_the_group_and_the_views_of_data_sets_are_what_it_is_known_by(chest, children, brains):
    one = {"task": CHILDREN | {"root": str(children)}}
    two = {"task": {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}}
    named = [[one, two], [two, one], [one | {"group": "X-ray"}, two], [one | {"augment": {"flip": 0.5}}, two], [one]]
    known = [stages(tree(chest, {"pretrain": {"sources": each}}))["pretrain"].digest() for each in named]
    assert len(set(known)) == len(named)


# ---- from one data set to another task


@pytest.mark.slow
def test_mae_on_one_data_set_is_fine_tuned_on_another_and_serves_both_tasks(chest, children, home):
    events = []
    outcome = runner.run(validate_experiment(tree(chest, on(children))), events.append)
    assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune", "test"]
    pretrain, finetune, _ = outcome["stages"]
    source = validate_experiment(tree(chest, on(children))).pretrain.sources[0]
    assert pretrain["num_cases"] == len(Tasks()(source.task).images())
    assert finetune["loaded"]["encoder"]["missing"] == []
    card = json.loads((home / "checkpoints" / pretrain["where"].rpartition("/")[2] / "parts" / "card.json").read_text())
    (source,) = card["sources"]
    assert card["task"] == source["task"] == "children" == source["group"]
    assert source["roi"] == [16, 16] and source["preprocessing"]["normalise"] == "grey"
    (run,) = runs_of(home, "pretrain")
    assert run.params["stage.training.sources.0.task.name"] == "images"
    assert not [value for value in run.params.values() if str(children) in value]

    own = {"task": CHILDREN | {"root": str(children)}}
    again = runner.run(validate_experiment(tree(chest, on(children), own)), events.append)
    assert again["stages"][0]["reused"] and again["stages"][0]["run_id"] == pretrain["run_id"]


@pytest.mark.slow
def test_other_images_of_a_named_data_set_are_another_experiment(chest, children, home, tmp_path):
    other = write_images(tmp_path / "children", 24, 1, size=16)
    one, two = (
        runner.run(validate_experiment(tree(chest, on(each))), lambda event: None) for each in (children, other)
    )
    assert one["run_id"] != two["run_id"]


# ---- what is refused

REFUSED = {
    "another split of the task's own folder": (
        lambda chest, children, brains: {"pretrain": {"sources": [{"task": {**tree(chest)["task"], "split_seed": 5}}]}},
        r"^pretrain\.sources: chestxray14 shows .*\.png \(and \d+ more\), which the task keeps for val or test",
    ),
    "an augmentation for pictures on volumes": (
        lambda chest, children, brains: {
            "pretrain": {
                "augment": {"scale": [0.5, 1]},
                "sources": [{"task": {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}}],
            }
        },
        r"^pretrain\.augment\.scale: is for pictures, and brains has none",
    ),
    "a rotation for which the roi has no equal edges": (
        lambda chest, children, brains: {
            "pretrain": {
                "augment": {"rotate": 0.5, "rotate_plane": [0, 1]},
                "sources": [{"task": {"name": "msd", "root": str(brains), "roi": [16, 8, 16]}}],
            }
        },
        r"^pretrain\.augment\.rotate: the roi 16 × 8 × 16 has no equal edges to turn in",
    ),
    "an augmentation of its own for volumes on pictures": (
        lambda chest, children, brains: {
            "pretrain": {"sources": [on(children)["pretrain"]["sources"][0] | {"augment": {"shift": 3}}]}
        },
        r"^pretrain\.sources\.0\.augment\.shift: is for volumes, and children has none",
    ),
    "two data sets for mae": (
        lambda chest, children, brains: {
            "pretrain": {"sources": [{"task": tree(chest)["task"]}, {"task": CHILDREN | {"root": str(children)}}]}
        },
        r"^pretrain\.sources: mae learns from one data set, and there are 2; keep one",
    ),
    "two shapes for vit": (
        lambda chest, children, brains: {
            "pretrain": {
                "augment": {},
                "sources": [
                    {"task": CHILDREN | {"root": str(children)}},
                    {"task": {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}},
                ],
            }
        },
        r"^pretrain\.sources: vit takes images of one shape, and these are 1 × \[16, 16\] and 1 × \[16, 16, 16\]",
    ),
    "volumes for a task of pictures": (
        lambda chest, children, brains: {
            "pretrain": {
                "augment": {},
                "sources": [{"task": {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}}],
            }
        },
        r"^pretrain\.sources: their encoder does not fit chestxray14: .*of another shape: pos_embed|patch_embed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line_before_anything_is_trained(what, chest, children, brains, home):
    change, message = REFUSED[what]
    events: list = []
    with pytest.raises(UserError, match=message):
        runner.run(validate_experiment(tree(chest, change(chest, children, brains))), events.append)
    assert not [event for event in events if isinstance(event, TrainingStarted)]
    if "for mae" in what or "shape" in what:
        assert not (home / "cache").exists()  # nothing was prepared either


def test_crops_that_look_at_labels_are_refused_for_a_named_data_set_too(chest, children):
    source = on(children)["pretrain"]["sources"][0] | {"augment": {"positive": 0.5}}
    with pytest.raises(UserError, match=r"^pretrain\.sources\.0: augment\.positive: .* not self-supervised"):
        validate_experiment(tree(chest, {"pretrain": {"sources": [source]}}))


def test_a_mistake_in_a_named_data_set_is_told_by_its_place(chest):
    with pytest.raises(UserError, match=r"^pretrain\.sources\.0\.task: 'nonsense' is not one of"):
        validate_experiment(tree(chest, {"pretrain": {"sources": [{"task": "nonsense"}]}}))
    with pytest.raises(UserError, match=r"^pretrain\.sources"):
        validate_experiment(tree(chest, {"pretrain": {"sources": []}}))


def test_the_same_folder_split_alike_is_no_stranger(chest):
    whole = tree(chest, {"pretrain": {"sources": [{"task": {**tree(chest)["task"], "stored": 24}}]}})
    assert resolve([validate_experiment(whole)])


@pytest.mark.parametrize("test", [True, False])
def test_in_the_task_s_own_folder_what_its_split_leaves_out_may_be_pre_trained_on(brains, test):
    """Where the test part is not to be opened, nobody knows that it is not in it."""
    task = {"name": "msd", "root": str(brains), "roi": [16, 16, 16]}
    names = sorted(case.name for part in ("train", "val", "test") for case in Tasks()(msd.Config(**task)).split(part))
    own = {"split": {"train": names[:2], "val": names[2:3], "test": names[3:4]}}
    rest, leaky = ({"split": {"train": some, "val": names[:1], "test": names[1:2]}} for some in (names[4:], names[3:]))

    def refusal(split):
        whole = merge(tree(brains, volumes(brains)), {"test": test, "task": own})
        whole["pretrain"]["sources"] = [{"task": task | split}]
        try:
            validate(resolve([validate_experiment(whole)]))
        except UserError as error:
            return str(error)
        return ""

    start = f"pretrain.sources: brains shows {names[3]} (and 0 more), which the task keeps for val or test"
    assert refusal(leaky).startswith(start if test else start[:40])
    assert refusal(rest).startswith("" if test else start[:31]) and bool(refusal(rest)) is not test


def test_a_missing_image_of_a_named_data_set_is_told_before_anything_is_started(chest, tmp_path):
    other = write_images(tmp_path / "children", 24, 0, size=16)
    whole = validate_experiment(tree(chest, on(other)))
    task = Tasks()(whole.pretrain.sources[0].task)
    (file,) = task.images()[0].image
    file.unlink()
    with pytest.raises(UserError, match=file.name):
        validate(resolve([whole]))


def test_a_check_of_the_data_looks_at_named_data_sets_too(chest, children, home, premed, tmp_path):
    import yaml

    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree(chest, on(children), {"train": {"workers": 0}})))
    code, out, _ = premed("data", "check", "--json", path)
    result = json.loads(out)
    assert code == 0 and [source["task"] for source in result["sources"]] == ["children"]
    assert (
        result["sources"][0]["num_images"]
        == result["sources"][0]["parts"]["train"] + result["sources"][0]["parts"]["val"]
    )
    code, out, _ = premed("data", "prepare", "--json", path)
    assert code == 0 and json.loads(out)["num_images"] > result["num_images"]


# ---- few labels


def labelled(num_patients=40):
    return [Case(f"{p}-{i}", f"{p}", (), (0.0,)) for p, i in product(range(num_patients), range(3))]


def test_a_label_fraction_takes_whole_patients_and_smaller_ones_are_part_of_larger():
    taken = [{case.patient for case in label_subset(labelled(), share, 0)} for share in (0.05, 0.1, 0.5, 1.0)]
    assert [len(patients) for patients in taken] == [2, 4, 20, 40]
    assert taken[0] < taken[1] < taken[2] < taken[3]
    assert len(label_subset(labelled(), 0.05, 0)) == 2 * 3


def test_a_label_fraction_is_drawn_by_its_seed():
    chosen = [[case.name for case in label_subset(labelled(), 0.2, seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(label_subset(labelled(), 1e-6, 0)) == 3  # one patient at least


def test_classes_of_one_kind_of_label_in_all_training_images_are_found():
    nan = float("nan")
    rows = [(1.0, 0.0, 1.0, nan, 1.0), (1.0, 0.0, nan, nan, 0.0), None]
    train = [SimpleNamespace(case=SimpleNamespace(label=row)) for row in rows]
    task = SimpleNamespace(labels=(), classes=("all", "none", "known", "unknown", "some"))
    assert universal_classes(task, train) == ["all", "known"] and absent_classes(task, train) == ["none", "unknown"]
