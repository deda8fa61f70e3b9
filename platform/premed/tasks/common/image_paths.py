"""Which image a cell of a table names, however it spells the path."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from premed.tasks.common import columns
from premed.tasks.common.image_tree import Tree, stem
from premed.tasks.common.patients import normalise_name
from premed.tasks.common.table import Folder


class Paths:
    """Finds the image that a cell of a table names: a path below the root or the images' folder, or a file's name."""

    def __init__(self, folder: Path, tree: Tree):
        self.files, self.volumes, self.exact = Folder(folder), {*tree.volumes}, {*tree.names}
        self.loose: dict[str, list[str]] = {}
        self.normalised: dict[str, list[str]] = {}
        """As `loose`, but for case and the composition of accents: a Mac's files and a table of another program."""
        for name in tree.names:
            parts = PurePosixPath(name).parts
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for spelled in {tail, stem(tail)}:
                    self.loose.setdefault(spelled, []).append(name)
                    self.normalised.setdefault(normalise_name(spelled), []).append(name)

    def find(self, cell: str) -> str | None:
        """Returns an image's name below the root, however the cell spells it; None if it names none, or several."""
        below = self.files.name(cell)
        if below in self.exact:
            return below
        found = self.loose.get(below) or self.loose.get(stem(below)) or []
        found = found or self.normalised.get(normalise_name(below)) or []
        return found[0] if len(found) == 1 else None

    def share(self, cells: Sequence[str]) -> float:
        """Returns the share of the cells that name an image."""
        some = columns.spread(cells)
        return self.found(some, self.foreign(cells)) / max(1, len(some))

    def names(self, cells: Sequence[str]) -> Mapping[str, str]:
        """Returns the image of each cell that names one."""
        cut = self.foreign(cells)
        return {cell: name for cell in dict.fromkeys(cells) if cell and (name := self.find(slashed(cell)[cut:]))}

    def found(self, cells: Sequence[str], cut: int) -> int:
        """The number of cells that name an image without their first `cut` characters."""
        return sum(self.find(slashed(cell)[cut:]) is not None for cell in cells)

    def foreign(self, cells: Sequence[str]) -> int:
        """The length of the folders that all cells begin with and that are not here: those of another machine, or the
        name that the root had. 0 if the cells name images as they are.

        Folders that some cells begin with stay: p1/scan.png must not be taken for the scan.png of p3.
        """
        some = columns.spread(cells)
        if not some or self.found(some, 0):
            return 0
        common = os.path.commonprefix([slashed(cell) for cell in dict.fromkeys(cells) if cell])
        cuts = [match.end() for match in re.finditer("/+", common)]
        return next((cut for cut in cuts if self.found(some, cut)), 0)


def slashed(cell: str) -> str:
    """Returns a path of Windows with the separators of others."""
    return cell if "/" in cell else cell.replace("\\", "/")
