"""`premed data check`: real files, spoilt one way at a time, are each found by name; what is whole is left in peace."""

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.checking import (
    CHEST,
    MSD,
    TESTED,
    TRAINED,
    about,
    at,
    cut,
    entry,
    errors,
    notes,
    put,
    voxels,
)
from support.pages import Page

from premed.config.image_processing import Preprocessing
from premed.contracts import Case
from premed.data.inspection import Inspection, inspect
from premed.data.processes import process_map
from premed.errors import UserError
from premed.execution import runner
from premed.tasks import msd

pytest_plugins = ["support.checking"]


# The real folders as they are -----------------------------------------------------------------------------------------


def test_the_real_chests_have_their_oddities_and_no_fault(real, found):
    findings = found(CHEST, real("chestxray14"))
    assert errors(findings) == []
    undefined = {text.split(",")[0] for text in notes(findings, "part test: no image has it")}
    assert undefined == {"class Hernia", "class Pneumothorax"}
    assert notes(findings, "class Edema, part train: only in 1 of 545 images")  # and the other of the two is in val
    assert notes(findings, "class Edema, part val: only in 1 of 77 images")
    assert not notes(findings, "Effusion")


def test_the_real_hippocampi_are_smaller_than_a_large_roi_and_otherwise_clean(real, found):
    (only,) = found(MSD, real("Task04_Hippocampus"), "task.roi=[96,96,96]")
    assert only[0] == "note" and "196 of 196 images are smaller than [96, 96, 96]" in only[1]
    assert "34 × 53 × 24 voxels" in only[1]


def test_the_real_brain_can_be_pre_trained_on_only(real, found, monkeypatch, tmp_path):
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    (only,) = found(MSD, real("Task01_BrainTumour"))
    assert only[0] == "note" and "no entry has a label; these images can only be pre-trained on" in only[1]
    with pytest.raises(UserError, match="no entry has a label"):
        brain = experiment(MSD, real("Task01_BrainTumour"), train={"workers": 1})
        runner.run(brain, lambda event: pytest.fail(f"{event} was begun"))


# What is told, and how ------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_shows_findings_and_pictures(hippocampi, copied, checked, tmp_path):
    root = copied(hippocampi)
    voxels(at(root, "labelsTr", 1), put(7))
    at(root, "imagesTr", 4).unlink()
    code, _, _ = checked(MSD, root, "--html", tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text()
    page = Page(text)
    assert code == 2 and page.tags.count("img") == 11 and "script" not in page.tags and "link" not in page.tags
    assert page.open == [] and page.links == []
    assert all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert "url(" not in text and "http:" not in text and "https:" not in text
    for word in (at(root, "imagesTr", 4).name, at(root, "labelsTr", 1).name, "the label 7", "Anterior", "Posterior"):
        assert word in page.words
    assert page.words.count("the label 7") == 2  # in the table and under its picture


def test_names_on_the_page_are_text_whatever_they_hold(hippocampi, copied, checked, tmp_path):
    root = copied(hippocampi)
    about(labels={"0": "background", "1": "<script>alert(1)</script>", "2": '"><img src=x>'})(root)
    odd = root / "imagesTr" / "<b>x.nii.gz"
    shutil.copy(at(root, "imagesTr", 1), odd)
    entry(lambda training: training.append({"image": "imagesTr/<b>x.nii.gz"}))(root)
    checked(MSD, root, "--html", tmp_path / "check.html")
    page = Page((tmp_path / "check.html").read_text())
    assert page.tags.count("img") == 12 and "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script>" in page.words and "<b>x" in page.words


def test_a_name_that_no_terminal_can_print_is_escaped(hippocampi, checked, tmp_path):
    """Names in Latin-1, as old archives have them; with signs that steer a terminal; with what rich takes as markup."""
    root = Path(shutil.copytree(hippocampi, tmp_path / "scans [red]"))
    for name in (b"H\xfcfte.nii.gz", b"a\nb.nii.gz", b"\x1b[2Jc.nii.gz"):
        (Path(os.fsdecode(os.fsencode(root / "imagesTr") + b"/" + name))).touch()
    code, out, _ = checked(MSD, root, "--html", tmp_path / "page.html")
    assert code == 0 and "scans [red]" in out
    for name in (r"H\udcfcfte.nii.gz", r"a\nb.nii.gz", r"\x1b[2Jc.nii.gz"):
        assert f"imagesTr/{name}" in out and f"imagesTr/{name}" in (tmp_path / "page.html").read_text()


def test_the_pictures_show_the_labels_on_the_right_hand_copy(hippocampi):
    from io import BytesIO

    from premed.data.inspection import draw_thumbnail

    files = at(hippocampi, "imagesTr", 0), at(hippocampi, "labelsTr", 0)
    preprocessing = Preprocessing(dims=3, normalise="zscore")
    _, png = draw_thumbnail(Inspection(0, files[:1], files[1], preprocessing, (0, 1, 2)))
    assert png is not None
    sheet = np.asarray(Image.open(BytesIO(png))).astype(int)
    plain, painted = np.split(sheet, 2, axis=1)
    coloured = np.ptp(painted, axis=2) > 0
    assert not np.ptp(plain, axis=2).any() and 0.02 < coloured.mean() < 0.5
    assert (plain[~coloured] == painted[~coloured]).all()


def test_a_page_that_cannot_be_written_is_said_before_the_images_are_opened(hippocampi, checked, tmp_path):
    code, out, err = checked(MSD, hippocampi, "--html", tmp_path / "no" / "check.html")
    assert code == 2 and out == "" and "no/check.html: its folder does not exist" in err and "checking" not in err


def test_the_table_names_files_below_the_root_and_does_not_repeat_itself_for_ever(chests, copied, checked):
    root = copied(chests)
    names = (root / TRAINED).read_text().split()
    for name in names[:30]:
        (root / "images" / name).unlink()
    code, out, err = checked(CHEST, root)
    assert code == 2 and "checking images: 50/50" in err
    assert len(re.findall(r"error images/0000\S+\.png", out)) == 10 and "… and 20 more" in out
    assert "30 errors" in out.splitlines()[-1]


def test_facts_are_small_whatever_the_image_s_size(hippocampi):
    facts = inspect(
        Inspection(
            0,
            (at(hippocampi, "imagesTr", 0),),
            at(hippocampi, "labelsTr", 0),
            Preprocessing(dims=3, normalise="zscore"),
            (0, 1, 2),
        )
    )
    assert facts.shape == nib.nifti1.load(at(hippocampi, "imagesTr", 0)).shape and set(facts.counts) == {0, 1, 2}
    assert not [value for value in vars(facts).values() if isinstance(value, np.ndarray)]
    assert len(repr(facts)) < 1000


def test_channels_in_files_of_their_own_are_compared_with_the_first(hippocampi, copied):
    root = copied(hippocampi)
    paths = [at(root, "imagesTr", number) for number in (0, 1, 2)]
    shutil.copy(paths[0], paths[1])
    preprocessing = Preprocessing(dims=3, channels=2, normalise="zscore")
    assert inspect(Inspection(0, tuple(paths[:2]), None, preprocessing, ())).findings == []
    findings = inspect(Inspection(0, tuple(paths), None, preprocessing, ())).findings
    assert [finding.where for finding in findings] == [str(paths[2])] and "its shape" in findings[0].what


# The test part --------------------------------------------------------------------------------------------------------


def test_the_test_part_is_left_alone_where_test_is_false(hippocampi, chests, copied, found):
    root = copied(hippocampi)
    for number in (9, 10, 11):
        cut(at(root, "imagesTr", number))
    at(root, "labelsTr", 10).unlink()
    assert found(MSD, root, "test=false") == []
    assert len(errors(found(MSD, root))) == 4
    root = copied(chests)
    (root / TESTED).unlink()
    assert errors(found(CHEST, root, "test=false")) == []
    assert len(errors(found(CHEST, root))) == 1


# What `premed run` does of it -----------------------------------------------------------------------------------------


def experiment(tree, root, **changes):
    from premed.config.compose import merge, validate_experiment

    return validate_experiment(merge(tree, {"task": {"root": str(root)}, **changes}))


def test_a_run_refuses_an_error_of_the_listings_before_anything_starts(hippocampi, copied, monkeypatch, tmp_path):
    root = copied(hippocampi)
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    gone = [at(root, "imagesTr", 1), at(root, "labelsTr", 2)]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError) as caught:
        runner.run(experiment(MSD, root, train={"workers": 2}), lambda event: pytest.fail(f"{event} was begun"))
    assert str(gone[0]) in str(caught.value) and "(and 1 more: premed data check lists them)" in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_run_does_not_look_at_the_test_part_where_test_is_false(hippocampi, chests, copied):
    from premed.data.check import refuse
    from premed.tasks import chestxray14

    root = copied(hippocampi)
    at(root, "imagesTr", 9).unlink()
    refuse(msd.build(msd.Config(root=root)), test=False)
    with pytest.raises(UserError, match="missing"):
        refuse(msd.build(msd.Config(root=root)), test=True)
    root = copied(chests)
    (root / TESTED).write_text("nothing.png\n")
    refuse(chestxray14.build(chestxray14.Config(root=root)), test=False)
    with pytest.raises(UserError, match="nothing.png"):
        refuse(chestxray14.build(chestxray14.Config(root=root)), test=True)


def test_a_run_refuses_a_label_that_no_class_has_before_training(hippocampi, copied, monkeypatch, tmp_path):
    from premed.data.datamodule import DataModule, Tasks

    root = copied(hippocampi)
    voxels(at(root, "labelsTr", 1), put(7))
    monkeypatch.setenv("PREMED_HOME", str(tmp_path / "home"))
    data = DataModule(Tasks()(experiment(MSD, root).task))
    assert data.fingerprint("pretrain")
    with pytest.raises(UserError) as caught:
        data.fingerprint("finetune")
    assert str(at(root, "labelsTr", 1)) in str(caught.value) and "holds the label 7" in str(caught.value)


def test_a_patient_in_two_parts_is_an_error_for_any_task(hippocampi):
    from premed.data.check import listings

    class Leaky(msd.MSD):
        def split(self, part):
            return [Case(case.name, "anna", case.image, case.label) for case in super().split(part)[:1]]

    findings = [text for text in listings(Leaky(msd.Config(root=hippocampi)), True) if text.severity == "error"]
    assert [finding.where.split(", ")[1] for finding in findings] == ["patient anna"] * 3
    assert "in train and in val" in findings[0].what


def test_a_task_without_a_check_of_its_own_still_misses_no_file(hippocampi, copied):
    from premed.data.check import listings
    from premed.tasks.common.segmentation import Segmentation

    root = copied(hippocampi)
    cases = {part: msd.build(msd.Config(root=root)).split(part) for part in ("train", "val", "test")}

    class Plain(Segmentation):
        name, dims, channels, classes, roi = "plain", 3, 1, ("background", "a", "b"), (16, 16, 16)

        def __init__(self):
            self.root, self.preprocessing = root, Preprocessing(dims=3, normalise="zscore")

        def split(self, part):
            return cases[part]

        def images(self):
            return [Case(case.name, case.patient, case.image) for case in self.split("train")]

    assert listings(Plain(), True) == []
    gone = at(root, "labelsTr", 1), at(root, "imagesTr", 11)
    for path in gone:
        path.unlink()
    assert [finding.where for finding in listings(Plain(), True)] == [str(path) for path in gone]


# In processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_processes_the_same_is_found(hippocampi, copied, found, checked, tmp_path, monkeypatch):
    root = copied(hippocampi)
    cut(at(root, "imagesTr", 1))
    voxels(at(root, "labelsTr", 8), put(7))
    here = found(MSD, root)
    monkeypatch.setattr(runner, "FEW", 12)
    pools = []

    def processes():
        pools.append(process_map())
        return pools[-1]

    monkeypatch.setattr(runner, "process_map", processes)
    code, out, err = checked(MSD, root, "--json", "train.workers=1", "--html", tmp_path / "check.html")
    outcome = json.loads(out)
    assert code == 2 and len(pools) == 1 and "checking images: 12/12" in err
    assert [(each["severity"], f"{each['where']}: {each['what']}") for each in outcome["findings"]] == here
    assert len(here) == 2 and (tmp_path / "check.html").read_text().count("<img") == 11
