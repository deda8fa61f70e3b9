"""The licences of all locked dependencies, from what the installed packages say of themselves, as docs/licences.md.

make licences (or python tests/support/licences.py)
"""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "licences.md"
READ = {"huey": "MIT", "skops": "MIT", "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}
"""Of packages whose metadata names none: what their licence files say; cuda-toolkit is a list of NVIDIA's."""
NAMES = {
    "Apache": "Apache-2.0",
    "3-Clause BSD": "BSD-3-Clause",
    "BSD License|^BSD$": "BSD",
    "^MIT License": "MIT",
    "ISC License": "ISC",
    "Mozilla Public License 2.0": "MPL-2.0",
    "Python Software Foundation": "PSF-2.0",
    "Lesser General Public License": "LGPL",
    "NVIDIA": "LicenseRef-NVIDIA-Proprietary",
}
"""How SPDX, or a reader, would write what stands in classifiers and old fields."""
PERMISSIVE = {"MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "ISC", "Zlib"}
PERMISSIVE |= {"PSF-2.0", "CC0-1.0", "BSL-1.0", "Apache-2.0 WITH LLVM-exception"}
WEAK = {"MPL-2.0", "LGPL"}
"""Of these libraries changed files stay open; who merely uses them owes nothing for their own code."""
NVIDIA = {"LicenseRef-NVIDIA-Proprietary"}
"""CUDA's libraries, which PyPI's torch for Linux brings: free to use and to pass on within NVIDIA's terms."""


def locked() -> Iterator[str]:
    """The names in constraints.txt, each once."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    yield from dict.fromkeys(Requirement(line.strip()).name for line in lines)


def licence(package: str) -> str | None:
    """The licence of an installed package as an SPDX expression, or as near to one as it says; None: not installed."""
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [
        each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if each.startswith("License :: ")
    ]
    named = [each for each in classifiers if each not in ("OSI Approved", "DFSG approved")]
    text = (about.get("License") or "").strip().partition("\n")[0]
    words = named or ([text] if text else [])
    return " AND ".join(map(short, words)) or READ.get(package, "none named")


def short(words: str) -> str:
    if re.search(" (AND|OR|WITH) ", words):
        return words
    return next((name for pattern, name in NAMES.items() if re.search(pattern, words)), words)


def terms(expression: str) -> set[str]:
    """The licences of an expression that one must keep: all of those joined by AND, the first of those joined by OR."""
    return {each.partition(" OR ")[0].strip("() ") for each in expression.split(" AND ")}


def found() -> dict[str, list[str]]:
    """Packages by licence; of the most common licence first."""
    groups: dict[str, list[str]] = {}
    for name in locked():
        if (words := licence(name)) is not None:
            groups.setdefault(words, []).append(name)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def page() -> str:
    absent = [name for name in locked() if licence(name) is None]
    rows = [f"| {words} | {len(names)} | {', '.join(names)} |" for words, names in found().items()]
    lines = [
        "# Licences",
        "",
        "What the packages of `constraints.txt` say of themselves where they are installed (Python 3.11, Linux). Made",
        "by `make licences`; `tests/test_licences.py` fails where it is stale, and where a licence is none of those in",
        "`tests/support/licences.py`. premed itself is under Apache-2.0.",
        "",
        "| licence | packages | |",
        "|---|---|---|",
        *rows,
        "",
        f"Not installed on Linux: {', '.join(absent)}.",
        "",
        f"- The metadata of {', '.join(sorted(READ))} names none; theirs is from their licence files (cuda-toolkit is",
        "  a list of NVIDIA's).",
        "- NVIDIA's are CUDA's libraries, which PyPI's torch for Linux brings. They are not free software.",
        "- Under LGPL and MPL changes to these libraries themselves stay open; premed changes none. psycopg2-binary is",
        "  for tests, and for who names a PostgreSQL.",
        "- A wheel may hold more than its own code (libraries that it was built with): what its licence files say of",
        "  those is not listed here.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
