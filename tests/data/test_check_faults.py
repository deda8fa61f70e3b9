"""What the check of a data set calls an error: each way to spoil a real folder, told by file and mend."""

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.checking import (
    CHEST,
    FIRST,
    IMAGE,
    LABEL,
    MSD,
    TABLE,
    TESTED,
    TRAINED,
    about,
    add,
    at,
    cut,
    drawn,
    entry,
    errors,
    first,
    image,
    label,
    moved,
    put,
    same,
    voxels,
)

pytest_plugins = ["support.checking"]


# Ways to spoil a file -------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    """In the compressed stream's checksum, so that it unpacks to its end and yet is not what was packed."""
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)


def header_bytes(path: Path, offset: int, packed: bytes) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(packed)] = packed
    path.write_bytes(gzip.compress(bytes(raw)))


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
        [IMAGE, "2 channel(s), 1 expected"],
    ),
    "five axes": (image(lambda p: voxels(p, lambda v: v[..., None, None].repeat(2, 4))), [IMAGE, "5 axes; 3"]),
    "another shape": (label(lambda p: voxels(p, lambda v: v[:-1])), [LABEL, "its shape", "resample it"]),
    "another affine": (
        label(lambda p: voxels(p, same, moved(0.3))),
        [LABEL, "its affine is not that of its image (0.3 mm apart at the far corner)"],
    ),
    "unknown label": (
        label(lambda p: voxels(p, put(7))),
        [LABEL, "holds the label 7 (1 voxels), which no class has (they are 0 to 2)"],
    ),
    "half labels": (label(lambda p: voxels(p, put(0.5))), [LABEL, "labels must be whole numbers"]),
    "negative labels": (label(lambda p: voxels(p, put(-1))), [LABEL, "labels must be whole numbers"]),
    "copied across parts": (
        lambda root: shutil.copy(at(root, "imagesTr", 9), at(root, "imagesTr", 1)),
        [IMAGE, "holds the same image as", "(test)", "keep one"],
    ),
    "repacked across parts": (
        lambda root: (
            shutil.copy(at(root, "imagesTr", 9), at(root, "imagesTr", 1)),
            voxels(at(root, "imagesTr", 1), same, moved(3.0)),
        ),
        [IMAGE, "holds the same image as"],
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
    findings = errors(found(MSD, root))
    wanted = [word.replace("{1}", name) for word in words]
    assert [text for text in findings if all(word in text for word in wanted)], findings
    assert len(findings) <= 3  # that one, and what follows: a file that was copied over does not fit its label


def coloured(picture):
    return Image.merge("RGB", [picture, picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])


def without(name: str, line: str):
    def spoil(root: Path) -> None:
        dropped = line.format(first=first(root).name)
        lines = [each for each in (root / name).read_text().splitlines() if not each.startswith(dropped)]
        (root / name).write_text("\n".join(lines) + "\n")

    return spoil


CHEST_FAULTS = {
    "image missing": (lambda r: first(r).unlink(), [FIRST, "is in train_val_list.txt and missing", "task.partial"]),
    "image empty": (lambda r: first(r).write_bytes(b""), [FIRST, "0 bytes"]),
    "image truncated": (lambda r: cut(first(r)), [FIRST, "truncated", "copy it again"]),
    "not an image": (lambda r: first(r).write_text("no"), [FIRST, "not an image", "copy it again"]),
    "a folder": (lambda r: (first(r).unlink(), first(r).mkdir()), [FIRST, "0 DICOM slice(s)"]),
    "16 bit": (drawn(lambda i: Image.fromarray(np.asarray(i).astype(np.uint16) * 257)), [FIRST, "not 8 bit"]),
    "colour": (drawn(coloured), [FIRST, "3 channel(s), 1 expected"]),
    "copied across lists": (
        lambda r: shutil.copy(first(r), first(r, TESTED)),
        ["images/", "(test) holds the same image as", FIRST],
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
    findings = errors(found(CHEST, root))
    wanted = [word.replace("{first}", name) for word in words]
    assert [text for text in findings if all(word in text for word in wanted)], findings
    assert len(findings) <= 2


# All of it, not the first only ----------------------------------------------------------------------------------------


def test_everything_that_is_wrong_with_one_case_is_told_at_once(hippocampi, copied, found):
    root = copied(hippocampi)
    voxels(at(root, "imagesTr", 1), lambda v: put(np.nan)(np.stack([v, v, v], -1)))
    voxels(at(root, "labelsTr", 1), lambda v: put(9)(v[:, :-2]), moved(5.0))
    findings = errors(found(MSD, root))
    for word in ("NaN", "3 channel(s)", "its shape", "its affine", "the label 9"):
        assert len([text for text in findings if word in text]) == 1, findings


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
    findings = errors(found(CHEST, root))
    assert len(findings) == 6 and all(
        any(word in text for text in findings) for word in (*names[:3], names[5], "Flu", "Cold")
    )


def test_whatever_a_library_says_of_one_file_the_others_are_looked_at(hippocampi, found, monkeypatch):
    from premed.data.io import readers

    read = readers.nifti.read

    def strange(path):
        if path == at(hippocampi, "imagesTr", 2):
            raise MemoryError("too much")
        return read(path)

    monkeypatch.setattr(readers.nifti, "read", strange)
    (only,) = errors(found(MSD, hippocampi))
    assert str(at(hippocampi, "imagesTr", 2)) in only and "does not fit in memory" in only
