"""A pre-training alone leaves an encoder; another command fine-tunes it by its name, or is told why it may not."""

import json
import shutil

import pytest
import yaml
from support.experiments import runs_of, store_of
from support.pretrained import NAME, alone, labelled, move_alias, picture, run, scans, tuned
from support.stores import free_port

from premed.config.compose import validate_experiment
from premed.contracts import Case
from premed.data.cache import Cache
from premed.errors import UserError
from premed.events import StageReused, TrainingStarted
from premed.execution import publisher, runner
from premed.execution.preflight import resolve
from premed.tracking.artifacts import ArtifactMissing
from premed.tracking.pretrainings import FILE, find_pretraining

pytest_plugins = ["support.pretrained"]


def test_it_ends_with_a_registered_encoder_and_its_card(pretrained, tmp_path):
    home, encoder = tmp_path / "home", pretrained["encoder"]
    (stage,) = pretrained["stages"]
    assert (encoder["name"], encoder["run_id"], encoder["digest"]) == (NAME, stage["run_id"], stage["digest"])
    client = store_of(home).client
    assert client.get_model_version_by_alias("scans-mae-encoder", "newest").run_id == stage["run_id"]
    card = json.loads(store_of(home).file(store_of(home).get(stage["run_id"]), FILE, home).read_text())["card"]
    assert card["preprocessing"]["size"] == [20, 20] and card["digest"] == stage["digest"] and card["task"] == "scans"


def test_its_record_has_the_settings_and_the_hashes_of_all_images(pretrained, tmp_path):
    home = tmp_path / "home"
    store = store_of(home)
    run_ = store.get(pretrained["encoder"]["run_id"])
    record = json.loads(store.file(run_, FILE, home).read_text())
    assert record["pretrain"]["epochs"] == 2 and record["pretext"]["mask_ratio"] == 0.75
    (data_set,) = record["data_sets"]
    assert len({image["values"][0] for image in data_set["images"]}) == len(data_set["images"]) == 24
    uses = {(image["name"].split("/")[0], image["use"]) for image in data_set["images"]}
    assert len(uses) == 12 and {use for _, use in uses} == {"train", "val"}  # each patient is in one
    assert str(home) not in json.dumps(record)


@pytest.mark.parametrize("change", [(b'"use"', b'"usd"'), (b'"name"', b'"nbme"'), None])
def test_a_record_that_is_not_as_it_was_recorded_is_refused(pretrained, pool, tmp_path, change):
    """By its hashes a fine-tuning knows the images that the encoder learnt from."""
    store = store_of(tmp_path / "home")
    file = store.file(store.get(pretrained["encoder"]["run_id"]), FILE, tmp_path)
    content = file.read_bytes()
    file.write_bytes(content.replace(*change) if change else content[:99])
    assert file.read_bytes() != content
    with pytest.raises(UserError, match=f"{FILE} in MLflow is damaged: delete that run there, and run the"):
        run(tuned(pool))


def test_no_record_is_made_of_images_that_changed_since_they_were_trained_on(home, tmp_path, monkeypatch):
    """A fine-tuning elsewhere would not find the image that the encoder has seen among its own of val and test."""
    monkeypatch.setattr(publisher, "register", lambda *args: None)
    scans(tmp_path / "scans")
    tree, changed = alone(tmp_path, {"pretrain": {"epochs": 1}}), tmp_path / "scans" / "p00" / "0.png"

    def change(event):
        if isinstance(event, TrainingStarted):
            picture(changed, 4711)

    with pytest.raises(UserError, match="scans: images changed while the command ran, .*; run the same command again$"):
        run(tree, change)
    (trained,) = runs_of(home, "pretrain")
    with pytest.raises(ArtifactMissing):
        store_of(home).file(trained, FILE, tmp_path)
    encoder = run(tree)["encoder"]
    assert encoder["run_id"] != trained.run_id
    record = json.loads(store_of(home).file(store_of(home).get(encoder["run_id"]), FILE, tmp_path).read_text())
    files = {image["name"]: image["files"] for image in record["data_sets"][0]["images"]}
    assert files["p00/0.png"] == sorted(*Cache(home / "cache").file_hashes([Case("", "", (changed,))]))


def test_the_same_command_trains_and_registers_nothing_again(pretrained, tmp_path, pool):
    events, home = [], tmp_path / "home"
    again = run(alone(pool), events.append)
    assert again["encoder"]["digest"] == pretrained["encoder"]["digest"]
    assert not [event for event in events if isinstance(event, TrainingStarted)]
    assert len(store_of(home).client.search_model_versions("name = 'scans-mae-encoder'")) == 1


def test_the_encoder_is_fine_tuned_and_the_experiment_is_one_of_its_strategy(pretrained, tmp_path, pool):
    home, events = tmp_path / "home", []
    outcome = run(tuned(pool), events.append)
    assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune", "test"]
    assert [stage["reused"] for stage in outcome["stages"]] == [True, False, False]
    assert [event.kind for event in events if isinstance(event, StageReused)] == ["pretrain"]
    loaded = outcome["stages"][1]["loaded"]["encoder"]
    assert loaded["loaded"] > 10 and loaded["missing"] == loaded["dropped"] == loaded["resized"] == []
    (own,) = [each for each in runs_of(home, "experiment") if "finetune_run" in each.tags]
    about = {"strategy": "mae", "pretrain_run": pretrained["encoder"]["run_id"], "pretrain_encoder": NAME}
    assert about.items() <= own.tags.items() and own.tags["pretrain_seed"] == "0"
    finetune = outcome["stages"][1]["run_id"]
    with pytest.raises(UserError, match=f"pretrain.encoder: {finetune}: is finetune, and no pre-training"):
        run(tuned(pool, encoder=finetune))


def test_every_name_of_an_encoder_gives_the_same_experiment(pretrained, pool):
    digest, run_id = pretrained["encoder"]["digest"], pretrained["encoder"]["run_id"]
    names = [NAME, "models:/scans-mae-encoder@newest", digest, digest[:12], f"pretrain-{digest[:16]}", run_id]
    found = resolve([validate_experiment(tuned(pool, encoder=name)) for name in [*names, pretrained["run_id"]]])
    assert {each.pretrained.run_id for each in found} == {run_id}
    assert len({each.experiment.digest() for each in found}) == 1


def test_a_command_looks_an_encoder_up_once_and_stays_with_it(pretrained, pool, tmp_path, monkeypatch):
    """A name that moves meanwhile is one encoder for all of a command, and an outage of MLflow ends none of it."""
    trees = [tuned(pool, {"finetune": {"seed": seed}}, encoder="models:/scans-mae-encoder@newest") for seed in (0, 1)]
    experiments, lookups = [validate_experiment(each) for each in trees], []
    once = lambda *args: lookups.append(args) or find_pretraining(*args)  # noqa: E731
    monkeypatch.setattr("premed.execution.pretrained.find_pretraining", once)
    first = resolve(experiments)
    assert len(lookups) == 1
    other = move_alias(tmp_path / "home", pretrained["encoder"])
    assert {each.experiment.pretrain.encoder for each in resolve(experiments)} == {other}  # of another command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    again = resolve(experiments, first[0])
    ours = pretrained["encoder"]["digest"]
    assert [each.experiment.pretrain.encoder for each in (*first, *again)] == [ours] * 4


@pytest.mark.slow
def test_it_is_the_fine_tuning_of_one_yaml_with_the_same_source(pretrained, pool):
    source = alone(pool)["task"]
    whole = alone(pool) | {name: tuned(pool)[name] for name in ("task", "finetune")}
    whole |= {"pretrain": whole["pretrain"] | {"sources": [{"task": source}]}}
    (pretrain, *_) = validate_experiment(whole).stages(lambda kind: "")
    named = run(alone(pool, {"pretrain": {"sources": [{"task": source}]}, "task": tuned(pool)["task"]}))
    assert pretrain.kind == named["stages"][0]["kind"]
    by_name, by_yaml = run(tuned(pool, encoder=named["encoder"]["digest"])), run(whole)
    assert [s["digest"] for s in by_name["stages"]] == [s["digest"] for s in by_yaml["stages"]]
    assert all(stage["reused"] for stage in by_yaml["stages"])


@pytest.mark.slow
def test_an_encoder_whose_folder_is_gone_comes_from_mlflow(pretrained, tmp_path, pool):
    home = tmp_path / "home"
    shutil.move(home / "checkpoints", home / "away")
    changed = {"finetune": {"seed": 5}}
    first = run(tuned(pool, changed))
    shutil.rmtree(home / "checkpoints")
    shutil.move(home / "away", home / "checkpoints")
    again = run(tuned(pool, changed))
    assert first["stages"][1]["summary"] == again["stages"][1]["summary"]


# ---- what is refused


MISFITS = {
    "stored": ({"task": {"stored": [24, 24]}}, r"task\.stored: is \[24, 24\], and pretrain\.encoder: .* \[20, 20\]"),
    "equalize": ({"task": {"equalize": True}}, r"task\.equalize: is true, .* with false on scans"),
    "channels": ({"task": {"channels": 3}}, r"task\.channels: is 3, .* with 1 on scans"),
    "volumes": ({"task": {"dims": 3, "roi": [8, 8, 8], "stored": None}}, r"task\.dims: is 3, .* with 2"),
    "several": ({"task": {"equalize": True, "channels": 3}}, r"task\.channels: .*\(equalize too\); prepare the images"),
    "patch": ({"encoder": {"patch": 4}}, r"encoder\.patch: is 4, and .* was made with 8"),
    "encoder": ({"encoder": {"name": "unet"}}, r"encoder\.name: is \"unet\", and .* was made with \"vit\""),
    "strategy": ({"pretext": "hssl"}, r"pretext: is hssl, and pretrain\.encoder: .* was made by mae"),
    "mask ratio": ({"pretext": {"mask_ratio": 0.5}}, r"pretext\.mask_ratio: is 0\.5, and .* was made with 0\.75"),
    "epochs": ({"pretrain": {"epochs": 9}}, r"pretrain\.epochs: is 9, and .* was made with 2; make it that, or leave"),
    "its seed": ({"pretrain": {"seed": 1}}, r"pretrain\.seed: is 1, and .* was made with 0"),
    "augment": ({"pretrain": {"augment": {"flip": 0.5}}}, r"pretrain\.augment\.flip: is 0\.5, .* with 0\.0"),
    "a type": ({"pretrain": {"batch": 0}}, r"pretrain\.encoder: .*: batch: .* greater than or equal to 1"),
    "no version": ({"pretrain": {"encoder": "models:/scans-mae-encoder/7"}}, "no such model or version"),
    "no model": ({"pretrain": {"encoder": "models:/x@newest"}}, "no such model or version"),
    "no run": ({"pretrain": {"encoder": "0" * 32}}, r"pretrain\.encoder: 0+: no such run"),
    "no digest": ({"pretrain": {"encoder": "0" * 40}}, "0{40}: no such run in "),
    "nonsense": ({"pretrain": {"encoder": "scans"}}, "pretrain.encoder: scans: no such run in .*; there are "),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_is_refused_by_its_field_before_anything_starts(pretrained, pool, what):
    change, words = MISFITS[what]
    messages: list = []
    with pytest.raises(UserError, match=words) as refusal:
        run(tuned(pool, change), messages.append)
    assert messages == [] and "\n" not in str(refusal.value)


def test_what_the_yaml_says_rightly_of_the_pre_training_is_accepted(pretrained, pool):
    same = {"pretext": alone(pool)["pretext"], "pretrain": alone(pool)["pretrain"]}
    outcome = run(tuned(pool, same, {"test": False, "finetune": {"epochs": 1}}))
    assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune"]


@pytest.mark.slow
def test_a_pre_training_without_a_record_is_refused_until_its_yaml_is_run_alone(home, pool):
    task = tuned(pool)["task"]
    whole = alone(pool, {"task": task}) | {"finetune": tuned(pool)["finetune"], "test": False}
    trained = run(whole)["stages"][0]
    other = tuned(pool, {"finetune": {"seed": 3}, "test": False}, encoder=trained["digest"])
    with pytest.raises(UserError, match="recorded no images, .* run its YAML again, without finetune"):
        run(other)
    assert run(whole | {"finetune": None})["stages"][0]["reused"]
    assert run(other)["stages"][0]["run_id"] == trained["run_id"]


# ---- leakage


@pytest.fixture
def own(pool, tmp_path):
    """A folder of labelled pictures of this test's own, and its cases by part."""
    from premed.data.datamodule import Tasks

    labelled(tmp_path / "labelled")
    task = Tasks()(validate_experiment(tuned(tmp_path)).task)
    return tmp_path, {part: [case.image[0] for case in task.split(part)] for part in ("train", "val", "test")}


@pytest.mark.parametrize("how", ["bytes", "values"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_an_image_of_val_or_test_that_the_encoder_learnt_from_is_refused(pretrained, pool, own, part, how):
    folder, parts = own
    (seen, number) = learnt(pool)
    if how == "bytes":
        shutil.copy(seen, parts[part][0])
    else:  # the same grey values in another file
        picture(parts[part][0], number)
        from PIL import Image

        Image.open(seen).save(parts[part][0], compress_level=1)
        assert parts[part][0].read_bytes() != seen.read_bytes()
    name = parts[part][0].name
    words = f"pretrain.encoder: {NAME} learnt from scans, with 1 image .*: p.*/{number}.png is {name} \\({part}\\)"
    with pytest.raises(UserError, match=words):
        run(tuned(folder))
    checked = runner.check(validate_experiment(tuned(folder)), lambda event: None)
    (error,) = [each for each in checked["findings"] if each["severity"] == "error"]
    assert error["where"].endswith(name) and f"{number}.png of scans" in error["what"]


def test_images_of_train_and_of_a_test_part_that_is_not_opened_are_no_leak(pretrained, pool, own):
    folder, parts = own
    seen, _ = learnt(pool)
    shutil.copy(seen, parts["train"][0])
    shutil.copy(seen, parts["test"][0])
    outcome = run(tuned(folder, {"test": False, "finetune": {"epochs": 1}}))
    assert [stage["kind"] for stage in outcome["stages"]] == ["pretrain", "finetune"]


def learnt(pool):
    """A picture that the pre-training learns from, and its number."""
    from premed.data.datamodule import Tasks
    from premed.data.splits import pretraining_cases

    (case, *_), _ = pretraining_cases(Tasks()(validate_experiment(alone(pool)).task))
    return case.image[0], int(case.image[0].stem)


def test_a_labelled_task_in_the_pre_trainings_yaml_has_its_val_kept_out_before_anything_is_trained(home, pool, own):
    folder, parts = own
    sources = {"pretrain": {"sources": [{"task": alone(pool)["task"] | {"root": str(folder), "patient": None}}]}}
    with pytest.raises(UserError, match="pretrain.sources: .* which the task keeps for val or test"):
        run(alone(pool, sources, {"task": tuned(folder)["task"]}))
    assert runs_of(home, "pretrain") == []


# ---- what is told


def test_the_commands_tell_the_encoder_and_the_next_command(pretrained, pool, premed, tmp_path):
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone(pool)))
    code, out, err = premed("run", tmp_path / "alone.yaml")
    assert code == 0, err
    assert "val loss" in out and pretrained["encoder"]["digest"] in out and pretrained["encoder"]["run_id"] in out
    assert "next:    premed run FINETUNE.yaml pretext=mae pretrain.encoder=" in out


@pytest.mark.slow
def test_compare_has_the_strategy_and_the_cost_of_the_pre_training(pretrained, pool, premed, tmp_path):
    changes = {"pretext": ["none", "mae"]}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(tuned(pool) | changes))
    code, out, err = premed("run", tmp_path / "tuned.yaml", "--json")
    assert code == 0, err
    code, out, err = premed("compare", "--json")
    assert code == 0, err
    assert json.loads(out)["notes"] == []  # the pre-training alone is no comparison, and nothing is missing
    (task,) = json.loads(out)["tasks"]
    none, mae = task["blocks"][0]["rows"]
    assert (none["strategy"], mae["strategy"]) == ("none", "mae") and none["cost"]["pretrain"] is None
    assert mae["cost"]["pretrain"]["seconds"] == pytest.approx(pretrained["stages"][0]["seconds"])
    (note,) = [note for note in task["notes"] if "in its cost" in note]
    assert note == f"mae: fine-tuned from {NAME}, which was pre-trained before; that pre-training is in its cost"


@pytest.mark.slow
def test_compare_tells_what_pre_trainings_learnt_from(pretrained, pool, premed):
    """The task's own images and the scans without labels are two arms of one strategy."""
    run(tuned(pool))
    run(alone(pool, {"task": tuned(pool)["task"]}) | {"finetune": tuned(pool)["finetune"]})
    code, out, err = premed("compare", "--json", "--baseline", "mae sources=own")
    assert code == 0, err
    (task,) = json.loads(out)["tasks"]
    assert [arm["label"] for arm in task["blocks"][0]["rows"]] == ["mae sources=own", "mae sources=scans"]
