"""Experiments that start from weights of others: found by the file's content, recorded once, shared, refused early."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.experiments import beside, experiment, last, results, run, runs_of, settle_in, store_of
from support.suite import REPOSITORY
from timm.models.vision_transformer import VisionTransformer

from premed.config.compose import load
from premed.data.phantoms.writers import write_msd
from premed.errors import UserError
from premed.events import WarningIssued, WeightsImported
from premed.execution import runner

pytest_plugins = ["support.experiment_fixtures"]

KINDS = ["import", "finetune", "test"]
TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}  # that of small.yaml


def write(path: Path, seed: int = 0, **settings) -> Path:
    """A timm ViT with random weights, as safetensors."""
    torch.manual_seed(seed)
    save_file(VisionTransformer(**settings).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def file(shared):
    return shared("timm", lambda folder: write(folder / "vit.safetensors", **TINY)) / "vit.safetensors"


def using(file, **more):
    """A change of the tiny experiment: its weights come from a file."""
    return {"pretext": {"name": "imagenet", "weights": str(file)}, "pretrain": None, **more}


@pytest.fixture(scope="module")
def finished(home_after, chest, file):
    """A home in which the tiny experiment has run to its end from the file, the outcome, and the events."""

    def work():
        events = []
        return run(chest, using(file), show=events.append), events

    home, (outcome, events) = home_after("imagenet", work)
    return home, outcome, events


@pytest.fixture
def copied(finished, monkeypatch, tmp_path):
    """A copy of that home, in use, and the outcome."""
    shutil.copytree(finished[0], tmp_path / "home")
    settle_in(monkeypatch, tmp_path / "home")
    return tmp_path / "home", finished[1]


# ---- what comes of it


def test_fine_tuning_starts_from_the_files_weights(finished, file):
    _, outcome, _ = finished
    imported, finetune, test = outcome["stages"]
    assert [stage["kind"] for stage in outcome["stages"]] == KINDS and outcome["strategy"] == "imagenet"
    saved, theirs = load_file(f"{imported['where']}/parts/encoder.safetensors"), load_file(file)
    assert all(torch.equal(w, theirs[name]) for name, w in saved.items() if name.startswith(("blocks", "norm", "cls")))
    assert finetune["loaded"]["encoder"] == {"loaded": len(saved), "missing": [], "resized": [], "dropped": []}
    assert 0 <= test["value"] <= 1


def test_kept_changed_and_dropped_tensors_are_in_the_result_and_reported(finished):
    _, outcome, result = finished
    report = outcome["stages"][0]["loaded"]["encoder"]
    stem = "16x16 to 8x8, normalisation folded in, 3 channels to 1"
    assert report["changed"] == {
        "patch_embed.proj.bias": "normalisation folded in",
        "patch_embed.proj.weight": stem,
        "pos_embed": "4x4 to 2x2",
    }
    assert (report["file"], report["kept"], report["dropped"]) == ("vit.safetensors", 27, ["head.bias", "head.weight"])
    (event,) = [event for event in result if isinstance(event, WeightsImported)]
    assert {name: getattr(event, name) for name in ("file", "kept", "changed", "dropped")}.items() <= report.items()
    assert json.loads(Path(outcome["stages"][0]["where"], "result.json").read_text())["loaded"] == {"encoder": report}


def test_the_cards_say_whose_weights_they_are(finished):
    cards = [json.loads(Path(stage["where"], "parts/card.json").read_text()) for stage in finished[1]["stages"][:2]]
    (given,) = cards[0]["weights"]
    assert (given["model"], given["licence"]) == ("vit_base_patch16_224.augreg_in1k", "apache-2.0")
    assert [each["kind"] for each in cards[1]["weights"]] == ["import", "finetune"] and given == cards[1]["weights"][0]


def test_mlflow_holds_the_import_as_a_run_of_its_own_without_a_path_of_this_machine(finished, file):
    home, outcome, _ = finished
    store = store_of(home)
    parent, imported = store.get(outcome["run_id"]), store.get(outcome["stages"][0]["run_id"])
    assert (imported.parent, imported.name, imported.status) == (None, "imagenet weights", "FINISHED")
    assert parent.tags["pretrain_run"] == imported.run_id
    assert imported.tags["premed.data"].startswith("weights:") and imported.tags["strategy"] == "imagenet"
    assert {"seed", "label_fraction"}.isdisjoint(imported.tags) and imported.metrics["seconds"] > 0
    assert parent.tags["import_run"] == imported.run_id and "import_seconds" in parent.metrics
    assert "pretrain_seed" not in parent.tags
    parts = {artifact.path for artifact in store.client.list_artifacts(imported.run_id, "parts")}
    assert parts == {"parts/card.json", "parts/encoder.safetensors"}
    written = store.download(parent.run_id, "experiment.yaml", home / "x").read_text()
    for run_ in (parent, *(store.get(stage["run_id"]) for stage in outcome["stages"])):
        assert str(file.parent) not in f"{run_.params} {run_.tags} {written}"


# ---- found rather than made


def test_a_second_run_reuses_all_and_so_does_one_whose_file_was_moved(copied, chest, file, tmp_path):
    home, before = copied
    moved = shutil.copy(file, tmp_path / "moved.bin")
    for weights in (file, moved):
        again = run(chest, using(weights))
        assert results(again) == results(before) and again["run_id"] == before["run_id"]
        assert all(stage["reused"] for stage in again["stages"])
    assert len(runs_of(home, "import")) == 1


@pytest.mark.slow
def test_seeds_and_label_fractions_share_the_import(copied, chest, file):
    home, before = copied
    for change in ({"seed": 1}, {"label_fraction": 0.5}, {"lr": 2e-3}):
        other = run(chest, using(file, finetune=change, test=False))
        assert [stage["reused"] for stage in other["stages"]] == [True, False]
        assert other["stages"][0]["run_id"] == before["stages"][0]["run_id"] and other["run_id"] != before["run_id"]


@pytest.mark.slow
def test_another_file_is_another_experiment_even_at_the_same_path(copied, chest, file, tmp_path):
    _, before = copied
    path = write(tmp_path / file.name, seed=1, **TINY)
    other = run(chest, using(path))
    assert not any(stage["reused"] for stage in other["stages"]) and other["run_id"] != before["run_id"]
    assert other["stages"][1]["summary"] != before["stages"][1]["summary"]


def test_cleaned_storage_is_fetched_from_mlflow(copied, chest, file):
    home, before = copied
    shutil.rmtree(home / "checkpoints")
    events = []
    again = run(chest, using(file), show=events.append)
    assert results(again) == results(before) and all(stage["reused"] for stage in again["stages"])
    assert WarningIssued not in map(type, events)


@pytest.mark.slow
def test_an_import_is_recorded_anew_where_mlflow_was_removed(copied, chest, file):
    home, before = copied
    (home / "mlflow.db").unlink()
    again = run(chest, using(file))
    assert results(again) == results(before) and all(stage["reused"] for stage in again["stages"])
    assert [len(runs_of(home, kind)) for kind in KINDS] == [1, 1, 1]


@pytest.mark.slow
def test_two_identical_commands_together_import_and_train_once(home, chest, file):
    pair = [beside(home, chest, using(file)) for _ in range(2)]
    first, second = (last(events) for _, events in pair)
    assert results(first) == results(second) and first["run_id"] == second["run_id"]
    for one, other in zip(first["stages"], second["stages"], strict=True):
        assert one["reused"] != other["reused"] and one["run_id"] == other["run_id"]
    assert [len(runs_of(home, kind)) for kind in ("experiment", "pretrain", *KINDS)] == [1, 0, 1, 1, 1]


# ---- refused before anything is started


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": {"depth": 3}}, r"^pretext\.weights: .*vit\.safetensors: has depth 2 and the encoder 3"),
        ({"pretext": {"weights": "nowhere.bin"}}, r"^pretext\.weights: nowhere\.bin cannot be read"),
        (
            {"pretext": {"weights": None}},
            r"^pretext\.model: .* has width 768, depth 12, heads 12 and the encoder 24, 2, 2;",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_ray_or_mlflow_start(home, chest, file, monkeypatch, change, words):
    monkeypatch.setattr("ray.init", lambda *args, **options: pytest.fail("Ray was started"))
    messages = []
    with pytest.raises(UserError, match=words):
        run(chest, using(file), change, {"train": {"workers": 1}}, show=messages.append)
    assert messages == [] and not (home / "cache").exists() and runs_of(home, "experiment") == []


def test_weights_that_are_not_finite_are_refused_and_not_blamed_on_the_images(home, chest, file, tmp_path):
    state = load_file(file)
    state["blocks.0.mlp.fc1.weight"][3, 4] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"^pretext.weights: blocks.0.mlp.fc1.weight has NaN or infinite values"):
        run(chest, using(tmp_path / "w.safetensors"))


def test_images_are_prepared_without_the_weights(home, chest):
    prepared = runner.prepare(experiment(chest, using("nowhere.bin")), lambda event: None)
    assert prepared["num_images"] == 90


# ---- the recipes, in small


def test_the_small_recipe_for_x_rays_runs_from_a_file_of_its_shape(home, chest, tmp_path):
    file = write(tmp_path / "vit.safetensors", **SMALL)
    short = ["finetune.steps=2", "finetune.validations=1", "finetune.batch=4", "train.workers=0", "task.size=32"]
    outcome = small("chestxray14", chest, file, *short, "task.stored=32")
    assert outcome["stages"][0]["loaded"]["encoder"]["changed"]["pos_embed"] == "8x8 to 4x4"


@pytest.mark.slow
def test_the_small_recipe_for_volumes_runs_from_a_picture_networks_weights(home, tmp_path):
    root = write_msd(tmp_path / "mri", 8, seed=0, shape=(20, 28, 20))
    file = write(tmp_path / "vit.safetensors", **SMALL)
    short = ["finetune.steps=2", "finetune.validations=1", "finetune.batch=2", "train.workers=0", "task.roi=[16,24,16]"]
    changed = small("hippocampus", root, file, *short)["stages"][0]["loaded"]["encoder"]["changed"]
    assert changed["patch_embed.proj.weight"].endswith("3 channels to 1, inflated to 8x8x8")
    assert changed["pos_embed"] == "8x8 to 2x3x2"


def small(name, root, file, *overrides):
    """imagenet.yaml and small.yaml of a task, run from a file."""
    folder = REPOSITORY / "experiments" / name
    more = [f"task.root={root}", f"pretext.weights={file}", *overrides]
    outcome = runner.run(load([folder / "imagenet.yaml", folder / "small.yaml"], more), lambda event: None)
    assert [stage["kind"] for stage in outcome["stages"]] == KINDS
    return outcome
