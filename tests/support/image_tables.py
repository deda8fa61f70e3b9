"""What tests of the task `images` share: folders of pictures and their tables."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from premed.tasks import images

CLASSES = ["normal", "covid", "other"]


def rows(num: int = 28) -> list[dict[str, str]]:
    """Two pictures of each patient; three classes, two findings, parts by patient; the last two rows have no label."""
    made = []
    for i in range(num):
        who, blind = i // 2, i >= num - 2
        row = {
            "path": f"pictures/{i}.png",
            "patient": f"p{who:02d}",
            "part": ["train", "val", "train", "test"][who % 4],
        }
        row |= {"kind": CLASSES[who % 3], "a": str(who // 4 % 2), "b": str(i % 2), "both": ["", "a", "b", "a|b"][i % 4]}
        made.append(row | ({"kind": "", "a": "", "b": "", "both": "", "part": ""} if blind else {}))
    return made


def write_table(root: Path, table: list[dict[str, str]], name: str = "labels.csv") -> None:
    with open(root / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


@pytest.fixture
def folder(tmp_path):
    """Writes a table and its pictures; gives the folder."""

    def write(table=None, without: tuple[str, ...] = (), root=tmp_path / "mine") -> Path:
        table = [{k: v for k, v in row.items() if k not in without} for row in table or rows()]
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        for i, row in enumerate(table):
            values = np.random.default_rng(i).integers(0, 256, (12, 10), np.uint8)
            if row.get("path", "").startswith("pictures/"):
                Image.fromarray(values).save(root / row["path"])
        write_table(root, table)
        return root

    return write


def task(root: Path, **settings) -> images.Images:
    asked = {} if settings.keys() & {"labels", "label"} else {"labels": ("a", "b")}
    return images.build(images.Config(root=root, **{"roi": (8, 8)} | asked | settings))


def findings_of(root: Path, **settings) -> list[str]:
    """What check says, as lines."""
    result = task(root, **settings).check()
    return [f"{finding.severity}: {finding.where.removeprefix(f'{root}/')}: {finding.what}" for finding in result]


def names(task, *parts):
    return {case.name for part in parts for case in task.split(part)}


def listed(folder, own, *parts, chest=None):
    """The task `images` on those of the task's `parts`, all to be trained on; two of its training images are val, test.

    chest: copies the pictures from there.
    """
    train = sorted(names(own, "train"))
    rows = [(name, "train", 0) for name in sorted(names(own, *parts) - {*train[:2]})]
    rows += [(train[0], "val", 1), (train[1], "test", 1)]
    folder.mkdir(exist_ok=True)
    text = "".join(f"{name},{part},{sick}\n" for name, part, sick in rows)
    (folder / "labels.csv").write_text("path,part,sick\n" + text)
    for name, _, _ in rows if chest else ():
        shutil.copy(chest / "images" / name, folder / name)
    return images.build(images.Config(root=folder, labels=("sick",), roi=(16, 16)))
