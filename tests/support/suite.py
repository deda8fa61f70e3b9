"""The repository, real images, locked versions, and how many examples Hypothesis tries."""

import os
import re
from pathlib import Path

from hypothesis import settings

# no clocks, and the same examples for everybody; make test-all takes as many as Hypothesis would
settings.register_profile("long", deadline=None, derandomize=True)
settings.register_profile("short", settings.get_profile("long"), max_examples=25)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("PREMED_DATA") or REPOSITORY.parent / "shared" / "data")


def locked(package: str) -> str:
    """The version that constraints.txt has of it."""
    (version,) = re.findall(rf"^{package}==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    return version


def examples(num: int, least: int = 10) -> int:
    """So many of Hypothesis' examples with the long profile; with the short one a quarter of them, or `least`."""
    return max(min(num, least), num * settings().max_examples // settings.get_profile("long").max_examples)
