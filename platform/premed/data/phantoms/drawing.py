"""Draws phantom data sets in several processes."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from premed.data.phantoms.writers import Mapper
from premed.data.processes import process_map

Writer = Callable[..., Path]
"""Writes a data set: called with its folder, and with `mapper`, by which it draws its cases."""


def draw_missing(folder: Path, writers: Mapping[str, Writer], show: Callable[[str, int, int], None]) -> None:
    """Draws each data set that `folder` lacks, completely or not at all. show: called with its name, and how many of
    its cases are drawn, of how many."""
    missing = [name for name in writers if not (folder / name).is_dir()]
    if not missing:
        return
    with process_map() as parallel:
        for name in missing:
            unfinished = folder / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            writers[name](unfinished, mapper=counting(parallel, lambda done, total, name=name: show(name, done, total)))
            unfinished.rename(folder / name)


def counting(parallel: Callable[..., Iterable], show: Callable[[int, int], None]) -> Mapper:
    """A `map` over processes that tells how many results there are, of how many."""

    def mapper(draw: Callable[[int], list], numbers: Iterable[int]) -> Iterator[list]:
        numbers = list(numbers)
        show(0, len(numbers))
        for done, drawn in enumerate(parallel(draw, numbers, chunksize=4), 1):
            show(done, len(numbers))
            yield drawn

    return mapper
