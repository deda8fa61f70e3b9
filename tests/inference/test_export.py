"""`premed export`: what others read answers as premed does, and says how."""

import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.experiments import settle_in
from support.predictions import FP32, laid, refused
from support.stores import copied

from premed.config.image_processing import Preprocessing
from premed.data.preprocess import prepare
from premed.errors import StageFailed, UserError
from premed.inference import export, load, monai_bundle, predict
from premed.inference.onnx_torchscript import largest_difference, write_onnx, write_torchscript
from premed.models.encoders import pixels, unet, vit
from premed.models.heads import conv, linear
from premed.models.network import Network
from premed.tasks.common import metrics

pytest_plugins = ["support.trained_fixtures"]


def answered(network, images) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def values(task, num=3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, task.channels, *task.roi)).astype(np.float32)


# Weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pretrained_encoder_is_timm_s_to_the_last_key(chest_run, at_home, tmp_path):
    import timm  # noqa: F401 - the card's call names it

    at_home(chest_run)
    run_id = chest_run.stage("pretrain")["run_id"]
    export.run(run_id, tmp_path / "out", "safetensors", part=["encoder"])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["timm"]["call"] in (tmp_path / "out" / "README.md").read_text()
    names: dict = {}
    exec(card["timm"]["call"], {"timm": timm}, names)
    encoder = names["encoder"].eval()
    encoder.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"), strict=True)
    image = torch.from_numpy(values(chest_run.task))
    with load.open_trained(run_id) as found, torch.no_grad():
        ours, theirs = found.encoder(1, (16, 16))(image), encoder.forward_features(image)
    torch.testing.assert_close(theirs[:, 0], ours.summary)
    torch.testing.assert_close(theirs[:, 1:], ours.tokens)


def test_timm_s_oblong_patches_and_colours_are_named_too():
    import timm

    encoder = vit.build(vit.Config(width=24, depth=2, heads=3, patch=(8, 4)), 3, (32, 16))
    other = timm.create_model(**encoder.timm())
    other.load_state_dict(encoder.state_dict(), strict=True)
    image = torch.rand(2, 3, 32, 16)
    torch.testing.assert_close(other.eval().forward_features(image)[:, 1:], encoder(image).tokens)
    assert vit.build(vit.Config(width=24, depth=2, heads=2, patch=8), 1, (16, 16, 16)).timm() is None


def test_parts_are_the_run_s_own_and_whole_is_all_of_them(organ_run, at_home, tmp_path):
    at_home(organ_run)
    result = export.run(organ_run.run_id, tmp_path / "parts", "safetensors")
    assert result["files"] == ["README.md", "card.json", "encoder.safetensors", "head.safetensors"]
    export.run(organ_run.run_id, tmp_path / "whole", "safetensors", single_file=True)
    with load.open_trained(organ_run.run_id) as found:
        network, _ = found.network()
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    network.load_state_dict(whole, strict=True)
    head = load_file(tmp_path / "parts" / "head.safetensors")
    assert all(torch.equal(value, whole[f"head.{name}"]) for name, value in head.items())


@pytest.mark.parametrize(
    ("form", "kilobytes"), [("safetensors", 16), ("monai", 16), pytest.param("monai", 700, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(organ_run, at_home, tmp_path, form, kilobytes):
    """700 kB hold a bundle's weights, and not its graph."""
    at_home(organ_run)
    (disk := tmp_path / "disk").mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk]).returncode:
        pytest.skip("to mount a disk is root's, who is not allowed it everywhere")
    try:
        with pytest.raises(StageFailed, match=r"cannot be written \(No space left on device\); free space"):
            export.run(organ_run.run_id, disk / "out", form)
        assert not [*disk.iterdir()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_card_says_in_numbers_and_words_how_to_prepare(organ_run, brain_run, at_home, tmp_path):
    at_home(organ_run)
    export.run(organ_run.run_id, tmp_path / "organ", "safetensors")
    card = json.loads((tmp_path / "organ" / "card.json").read_text())
    assert card["classes"] == ["background", "Anterior", "Posterior"] and card["roi"] == [16, 16, 16]
    assert Preprocessing.model_validate(card["preprocessing"]) == organ_run.task.preprocessing
    text = (tmp_path / "organ" / "README.md").read_text()
    for words in ("axes to RAS", "3 × 3 × 3 mm", "percentiles 0.5 and 99.5", "overlapping by 0.5", "1: Anterior"):
        assert words in text
    at_home(brain_run)
    export.run(brain_run.run_id, tmp_path / "brain", "safetensors")
    text = (tmp_path / "brain" / "README.md").read_text()
    for words in ("4 channels are the last axis", "voxels above 0", "0 stays 0", "TC (labels 2, 3)", "is above 0"):
        assert words in text


# ONNX ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chest_run", "organ_run"])
def test_onnx_answers_as_torch_for_any_number_of_images(name, request, at_home, tmp_path):
    import onnxruntime

    run = at_home(request.getfixturevalue(name))
    result = export.run(run.run_id, tmp_path / "out", "onnx")
    assert result["check"]["on"].endswith("validation images") and result["check"]["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    with load.open_trained(run.run_id) as found:
        network, task = found.network()
    for num in (1, 5):
        images = values(task, num)
        (logits,) = session.run(None, {"image": images})
        np.testing.assert_allclose(logits, answered(network, images), atol=1e-4, rtol=1e-4)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["check"] == result["check"] and "largest difference" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_without_its_images_a_graph_is_compared_on_random_values_and_the_reason_is_no_part_of_it(
    chest_run, at_home, tmp_path, monkeypatch
):
    settle_in(monkeypatch, copied(at_home(chest_run).home, tmp_path / "home"))
    for file in (tmp_path / "home" / "checkpoints").glob("*/root.json"):  # as if it had been trained elsewhere
        file.unlink()
    monkeypatch.setenv("PREMED_DATA", str(tmp_path / "elsewhere"))
    result = export.run(chest_run.run_id, tmp_path / "out", "onnx")
    assert result["check"]["on"] == f"{export.RANDOM}: name some with --check" and "elsewhere" in result["reason"]
    assert not [file for file in (tmp_path / "out").rglob("*") if b"elsewhere" in file.read_bytes()]


def test_its_validation_images_are_found_without_premed_data_where_it_was_trained(
    chest_run, at_home, tmp_path, monkeypatch
):
    """The YAML had an absolute root, which no run records."""
    expected = [case.name for case in at_home(chest_run).task.split("val")[: export.MAX_IMAGES]]
    for data in (None, tmp_path):
        monkeypatch.setenv("PREMED_DATA", str(data)) if data else monkeypatch.delenv("PREMED_DATA", raising=False)
        with load.open_trained(chest_run.run_id) as found:
            assert [sample.case.name for sample in export.validation_samples(found)] == expected


def test_no_run_records_where_the_data_lies_on_this_machine(chest_run):
    root = str(chest_run.root).encode()
    assert not [path for path in (chest_run.home / "artifacts").rglob("*.*") if root in path.read_bytes()]


def test_a_graph_that_differs_is_not_handed_over(chest_run, at_home, tmp_path, monkeypatch):
    at_home(chest_run)
    image = chest_run.task.split("test")[0].image[0]
    with load.open_trained(chest_run.run_id) as found:
        network, task = found.network()
    views = list(values(task))
    with pytest.raises(StageFailed, match="differ from torch's by up to 0.01 .*nothing is exported"):
        largest_difference(network, lambda x: answered(network, x) + 0.01, views, Path("model.onnx"))
    with pytest.raises(StageFailed, match="inf"):
        largest_difference(network, lambda x: answered(network, x) * np.nan, views, Path("model.onnx"))
    broken = lambda *args: lambda images: np.zeros((len(images), len(task.classes)), np.float32)  # noqa: E731
    monkeypatch.setattr(export, "write_onnx", broken)
    with pytest.raises(StageFailed, match="nothing is exported"):
        export.run(chest_run.run_id, tmp_path / "out", "onnx", check=[image])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_takes_one_number_of_images_is_one_line(organ_run, at_home):
    with load.open_trained(at_home(organ_run).run_id) as found:
        network, task = found.network()
    views = list(values(task))
    with pytest.raises(StageFailed, match=r"^model.ts: answers 1 image\(s\) by \(2, .* nothing is exported$"):
        largest_difference(network, lambda x: answered(network, np.repeat(x, 2, 0)), views, Path("model.ts"))
    with pytest.raises(StageFailed, match=r"^model.onnx: cannot be run on 1 image\(s\) .* nothing is exported$"):
        largest_difference(network, lambda x: x.reshape(2, 9), views, Path("model.onnx"))


def built(encoder, head, roi):
    """A network of an encoder and a head for volumes of two classes, and what a graph asks of their task."""
    task = SimpleNamespace(channels=1, roi=roi, classes=("background", "organ"), dims=3)
    module = encoder.build(encoder.Config(**SMALL[encoder]), 1, roi)
    return Network(module, head.build(head.Config(), module, task)).eval(), task


SMALL = {unet: {"widths": (8, 16), "dims": 2}, pixels: {"edge": 4}}


@pytest.mark.parametrize("write", [write_onnx, write_torchscript])
@pytest.mark.parametrize("head", [conv, linear])
def test_a_network_for_pictures_takes_any_number_of_volumes_in_a_graph_too(tmp_path, write, head):
    """HSSL's: slices are one batch, and its size was written into the graph."""
    network, task = built(unet, head, (8, 8, 4))
    graph = write(network, task, tmp_path / "model")
    assert largest_difference(network, graph, list(values(task)), tmp_path / "model")["largest_difference"] < 1e-4


def test_what_torch_cannot_write_as_onnx_is_one_line(tmp_path):
    network, task = built(pixels, linear, (8, 8, 4))
    with pytest.raises(UserError, match=r"^--format onnx: torch cannot write .*; use --format safetensors or monai$"):
        write_onnx(network, task, tmp_path / "model.onnx")


def test_without_any_image_made_up_values_are_compared_and_that_is_said(chest_run, at_home, monkeypatch):
    at_home(chest_run)
    monkeypatch.setattr(export, "validation_samples", lambda trained: [])
    with load.open_trained(chest_run.run_id) as found:
        views, on, reason = export.comparison_views(found, chest_run.task, [])
        assert len(views) == 2 and views[0].shape == (1, 16, 16) and "--check" in on
        assert reason == "none is prepared on this machine"
        refused(
            lambda: export.comparison_views(found, chest_run.task, [Path("absent.png")]), "absent.png", "no such file"
        )


# What cannot be ------------------------------------------------------------------------------------------------------


def test_what_a_format_cannot_do_is_one_line(premed, chest_run, at_home, tmp_path):
    at_home(chest_run)
    pretrained = chest_run.stage("pretrain")["run_id"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for arguments, words in [
        ((pretrained, "--format", "onnx"), "is a pre-training, which has no head; use safetensors"),
        ((pretrained, "--format", "monai"), "is a pre-training"),
        ((chest_run.run_id, "--format", "tflite"), "'tflite' is not one of safetensors, onnx, monai"),
        ((chest_run.run_id, "--format", "safetensors", "--part", "tail"), "tail is not one of this run's parts"),
        ((chest_run.run_id, "--format", "onnx", "--whole"), "--part and --whole are for safetensors"),
        (("0" * 32, "--format", "onnx"), "no such run"),
    ]:
        code, out, err = premed("export", *arguments, "--to", tmp_path / "out")
        assert code == 2 and out == "" and len(err) == 1 and words in err[0]
        assert not (tmp_path / "out").exists()
    code, _, err = premed("export", chest_run.run_id, "--format", "safetensors", "--to", tmp_path / "full")
    assert code == 2 and err[0].endswith("exists and is not empty; name a new folder")


@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxscript"), ("monai", "fire")])
def test_a_missing_extra_is_named(premed, chest_run, at_home, tmp_path, monkeypatch, form, package):
    at_home(chest_run)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = premed("export", chest_run.run_id, "--format", form, "--to", tmp_path / "out")
    assert code == 2 and err == [f"premed: --format {form}: needs {package}: pip install premed[export]"]


def test_the_command_says_what_it_wrote(premed, organ_run, at_home, tmp_path):
    at_home(organ_run)
    arguments = "export", organ_run.run_id, "--format", "safetensors", "--to"
    code, out, err = premed(*arguments, tmp_path / "a")
    assert (code, err) == (0, []) and "encoder.safetensors" in out
    code, out, err = premed(*arguments, tmp_path / "b", "--json")
    assert code == 0 and json.loads(out)["format"] == "safetensors"


def test_recipes_that_monai_has_no_transform_for_are_refused(organ_run, chest_run):
    for run, change, words in [
        (organ_run, {"normalise": "zscore_nonzero"}, "cannot clip non-zero voxels alone"),
        (chest_run, {"size": (64, 32)}, "cannot average over views"),
    ]:
        task = copy.copy(run.task)
        monai_bundle.refuse_unsupported(task) if run is organ_run else None
        task.preprocessing = task.preprocessing.model_copy(update=change)
        refused(lambda task=task: monai_bundle.refuse_unsupported(task), words)


def parsed(task, name: str, **settings):
    """An item of a bundle's configuration, as MONAI makes it; without a network."""
    from monai.bundle.config_parser import ConfigParser

    config = monai_bundle.base_config(task) | monai_bundle.segmentation_config(task)
    return ConfigParser(config | {"network": None} | settings).get_parsed_content(name)


@pytest.mark.parametrize("tilt", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("units", [2, 1, 3, 0])
def test_a_bundle_prepares_a_sheared_image_and_one_in_metres_as_predict_does(organ_run, tmp_path, tilt, units):
    affine = np.diag([-1.0, 1.2, 2.0, 1.0])
    affine[1, 2] = tilt
    size = {1: 1e-3, 3: 1e3}.get(units, 1.0)
    values = np.random.default_rng(0).normal(100, 30, (20, 22, 14)).astype(np.float32)
    image = nib.Nifti1Image(values, np.diag([size, size, size, 1]) @ affine)
    image.header["xyzt_units"] = units
    nib.save(image, tmp_path / "i.nii")
    task = organ_run.task
    theirs = parsed(task, "preprocessing")({"image": str(tmp_path / "i.nii")})["image"]
    ours = prepare([tmp_path / "i.nii"], None, task.preprocessing)
    expected = ours.image * ours.scale[:, None, None, None] + ours.offset[:, None, None, None]
    assert theirs.shape == expected.shape
    if tilt >= 0:  # else MONAI's box begins up to half a voxel elsewhere
        np.testing.assert_allclose(theirs.numpy(), expected, atol=2e-3)
    answer = torch.zeros(values.shape)
    made = parsed(task, "in_units")(parsed(task, "label_map")(answer, theirs.meta), theirs.meta)
    np.testing.assert_allclose(made.affine, image.affine)
    assert int(made.header["xyzt_units"]) == units and made.get_data_dtype() == np.uint8


def test_a_bundle_takes_what_is_named_in_capitals_and_lies_in_a_folder_of_any_name(organ_run, tmp_path):
    (folder := tmp_path / "CT [2026]").mkdir()  # brackets are a pattern's
    for name in ("A.NII.GZ", "b.nii", "c.txt"):
        (folder / name).touch()
    found = parsed(organ_run.task, "images", dataset_dir=str(folder))
    assert found == [str(folder / "A.NII.GZ"), str(folder / "b.nii")]
    path = parsed(organ_run.task, "path", output_dir="out")
    assert [path({"filename_or_obj": name}) for name in found] == ["out/A.nii.gz", "out/b.nii.gz"]


# Bundles -------------------------------------------------------------------------------------------------------------

RUN = """
import sys
from monai.bundle import run
for root in sys.argv[1:]:
    where = {"bundle_root": root, "dataset_dir": f"{root}-images", "output_dir": f"{root}-out"}
    run(config_file=f"{root}/configs/inference.json", meta_file=f"{root}/configs/metadata.json", **where)
assert "premed" not in sys.modules
"""
BUNDLES = ("organ_run", "brain_run", "chest_run")


@pytest.fixture(scope="module")
def bundles(request, tmp_path_factory):
    """Each run's bundle, run once by MONAI alone on the test images, and premed's own answers: `<run>-out`, `-ours`."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in BUNDLES:
        run, images = request.getfixturevalue(name), folder / f"{name}-images"
        images.mkdir()
        for case in run.task.split("test"):
            shutil.copy(case.image[0], images)
        if name == "organ_run":  # oblique, and smaller than the roi by an odd number of voxels
            laid(next(images.iterdir()), images / "turned.nii.gz", "PIR", (4, 9, 14))
        with pytest.MonkeyPatch.context() as patch:
            settle_in(patch, run.home)
            export.run(run.run_id, folder / name, "monai", check=[images])
            predict.run(run.run_id, [images], folder / f"{name}-ours", lambda event: None, train=FP32)
    command = [sys.executable, "-c", RUN, *(str(folder / name) for name in BUNDLES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["organ_run", "brain_run"])
def test_a_bundle_segments_as_predict_does(bundles, name):
    ours = sorted((bundles / f"{name}-ours").glob("*.nii.gz"))
    assert len(ours) >= 2
    for path in ours:
        first, second = nib.nifti1.load(path), nib.nifti1.load(bundles / f"{name}-out" / path.name)
        labels, others = np.asarray(first.dataobj), np.asarray(second.dataobj)
        assert labels.shape == others.shape and second.get_data_dtype() == np.uint8
        np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
        scores = [metrics.dice(others == label, labels == label) for label in range(4)]
        assert np.nanmin(scores) >= 0.99, scores


@pytest.mark.slow
def test_a_bundle_classifies_as_predict_does(bundles):
    with open(bundles / "chest_run-ours" / "predictions.csv", newline="") as file:
        ours = {row.pop("path"): list(map(float, row.values())) for row in csv.DictReader(file)}
    with open(bundles / "chest_run-out" / "predictions.csv", newline="") as file:
        theirs = {row[0]: list(map(float, row[1:])) for row in csv.reader(file)}
    assert len(ours) > 10 and ours.keys() == theirs.keys()
    for path, probabilities in ours.items():
        np.testing.assert_allclose(theirs[path], probabilities, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_passes_monai_s_checks(bundles, name, real, tmp_path):
    from monai.bundle.scripts import verify_metadata

    monai_bundle.verify(bundles / name)
    schema = real("schemas") / "meta_schema_20240725.json"
    verify_metadata(meta_file=str(bundles / name / "configs/metadata.json"), filepath=str(schema))


REQUIRED = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
REQUIRED |= {"task", "description", "authors", "copyright", "network_data_format"}
TENSOR = {"type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_s_metadata_has_what_the_specification_asks_for(bundles, name):
    result = json.loads((bundles / name / "configs" / "metadata.json").read_text())
    assert set(result) >= REQUIRED
    for tensors in result["network_data_format"].values():
        for tensor in tensors.values():
            assert all(isinstance(tensor[field], kind) for field, kind in TENSOR.items())
    channels = result["network_data_format"]["outputs"]["pred"]["channel_def"]
    card = json.loads((bundles / name / "card.json").read_text())
    assert list(channels.values()) == card["classes"]


@pytest.mark.slow
def test_a_network_that_is_not_what_the_metadata_says_is_noticed(bundles, tmp_path):
    shutil.copytree(bundles / "chest_run", tmp_path / "copy")
    path = tmp_path / "copy" / "configs" / "metadata.json"
    result = json.loads(path.read_text())
    result["network_data_format"]["outputs"]["pred"]["num_channels"] = 2
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="output channel number"):
        monai_bundle.verify(tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_s_weights_are_plain_and_fit_its_graph(bundles, name):
    weights = torch.load(bundles / name / "models" / "model.pt", weights_only=True)
    graph = torch.jit.load(bundles / name / "models" / "model.ts")
    graph.load_state_dict(weights, strict=True)
