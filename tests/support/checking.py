"""What tests of the check of data sets share: real folders made smaller, and ways to spoil them."""

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from premed.cli import app
from premed.tasks import msd

TABLE, TRAINED, TESTED = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"
STEPS = {"epochs": 1, "batch": 2, "lr": 1e-3}
REST = {
    "encoder": {"name": "vit", "width": 24, "depth": 2, "heads": 2, "patch": 8},
    "pretext": "none",
    "finetune": STEPS | {"head": "linear"},
    "train": {"workers": 0},
}
CHEST = {"task": {"name": "chestxray14", "size": 32, "stored": 32}, **REST}
MSD = {"task": {"name": "msd", "roi": [16, 16, 16]}, **REST}


@pytest.fixture(scope="session")
def hippocampi(real, tmp_path_factory) -> Path:
    """The first 12 cases of Task04: 7 train, 2 val, 3 test."""
    folder = real("Task04_Hippocampus")
    root = tmp_path_factory.mktemp("msd") / "Task04_Hippocampus"
    about = json.loads((folder / "dataset.json").read_text())
    about["training"] = about["training"][:12]
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for entry in about["training"]:
        for path in entry.values():
            shutil.copy(folder / path, root / path)
    (root / "dataset.json").write_text(json.dumps(about))
    return root


@pytest.fixture(scope="session")
def chests(real, tmp_path_factory) -> Path:
    """60 of the training list's X-rays and 20 of the test list's."""
    folder = real("chestxray14")
    root = tmp_path_factory.mktemp("nih") / "chestxray14"
    (root / "images").mkdir(parents=True)
    names: set[str] = set()
    for name, number in ((TRAINED, 60), (TESTED, 20)):
        some = (folder / name).read_text().split()[:number]
        (root / name).write_text("".join(f"{each}\n" for each in some))
        names |= {*some}
    for name in names:
        shutil.copy(folder / "images" / name, root / "images" / name)
    header, *rows = (folder / TABLE).read_text().splitlines()
    (root / TABLE).write_text("\n".join([header, *(row for row in rows if row.split(",")[0] in names)]) + "\n")
    return root


@pytest.fixture
def copied(tmp_path):
    """A folder's copy, to be spoilt."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def checked(monkeypatch, capsys, tmp_path):
    """`premed data check` of a folder: (exit code, stdout, stderr)."""
    monkeypatch.setattr(app.stopping, "install", lambda: None)

    def call(tree, root, *arguments):
        (tmp_path / "check.yaml").write_text(yaml.safe_dump(tree))
        line = ["premed", "data", "check", str(tmp_path / "check.yaml"), f"task.root={root}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            app.main()
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        return end.value.code or 0, output.out, output.err

    return call


@pytest.fixture
def found(checked):
    """Its findings, and its exit code, which must be what they call for."""

    def call(tree, root, *arguments):
        code, out, _ = checked(tree, root, "--json", *arguments)
        result = json.loads(out)
        severities = [finding["severity"] for finding in result["findings"]]
        assert code == (2 if "error" in severities else 0)
        assert [severities.count(each) for each in ("error", "note")] == [result["num_errors"], result["num_notes"]]
        return [(finding["severity"], f"{finding['where']}: {finding['what']}") for finding in result["findings"]]

    return call


def errors(findings):
    return [text for severity, text in findings if severity == "error"]


def at(root: Path, part: str, number: int) -> Path:
    """The image or label map of a case: 0 to 6 are train, 7 and 8 val, 9 to 11 test."""
    task = msd.build(msd.Config(root=root))
    case = [case for each in ("train", "val", "test") for case in task.split(each)][number]
    return case.image[0] if part == "imagesTr" else case.files[-1]


def voxels(path: Path, change, affine=None, **header) -> None:
    """Writes a NIfTI file anew, with other voxels, another affine or other header fields."""
    image = nib.nifti1.load(path)
    values = change(np.asarray(image.dataobj, np.float32).copy())
    new = nib.nifti1.Nifti1Image(values, image.affine if affine is None else affine(image.affine.copy()))
    for name, value in header.items():
        new.header[name] = value
    nib.nifti1.save(new, path)


def put(value):
    """Changes one voxel, far from the edges."""

    def change(values):
        values[tuple(n // 2 for n in values.shape)] = value
        return values

    return change


def same(values):
    return values


def moved(by):
    def change(affine):
        affine[0, 3] += by
        return affine

    return change


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def about(**fields):
    def change(root: Path) -> None:
        path = root / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def entry(change):
    def spoil(root: Path) -> None:
        training = json.loads((root / "dataset.json").read_text())["training"]
        change(training)
        about(training=training)(root)

    return spoil


def image(change):
    return lambda root: change(at(root, "imagesTr", 1))


def label(change):
    return lambda root: change(at(root, "labelsTr", 1))


IMAGE, LABEL = "imagesTr/{1}", "labelsTr/{1}"  # the second training case's


def first(root: Path, listing: str = TRAINED) -> Path:
    return root / "images" / (root / listing).read_text().split()[0]


def add(name: str, text: str):
    def spoil(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write(text.format(first=first(root).name, row=row_of(root, first(root).name)) + "\n")

    return spoil


def row_of(root: Path, name: str) -> str:
    return next(line for line in (root / TABLE).read_text().splitlines() if line.startswith(name))


def drawn(change):
    def spoil(root: Path) -> None:
        change(Image.open(first(root)).copy()).save(first(root))

    return spoil


FIRST = "images/{first}"


def notes(findings, word):
    return [text for severity, text in findings if severity == "note" and word in text]
