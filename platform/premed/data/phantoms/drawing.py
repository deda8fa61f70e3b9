"""Draws phantom data sets in several processes, which need no network, no Ray and no MLflow to be imported."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from premed.data.phantoms.writers import Mapper

Writer = Callable[..., Path]
"""Writes a data set: called with its folder, and with `mapper`, by which it draws its cases."""


def draw_missing(folder: Path, writers: Mapping[str, Writer], show: Callable[[str, int, int], None]) -> None:
    """Draws each data set that `folder` lacks, completely or not at all. show: called with its name, and how many of
    its cases are drawn, of how many."""
    missing = [name for name in writers if not (folder / name).is_dir()]
    if not missing:
        return
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for name in missing:
            unfinished = folder / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            writers[name](unfinished, mapper=counting(pool, lambda done, total, name=name: show(name, done, total)))
            unfinished.rename(folder / name)


def counting(pool: ProcessPoolExecutor, show: Callable[[int, int], None]) -> Mapper:
    """A `map` over a pool's processes that tells how many results there are, of how many."""

    def mapper(draw: Callable[[int], list], numbers: Iterable[int]) -> Iterator[list]:
        numbers = list(numbers)
        show(0, len(numbers))
        for done, drawn in enumerate(pool.map(draw, numbers, chunksize=4), 1):
            show(done, len(numbers))
            yield drawn

    return mapper
