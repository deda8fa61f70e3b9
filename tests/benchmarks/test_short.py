"""The whole of `premed bench --short`: no ratio has fallen by a third below the one in ratios.json.

The numbers there are the lower ones of two runs on a busy machine with two cores, for small works are noisy. All are
measured anew and written by `python tests/benchmarks/test_short.py --write`. Checkouts of peers are given by
PREMED_PEER_MAE and PREMED_PEER_SELFMEDMAE; rows beside others are compared in any case.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bare import PREMED_WITHOUT_RAY

RATIOS = Path(__file__).with_name("ratios.json")
ALLOWED = 2 / 3


def measured() -> dict[str, Any]:
    """The ratios of a run by row and peer; None where the row could not be measured."""
    command = [
        sys.executable,
        "-c",
        PREMED_WITHOUT_RAY,
        "bench",
        "--short",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])["results"]
    assert [result["not_measured"] for result in found if result["differs"]] == []
    ratios = {f"{each['row']}, {each['peer']}": (each["numbers"]["ratio"] or {}).get("median") for each in found}
    missing = {each["row"] for each in found if each["not_measured"]}
    return {"ratios": ratios, "missing": missing}


def fallen(found: dict[str, float | None], missing: set[str], recorded: dict[str, float]) -> list[str]:
    """A line for each ratio that fell by a third, or is gone although its row was measured."""
    faults = []
    for name, before in recorded.items():
        now = found.get(name)
        if now is None and name.partition(",")[0] not in missing:
            faults.append(f"{name}: not among the rows any more")
        elif now is not None and now < ALLOWED * before:
            faults.append(f"{name}: {now:.2f}, and {before:.2f} was measured before")
    return faults


def test_a_ratio_that_fell_by_a_third_is_told():
    recorded = {"a, x": 3.0, "b, y": 1.2, "c, z": 2.0}
    assert fallen({"a, x": 2.01, "b, y": 9.0, "c, z": 2.0}, set(), recorded) == []
    assert fallen({"a, x": 1.99, "b, y": 1.2, "c, z": 2.0}, set(), recorded) == [
        "a, x: 1.99, and 3.00 was measured before"
    ]
    assert fallen({"a, x": 3.0, "b, y": None}, {"b", "c"}, recorded) == []
    assert fallen({"a, x": 3.0, "b, y": 1.2}, set(), recorded) == ["c, z: not among the rows any more"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute and a half of CPU
def test_no_ratio_of_the_short_benchmark_has_fallen_by_a_third():
    found, recorded = measured(), json.loads(RATIOS.read_text())
    new = {name for name, ratio in found["ratios"].items() if ratio is not None} - {*recorded}
    if not torch.cpu._is_amx_tile_supported():  # those in bf16 are of AMX, or are not measured at all
        recorded = {name: ratio for name, ratio in recorded.items() if "bf16" not in name}
    assert not new, f"{', '.join(sorted(new))}: not in {RATIOS.name} yet; write it"
    if fallen(found["ratios"], found["missing"], recorded):
        found = measured()  # what was busy beside one side of a pair is hardly busy beside it twice
    assert fallen(found["ratios"], found["missing"], recorded) == []


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    known = {name: ratio for name, ratio in measured()["ratios"].items() if ratio is not None}
    before = json.loads(RATIOS.read_text()) if RATIOS.exists() else {}
    numbers = before | {name: round(ratio, 2) for name, ratio in known.items()}
    RATIOS.write_text(json.dumps(numbers, indent=1) + "\n")
