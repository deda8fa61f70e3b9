"""`premed init`: of every layout it writes a YAML that loads, is clean, and says what it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import folders
from support.suite import REPOSITORY

from premed.config.expand import load_all
from premed.config.plugins import plugin
from premed.data.check import Check
from premed.data.datamodule import stage_data_sets
from premed.errors import UserError
from premed.planning import init
from premed.planning.machine import Machine
from premed.reporting.console import show_plan

pytest_plugins = ["support.experiment_fixtures"]
TWO_CORES, GPUS = Machine(2, 16.0), Machine(32, 128.0, (80.0, 80.0))

LAYOUTS = {
    "nnunet": ({"name": "nnunet"}, "5 train, 1 val, 2 test, 2 unlabelled"),
    "msd": ({"name": "msd"}, "5 train, 1 val, 2 test, 2 unlabelled"),
    "brats": ({"name": "brats", "crop_foreground": True}, "5 train, 1 val, 2 test"),
    "btcv": ({"name": "btcv"}, "15 train, 3 val, 12 test"),
    "chestxray14": ({"name": "chestxray14", "size": 32, "stored": 32}, None),
    "pngs": ({"name": "images", "table": "labels.csv", "labels": ["pneumonia"], "roi": [32, 32]}, None),
    "dicoms": ({"name": "images", "labels": ["pneumonia"], "roi": [32, 32]}, None),
    "niftis": ({"name": "images", "dims": 3, "window": [-1000, 400], "normalise": "window"}, "6 train, 2 val, 2 test"),
    "series": ({"name": "images", "dims": 3, "label": "label", "normalise": "window"}, "5 train, 1 val, 2 test"),
    "kaggle": ({"name": "images", "label": "label", "parts": {"train": ["train"], "test": ["test"]}}, None),
    "bare_names": ({"label": "Finding Labels", "separator": "|", "none": "No Finding"}, None),
    "bids_diagnoses": ({"name": "images", "dims": 3, "label": "diagnosis", "normalise": "zscore"}, None),
    "bids_masks": ({"name": "nnunet", "patient": "(sub-[^_]+)_.*"}, "4 train, 1 val, 2 test, 1 unlabelled"),
    "side_by_side": ({"name": "nnunet", "unlabelled": True}, "4 train, 1 val, 1 test, 2 unlabelled"),
    "case_folders": ({"name": "nnunet"}, "4 train, 1 val, 1 test"),
}
"""By layout: some fields of the task, and the parts."""


def marked(names, *slow):
    """Parameters, of which some draw or list so much that make test leaves them out."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def made(shared):
    """A folder of images in a layout, made once."""

    def make(layout):
        return shared(f"init-{layout}", lambda root: getattr(folders, layout)(root / layout)) / layout

    return make


@pytest.mark.parametrize("layout", marked(LAYOUTS, "btcv", "brats", "niftis"))
def test_of_every_layout_it_writes_a_yaml_that_loads_and_whose_data_are_clean(made, here, layout):
    expected, parts = LAYOUTS[layout]
    result = init.run(made(layout), machine=TWO_CORES)
    task = yaml.safe_load((here / f"{layout}.yaml").read_text())["task"]
    assert {name: task[name] for name in expected} == expected
    assert result["yaml"] == f"{layout}.yaml" and parts in (None, result["found"]["parts"])
    experiments = load_all([here / f"{layout}.yaml"])
    assert [(each.strategy, each.finetune.seed) for each in experiments] == [
        (strategy, seed) for strategy in ("none", "mae") for seed in (0, 1, 2)
    ]
    check = Check(experiments[0].task, test=True)
    check.open_images(None, lambda done, total: None)
    assert [finding for finding in check.findings if finding.severity == "error"] == []
    assert check.outcome()["num_images"] == len(check.cases) > 0


@pytest.mark.slow
def test_the_yaml_trains_with_both_strategies_and_the_commands_follow(premed, made, here, home):
    code, out, err = premed("init", made("pngs"))
    assert code == 0 and "12 patients" in out and "about" in out
    commands = [line.strip() for line in out.splitlines() if "premed " in line and line.startswith("  ")]
    prefix = f"PREMED_HOME={home} premed"  # set for this command alone, it may not be for the next
    assert commands == [
        f"{prefix} data check pngs.yaml",
        f"{prefix} run pngs.yaml",
        f"{prefix} compare --task pngs --html pngs.html",
        f"{prefix} predict models:/pngs@best NEW_IMAGES --out DIR",
    ]
    short = [f"{stage}.{field}" for stage in ("pretrain", "finetune") for field in ("steps=2", "validations=1")]
    tiny = ["encoder.width=24", "encoder.depth=1", "encoder.heads=2", "train.workers=0", "seeds=[0]"]
    code, out, err = premed("run", "pngs.yaml", *short, *tiny, "--json")
    assert code == 0, err
    assert [outcome["strategy"] for outcome in json.loads(out)["outcomes"]] == ["none", "mae"]
    code, out, _ = premed("compare", "--task", "pngs")
    assert code == 0 and "mae" in out


def test_the_readme_s_walk_from_a_folder_to_an_answer_is_what_init_prints(made, here, monkeypatch):
    monkeypatch.delenv("PREMED_HOME", raising=False)
    shutil.copytree(made("pngs"), here / "scans")
    walk = (
        (REPOSITORY / "README.md")
        .read_text()
        .partition("## From a folder to an answer\n\n```\n")[2]
        .partition("```")[0]
    )
    first, *others = [line.partition("#")[0].strip() for line in walk.splitlines()]
    assert first == "premed init scans"
    assert others == [line.replace("DIR", "answers") for line in init.run(Path("scans"), machine=TWO_CORES)["next"]]


def test_it_never_writes_over_a_file(premed, made, here):
    (here / "pngs.yaml").write_text("mine")
    code, out, err = premed("init", made("pngs"))
    assert (code, out) == (2, "") and err == ["premed: pngs.yaml exists: remove it, or name another file with --out"]
    assert premed("init", made("pngs"), "--out", "other.yaml")[0] == 0
    (here / "listed.json").write_text("mine")
    code, _, err = premed("init", made("side_by_side"), "--out", "listed.yaml")
    assert code == 2 and "listed.json exists" in err[-1] and not (here / "listed.yaml").exists()
    assert (here / "pngs.yaml").read_text() == "mine"


def test_as_json_it_says_the_same(premed, made, here):
    code, out, _ = premed("init", made("bids_masks"), "--json")
    result = json.loads(out)
    assert code == 0 and result["yaml"] == "bids_masks.yaml" and result["listing"] == "bids_masks.json"
    assert (
        result["task"] == "bids_masks"
        and result["found"]["labels"] == "a label per voxel: background, label_1, label_2"
    )
    assert result["next"][1].endswith("premed run bids_masks.yaml")


def test_what_it_lists_is_called_as_the_files_are_and_notes_name_what_is_written(made, here):
    init.run(made("case_folders"), machine=TWO_CORES)
    listed = json.loads((here / "case_folders.json").read_text())
    assert [*listed["dataset"]][:2] == ["UCSF_000", "UCSF_001"] and listed["channel_names"] == {"0": "flair", "1": "t1"}
    assert [name for name in listed["dataset"]["UCSF_000"]["images"] if "seg" in name] == []
    notes = init.run(made("kaggle"), machine=TWO_CORES)["notes"]
    assert any(note.startswith("kaggle.csv: has no column of patients") for note in notes)
    notes = init.run(made("bare_names"), machine=TWO_CORES)["notes"]
    assert "images without a row in findings.csv, which are not used: 1" in notes


def test_a_machine_with_gpus_gets_larger_networks_and_uses_all_of_them(made, here):
    init.run(made("msd"), machine=GPUS)
    experiment = load_all([here / "msd.yaml"])[-1]
    assert experiment.train.gpu and experiment.train.workers == 2 and experiment.train.cpus == 16
    assert experiment.encoder.width == 384 and experiment.pretrain.batch % 2 == 0
    assert "not measured" in (here / "msd.yaml").read_text()[:200]


WITHOUT = {
    "nothing": (lambda root: None, "holds no image that is read"),
    "pictures": (lambda root: [folders.picture(root / f"{n}.png") for n in range(3)], "3 pictures and no labels"),
    "volumes": (lambda root: [folders.scan(root / f"{n}.nii.gz") for n in range(2)], "2 volumes and no labels"),
    "patients": (
        lambda root: [folders.picture(root / f"p{n:03d}" / f"{k}.png") for n in range(9) for k in range(2)],
        "18 pictures and no labels",
    ),
    "one case": (lambda root: folders.scan(root / "images/a.nii.gz", root / "labels/a.nii.gz"), "1 patient(s) with"),
    "several": (lambda root: [folders.msd(root / name) for name in ("TaskA", "TaskB")], "(TaskA, TaskB)"),
    "masks of pictures": (
        lambda root: [folders.picture(root / kind / "a.png") for kind in ("images", "masks")],
        "pictures are not segmented",
    ),
    "grey masks": (
        lambda root: (
            [folders.scan(root / f"images/{n}.nii.gz", root / f"i/{n}.nii.gz") for n in range(3)]
            + [folders.scan(root / f"labels/{n}.nii.gz") for n in range(3)]
        ),
        "is named as a label map; labels must be whole numbers",
    ),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_folder_without_a_comparison_in_it_is_refused_in_one_line(premed, tmp_path, here, what):
    write, words = WITHOUT[what]
    (tmp_path / "images here").mkdir()
    write(tmp_path / "images here")
    code, out, err = premed("init", tmp_path / "images here")
    assert (code, out) == (2, "") and len([line for line in err if line.startswith("premed: ")]) == 1
    assert words in err[-1] and [*here.iterdir()] == []


def test_what_may_mislead_is_noted(tmp_path, here):
    """Mixed slice spacings, CT that is none, a roi larger than an image, a batch larger than the data, no patients."""
    import numpy as np

    root, rows = tmp_path / "ct", [["file", "bleeding"]]
    for number in range(8):
        values = folders.rng.integers(0, 200, (20, 20, 4 + 8 * (number % 2))).astype(np.int16)
        folders.volume(root / f"{number}.nii.gz", values, (1, 1, 1.5 + 4 * (number % 2)))
        rows.append([f"{number}.nii.gz", number // 2 % 2])
    folders.table(root / "labels.csv", rows)
    notes = "\n".join(init.run(root, machine=TWO_CORES)["notes"])
    assert "spacings are mixed: 1.5 to 5.5 mm along S" in notes
    assert "images are smaller than the roi" in notes
    assert "finetune.batch: 5 in place of 16, since there are 5 images to learn from" in notes
    folds = ["task.folds=5", "task.fold=[0,1,2,3,4]"]
    assert "each image counts as one" in notes
    assert f"test has 2 patient(s): its interval will be wide; {folds[0]} '{folds[1]}' tests all 8" in notes
    assert {each.task.fold for each in load_all(["ct.yaml"], folds)} == {0, 1, 2, 3, 4}


def test_where_the_folder_gives_the_test_part_no_folds_are_named(tmp_path, here):
    """The task would refuse them."""
    root = tmp_path / "Dataset001_Held"
    folders.nnunet(root)
    assert "task.folds=5" in "\n".join(init.run(root, out=here / "dealt.yaml", machine=TWO_CORES)["notes"])
    for number in (9, 10):
        (root / "labelsTs").mkdir(exist_ok=True)
        shutil.copy(root / "labelsTr/hippocampus_001.nii.gz", root / f"labelsTs/hippocampus_{number:03d}.nii.gz")
    notes = "\n".join(init.run(root, out=here / "held.yaml", machine=TWO_CORES)["notes"])
    assert "test has 2 patient(s)" in notes and "task.folds" not in notes


def test_a_class_that_a_part_lacks_is_noted(tmp_path, here):
    root, rows = tmp_path / "slices", [["file", "patient", "tumour", "part"]]
    of = {"train": "glioma meningioma pituitary", "val": "glioma meningioma", "test": "glioma meningioma pituitary"}
    for part, kinds in of.items():
        for number, kind in enumerate(3 * kinds.split()):
            folders.picture(root / f"{part}{number}.png")
            rows.append([f"{part}{number}.png", f"{part}{number}", kind, part])
    folders.table(root / "labels.csv", rows)
    notes = init.run(root, machine=TWO_CORES)["notes"]
    said = [note for note in notes if "image has it" in note]
    assert said == ["class pituitary, part val: no image has it: its score is undefined and left out"]


def test_the_minutes_are_an_idle_machine_s_and_a_load_is_told_beside_them(made, here, capsys, monkeypatch):
    idle = init.run(made("pngs"), here / "idle.yaml", machine=TWO_CORES)
    busy = init.run(made("pngs"), here / "busy.yaml", machine=replace(TWO_CORES, load=6.0))
    note = "the minutes are those of this machine while it is idle, and others keep it busy now (load 6.0 on 2 CPUs): "
    assert f"{note}while that lasts, up to 4.0 times as long" in busy["notes"]
    assert busy["minutes"] == idle["minutes"] and not any("load" in note for note in idle["notes"])
    assert "minutes while it is idle. Every" in " ".join((here / "idle.yaml").read_text().replace("#", "").split())
    show_plan(idle)
    out = capsys.readouterr().out
    assert f"takes about {idle['minutes']:.0f} minutes while this machine is idle. Next:" in out
    assert "first look" not in out  # what takes minutes is waited for
    monkeypatch.setattr(init, "PATIENCE", idle["minutes"] - 1)
    show_plan(init.run(made("pngs"), here / "long.yaml", machine=TWO_CORES))
    first_look = f"premed run {here / 'long.yaml'} pretrain.steps=100 finetune.steps=60"
    assert any(line.endswith(first_look) for line in capsys.readouterr().out.splitlines())


def test_on_a_gpu_nothing_is_said_of_minutes_or_load(made, here):
    found = init.run(made("pngs"), here / "gpu.yaml", machine=replace(GPUS, load=90.0))
    assert found["minutes"] is None and not any("idle" in note for note in found["notes"])


def test_files_that_are_listed_and_not_there_are_left_out(made, here, tmp_path):
    shutil.copytree(made("pngs"), tmp_path / "partly")
    next((tmp_path / "partly/images").glob("*.png")).unlink()
    init.run(tmp_path / "partly", machine=TWO_CORES)
    assert load_all([here / "partly.yaml"])[0].task.partial is True


@pytest.fixture
def unlabelled(made, tmp_path):
    """nnU-Net's raw data, where one of imagesTr has no label; the folder and that case's name."""
    shutil.copytree(made("nnunet"), tmp_path / "Dataset077_Some")
    label, *_ = sorted((tmp_path / "Dataset077_Some/labelsTr").iterdir())
    label.unlink()
    count(tmp_path / "Dataset077_Some", -1)
    return tmp_path / "Dataset077_Some", label.name.partition(".")[0]


def count(root, more):
    """Adds to dataset.json's `numTraining`."""
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": content["numTraining"] + more}))


def test_images_of_imagestr_without_a_label_are_pre_trained_on_and_it_is_told(unlabelled, here):
    root, name = unlabelled
    found = init.run(root, machine=TWO_CORES)
    none, *_, mae = load_all([here / "Dataset077_Some.yaml"])
    task, stages = plugin("tasks", mae.task).build(mae.task), mae.stages(lambda kind: kind)
    learnt = [case.name for case in stage_data_sets(next(iter(stages)), lambda _: task)[0].task.images()]
    assert mae.task.unlabelled and mae.strategy == "mae" and name in learnt
    assert all(name not in [case.name for case in task.split(part)] for part in ("train", "val", "test"))
    assert found["found"]["parts"].endswith("3 unlabelled") and not any("NOT used" in note for note in found["notes"])
    assert found["found"]["pre-training"] == "learns from train and from the unlabelled: 2 of imagesTs, 1 of imagesTr"
    assert "1 images of imagesTr have no label in labelsTr" in (here / "Dataset077_Some.yaml").read_text()


def test_a_label_that_a_fold_waits_for_is_missing_and_its_image_is_not_used(unlabelled, here):
    root, name = unlabelled
    names = sorted({path.name[:-12] for path in (root / "imagesTr").iterdir()})
    (root / "splits_final.json").write_text(json.dumps([{"train": names[2:], "val": [name, names[1]]}]))
    notes = init.run(root, machine=TWO_CORES)["notes"]
    assert not load_all([here / "Dataset077_Some.yaml"])[0].task.unlabelled
    assert [note for note in notes if "without a label in labelsTr are NOT used (1), since splits_final" in note], notes


@pytest.mark.parametrize("how", ["counted by numTraining", "a link to nothing"])
def test_a_label_that_was_not_copied_is_missing_and_its_image_is_not_used(unlabelled, here, how):
    root, name = unlabelled
    if how == "a link to nothing":
        (root / "labelsTr" / f"{name}.nii.gz").symlink_to("away")
    else:
        count(root, 1)
    notes = init.run(root, machine=TWO_CORES)["notes"]
    task = load_all([here / "Dataset077_Some.yaml"])[0].task
    assert not task.unlabelled and task.partial
    assert name not in [case.name for case in plugin("tasks", task).build(task).images()]
    assert [note for note in notes if "without a label in labelsTr are NOT used (1), since splits_final" in note], notes


FOLDS_OF_OTHERS = {
    "a number": (5, "must be a list of folds"),
    "null": (None, "must be a list of folds"),
    "a seed in each fold": ({"seed": 1}, ""),
    "lists in each fold": ({"groups": [["a"], ["b"]]}, ""),
}


@pytest.mark.parametrize("what", FOLDS_OF_OTHERS)
def test_what_else_splits_final_holds_is_not_read_and_another_content_is_one_line(premed, unlabelled, here, what):
    root, name = unlabelled
    content, words = FOLDS_OF_OTHERS[what]
    names = sorted({path.name[:-12] for path in (root / "imagesTr").iterdir()} - {name})
    folds = [{"train": names[2:], "val": names[:2]} | content] if isinstance(content, dict) else content
    (root / "splits_final.json").write_text(json.dumps(folds))
    code, _, err = premed("init", root)
    if not words:
        assert code == 0 and load_all([here / "Dataset077_Some.yaml"])[0].task.unlabelled
        return
    assert code == 2 and len([line for line in err if line.startswith("premed: ")]) == 1
    assert f"{root / 'splits_final.json'}: {words}" in err[-1]


def test_images_that_the_decathlon_s_listing_lacks_are_named_as_not_used(made, here, tmp_path):
    shutil.copytree(made("msd"), tmp_path / "Task99_Some")
    image, *_ = sorted((tmp_path / "Task99_Some/imagesTr").glob("*.nii.gz"))
    shutil.copy(image, image.with_name("another.nii.gz"))
    notes = init.run(tmp_path / "Task99_Some", machine=TWO_CORES)["notes"]
    assert [note for note in notes if note.startswith("images in no entry of dataset.json are NOT used (1): list them")]


def test_a_folder_above_a_data_set_names_it(made, here, tmp_path):
    shutil.copytree(made("nnunet"), tmp_path / "above" / "Dataset077_Some")
    with pytest.raises(UserError, match="holds a data set: name its folder, .*above/Dataset077_Some"):
        init.run(tmp_path / "above", machine=TWO_CORES)


def test_a_folder_that_is_none_is_named(here):
    with pytest.raises(UserError, match="absent is not a folder"):
        init.run(here / "absent")


REAL = {
    "Task04_Hippocampus": {"name": "msd", "roi": [32, 48, 32], "spacing": [1.0, 1.0, 1.0], "normalise": "zscore"},
    "brainmri": {"name": "images", "label": "tumour", "roi": [96, 96]},
    "pneumonia": {"name": "images", "labels": ["pneumonia"], "parts": {"train": ["train"], "test": ["val"]}},
    "chestxray14": {"name": "chestxray14", "size": 64, "stored": 64},
}


@pytest.mark.parametrize("name", marked(REAL, "pneumonia", "brainmri"))
def test_of_real_images_it_makes_what_a_person_would(real, here, name):
    init.run(real(name), machine=TWO_CORES)
    experiments = load_all([here / f"{name}.yaml"])
    task = yaml.safe_load((here / f"{name}.yaml").read_text())["task"]
    assert {field: task[field] for field in REAL[name]} == REAL[name] and len(experiments) == 6
    assert [finding for finding in listings(experiments[0].task) if finding.severity == "error"] == []


def listings(config):
    from premed.config.plugins import plugin
    from premed.data import check

    return check.listings(plugin("tasks", config).build(config), test=True)


@pytest.mark.parametrize(
    ("name", "words"), [("btcv", "1 patient(s) with labels"), ("Task01_BrainTumour", "1 volume and no labels")]
)
def test_of_real_images_that_are_too_few_it_says_so(real, here, name, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
        init.run(real(name), machine=TWO_CORES)
