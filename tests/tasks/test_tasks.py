"""Tasks: who is in which part, what is refused and how, and scores where the answer is known beforehand."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.task_fixtures import brain, chest
from support.tasks import PARTS, check_parts, names, refused, samples

from premed.paths import portable_path
from premed.tasks import chestxray14, msd

pytest_plugins = ["support.task_fixtures"]


HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


@pytest.fixture
def copied(tmp_path):
    """A folder's copy, to be spoilt."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


# Parts ---------------------------------------------------------------------------------------------------------------


def test_parts_are_disjoint_by_patient_and_pretraining_is_blind(nih, decathlon):
    check_parts(chest(nih))
    check_parts(brain(decathlon))


@pytest.mark.parametrize(("folder", "task"), [("chestxray14", chest), ("Task04_Hippocampus", brain)])
def test_real_parts_are_disjoint_by_patient_and_pretraining_is_blind(real, folder, task):
    check_parts(task(real(folder)))


def test_the_official_lists_are_the_parts(real):
    root = real("chestxray14")
    task = chest(root)
    official = {part: (root / f"{part}_list.txt").read_text().split() for part in ("train_val", "test")}
    assert names(task.split("test")) == official["test"]
    assert sorted(names(task.split("train")) + names(task.split("val"))) == sorted(official["train_val"])


def test_real_labels_are_those_of_the_table_in_the_canonical_order(real):
    task = chest(real("chestxray14"))
    result = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(task.table.open())}
    for case in task.split("test"):
        assert isinstance(case.label, tuple)
        found = [name for name, y in zip(task.classes, case.label, strict=True) if y] or ["No Finding"]
        assert set(found) == set(result[case.name])
    assert task.classes[:3] == ("Atelectasis", "Cardiomegaly", "Effusion")
    assert task.classes[-2:] == ("Pleural_Thickening", "Hernia")


@pytest.mark.parametrize("task", [chest, brain])
def test_the_split_is_a_function_of_its_seed(nih, decathlon, task):
    root = nih if task is chest else decathlon
    dealt = [names(task(root, split_seed=seed).split("val")) for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]


def test_val_share_is_of_the_patients(nih):
    parts = {part: {case.patient for case in chest(nih, val_share=0.25).split(part)} for part in PARTS}
    assert [len(parts[part]) for part in PARTS] == [9, 3, 4]


def test_a_decathlon_folder_is_dealt_60_15_25(decathlon):
    assert [len(brain(decathlon).split(part)) for part in PARTS] == [12, 3, 5]


def test_the_real_hippocampi_are_dealt_60_15_25(real):
    assert [len(brain(real("Task04_Hippocampus")).split(part)) for part in PARTS] == [118, 29, 49]


def test_a_listed_split_is_taken_as_it_is_listed(decathlon):
    split = {"train": ("hippocampus_003", "hippocampus_001"), "val": ("hippocampus_002",), "test": ("hippocampus_009",)}
    task = brain(decathlon, split=split)
    assert {part: tuple(names(task.split(part))) for part in PARTS} == split
    assert set(names(task.images())) == {*split["train"], "hippocampus_021", "hippocampus_022"}


def test_an_unlabelled_entry_serves_pretraining_only(decathlon):
    task = brain(decathlon)
    everywhere = {name for part in PARTS for name in names(task.split(part))}
    assert {"hippocampus_021", "hippocampus_022"} == set(names(task.images())) - everywhere


def test_the_real_brain_has_four_channels_and_no_label(real):
    task = brain(real("Task01_BrainTumour"))
    assert (task.channels, names(task.images())) == (4, ["BRATS_001"])
    refused(lambda: task.split("train"), "dataset.json", "no entry has a label")


def test_the_decathlon_s_test_images_count_where_they_were_downloaded(decathlon, copied):
    root = copied(decathlon)
    about = json.loads((root / "dataset.json").read_text())
    (root / "imagesTs").mkdir()
    shutil.copy(root / "imagesTr/hippocampus_021.nii.gz", root / "imagesTs/hippocampus_101.nii.gz")
    about["test"] = ["./imagesTs/hippocampus_101.nii.gz", "./imagesTs/hippocampus_102.nii.gz"]
    (root / "dataset.json").write_text(json.dumps(about))
    assert "hippocampus_101" in names(brain(root).images())
    assert "hippocampus_102" not in names(brain(root).images())


def test_where_each_patient_has_a_folder_and_all_files_are_called_alike_cases_have_their_paths(decathlon, copied):
    root = copied(decathlon)
    about = json.loads((root / "dataset.json").read_text())
    for number, entry in enumerate(about["training"][:3]):
        for kind in entry.keys() & {"image", "label"}:
            path = f"patient {number}/{kind}.nii.gz"
            (root / path).parent.mkdir(exist_ok=True)
            (root / entry[kind]).rename(root / path)
            entry[kind] = f"./{path}"
    (root / "dataset.json").write_text(json.dumps(about))
    assert [finding for finding in brain(root).check() if finding.severity == "error"] == []
    found = [case.name for case in brain(root).cases]
    assert found[:3] == [f"patient {number}/image" for number in range(3)] and found[3] == "hippocampus_004"


@pytest.mark.parametrize("labels", [{"0": "background", "1": "a b", "2": "c"}, {"background": 0, "c": 2, "a b": 1}])
def test_classes_stand_in_the_order_of_their_numbers(decathlon, copied, labels):
    root = copied(decathlon)
    about = json.loads((root / "dataset.json").read_text()) | {"labels": labels}
    (root / "dataset.json").write_text(json.dumps(about))
    assert brain(root).classes == ("background", "a_b", "c")
    assert brain(root).regions == {"a_b": (1,), "c": (2,)}


# Folders as they come ------------------------------------------------------------------------------------------------


def test_images_are_found_in_the_folders_of_the_archives(nih, copied):
    root = copied(nih)
    expected = {part: names(chest(nih).split(part)) for part in PARTS}
    for number, image in enumerate(sorted((root / "images").iterdir())):
        folder = root / f"images_{1 + number % 3:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / image.name)
    (root / "images").rmdir()
    assert {part: names(chest(root).split(part)) for part in PARTS} == expected


def test_hidden_files_among_the_images_are_not_spoken_of(nih, copied):
    root = copied(nih)
    for image in sorted((root / "images").iterdir())[:3]:
        (image.parent / f"._{image.name}").touch()
    assert list(chest(root).check()) == list(chest(nih).check()) == []


def test_a_table_with_a_trailing_column_a_mark_and_a_blank_line_reads_the_same(nih, copied):
    root = copied(nih)
    lines = (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()
    (root / "Data_Entry_2017_v2020.csv").write_text("\ufeff" + "".join(f"{line},\n" for line in lines) + "\n")
    assert [case.label for case in chest(root).split("test")] == [case.label for case in chest(nih).split("test")]


@pytest.mark.parametrize(("table", "end"), [("Data_Entry_2017_v2020.csv", ""), ("Data_Entry_2017.csv", ",")])
@pytest.mark.slow
def test_the_whole_data_set_of_112120_rows_is_read_and_dealt(tmp_path, table, end):
    """Both tables (the older one has an empty column at the end), the official lists' sizes, images where they lie."""
    every = [f"{i // 4:08d}_{i % 4:03d}.png" for i in range(112_120)]
    about = "50,M,PA,2500,2048,0.17,0.17"
    rows = [f"{name},Mass|Hernia,{i % 4},{i // 4},{about}{end}" for i, name in enumerate(every)]
    (tmp_path / table).write_text("\n".join([HEADER + end, *rows]) + "\n")
    write_lines(tmp_path / "train_val_list.txt", *every[:86_524])
    write_lines(tmp_path / "test_list.txt", *every[-25_596:])
    for number, name in enumerate(every[::1000]):
        folder = tmp_path / ("images" if number % 3 == 0 else f"images_{number % 12 + 1:03d}/images")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    task = chest(tmp_path, partial=True)
    assert len(task.rows) == 112_120 and sum(len(task.split(part)) for part in PARTS) == 87 + 26
    assert task.rows["00028029_003.png"] == ("28029", tuple(float(name in ("Mass", "Hernia")) for name in task.classes))


def test_partial_leaves_out_what_is_not_on_disk(nih, copied):
    root = copied(nih)
    gone = names(chest(nih).split("test"))[0]
    (root / "images" / gone).unlink()
    assert names(chest(root, partial=True).split("test")) == names(chest(nih).split("test"))[1:]


def test_partial_deals_the_rest_as_if_all_were_there(decathlon, copied):
    root = copied(decathlon)
    gone = {names(brain(decathlon).split(part))[0] for part in PARTS} | {"hippocampus_021"}
    for number, name in enumerate(sorted(gone)):
        (root / ("imagesTr" if number % 2 else "labelsTr") / f"{name}.nii.gz").unlink(missing_ok=True)
    (root / "imagesTr" / "hippocampus_021.nii.gz").unlink(missing_ok=True)
    task = brain(root, partial=True)
    for part in PARTS:
        assert names(task.split(part)) == [name for name in names(brain(decathlon).split(part)) if name not in gone]
    assert set(names(task.images())) == {*names(task.split("train")), "hippocampus_022"}
    shutil.rmtree(root / "imagesTr")
    refused(lambda: task.split("train"), "none of the 12 cases of train is there")
    assert task.config.digest() == brain(root).config.digest()  # the data's fingerprint says which cases there are


def test_the_test_list_is_opened_for_the_test_part_alone(nih, copied):
    root = copied(nih)
    (root / "test_list.txt").unlink()
    task = chest(root)
    assert task.images() and task.split("train") and task.split("val")
    refused(lambda: task.split("test"), "test_list.txt is missing", "NIH's official list")


# Mistakes ------------------------------------------------------------------------------------------------------------


def write_lines(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def first(root: Path) -> str:
    return (root / "train_val_list.txt").read_text().split()[0]


TABLE = "Data_Entry_2017_v2020.csv"
SPOILT_CHEST = {
    "no list": (lambda r: (r / "train_val_list.txt").unlink(), ["train_val_list.txt is missing", "put NIH's"]),
    "no table": (lambda r: (r / TABLE).unlink(), ["there is no Data_Entry_2017*.csv", "put NIH's table"]),
    "header": (lambda r: replace(r / TABLE, "Image Index", "Image"), [TABLE, "'Image Index' is not in list", "header"]),
    "finding": (lambda r: replace(r / TABLE, "No Finding", "Flu"), [TABLE, "line ", "Flu is none of the 14 findings"]),
    "columns": (lambda r: write_lines(r / TABLE, HEADER, "a.png,Mass"), [TABLE, "line 2", "too few columns"]),
    "no row": (lambda r: write_lines(r / "train_val_list.txt", "a.png"), ["a.png is listed", TABLE, "fix the list"]),
    "no image": (lambda r: (r / "images" / first(r)).unlink(), ["images/", "is missing", "task.partial=true"]),
    "list with labels": (
        lambda r: write_lines(r / "train_val_list.txt", first(r), "a.png 0 1"),
        ["train_val_list.txt, line 2: has more than one word", "only the image's name"],
    ),
    "list not UTF-8": (lambda r: (r / "train_val_list.txt").write_bytes(b"\xff"), ["train_val_list.txt", "not UTF-8"]),
    "table not UTF-8": (lambda r: (r / TABLE).write_bytes(b"\xff"), [TABLE, "is not UTF-8", "save it as UTF-8"]),
    "two rows": (
        lambda r: write_lines(r / TABLE, HEADER, "a.png,Mass,0,1", "a.png,Mass,0,2"),
        [TABLE, "line 3: a.png has another row", "keep one"],
    ),
    "one patient": (lambda r: write_lines(r / "train_val_list.txt", first(r)), ["train_val_list.txt", "list more"]),
}


@pytest.mark.parametrize("what", SPOILT_CHEST)
def test_a_spoilt_chest_folder_is_one_line_that_names_the_file_and_the_mend(nih, copied, what):
    spoil, words = SPOILT_CHEST[what]
    root = copied(nih)
    spoil(root)
    refused(lambda: chest(root).split("train"), *words)


def test_a_patient_in_both_lists_is_refused(nih, copied):
    root = copied(nih)
    with open(root / "test_list.txt", "a") as file:
        file.write(first(root) + "\n")
    refused(lambda: chest(root).split("test"), "test_list.txt", "is in train_val_list.txt too")


def about(**fields):
    """Changes dataset.json."""

    def change(root: Path) -> None:
        path = root / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def without(*fields: str):
    """Leaves fields of dataset.json out."""

    def change(root: Path) -> None:
        path = root / "dataset.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in content.items() if name not in fields}))

    return change


SPOILT_MSD = {
    "missing": (lambda r: (r / "dataset.json").unlink(), ["dataset.json is missing", "decathlon's layout"]),
    "not JSON": (lambda r: (r / "dataset.json").write_text("{"), ["dataset.json is not JSON", "download it again"]),
    "a list": (lambda r: (r / "dataset.json").write_text("[]"), ["dataset.json", "must be an object"]),
    "no labels": (about(labels=None), ["dataset.json", "`labels` must number 0 (background), 1, 2"]),
    "gap": (about(labels={"0": "background", "2": "x"}), ["dataset.json", "without a gap"]),
    "regions": (
        about(labels={"background": 0, "whole": [1, 2]}),
        ["dataset.json", "without a gap", "regions (lists of labels) are for task.name=nnunet"],
    ),
    "modality": (about(modality="MRI"), ["dataset.json", "`modality` must name each channel"]),
    "no training": (about(training=[]), ["dataset.json", "no entry has a label"]),
    "training left out": (without("training", "test"), ["dataset.json: `training` is missing: list each case there"]),
    "training renamed": (without("training"), ["dataset.json: `training` is missing: list each case there"]),
    "nnU-Net": (
        lambda r: (without("training", "test")(r), about(file_ending=".nii.gz")(r)),
        ["dataset.json: is of nnU-Net's raw layout", "set task.name=nnunet"],
    ),
    "backslash": (
        about(training=[{"image": "imagesTr\\hippocampus_001.nii.gz", "label": "y"}]),
        ["imagesTr\\hippocampus_001.nii.gz has a backslash", "write imagesTr/hippocampus_001.nii.gz"],
    ),
    "backslash in a label": (
        about(training=[{"image": "x.nii.gz", "label": "labelsTr\\x.nii.gz"}]),
        ["labelsTr\\x.nii.gz has a backslash", "write labelsTr/x.nii.gz"],
    ),
    "ignore in between": (about(labels={"b": 0, "ignore": 1, "x": 2}), ["`labels` must number 0", "without a gap"]),
    "ignore too high": (about(labels={"b": 0, "x": 1, "ignore": 255}), ["`ignore` must be one number", "2, not 255"]),
    "Ignore": (about(labels={"b": 0, "x": 1, "Ignore": 2}), ["'Ignore'", "`ignore`, in lower case; rename it"]),
    "null": (about(training=None), ["dataset.json: `training` must be a list", "not null"]),
    "labels alike": (about(labels={"0": "b", "1": "a b", "2": "a_b"}), ["dataset.json", "'a b' and 'a_b'", "rename"]),
    "label no file": (about(training=[{"image": "x", "label": 1}]), ["dataset.json", "names no label file"]),
    "entry": (about(training=[{"label": "x"}]), ["dataset.json", "names no image"]),
    "outside": (about(training=[{"image": "../x.nii.gz", "label": "y"}]), ["../x.nii.gz leads out of the folder"]),
    "absolute": (about(training=[{"image": "/x.nii.gz", "label": "y"}]), ["/x.nii.gz leads out of the folder"]),
    "twice": (about(training=[{"image": "x.nii.gz", "label": "y"}] * 2), ["x is listed twice"]),
    "few": (about(training=[{"image": "x.nii.gz", "label": "y"}]), ["1 labelled cases leave none for test"]),
}


@pytest.mark.parametrize("what", SPOILT_MSD)
def test_a_spoilt_decathlon_folder_is_one_line_that_names_the_file_and_the_mend(decathlon, copied, what):
    spoil, words = SPOILT_MSD[what]
    root = copied(decathlon)
    spoil(root)
    refused(lambda: brain(root).split("test"), *words)


def test_a_listed_image_that_is_missing_is_named_when_it_is_prepared(decathlon, copied, tmp_path):
    root = copied(decathlon)
    (root / "imagesTr" / "hippocampus_003.nii.gz").unlink()
    task = brain(root)
    cases = [case for part in PARTS for case in task.split(part)]
    refused(lambda: samples(task, cases, tmp_path / "cache"), "hippocampus_003", "fix the path")


SPLITS = {
    "twice": (
        {"train": ("hippocampus_001",), "val": ("hippocampus_001",)},
        ["task.split: hippocampus_001 is in two"],
    ),
    "unknown": ({"train": ("hippocampus_999",)}, ["task.split.train: hippocampus_999 is not a labelled case"]),
    "unlabelled": ({"train": ("hippocampus_021",)}, ["task.split.train: hippocampus_021 is not a labelled case"]),
    "empty": ({"val": ("hippocampus_001",)}, ["task.split.train is empty", "name at least one"]),
}


@pytest.mark.parametrize("what", SPLITS)
def test_a_wrong_listed_split_is_refused(decathlon, what):
    split, words = SPLITS[what]
    refused(lambda: brain(decathlon, split=split).split("train"), *words)


def test_a_root_that_is_not_there_or_not_given_is_named(tmp_path, monkeypatch):
    refused(lambda: chest(tmp_path / "x").split("train"), "x is not a folder", "task.root")
    monkeypatch.delenv("PREMED_DATA", raising=False)
    refused(lambda: msd.build(msd.Config()), "task.root is not set", "PREMED_DATA", "Task04_Hippocampus/")
    monkeypatch.setenv("PREMED_DATA", str(tmp_path))
    refused(lambda: chestxray14.build(chestxray14.Config()).split("val"), "chestxray14 is not a folder")


def test_a_root_as_a_run_records_it_is_found_again(nih, monkeypatch):
    monkeypatch.delenv("PREMED_DATA", raising=False)
    recorded = portable_path(nih)
    assert recorded == f"${{PREMED_DATA}}/{nih.name}"
    refused(
        lambda: chest(recorded).split("val"),
        "task.root is ${PREMED_DATA}/",
        f"PREMED_DATA to the folder that holds {nih.name}/",
    )
    monkeypatch.setenv("PREMED_DATA", str(nih.parent))
    assert chest(recorded).root == nih


def test_a_picture_larger_than_what_is_stored_is_refused(nih):
    refused(lambda: chest(nih, size=64), "task.size: 64 is larger than task.stored 32")
