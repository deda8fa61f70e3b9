"""The page and the lines of a report, from made-up results."""

import re

import pytest
from support.tasks import refused

from premed.benchmarks import page
from premed.benchmarks.result import Floor, Report, Result, Target, Times

MACHINE = {
    "cpu": "A CPU",
    "cores": 2.0,
    "instructions": ["avx2", "amx_bf16"],
    "memory_gb": 16,
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
    "threads": 1,
    "clock": "cpu",
    "load": [0.1, 1.3],
}


def result(ours=(2.0, 2.0, 2.0), theirs=(3.0, 4.0, 5.0), **fields) -> Result:
    made = Result("scores", "MONAI", unit="a case", sizes="13 classes", same="equal scores", **fields)
    made.ours, made.theirs = ([Times(cpu, 2 * cpu) for cpu in side] for side in (ours, theirs))
    return made


def report(*results, short=False) -> Report:
    return Report(MACHINE, short, list(results), {"scores": 1.25})


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_a_row_of_the_table_has_times_ratio_floor_and_target():
    floor = Floor("3 MB at 1 GB/s", 0.5)
    text = page.markdown(report(result(floor=floor, target=Target(1.1, 1.5))))
    _, _, line = lines(text)
    assert line == "| scores | MONAI | 2 s | 4 s | 2.00 × [1.75, 2.25] | 25 % | 1.1 / 1.5 × |"
    about = text.split("**scores**")[1]
    for part in ("a case; 13 classes", "Asserted: equal scores", "3 pairs", "3 MB at 1 GB/s, 500 ms", "1.2 minutes"):
        assert part in about
    assert "By the clock: 2.00 × [1.75, 2.25]" in about


def test_what_was_not_measured_says_why_and_has_no_number():
    missing = Result("mae-2d", "facebookresearch/mae", not_measured="no checkout is given")
    text = page.markdown(report(missing))
    assert lines(text)[-1] == "| mae-2d | facebookresearch/mae | not measured |  |  |  |  |"
    assert "not measured: no checkout is given" in text
    assert page.line(missing) == "mae-2d, facebookresearch/mae: not measured: no checkout is given"


def test_without_a_peer_there_is_a_time_and_no_ratio():
    alone = result(theirs=(), floor=Floor("python -c pass", 0.02), target=Target(1, 0.3, "s"))
    assert lines(page.markdown(report(alone)))[-1] == "| scores | MONAI | 2 s |  |  | 1 % | 1 / 0.3 s |"
    assert page.line(alone) == "scores, MONAI: 2 s for a case; the floor is 1 % of it"


def test_the_machine_is_told_without_its_name_or_a_path():
    text = page.markdown(report(result()))
    for part in (
        "A CPU, 2 cores, avx2, amx_bf16, 16 GB",
        "torch 2.15.0",
        "Threads: 1",
        "0.1 at the start, 1.3 at the end",
    ):
        assert part in text
    assert "small sizes" not in text.lower()
    assert "Small sizes" in page.markdown(report(result(), short=True))


def test_the_machine_here_is_described_without_its_name(tmp_path):
    import platform

    from premed.benchmarks.machine import describe
    from premed.benchmarks.settings import Settings

    text = page.of_machine(describe(Settings()))
    assert re.search(r"torch \d", text) and platform.node() not in text and "/" not in text


def test_the_page_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "speed.md"
    page.write(report(result()), path)
    before = path.read_text()
    assert before == page.markdown(report(result()))
    monkeypatch.setattr(page, "markdown", lambda report: "\ud800")  # cannot be encoded: fails in the middle
    with pytest.raises(UnicodeEncodeError):
        page.write(report(), path)
    assert path.read_text() == before and [each.name for each in tmp_path.iterdir()] == ["speed.md"]


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    refused(lambda: page.refuse(tmp_path / "nowhere" / "speed.md"), "--to", "nowhere", "give a file")
    refused(lambda: page.refuse(tmp_path), "--to", "give a file")
    page.refuse(tmp_path / "speed.md")


def test_a_share_is_told_in_plain_digits():
    assert [page.percent(share) for share in (0.0042, 0.094, 0.87, 0.996, 1.02)] == [
        "0.42 %",
        "9.4 %",
        "87 %",
        "100 %",
        "102 %",
    ]
