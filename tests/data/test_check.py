"""`premed data check`: real files, spoilt one way at a time, are each found by name; what is whole is left in peace."""

import gzip
import json
import os
import re
import shutil
import signal
import struct
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image
from support.pages import Page

from premed.cli import app
from premed.config.transforms import Preprocessing
from premed.contracts import Case
from premed.data.inspection import Inspection, inspect
from premed.errors import UserError
from premed.execution import runner
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


# Real folders, made smaller -------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(signal, "signal", lambda *args: None)

    def call(tree, root, *arguments):
        (tmp_path / "check.yaml").write_text(yaml.safe_dump(tree))
        line = ["premed", "data", "check", str(tmp_path / "check.yaml"), f"task.root={root}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            app.main()
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        return end.value.code or 0, told.out, told.err

    return call


@pytest.fixture
def found(checked):
    """Its findings, and its exit code, which must be what they call for."""

    def call(tree, root, *arguments):
        code, out, _ = checked(tree, root, "--json", *arguments)
        told = json.loads(out)
        severities = [finding["severity"] for finding in told["findings"]]
        assert code == (2 if "error" in severities else 0)
        assert [severities.count(each) for each in ("error", "note")] == [told["num_errors"], told["num_notes"]]
        return [(finding["severity"], f"{finding['where']}: {finding['what']}") for finding in told["findings"]]

    return call


def errors(findings):
    return [text for severity, text in findings if severity == "error"]


def notes(findings, word):
    return [text for severity, text in findings if severity == "note" and word in text]


# Ways to spoil a file -------------------------------------------------------------------------------------------------


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


def flip_a_bit(path: Path) -> None:
    """In the compressed stream's checksum, so that it unpacks to its end and yet is not what was packed."""
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)


def header_bytes(path: Path, offset: int, packed: bytes) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(packed)] = packed
    path.write_bytes(gzip.compress(bytes(raw)))


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
MSD_FAULTS = {
    "image missing": (image(Path.unlink), [IMAGE, "missing; download it, or set task.partial=true"]),
    "label missing": (label(Path.unlink), [LABEL, "missing; download it, or set task.partial=true"]),
    "image empty": (image(lambda p: p.write_bytes(b"")), [IMAGE, "0 bytes"]),
    "label empty": (label(lambda p: p.write_bytes(b"")), [LABEL, "0 bytes"]),
    "image truncated": (image(cut), [IMAGE, "truncated", "copy it again"]),
    "label truncated": (label(cut), [LABEL, "truncated", "copy it again"]),
    "last bytes lost": (image(lambda p: cut(p, 0.999)), [IMAGE, "truncated"]),
    "bit flipped": (image(flip_a_bit), [IMAGE, "damaged", "CRC"]),
    "not an image": (image(lambda p: p.write_bytes(gzip.compress(b"no" * 400))), [IMAGE, "copy it again"]),
    "a folder": (image(lambda p: (p.unlink(), p.mkdir())), [IMAGE, "missing"]),
    "absurd shape": (
        image(lambda p: header_bytes(p, 40, struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1))),
        [IMAGE, "its header claims the shape"],
    ),
    "no affine": (
        image(lambda p: header_bytes(p, 280, struct.pack("<12f", *[0.0] * 12))),
        [IMAGE, "its affine cannot be inverted"],
    ),
    "NaN": (image(lambda p: voxels(p, put(np.nan))), [IMAGE, "1 values are NaN or infinite"]),
    "infinite": (image(lambda p: voxels(p, put(np.inf))), [IMAGE, "1 values are NaN or infinite"]),
    "NaN in a label": (label(lambda p: voxels(p, put(np.nan))), [LABEL, "1 values are NaN or infinite"]),
    "two channels": (
        image(lambda p: voxels(p, lambda v: np.stack([v, v], -1))),
        [IMAGE, "2 channel(s), where 1 are wanted"],
    ),
    "five axes": (image(lambda p: voxels(p, lambda v: v[..., None, None].repeat(2, 4))), [IMAGE, "5 axes, where 3"]),
    "another shape": (label(lambda p: voxels(p, lambda v: v[:-1])), [LABEL, "its shape", "resample it"]),
    "another affine": (
        label(lambda p: voxels(p, same, moved(0.002))),
        [LABEL, "its affine is not that of its image (0.002 apart)"],
    ),
    "unknown label": (
        label(lambda p: voxels(p, put(7))),
        [LABEL, "holds the label 7 (1 voxels), which no class has (they are 0 to 2)"],
    ),
    "half labels": (label(lambda p: voxels(p, put(0.5))), [LABEL, "labels must be whole numbers"]),
    "negative labels": (label(lambda p: voxels(p, put(-1))), [LABEL, "labels must be whole numbers"]),
    "copied across parts": (
        lambda root: shutil.copy(at(root, "imagesTr", 9), at(root, "imagesTr", 1)),
        [IMAGE, "holds the same values as", "(test)", "keep one"],
    ),
    "repacked across parts": (
        lambda root: (
            shutil.copy(at(root, "imagesTr", 9), at(root, "imagesTr", 1)),
            voxels(at(root, "imagesTr", 1), same, moved(3.0)),
        ),
        [IMAGE, "holds the same values as"],
    ),
    "no JSON": (lambda root: (root / "dataset.json").write_text("{"), ["dataset.json is not JSON"]),
    "no dataset.json": (lambda root: (root / "dataset.json").unlink(), ["dataset.json is missing"]),
    "no list": (about(training=None), ["dataset.json: `training` must be a list of", "not null"]),
    "labels alike": (
        about(labels={"0": "background", "1": "a b", "2": "a_b"}),
        ["dataset.json: `labels` 'a b' and 'a_b' are both scored as a_b; rename one"],
    ),
    "number twice": (about(labels={"background": 0, "a": 1, "b": 1}), ["dataset.json: `labels` must number"]),
    "listed twice": (entry(lambda t: t.append(t[0])), ["dataset.json: hippocampus_001 is listed twice; keep one"]),
    "no image named": (entry(lambda t: t.append({"label": "x"})), ["dataset.json: {'label': 'x'} names no image"]),
    "no name of a file": (
        entry(lambda t: t.append({"image": "a\0b"})),
        [r"dataset.json: a\x00b is not a valid file name"],
    ),
    "too long a name": (
        entry(lambda t: t.append({"image": "a" * 999})),
        ["dataset.json: aaaa", "is not a valid file name"],
    ),
    "a link to itself": (
        image(lambda p: (p.unlink(), p.symlink_to(p))),
        ["dataset.json: ./imagesTr/{1} is not a valid file name"],
    ),
    "brackets without end": (
        lambda root: (root / "dataset.json").write_text("[" * 10**5),
        ["dataset.json is not JSON"],
    ),
    "half a sign": (entry(lambda t: t.append({"image": "\ud800"})), [r"dataset.json: \ud800 is not a valid file name"]),
    "out of the folder": (
        entry(lambda t: t.append({"image": "../x.nii.gz"})),
        ["dataset.json: ../x.nii.gz leads out of the folder"],
    ),
}


@pytest.mark.parametrize("fault", MSD_FAULTS)
def test_a_fault_in_a_decathlon_folder_is_an_error_that_names_the_file(hippocampi, copied, found, fault):
    spoil, words = MSD_FAULTS[fault]
    root = copied(hippocampi)
    name = at(root, "imagesTr", 1).name
    spoil(root)
    told = errors(found(MSD, root))
    wanted = [word.replace("{1}", name) for word in words]
    assert [text for text in told if all(word in text for word in wanted)], told
    assert len(told) <= 3  # that one, and what follows: a file that was copied over does not fit its label


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


def coloured(picture):
    return Image.merge("RGB", [picture, picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])


def without(name: str, line: str):
    def spoil(root: Path) -> None:
        dropped = line.format(first=first(root).name)
        lines = [each for each in (root / name).read_text().splitlines() if not each.startswith(dropped)]
        (root / name).write_text("\n".join(lines) + "\n")

    return spoil


FIRST = "images/{first}"
CHEST_FAULTS = {
    "image missing": (lambda r: first(r).unlink(), [FIRST, "is in train_val_list.txt and missing", "task.partial"]),
    "image empty": (lambda r: first(r).write_bytes(b""), [FIRST, "0 bytes"]),
    "image truncated": (lambda r: cut(first(r)), [FIRST, "truncated", "copy it again"]),
    "not an image": (lambda r: first(r).write_text("no"), [FIRST, "not an image", "copy it again"]),
    "a folder": (lambda r: (first(r).unlink(), first(r).mkdir()), [FIRST, "0 DICOM slice(s)"]),
    "16 bit": (drawn(lambda i: Image.fromarray(np.asarray(i).astype(np.uint16) * 257)), [FIRST, "not 8 bit"]),
    "colour": (drawn(coloured), [FIRST, "3 channel(s), where 1 are wanted"]),
    "copied across lists": (
        lambda r: shutil.copy(first(r), first(r, TESTED)),
        ["images/", "(test) holds the same values as", FIRST],
    ),
    "no row": (without(TABLE, "{first}"), ["train_val_list.txt, {first}: is listed but has no row in " + TABLE]),
    "image in both lists": (add(TESTED, "{first}"), ["test_list.txt, {first}: is in train_val_list.txt too"]),
    "patient in both lists": (
        lambda r: (add(TESTED, "{first}")(r), without(TRAINED, "{first}")(r)),
        ["test_list.txt, patient 1: has images in train_val_list.txt too"],
    ),
    "two rows": (add(TABLE, "{first},Hernia,0,1,"), [TABLE, "{first} has another row with another patient"]),
    "unknown finding": (add(TABLE, "x.png,Flu|Mass,0,1,"), [TABLE, "line 82: Flu is none of the 14 findings"]),
    "too few columns": (add(TABLE, "x.png,Mass"), [TABLE, "line 82: too few columns"]),
    "no header": (without(TABLE, "Image Index"), [TABLE, "its first line must be NIH's header"]),
    "table not UTF-8": (lambda r: (r / TABLE).write_bytes(b"\xff\xfe"), [TABLE, "is not UTF-8", "save it as UTF-8"]),
    "list not UTF-8": (lambda r: (r / TESTED).write_bytes(b"\xff"), [TESTED, "is not UTF-8", "save it as UTF-8"]),
    "no table": (lambda r: (r / TABLE).write_text('"' + 200_000 * "a"), [TABLE, "is not a table", "download it again"]),
    "no list": (lambda r: (r / TESTED).unlink(), ["test_list.txt is missing"]),
    "table missing": (lambda r: (r / TABLE).unlink(), ["there is no Data_Entry_2017*.csv"]),
    "no images": (lambda r: shutil.rmtree(r / "images"), ["images: contains no image"]),
}


@pytest.mark.parametrize("fault", CHEST_FAULTS)
def test_a_fault_in_a_chest_folder_is_an_error_that_names_the_file(chests, copied, found, fault):
    spoil, words = CHEST_FAULTS[fault]
    root = copied(chests)
    name = first(root).name
    spoil(root)
    told = errors(found(CHEST, root))
    wanted = [word.replace("{first}", name) for word in words]
    assert [text for text in told if all(word in text for word in wanted)], told
    assert len(told) <= 2


# All of it, not the first only ----------------------------------------------------------------------------------------


def test_everything_that_is_wrong_with_one_case_is_told_at_once(hippocampi, copied, found):
    root = copied(hippocampi)
    voxels(at(root, "imagesTr", 1), lambda v: put(np.nan)(np.stack([v, v, v], -1)))
    voxels(at(root, "labelsTr", 1), lambda v: put(9)(v[:, :-2]), moved(5.0))
    told = errors(found(MSD, root))
    for word in ("NaN", "3 channel(s)", "its shape", "its affine", "the label 9"):
        assert len([text for text in told if word in text]) == 1, told


def test_every_bad_file_is_told_at_once(hippocampi, chests, copied, found):
    root = copied(hippocampi)
    bad = [at(root, "imagesTr", 1), at(root, "labelsTr", 3), at(root, "imagesTr", 8), at(root, "imagesTr", 10)]
    for path, spoil in zip(bad, (cut, Path.unlink, lambda p: voxels(p, put(np.nan)), Path.unlink), strict=True):
        spoil(path)
    assert sorted(text.split(": ")[0] for text in errors(found(MSD, root))) == sorted(map(str, bad))
    root = copied(chests)
    names = (root / TRAINED).read_text().split()
    for name in names[:3]:
        (root / "images" / name).unlink()
    cut(root / "images" / names[5])
    add(TABLE, "x.png,Flu,0,1,")(root)
    add(TABLE, "y.png,Cold,0,1,")(root)
    told = errors(found(CHEST, root))
    assert len(told) == 6 and all(any(word in text for text in told) for word in (*names[:3], names[5], "Flu", "Cold"))


def test_whatever_a_library_says_of_one_file_the_others_are_looked_at(hippocampi, found, monkeypatch):
    from premed.data.io import readers

    read = readers._read_nifti

    def strange(path):
        if path == at(hippocampi, "imagesTr", 2):
            raise MemoryError("too much")
        return read(path)

    monkeypatch.setattr(readers, "_read_nifti", strange)
    (only,) = errors(found(MSD, hippocampi))
    assert str(at(hippocampi, "imagesTr", 2)) in only and "does not fit in memory" in only


# Notes ----------------------------------------------------------------------------------------------------------------


def test_whole_folders_are_clean(hippocampi, chests, found, checked):
    assert found(MSD, hippocampi) == []
    assert errors(found(CHEST, chests)) == []
    code, out, _ = checked(MSD, hippocampi)
    assert code == 0
    assert out == "Task04_Hippocampus: 12 images opened (7 train, 2 val, 3 test): 0 errors, 0 notes\n"


def oriented(path: Path, axes: str) -> None:
    image = nib.nifti1.load(path)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.nifti1.save(image.as_reoriented(turn.tolist()), path)


def both(change):
    def spoil(root: Path) -> None:
        for part in ("imagesTr", "labelsTr"):
            change(at(root, part, 1))

    return spoil


def scaled(by):
    return lambda path: voxels(path, same, lambda affine: affine @ np.diag([1, 1, by, 1]))


def all_but_one_class(root: Path) -> None:
    for number in (7, 8):
        voxels(at(root, "labelsTr", number), lambda v: np.minimum(v, 1))


MSD_NOTES = {
    "close affine": (label(lambda p: voxels(p, same, moved(0.0005))), [LABEL, "is 0.0005 apart", "taken as the same"]),
    "twice in a part": (
        lambda root: [shutil.copy(at(root, part, 2), at(root, part, 1)) for part in ("imagesTr", "labelsTr")],
        ["(train) holds the same values as", "(train)"],
    ),
    "turned": (both(lambda p: oriented(p, "LPS")), [IMAGE, "is stored as LPS, 11 of 12 as RAS"]),
    "thick slices": (both(scaled(5)), [IMAGE, "its spacing 1 × 1 × 5 mm is far from the set's 1 × 1 × 1 mm"]),
    "constant": (image(lambda p: voxels(p, lambda v: 0 * v + 3)), [IMAGE, "is 3 everywhere"]),
    "no label drawn": (label(lambda p: voxels(p, lambda v: 0 * v)), [LABEL, "nothing is labelled"]),
    "class empty": (all_but_one_class, ["class Posterior, part val: no label map holds it"]),
    "unlisted": (lambda r: shutil.copy(at(r, "imagesTr", 1), r / "imagesTr" / "x.nii.gz"), ["x.nii.gz", "in no entry"]),
    "test image absent": (about(test=["imagesTs/a.nii.gz"]), ["imagesTs/a.nii.gz", "it is left out"]),
    "unlabelled": (entry(lambda t: t[3].pop("label")), ["labelsTr/", "is in no entry of dataset.json"]),
}


@pytest.mark.parametrize("oddity", MSD_NOTES)
def test_an_oddity_of_a_decathlon_folder_is_a_note(hippocampi, copied, found, oddity):
    spoil, words = MSD_NOTES[oddity]
    root = copied(hippocampi)
    name = at(root, "imagesTr", 1).name
    spoil(root)
    told = found(MSD, root)
    wanted = [word.replace("{1}", name) for word in words]
    assert errors(told) == [] and [text for text in notes(told, wanted[0]) if all(word in text for word in wanted)], (
        told
    )


CHEST_NOTES = {
    "listed twice": (add(TRAINED, "{first}"), ["train_val_list.txt, {first}: is listed 2 times: it is used once"]),
    "row twice": (add(TABLE, "{row}"), []),
    "row not listed": (add(TABLE, "x.png,Mass,0,1,"), [TABLE + ", x.png: is in neither list"]),
    "image without row": (lambda r: shutil.copy(first(r), r / "images" / "x.png"), ["images/x.png: has no row in"]),
    "constant": (drawn(lambda i: Image.new("L", i.size, 7)), [FIRST + ": is 7 everywhere"]),
}


@pytest.mark.parametrize("oddity", CHEST_NOTES)
def test_an_oddity_of_a_chest_folder_is_a_note(chests, copied, found, oddity):
    spoil, words = CHEST_NOTES[oddity]
    root = copied(chests)
    name, before = first(root).name, found(CHEST, root)
    spoil(root)
    told = found(CHEST, root)
    assert errors(told) == []
    fresh = [text for _, text in told if text not in {text for _, text in before}]
    assert len(fresh) == len(words) and all(word.replace("{first}", name) in fresh[0] for word in words)


def test_mixed_orientations_are_one_note(hippocampi, copied, found):
    root = copied(hippocampi)
    for number in range(5):
        for part in ("imagesTr", "labelsTr"):
            oriented(at(root, part, number), "LPS")
    (only,) = found(MSD, root)
    assert only[0] == "note" and "orientations are mixed (7 RAS, 5 LPS)" in only[1]


def test_the_roi_is_compared_with_the_prepared_image(hippocampi, found):
    assert notes(found(MSD, hippocampi, "task.roi=[96,96,96]"), "12 of 12 images are smaller than [96, 96, 96]")
    assert not found(MSD, hippocampi, "task.roi=[96,96,96]", "task.spacing=[0.25,0.25,0.25]")
    assert notes(found(MSD, hippocampi, "task.spacing=[4,4,4]"), "task.roi")


def test_partial_makes_a_note_of_what_is_missing_and_leaves_it_out_of_its_own_part_alone(hippocampi, copied, found):
    root = copied(hippocampi)
    gone = [at(root, "imagesTr", 1), at(root, "labelsTr", 9)]
    whole = msd.build(msd.Config(root=root))
    before = {part: [case.name for case in whole.split(part)] for part in ("train", "val", "test")}
    for path in gone:
        path.unlink()
    told = found(MSD, root, "task.partial=true")
    assert errors(told) == [] and [len(notes(told, str(path))) for path in gone] == [1, 1]
    task = msd.build(msd.Config(root=root, partial=True))
    left = {part: [case.name for case in task.split(part)] for part in before}
    names = {path.name.split(".")[0] for path in gone}
    assert left == {part: [name for name in cases if name not in names] for part, cases in before.items()}
    assert not names & {case.name for case in task.images()}


# The real folders as they are -----------------------------------------------------------------------------------------


def test_the_real_chests_have_their_oddities_and_no_fault(real, found):
    told = found(CHEST, real("chestxray14"))
    assert errors(told) == []
    undefined = {text.split(",")[0] for text in notes(told, "part test: no image has it")}
    assert undefined == {"class Hernia", "class Pneumothorax"}
    assert notes(told, "class Edema, part train: only in 1 of 545 images")  # and the other of the two is in val
    assert notes(told, "class Edema, part val: only in 1 of 77 images")
    assert not notes(told, "Effusion")


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

    from premed.data.inspection import picture

    files = at(hippocampi, "imagesTr", 0), at(hippocampi, "labelsTr", 0)
    preprocessing = Preprocessing(dims=3, normalise="zscore")
    _, png = picture(Inspection(0, files[:1], files[1], preprocessing, (0, 1, 2)))
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
    told = inspect(Inspection(0, tuple(paths), None, preprocessing, ())).findings
    assert [finding.where for finding in told] == [str(paths[2])] and "its shape" in told[0].what


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
    from premed.config.loader import merge, validate_experiment

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

    told = [text for text in listings(Leaky(msd.Config(root=hippocampi)), True) if text.severity == "error"]
    assert [finding.where.split(", ")[1] for finding in told] == ["patient anna"] * 3
    assert "in train and in val" in told[0].what


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


# On Ray ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_ray_the_same_is_found(hippocampi, copied, found, checked, tmp_path):
    root = copied(hippocampi)
    cut(at(root, "imagesTr", 1))
    voxels(at(root, "labelsTr", 8), put(7))
    here = found(MSD, root)
    code, out, err = checked(MSD, root, "--json", "train.workers=1", "--html", tmp_path / "check.html")
    told = json.loads(out)
    assert code == 2 and "starting Ray" in err and "checking images: 12/12" in err
    assert [(each["severity"], f"{each['where']}: {each['what']}") for each in told["findings"]] == here
    assert len(here) == 2 and (tmp_path / "check.html").read_text().count("<img") == 11
