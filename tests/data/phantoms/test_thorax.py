"""Phantoms for the images task: they lie as a clinic's folder does, and the task reads, checks and can learn them."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from sklearn.metrics import roc_auc_score
from support.phantoms import bytes_of

from premed.data.phantoms.thorax import WRITERS, thorax, write_images
from premed.data.preprocess import prepare
from premed.errors import UserError
from premed.rng import SampleRng, key
from premed.tasks import images


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clinic")
    return {kind: write_images(root / kind, 12, seed=1, kind=kind, size=24, num_unlabelled=1) for kind in WRITERS}


@pytest.fixture(scope="module")
def chests() -> tuple[list[np.ndarray], list[bool]]:
    """CTs [32, 32, 24] in Hounsfield units and who is ill."""
    drawn = [thorax(SampleRng(key("test", i)), (32, 32, 24)) for i in range(40)]
    return [image for image, _, _ in drawn], [ill for _, _, ill in drawn]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_images_task_finds_nothing_wrong_and_prepares_them(folders, kind):
    shape = {"dims": 3, "roi": (16, 16, 16)} if kind == "nifti" else {"roi": (24, 24)}
    task = images.build(images.Config(root=folders[kind], labels=("pneumonia",), **shape))
    assert [finding.severity for finding in task.check()] == ["note"]  # one patient has no label
    assert {case.patient for case in task.images()} - {case.patient for case in task.split("train")} == {"p0013"}
    for part in ("train", "val", "test"):
        for case in task.split(part):
            assert np.ptp(prepare(case.image, None, task.preprocessing).image) > 50


def test_the_table_lists_what_is_on_disk_patient_by_patient(folders):
    for folder in folders.values():
        table = rows(folder)
        on_disk = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
        assert sorted(row["path"] for row in table) == sorted(str(path.relative_to(folder)) for path in on_disk)
        assert all(row["patient"] in row["path"] for row in table)
        assert {row["pneumonia"] for row in table} == {"0", "1", ""}


def test_an_x_ray_is_the_same_as_png_and_as_dicom_whatever_the_detector(tmp_path):
    pictures = {}
    for kind in ("png", "dicom"):
        folder = write_images(tmp_path / kind, 12, seed=5, kind=kind, size=40)
        preprocessing = images.Config(root=folder, labels=("pneumonia",), roi=(40, 40)).preprocessing()
        pictures[kind] = [
            prepare([folder / row["path"]], None, preprocessing).image.astype(int) for row in rows(folder)
        ]
    heads = [pydicom.dcmread(tmp_path / "dicom" / row["path"]) for row in rows(tmp_path / "dicom")]
    assert {head.PhotometricInterpretation for head in heads} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({head.RescaleSlope for head in heads}) == 3 and {Path(h.filename).suffix for h in heads} == {"", ".dcm"}
    assert all(abs(a - b).max() <= 1 for a, b in zip(*pictures.values(), strict=True))


def test_volumes_lie_in_several_ways_with_air_lungs_and_flesh_in_hounsfield_units(folders):
    files = [nibabel.Nifti1Image.from_filename(path) for path in sorted((folders["nifti"] / "volumes").iterdir())]
    assert {file.shape for file in files} == {(24, 24, 18)} and len({nibabel.aff2axcodes(f.affine) for f in files}) > 1
    assert all(2 < size < 20 for file in files for size in file.header.get_zooms())


def test_lungs_are_dark_bodies_are_not_and_pneumonia_fills_air(chests):
    """Of flesh there is the same; what is between air and flesh tells the ill from the well, though not always."""
    scans, ill = chests
    assert 0.2 < np.mean(ill) < 0.6
    assert all(0.03 < np.mean((scan > -950) & (scan < -700)) < 0.35 for scan in scans)
    cloudy = [np.mean((scan > -650) & (scan < -250)) for scan in scans]
    assert 0.6 < roc_auc_score(ill, cloudy) < 1


def test_size_and_number_are_free_and_the_seed_decides_the_bytes(tmp_path):
    for kind in WRITERS:
        made = [write_images(tmp_path / f"{kind} {i}", 2, seed, kind, size=16) for i, seed in enumerate((3, 3, 4))]
        first, again, other = (bytes_of(folder) for folder in made)
        assert first == again and first.items().isdisjoint(other.items())


def test_phantoms_are_never_written_over_somebody_s_table(tmp_path):
    (tmp_path / "labels.csv").write_text("path,patient\n")
    with pytest.raises(UserError, match="name another folder"):
        write_images(tmp_path, 2, 0)
    with pytest.raises(UserError, match="num_patients: 1 is too few"):
        write_images(tmp_path / "new", 1, 0)
