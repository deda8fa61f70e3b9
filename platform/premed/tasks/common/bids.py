"""Reads BIDS trees: the scan of each subject and session, and label maps among the derivatives."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from premed.data.io.readers import VOLUMES

SUFFIXES = ("T1w", "T2w", "FLAIR", "T1rho", "T2starw", "PDw", "inplaneT1", "ct", "CT", "bold", "dwi", "pet")
"""Kinds of scan, the most wanted first where several are as frequent."""
MASKS = ("mask", "dseg", "seg", "roi", "label")
SESSION = ("session", "sessionid", "ses")
"""Columns of participants.tsv by which a row is of one session alone, as `columns.plain` spells them."""
RUNNING = ("bold", "dwi")  # a volume for each point in time


class Scan(NamedTuple):
    """A file, and whose it is."""

    name: str
    """Below the root."""
    subject: str
    """sub-01."""
    session: str
    """ses-1; empty if there is none."""
    run: str
    suffix: str
    kind: str
    """Of a label map: what its entities say of it, such as desc-lesion_mask."""


def is_bids(folder: Path) -> bool:
    """True if the folder holds subjects' folders as BIDS names them, with a table or a description of them."""
    described = (folder / "participants.tsv").is_file() or (folder / "dataset_description.json").is_file()
    return described and next(folder.glob("sub-*/"), None) is not None


def entity(key: str, cell: str) -> str:
    """Returns a cell as names of files have it: sub-01, whether it says sub-01 or 01; empty if the cell is."""
    return cell if not cell or cell.startswith(f"{key}-") else f"{key}-{cell}"


def files(folder: Path, below: str) -> list[Scan]:
    """Returns the volumes below `below` that are named as BIDS does."""
    found = []
    for path in sorted(folder.glob(f"{below}/sub-*/**/sub-*")):
        ending = next((suffix for suffix in sorted(VOLUMES, key=len, reverse=True) if path.name.endswith(suffix)), None)
        if ending is None or not path.is_file():
            continue
        *entities, suffix = path.name.removesuffix(ending).split("_")
        words = dict(each.split("-", 1) for each in entities if "-" in each)
        kind = "_".join([each for each in entities if re.match("(desc|label|seg|hemi)-", each)] + [suffix])
        session = f"ses-{words['ses']}" if "ses" in words else ""
        name = path.relative_to(folder).as_posix()
        found.append(Scan(name, f"sub-{words.get('sub', '')}", session, words.get("run", ""), suffix, kind))
    return found


Sessions = dict[tuple[str, str], list[Scan]]
"""Files by subject and session: of several runs several."""


def scans(folder: Path) -> tuple[str, Sessions]:
    """Returns the most frequent kind of scan, by subjects and sessions, and the scans of that kind."""
    by_suffix: dict[str, Sessions] = defaultdict(lambda: defaultdict(list))
    for scan in files(folder, "."):
        if scan.suffix not in RUNNING:
            by_suffix[scan.suffix][scan.subject, scan.session].append(scan)
    order = {suffix: number for number, suffix in enumerate(SUFFIXES)}
    best = max(by_suffix, key=lambda each: (len(by_suffix[each]), -order.get(each, len(order))), default="")
    return best, by_suffix[best] if best else {}


def paired(of_scans: Sessions, of_maps: Sessions) -> list[tuple[Scan, str | None]]:
    """Returns one scan of each subject and session with its label map: that of the same run, or the only one where
    there is one scan. None: none of its scans has one."""
    found = []
    for session, several in of_scans.items():
        maps = of_maps.get(session, [])
        pairs = [(scan, each.name) for scan in several for each in maps if scan.run == each.run]
        if not pairs and len(several) == len(maps) == 1 and "" in (several[0].run, maps[0].run):
            pairs = [(several[0], maps[0].name)]
        found.append(pairs[0] if pairs else (several[0], None))
    return found


def label_maps(folder: Path) -> tuple[str, Sessions]:
    """Returns the most frequent kind of label map among the derivatives, and its files.

    Masks of the brain alone are taken only where there is nothing else.
    """
    by_kind: dict[str, Sessions] = defaultdict(lambda: defaultdict(list))
    for scan in [*files(folder, "derivatives/*"), *files(folder, "derivatives")]:
        if scan.suffix in MASKS or "mask" in scan.kind:
            by_kind[scan.kind][scan.subject, scan.session].append(scan)
    counts = Counter({kind: len(some) - ("brain" in kind.lower()) * 10**6 for kind, some in by_kind.items()})
    best = max(counts, key=lambda kind: (counts[kind], kind), default="")
    return best, by_kind.get(best, {})
