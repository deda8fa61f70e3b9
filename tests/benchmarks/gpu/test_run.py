"""`premed bench --gpu` row by row: what fails, what is left out, and what the deadline leaves."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.bare import PREMED_WITHOUT_RAY, WITHOUT_RAY
from support.tasks import refused
from typer.testing import CliRunner

from premed.benchmarks import bench
from premed.benchmarks.gpu import rows, run
from premed.benchmarks.gpu.rows import ROWS, GpuRow, chosen
from premed.benchmarks.settings import NotTheSame, Settings
from premed.cli.app import app

SETTINGS = Settings(short=True, pairs=1)


class Made(GpuRow):
    """A row that does what `where` is."""

    def measure(self, context):
        self.where(context)


def made(work, name="made-up", check=True, least=0.0):
    return Made(name, "nothing", work, least, check)


def told(*wanted, minutes=1.0, settings=SETTINGS):
    """The lines of these rows, and what each call of `changed` had seen of them."""
    seen = []
    report = run.run(settings, wanted, minutes, lambda report: seen.append((report.running, len(report.lines))))
    return [(line.row, line.state, line.found) for line in report.lines], seen, report


def fine(context):
    context.line("a network", "passed", "it is so")


def raising(error):
    def work(context):
        context.line("a network", "measured", "before it")
        raise error

    return work


def test_every_row_is_where_the_list_says():
    import importlib

    for each in ROWS:
        module, function = each.where.split(".")
        assert callable(getattr(importlib.import_module(f"premed.benchmarks.gpu.{module}"), function)), each
    assert [row.name for row in chosen(["memory", "equal"])] == ["equal", "memory"]
    refused(lambda: chosen(["equals"]), "equals", "equal, bf16")


def test_a_row_that_fails_is_a_line_and_the_others_are_measured():
    failing = [ValueError("two\nlines"), NotTheSame("losses 1 and 2")]
    lines, seen, report = told(*(made(raising(error)) for error in failing), made(fine, "next"))
    assert [line for line in lines if line[2] != "before it"] == [
        ("made-up", "failed", "ValueError: two"),
        ("made-up", "failed", "premed and the peer do not do the same work: losses 1 and 2"),
        ("next", "passed", "it is so"),
    ]
    assert report.failed == ["made-up"]
    assert seen[:4] == [("made-up", 0), ("made-up", 1), ("made-up", 2), ("made-up", 2)]  # told after each line


def test_a_speed_that_does_not_fit_in_memory_is_not_measured_and_a_check_fails():
    error = torch.OutOfMemoryError("CUDA out of memory")
    lines, *_ = told(made(raising(error), "speed", check=False), made(raising(error), "check"))
    assert [(row, state) for row, state, found in lines if "out of memory" in found] == [
        ("speed", "not measured"),
        ("check", "failed"),
    ]


def test_a_row_for_which_no_time_is_left_is_left_out():
    speed, check = made(fine, "speed", check=False, least=99), made(fine, "check", least=99)
    lines, _, report = told(speed, check, made(fine), settings=Settings())
    assert [state for _, state, _ in lines] == ["not measured", "failed", "passed"]
    assert "about 99 s" in lines[0][2] and report.failed == ["check"]


def test_the_deadline_ends_a_row_and_what_was_measured_stays():
    def endless(context):
        fine(context)
        while True:
            signal.pause()

    lines, seen, report = told(made(endless, "endless"), made(fine, "next"), minutes=0.005)
    assert lines == [
        ("endless", "passed", "it is so"),
        ("endless", "failed", "the time was up while it was measured"),
        ("next", "failed", "the time was up"),
    ]
    assert seen[-1] == ("", 3) and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32


def test_without_a_gpu_it_is_refused_and_told_who_knows_why(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: run.settle(Settings(device="cuda")), "--gpu", "premed doctor")


def test_its_rows_are_listed():
    done = CliRunner().invoke(app, ["bench", "--gpu", "--list", "--json"])
    assert [row["name"] for row in json.loads(done.stdout)["rows"]] == [row.name for row in ROWS]


def test_the_page_is_written_and_the_exit_code_says_whether_a_check_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)
    page = tmp_path / "here.md"

    def invoke(work):
        monkeypatch.setattr(rows, "ROWS", (made(work),))
        return CliRunner().invoke(app, ["bench", "--gpu", "--short", "--device", "cpu", "--to", str(page)])

    done = invoke(fine)
    assert done.exit_code == 0, done.output
    assert json.loads(page.with_suffix(".json").read_text())["lines"][0]["found"] == "it is so"
    done = invoke(raising(ValueError("no")))
    assert done.exit_code == 1 and "failed: made-up" in done.stderr
    assert json.loads(page.with_suffix(".json").read_text())["failed"] == ["made-up"]


HANGING = """
import signal
from premed.benchmarks.gpu import page, run
from premed.benchmarks.gpu.rows import GpuRow
from premed.benchmarks.settings import Settings
from pathlib import Path

class Hangs(GpuRow):
    def measure(self, context):
        context.line("a network", "passed", "before it hung")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # a library that never comes back
        while True:
            signal.pause()

run.GRACE = 0.1
rows = [Hangs("hangs", "", "", 0.0, True)]
run.run(Settings(short=True), rows, 0.005, lambda report: page.write(report, Path(sys.argv[1])))
"""


@pytest.mark.slow  # a process that imports torch
def test_what_never_comes_back_ends_with_the_process_and_the_page_stays(tmp_path):
    command = [sys.executable, "-c", WITHOUT_RAY + HANGING, str(tmp_path / "gpu.md")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "a row does not end" in done.stdout) == (1, True), done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [line["found"] for line in found["lines"]] == ["before it hung"] and found["running"] == "hangs"


@pytest.mark.slow  # two minutes of CPU
@pytest.mark.timeout(900)
def test_all_rows_run_without_a_gpu_ray_mlflow_and_optuna(tmp_path):
    command = [
        sys.executable,
        "-c",
        PREMED_WITHOUT_RAY,
        "bench",
        "--gpu",
        "--short",
    ]
    command += ["--device", "cpu", "--minutes", "14", "--pairs", "1", "--json", "--to", str(tmp_path / "gpu.md")]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(dict.fromkeys(line["row"] for line in found["lines"])) == [row.name for row in ROWS]
    states = {row: {line["state"] for line in found["lines"] if line["row"] == row} for row in found["seconds"]}
    assert {row for row, state in states.items() if state == {"passed"}} == {
        "equal",
        "bf16",
        "resume",
        "views",
        "memory",
    }
    assert {row for row, state in states.items() if state == {"measured"}} >= {"rates", "training", "deterministic"}
    speeds = [line["numbers"] for line in found["lines"] if line["row"] == "training"]
    assert len(speeds) == 9 and all(each["samples_per_second"] > 0 for each in speeds)
    assert sum("data_wait" in each for each in speeds) == 6 and sum("memory_gib" in each for each in speeds) == 3
    text = (tmp_path / "gpu.md").read_text()
    assert "| memory | MAE 3-D, fp32, 128 images a step | passed |" in text and "Under way" not in text
    assert sum(found["seconds"].values()) <= time.monotonic() - began
