"""`premed predict`: what a run scored on its test part is what it answers anywhere, in each file's own grid."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.experiments import settle_in, store_of
from support.made_up import ct_series
from support.predictions import FP32, laid, refused
from support.stores import copied, moved

from premed.data.phantoms.brain import write_brats
from premed.inference import inputs, load, predict
from premed.inference.inputs import Input
from premed.safety.seals import own_hash
from premed.tasks import brats, msd
from premed.tasks.common import metrics
from premed.tasks.common.classification import Classification
from premed.tasks.common.description import PREDICTION_METHODS
from premed.tasks.common.label_maps import read_labels
from premed.tasks.common.segmentation import Regions, Segmentation

pytest_plugins = ["support.trained_fixtures"]


def answer(run, images, out, **settings):
    images = [Path(image) for image in images]
    return predict.run(run.run_id, images, out, lambda event: None, train=FP32, **settings)


def scored(run):
    """The rows of the test stage by case, and its cases."""
    rows = store_of(run.home).scores(run.stage("test")["run_id"])
    return {row["case"]: row for row in rows}, run.task.split("test")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# The test stage's numbers --------------------------------------------------------------------------------------------


def test_label_maps_of_the_test_images_have_the_test_stage_s_scores(organ_run, at_home, tmp_path):
    rows, cases = scored(at_home(organ_run))
    answer(organ_run, [case.image[0] for case in cases], tmp_path)
    for case in cases:
        label = nib.nifti1.load(case.label)
        masks, truth = (
            organ_run.task.region_masks(read_labels(path)) for path in (tmp_path / case.label.name, case.label)
        )
        own = metrics.region_row(masks, truth, label.header.get_zooms())
        for name in ("dice/Anterior", "dice/Posterior", "state/Anterior"):
            assert own[name] == rows[case.name][name]
        assert own["hd95/Posterior"] == pytest.approx(rows[case.name]["hd95/Posterior"], rel=1e-5)
    assert {row["state/Posterior"] for row in rows.values()} == {"both"}  # so that there is something to be equal


def test_masks_of_regions_have_the_test_stage_s_scores(brain_run, at_home, tmp_path):
    rows, cases = scored(at_home(brain_run))
    answer(brain_run, [case.image[0] for case in cases], tmp_path, masks=True)
    for case in cases:
        truth = brain_run.task.region_masks(read_labels(case.label))
        for region in ("TC", "WT", "ET"):
            mask = read_labels(tmp_path / f"{case.name}.{region}.nii.gz") == 1
            assert metrics.dice(mask, truth[region]) == rows[case.name][f"dice/{region}"] > 0


def test_probabilities_of_the_test_images_are_those_that_were_scored(chest_run, at_home, tmp_path):
    rows, cases = scored(at_home(chest_run))
    answer(chest_run, [case.image[0] for case in cases], tmp_path)
    found = rows_of(tmp_path / "predictions.csv")
    assert [row["path"] for row in found] == [str(case.image[0]) for case in cases]
    assert list(found[0]) == ["path", *chest_run.task.classes]
    for case, row in zip(cases, found, strict=True):
        for name in chest_run.task.classes:
            assert float(row[name]) == pytest.approx(rows[case.name][f"p/{name}"], abs=1e-6)
    assert np.std([float(row["Effusion"]) for row in found]) > 1e-3


# Each file's own grid ------------------------------------------------------------------------------------------------


def canonical(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.nifti1.load(path)).dataobj)


@pytest.mark.parametrize(
    ("axes", "turn", "codes"),
    [("RAS", (0, 0, 0), (1, 1)), ("LPS", (0, 0, 0), (0, 2)), ("SAR", (0, 0, 0), (1, 0)), ("PIR", (4, 9, 14), (1, 4))],
)
def test_a_label_map_lies_where_its_image_lies(organ_run, at_home, real, tmp_path, axes, turn, codes):
    source = sorted((real("Task04_Hippocampus") / "imagesTr").glob("*.nii.gz"))[3]
    path = laid(source, tmp_path / "turned.nii.gz", axes, turn, codes)
    result = answer(at_home(organ_run), [path], tmp_path / "out")
    given, made = nib.nifti1.load(path), nib.nifti1.load(tmp_path / "out" / "turned.nii.gz")
    assert made.shape == given.shape and made.get_data_dtype() == np.uint8
    assert np.array_equal(made.affine, given.affine)
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "pixdim", "xyzt_units", "srow_x"):
        assert np.array_equal(made.header[name], given.header[name]), name
    assert bytes(made.header["descrip"]).startswith(b"premed ")
    counted = np.bincount(np.asarray(made.dataobj).ravel(), minlength=3)[1:]
    assert counted.tolist() == list(result["outputs"][0]["voxels"].values()) and counted.sum() > 10


def test_the_answer_does_not_depend_on_how_a_file_lies(organ_run, at_home, real, tmp_path):
    source = sorted((real("Task04_Hippocampus") / "imagesTr").glob("*.nii.gz"))[3]
    for axes in ("RAS", "LPI", "ASR"):
        laid(source, tmp_path / f"{axes}.nii.gz", axes)
    answer(at_home(organ_run), [tmp_path / f"{axes}.nii.gz" for axes in ("RAS", "LPI", "ASR")], tmp_path / "out")
    first, *others = (canonical(tmp_path / "out" / f"{axes}.nii.gz") for axes in ("RAS", "LPI", "ASR"))
    assert all(np.array_equal(first, other) for other in others) and first.any()


def test_a_folder_of_dicom_slices_is_one_volume_in_the_scanner_s_axes(organ_run, at_home, tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (20, 24, 18)).astype(np.int16)
    ct_series(tmp_path / "study" / "series", values)
    result = answer(at_home(organ_run), [tmp_path / "study"], tmp_path / "out")
    assert [output["files"] for output in result["outputs"]] == [["series.nii.gz"]]
    made = nib.nifti1.load(tmp_path / "out" / "series.nii.gz")
    assert made.shape == (20, 24, 18) and nib.aff2axcodes(made.affine) == ("L", "P", "S")
    assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (1, 1)


# Regions as one map --------------------------------------------------------------------------------------------------


def test_regions_are_painted_from_the_outermost_in(brain_run, at_home, tmp_path):
    case = at_home(brain_run).task.split("test")[0]
    answer(brain_run, [case.image[0]], tmp_path, masks=True)
    whole = read_labels(tmp_path / f"{case.name}.nii.gz")
    masks = {name: read_labels(tmp_path / f"{case.name}.{name}.nii.gz") > 0 for name in ("WT", "TC", "ET")}
    expected = np.where(masks["ET"], 3, np.where(masks["TC"], 2, np.where(masks["WT"], 1, 0)))
    assert np.array_equal(whole, expected) and len(np.unique(whole)) > 1


def test_any_masks_are_painted_from_the_outermost_in(tmp_path):
    task = brats.build(brats.Config(root=write_brats(tmp_path, 1, 0, shape=(16, 16, 16))))
    masks = np.random.default_rng(0).random((3, 8, 8, 8)) < 0.5
    of = dict(zip(task.regions, masks, strict=True))
    expected = np.where(of["ET"], 3, np.where(of["TC"], 2, np.where(of["WT"], 1, 0)))
    assert np.array_equal(task.label_map(masks), expected) and len(np.unique(expected)) == 4


def test_the_painted_labels_are_the_task_s_own(tmp_path):
    root = write_brats(tmp_path, 1, 0, shape=(16, 16, 16))
    for legacy, labels in ((False, [1, 2, 3]), (True, [1, 3, 2])):
        task = brats.build(brats.Config(root=root, legacy_et_label2=legacy))
        assert task.nesting == list(zip(["WT", "TC", "ET"], labels, strict=True))


def test_regions_that_do_not_lie_in_each_other_have_masks_only():
    apart = type("Apart", (Regions,), {"regions": {"left": (1, 2), "right": (2, 3)}, "classes": ("left", "right")})()
    assert apart.nesting is None and apart.label_map(np.ones((2, 2, 2, 2), bool)) is None
    maps = predict.LabelMaps(apart, lambda x: x, Path("out"), "", masks=False)
    assert maps.names(Input(Path("a.nii"), "a")) == ["a.left.nii.gz", "a.right.nii.gz"]


# Runs ----------------------------------------------------------------------------------------------------------------


def test_any_name_of_a_run_means_the_same_network(chest_run, at_home):
    at_home(chest_run)
    finetune = chest_run.stage("finetune")["run_id"]
    named = [chest_run.run_id, finetune, chest_run.stage("test")["run_id"], "models:/chestxray14@best"]
    for name in [*named, "models:/chestxray14/1"]:
        with load.open_trained(name) as found:
            assert found.run_id == finetune and found.card["digest"] == chest_run.stage("finetune")["digest"]


@pytest.mark.parametrize("name", ["0" * 32, "models:/chestxray14@worst", "models:/hearts@best", "models:/x", "a/b c"])
def test_an_unknown_run_is_one_line_and_exit_code_2(premed, chest_run, at_home, tmp_path, name):
    at_home(chest_run)
    code, out, err = premed("predict", name, tmp_path, "--out", tmp_path / "out")
    assert code == 2 and out == "" and len(err) == 1 and name in err[0] and not (tmp_path / "out").exists()


def test_a_store_that_is_not_there_is_not_made(premed, tmp_path, monkeypatch):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = premed("predict", "0" * 32, tmp_path, "--out", tmp_path / "out")
    assert code == 2 and len(err) == 1 and "run an experiment first" in err[0] and not (tmp_path / "home").exists()


def test_a_pretraining_answers_nothing(chest_run, at_home, tmp_path):
    at_home(chest_run)
    name = chest_run.stage("pretrain")["run_id"]
    refused(lambda: predict.run(name, [tmp_path], tmp_path / "out", print), name, "is a pre-training")


def test_neither_the_data_nor_the_checkpoints_are_needed(chest_run, at_home, tmp_path, monkeypatch):
    run, gone = at_home(chest_run), tmp_path / "gone"
    images = [Path(shutil.copy(case.image[0], tmp_path)) for case in run.task.split("test")]
    before = answer(run, images, tmp_path / "before")
    home = copied(run.home, tmp_path / "home")
    shutil.rmtree(home / "checkpoints")
    moved(home / "mlflow.db", str(run.root), str(gone))  # other tests may be at the data
    for path in (home / "artifacts").rglob("*.*"):
        path.write_bytes(path.read_bytes().replace(str(run.root).encode(), str(gone).encode()))
    settle_in(monkeypatch, home)
    assert answer(run, images, tmp_path / "after")["outputs"] == before["outputs"] and not gone.exists()


def test_weights_that_do_not_fit_are_refused_and_those_that_are_gone_are_named(organ_run, at_home, tmp_path):
    at_home(organ_run)
    case, digest = organ_run.task.split("test")[0], organ_run.stage("finetune")["digest"]
    with load.open_trained(organ_run.run_id) as found:
        for name in found.storage.names():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(found.storage.get(name))
    copied = load.StageStorage(str(tmp_path), "copy")
    weights = copied.get_weights("parts/head.safetensors")
    changed = copied.put_weights("parts/head.safetensors", dict(list(weights.items())[1:]))
    card = load.read_card(copied)
    card["hashes"]["head"] = changed
    card["hashes"]["card"] = own_hash(card, "card")
    copied.put_json("parts/card.json", card)
    broken = load.TrainedModel("id", "some run", None, load.own_card(copied, digest), copied)
    refused(broken.network, "head: the saved weights do not fit the network (missing: ")
    copied.put("parts/head.safetensors", b"torn")
    refused(broken.network, "parts/head.safetensors is damaged")
    copied.remove("parts/head.safetensors")
    refused(broken.network, "parts/head.safetensors is missing")
    assert load.own_card(copied, "another digest") is None and case


def test_a_task_without_its_data_has_its_facts(organ_run, brain_run):
    for task in (organ_run.task, brain_run.task):
        card = json.loads(json.dumps(task.describe()))
        found = load.task_from_card(card)
        assert json.loads(json.dumps(found.describe())) == card
        assert (found.regions, found.labels, found.preprocessing) == (
            dict(task.regions),
            task.labels,
            task.preprocessing,
        )


def test_the_methods_that_make_a_prediction_its_own_are_methods():
    """A name that no kind of task has would never be found overridden."""
    kinds = (Classification, Segmentation, Regions)
    assert [name for name in PREDICTION_METHODS if not any(hasattr(kind, name) for kind in kinds)] == []


def test_a_task_that_answers_in_its_own_way_is_not_guessed(organ_run):
    class Own(msd.MSD):
        def native(self, answer, entry):
            return super().native(answer, entry)

    card = Own(organ_run.task.config).describe()
    assert card["answer"] is None
    refused(lambda: load.task_from_card(card), "does not say how it predicts")


# What is wrong with files --------------------------------------------------------------------------------------------


def test_bad_files_are_named_and_the_others_done(premed, organ_run, at_home, tmp_path):
    good = [Path(shutil.copy(case.image[0], tmp_path)) for case in at_home(organ_run).task.split("test")]
    (tmp_path / "cut.nii.gz").write_bytes(good[0].read_bytes()[:3000])
    (tmp_path / "empty.nii").touch()
    four = nib.Nifti1Image(np.zeros((8, 8, 8, 4), np.float32), np.eye(4))
    nib.save(four, tmp_path / "four.nii.gz")
    bad = [tmp_path / "cut.nii.gz", tmp_path / "empty.nii", tmp_path / "four.nii.gz", tmp_path / "absent.nii.gz"]
    arguments = [bad[0], good[0], *bad[1:], good[1]]
    code, out, err = premed("predict", organ_run.run_id, *arguments, "--out", tmp_path / "out", "--json")
    result = json.loads(out)
    assert code == 1 and {each["path"] for each in result["failed"]} == set(map(str, bad))
    assert all(sum(line.startswith(f"skipped: {path}: ") for line in err) == 1 for path in bad)
    assert not any("Traceback" in line for line in err)
    assert [output["path"] for output in result["outputs"]] == list(map(str, good))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in good)


def test_bad_pictures_among_good_ones_have_no_row(premed, chest_run, at_home, tmp_path):
    case = at_home(chest_run).task.split("test")[0]
    shutil.copy(case.image[0], tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"\x89PNG and no more")
    Image.fromarray(np.arange(3 * 64, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "c.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    code, out, err = premed("predict", chest_run.run_id, tmp_path, "--out", tmp_path / "out")
    assert code == 1 and "1 images" in out and "2 skipped" in out
    assert [Path(row["path"]).name for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["b.png"]
    assert [line.split(": ")[1] for line in err if line.startswith("skipped")] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "c.jpg"),
    ]


def test_a_volume_for_a_network_of_pictures_is_told_as_one(premed, chest_run, organ_run, at_home, tmp_path):
    at_home(chest_run)
    volume = organ_run.task.split("test")[0].image[0]
    code, out, err = premed("predict", chest_run.run_id, volume, "--out", tmp_path / "out")
    assert code == 2 and out == "" and "slices, where pictures are expected; write each slice" in err[-1]


def test_nothing_that_can_be_used_is_one_line_and_exit_code_2(premed, brain_run, organ_run, at_home, tmp_path):
    at_home(brain_run)
    one_channel = organ_run.task.split("test")[0].image[0]
    code, out, err = premed("predict", brain_run.run_id, one_channel, "--out", tmp_path / "out")
    assert code == 2 and out == "" and "1 channel(s), 4 expected" in err[-1]
    (tmp_path / "notes").mkdir()
    code, out, err = premed("predict", brain_run.run_id, tmp_path / "notes", "--out", tmp_path / "out")
    assert code == 2 and out == "" and err[-1].startswith(f"premed: {tmp_path / 'notes'}: contains no volume")


def test_answers_are_never_written_over_anything_else(organ_run, at_home, tmp_path):
    first, second = (case.image[0] for case in at_home(organ_run).task.split("test"))
    for folder, image in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder / "x.nii.gz")
    both = [tmp_path / "a" / "x.nii.gz", tmp_path / "b" / "x.nii.gz"]
    refused(lambda: answer(organ_run, both, tmp_path / "out"), "a/x.nii.gz", "b/x.nii.gz", "two folders")
    before = both[0].read_bytes()
    refused(lambda: answer(organ_run, both[:1], tmp_path / "a"), "a/x.nii.gz: already exists and is not from premed")
    assert both[0].read_bytes() == before
    for _ in range(2):  # what premed wrote, it may write again
        result = answer(organ_run, [tmp_path], tmp_path / "out")
    assert [output["files"] for output in result["outputs"]] == [["a/x.nii.gz"], ["b/x.nii.gz"]]


def test_another_table_is_not_written_over(chest_run, at_home, tmp_path):
    (tmp_path / "predictions.csv").write_text("path,mine\n")
    case = at_home(chest_run).task.split("test")[0]
    refused(lambda: answer(chest_run, case.image, tmp_path), "predictions.csv: already exists")
    assert (tmp_path / "predictions.csv").read_text() == "path,mine\n"


def test_a_table_of_earlier_answers_stays_where_every_image_fails(premed, chest_run, at_home, tmp_path):
    shutil.copy(at_home(chest_run).task.split("test")[0].image[0], tmp_path / "a.png")
    table = tmp_path / "out" / "predictions.csv"
    assert premed("predict", chest_run.run_id, tmp_path / "a.png", "--out", table.parent)[0] == 0
    before = table.read_text()
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    assert premed("predict", chest_run.run_id, tmp_path / "a.png", "--out", table.parent)[0] == 2
    assert len(before.splitlines()) == 2 and table.read_text() == before
    assert premed("predict", chest_run.run_id, tmp_path / "a.png", "--out", tmp_path / "new")[0] == 2
    assert not (tmp_path / "new" / "predictions.csv").exists()


def test_earlier_answers_for_other_images_do_not_go_without_a_word(premed, chest_run, at_home, tmp_path):
    one, two = (case.image[0] for case in at_home(chest_run).task.split("test")[:2])
    table = tmp_path / "predictions.csv"
    _, _, first = premed("predict", chest_run.run_id, one, "--out", tmp_path)
    _, _, second = premed("predict", chest_run.run_id, one, two, "--out", tmp_path)
    assert not any("is written anew" in line for line in [*first, *second])  # it has all that was in it
    _, _, err = premed("predict", chest_run.run_id, two, "--out", tmp_path)
    (line,) = (line for line in err if "is written anew" in line)
    assert f"{table}: is written anew, without the answers for 1 other image(s) in it; --out with another" in line
    assert [row["path"] for row in rows_of(table)] == [str(two)]
    with table.open("a") as file:
        file.write("x" * (csv.field_size_limit() + 1) + "\n")  # a damaged table
    code, _, err = premed("predict", chest_run.run_id, one, "--out", tmp_path)
    assert code == 0 and any("is written anew; what it held cannot be read" in line for line in err)
    assert [row["path"] for row in rows_of(table)] == [str(one)]


def test_an_image_of_one_value_is_answered_with_a_warning(premed, chest_run, at_home, tmp_path):
    shutil.copy(at_home(chest_run).task.split("test")[0].image[0], tmp_path / "a.png")
    Image.new("L", (64, 64), 7).save(tmp_path / "blank.png")
    code, _, err = premed("predict", chest_run.run_id, tmp_path, "--out", tmp_path / "out")
    (line,) = (line for line in err if "one value everywhere" in line)
    assert code == 0 and line.startswith(f"WARNING: {tmp_path}/blank.png: ")


def test_a_link_that_leads_into_its_own_folder_gives_no_image_twice(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "self").symlink_to(tmp_path)
    found, failed = inputs.find_images([tmp_path], 2, tmp_path / "out")
    assert [each.name for each in found] == ["a"] and failed == []


def test_a_wrong_precision_is_one_line(premed, chest_run, at_home, tmp_path):
    at_home(chest_run)
    code, _, err = premed("predict", chest_run.run_id, tmp_path, "--out", tmp_path, "--precision", "half")
    assert code == 2 and len(err) == 1 and err[0].startswith("premed: --precision: ")
