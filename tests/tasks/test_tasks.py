"""Tasks: who is in which part, what is refused and how, and scores where the answer is known beforehand."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support.tasks import PARTS, check_parts, names, refused, samples

from premed.config.transforms import Augmentation, Preprocessing
from premed.contracts import Case, Sample
from premed.data.phantoms.writers import save_nifti, write_chestxray14, write_msd
from premed.paths import portable
from premed.rng import SampleRng
from premed.tasks import chestxray14, msd

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


@pytest.fixture(scope="module")
def nih(tmp_path_factory) -> Path:
    return write_chestxray14(tmp_path_factory.mktemp("nih"), num_patients=16, seed=1, size=32)


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> Path:
    return write_msd(tmp_path_factory.mktemp("msd"), num_cases=20, seed=1, num_unlabelled=2, shape=(12, 16, 14))


@pytest.fixture
def copied(tmp_path):
    """A folder's copy, to be spoilt."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


def chest(root: Path, **settings) -> chestxray14.ChestXray14:
    return chestxray14.build(chestxray14.Config(root=root, **{"size": 32, "stored": 32} | settings))


def brain(root: Path, **settings) -> msd.MSD:
    return msd.build(msd.Config(root=root, **{"roi": (16, 16, 16)} | settings))


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
    said = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(task.table.open())}
    for case in task.split("test"):
        assert isinstance(case.label, tuple)
        found = [name for name, y in zip(task.classes, case.label, strict=True) if y] or ["No Finding"]
        assert set(found) == set(said[case.name])
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
        ["train_val_list.txt, line 2: has more than one word", "name alone"],
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


SPOILT_MSD = {
    "missing": (lambda r: (r / "dataset.json").unlink(), ["dataset.json is missing", "decathlon's layout"]),
    "not JSON": (lambda r: (r / "dataset.json").write_text("{"), ["dataset.json is not JSON", "download it again"]),
    "a list": (lambda r: (r / "dataset.json").write_text("[]"), ["dataset.json", "must be an object"]),
    "no labels": (about(labels=None), ["dataset.json", "`labels` must number 0 (background), 1, 2"]),
    "gap": (about(labels={"0": "background", "2": "x"}), ["dataset.json", "without a gap"]),
    "regions": (about(labels={"background": 0, "whole": [1, 2]}), ["dataset.json", "without a gap"]),
    "modality": (about(modality="MRI"), ["dataset.json", "`modality` must name each channel"]),
    "no training": (about(training=[]), ["dataset.json", "no entry has a label"]),
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
    refused(lambda: samples(task, cases, tmp_path / "cache"), "hippocampus_003", "mend the path")


SPLITS = {
    "twice": (
        {"train": ("hippocampus_001",), "val": ("hippocampus_001",)},
        ["task.split: hippocampus_001 stands in two"],
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
    recorded = portable(nih)
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


# Views ---------------------------------------------------------------------------------------------------------------


def test_views_are_pure_and_carry_the_label(nih, decathlon, tmp_path):
    augment = Augmentation(flip=0.5, positive=0.5)
    for task, shape in ((chest(nih, size=24), (1, 24, 24)), (brain(decathlon), (1, 16, 16, 16))):
        sample = samples(task, task.split("train")[:1], tmp_path)[0]
        (image, label), (again, _) = (task.view(sample, augment, SampleRng(7)) for _ in range(2))
        assert image.shape == shape and image.dtype == np.float32 and np.array_equal(image, again)
        assert label is not None and label.shape == ((14,) if task.dims == 2 else shape[1:])
        blind = samples(task, task.images()[:1], tmp_path)[0]
        assert task.view(blind, Augmentation(), SampleRng(7))[1] is None
        assert all(tile.shape == shape for tile in task.tiles(blind))


# Loss ----------------------------------------------------------------------------------------------------------------


def test_the_classification_loss_is_the_mean_cross_entropy_of_the_known_labels(nih):
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0]], requires_grad=True)
    label = torch.tensor([[1.0, torch.nan, 0.0], [torch.nan, torch.nan, torch.nan]])
    loss = chest(nih).loss(logits, label)
    known = -np.log(1 / (1 + np.exp(-0.5))) - np.log(1 - 1 / (1 + np.exp(-2.0)))
    assert loss.item() == pytest.approx(known / 2 / 2)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[label.isnan()] == 0).all()


def test_the_segmentation_loss_is_monai_s_dice_and_cross_entropy(decathlon):
    from monai.losses.dice import DiceCELoss

    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 6, 6, 6), torch.randint(0, 3, (2, 6, 6, 6), dtype=torch.uint8)
    settings = {"to_onehot_y": True, "softmax": True, "squared_pred": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
    monai = DiceCELoss(**settings)(logits, label[:, None].long())
    assert brain(decathlon).loss(logits, label).item() == pytest.approx(monai.item(), rel=1e-6)


def test_the_segmentation_loss_is_dice_plus_cross_entropy_written_out(decathlon):
    torch.manual_seed(1)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    p, y = logits.softmax(1), torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    overlap, total = (p * y).sum((2, 3, 4)), (p**2).sum((2, 3, 4)) + (y**2).sum((2, 3, 4))
    written_out = (1 - 2 * overlap / (total + 1e-6)).mean() - (y * p.log()).sum(1).mean()
    assert brain(decathlon).loss(logits, label).item() == pytest.approx(written_out.item(), rel=1e-5)


# Scores --------------------------------------------------------------------------------------------------------------


def labelled_volumes(folder: Path, axes: str, spacing: tuple[float, float, float]) -> Path:
    """MSD-like, with images whose values are their labels', so that an answer can be read off the image."""
    entries = []
    for number in range(4):
        label = np.zeros((24, 28, 20), np.uint8)
        label[4 + number : 14, 6:16, 5:12], label[14:20, 8:20, 6:14] = 1, 2
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            voxels = label if part == "labelsTr" else label.astype(np.float32)
            save_nifti(voxels, np.diag([*spacing, 1.0]), axes, folder / part / f"case_{number}.nii.gz")
        entries.append({"image": f"imagesTr/case_{number}.nii.gz", "label": f"labelsTr/case_{number}.nii.gz"})
    labels = {"0": "background", "1": "one", "2": "two"}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels, "training": entries}))
    return folder


def oracle(image: torch.Tensor) -> torch.Tensor:
    """The image is label / 2: logits that are highest for the class whose value is nearest."""
    return torch.cat([-((2 * image - label) ** 2) for label in range(3)], dim=1)


def read_off(root: Path, **settings):
    every = tuple(f"case_{i}" for i in range(4))
    split = {"train": every[:2], "val": every[2:3], "test": every[3:]}
    scale = {"window": (0, 2), "percentiles": None, "normalise": "window", "split": split}
    return brain(root, **scale, **settings)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
def test_a_perfect_answer_scores_perfectly_on_the_image_s_own_grid(tmp_path, axes):
    task = read_off(labelled_volumes(tmp_path / "data", axes, (1.0, 1.3, 0.8)))
    rows = task.measure(oracle, samples(task, task.split("test"), tmp_path / "cache"))
    assert task.summary(rows) == {
        **{"dice/one": 1.0, "dice/two": 1.0, "dice": 1.0, "hd95/one": 0.0, "hd95/two": 0.0, "hd95": 0.0},
        **{"n_missed": 0.0, "n_invented": 0.0, "n_excluded": 0.0},
    }
    assert rows[0]["case"] == rows[0]["patient"] == "case_3"


def test_an_answer_given_on_another_spacing_is_scored_on_the_image_s_own_grid(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "LPS", (1.5, 1.5, 1.5)), spacing=(0.75, 0.75, 0.75))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    assert task.predict(oracle, sample).shape == (24, 28, 20) != sample.entry.shape
    summary = task.summary(task.measure(oracle, [sample]))
    assert summary["dice"] > 0.97 and summary["hd95"] <= 1.5


def test_hausdorff_distances_are_in_millimetres_along_the_file_s_own_axes(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "ASR", (2.0, 3.0, 5.0)))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    assert isinstance(sample.case.label, Path)
    truth = nib.nifti1.load(sample.case.label)
    axis = int(np.argmax(np.abs(truth.affine[0, :3])))  # the file's left-right axis, 2 mm apart
    row = task.row(sample, np.roll(np.asarray(truth.dataobj), 2, axis))
    assert row["hd95/one"] == pytest.approx(4.0)


def test_an_invented_and_a_missed_region_are_counted_and_cost_the_diagonal(tmp_path):
    task = read_off(labelled_volumes(tmp_path / "data", "RAS", (1.0, 1.0, 1.0)))
    sample = samples(task, task.split("test"), tmp_path / "cache")[0]
    summary = task.summary([task.row(sample, np.zeros((24, 28, 20), np.uint8))])
    assert (summary["dice"], summary["n_missed"]) == (0.0, 2.0)
    assert summary["hd95"] == pytest.approx(np.sqrt(24**2 + 28**2 + 20**2))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR"])
def test_the_constant_answer_of_alike_cases_is_near_them_whatever_way_the_files_lie(tmp_path, axes):
    task = read_off(labelled_volumes(tmp_path / "data", axes, (1.0, 1.0, 1.0)))
    train, test = (samples(task, task.split(part), tmp_path / "cache") for part in ("train", "test"))
    assert 0.85 < task.summary(task.constant_baseline(train, test))["dice"] < 1


def test_the_constant_answer_does_not_depend_on_how_the_files_lie(tmp_path):
    """Files in mixed orientations describe the same anatomy as files in one."""
    scores = []
    for axes in (["RAS"] * 4, ["RAS", "LPS", "ASR", "PIL"]):
        root = tmp_path / "".join(axes)
        for number, way in enumerate(axes):
            labelled_volumes(root / way, way, (1.0, 1.0, 1.0))
            for part in ("imagesTr", "labelsTr"):
                (root / part).mkdir(exist_ok=True)
                shutil.copy(root / way / part / f"case_{number}.nii.gz", root / part)
        shutil.copy(root / axes[0] / "dataset.json", root)
        task = read_off(root)
        train, test = (samples(task, task.split(part), tmp_path / "cache") for part in ("train", "test"))
        scores.append(task.summary(task.constant_baseline(train, test))["dice"])
    assert scores[0] == pytest.approx(scores[1])


def test_the_constant_answer_of_a_classification_has_an_auc_of_one_half(nih, tmp_path):
    task = chest(nih)
    train, test = (samples(task, task.split(part), tmp_path) for part in ("train", "test"))
    rows = task.constant_baseline(train, test)
    assert task.summary(rows)["mauc"] == 0.5
    assert rows[0]["p/Effusion"] == np.mean([sample.case.label[2] for sample in train])


def test_the_constant_answer_leaves_unknown_labels_out(nih, tmp_path):
    task = chest(nih)
    train = samples(task, task.split("train")[:3], tmp_path)
    labels = [(float(i == 0), float("nan")) + (0.0,) * 12 for i in range(2)] + [(float("nan"),) * 14]
    told = [Sample(Case(s.case.name, "p", s.case.image, y), s.entry) for s, y in zip(train, labels, strict=True)]
    row = task.constant_baseline(told, told[:1])[0]
    assert (row["p/Atelectasis"], row["p/Cardiomegaly"]) == (0.5, 0.0)


def test_a_classification_scores_every_image_once_and_in_order(nih, tmp_path):
    task = chest(nih)
    test = samples(task, task.split("test"), tmp_path)
    rows = task.measure(lambda image: image.mean(dim=(1, 2, 3))[:, None].expand(-1, 14), test)
    assert [row["case"] for row in rows] == names(task.split("test"))
    assert rows[1]["p/Mass"] == pytest.approx(1 / (1 + np.exp(-test[1].entry.image().mean())), rel=1e-4)
    assert [row["y/Hernia"] for row in rows] == [case.label[13] for case in task.split("test")]


def test_a_pure_reader_of_the_labels_scores_one_and_undefined_classes_are_counted(nih, tmp_path):
    task = chest(nih)
    test = samples(task, task.split("test"), tmp_path)
    rows = [task.row(sample, sample.case.label) for sample in test]
    summary = task.summary(rows)
    undefined = [name for name in task.classes if len({row[f"y/{name}"] for row in rows}) == 1]
    assert summary["mauc"] == 1.0 and summary["n_undefined"] == len(undefined)
    assert not any(f"auc/{name}" in summary for name in undefined)


def test_pictures_are_drawn_of_both_kinds(nih, tmp_path):
    task = chest(nih)
    some = samples(task, task.split("val")[:3], tmp_path / "cache")
    (path,) = task.pictures(lambda image: torch.zeros(len(image), 14), some, tmp_path)
    assert path.stat().st_size > 1000
    volumes = read_off(labelled_volumes(tmp_path / "data", "LPS", (1.0, 1.0, 1.0)))
    (path,) = volumes.pictures(oracle, samples(volumes, volumes.split("val"), tmp_path / "cache"), tmp_path)
    assert path.stat().st_size > 1000


def test_the_recipes_are_the_papers(nih, decathlon):
    assert chest(nih, size=224, stored=256).preprocessing == Preprocessing(
        dims=2, size=(256, 256), equalize=True, normalise="grey", orientation="RAS"
    )
    assert brain(decathlon).preprocessing.orientation == "RAS"
