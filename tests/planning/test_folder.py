"""What `premed init` takes a folder for: paths of tables, layouts of other tools, images that are not opened."""

import os

import numpy as np
import pytest
from support import folders

from premed.tasks.common import image_folder

SPELLINGS = {
    "plain": "images/{}.nii.gz",
    "below the folder": "./images/{}.nii.gz",
    "absolute": "{root}/images/{}.nii.gz",
    "absolute, past a link": "{real}/images/{}.nii.gz",
    "twice the slash": "images//{}.nii.gz",
    "up and down": "images/../images/{}.nii.gz",
}


def listed_volumes(root, spelling):
    """Volumes with a table that spells their paths so; returns the folder, by a link to it."""
    (root / "real").mkdir(parents=True)
    (root / "link").symlink_to("real")
    cells = [spelling.format(n, root=root / "link", real=root / "real") for n in range(8)]
    folders.table(root / "real/labels.csv", [["file", "bleeding"], *([cell, n % 2] for n, cell in enumerate(cells))])
    for number in range(8):
        folders.volume(root / f"real/images/{number}.nii.gz", np.ones((4, 4, 4), np.uint8))
    return root / "link"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_volumes_are_volumes_however_a_table_spells_their_paths(tmp_path, spelling):
    """And the task reads the table as it is: no listing is written for what it finds by itself."""
    found = image_folder.recognise(listed_volumes(tmp_path, SPELLINGS[spelling]))
    assert found.task["dims"] == 3 and (found.task["table"], found.listing) == ("labels.csv", None)
    assert not any("without a row" in note for note in found.notes)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_table_of_which_one_name_lacks_its_folder_is_written_anew_with_all_names_alike(tmp_path, spelling):
    root = listed_volumes(tmp_path, SPELLINGS[spelling])
    text = (root / "labels.csv").read_text()
    first = text.splitlines()[1].split(",")[0]
    (root / "labels.csv").write_text(text.replace(first, "0.nii.gz"))
    found = image_folder.recognise(root)
    lines = found.listing.text.splitlines()
    assert lines == ["file,bleeding", *(f"images/{n}.nii.gz,{n % 2}" for n in range(8))] and found.task["dims"] == 3


def test_a_cell_that_names_no_image_or_the_folder_itself_is_no_image(tmp_path):
    root = listed_volumes(tmp_path, "{}.nii.gz")
    where = image_folder.Paths(root, image_folder.find_images(root))
    assert where.names(["", ".", str(root), f"{root}/images", "../0.nii.gz", "9.nii.gz", os.sep]) == {}
    assert where.find("0.nii.gz") == where.find(f"{root}/images/0.nii.gz") == "images/0.nii.gz"
