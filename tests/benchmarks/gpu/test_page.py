"""The page, the JSON and the lines of a report of a GPU, from made-up lines."""

import json

from premed.benchmarks.gpu import page
from premed.benchmarks.gpu.result import GpuReport, Line

MACHINE = {
    **{"cpu": "A CPU", "cores": 2.0, "instructions": [], "memory_gb": 16, "python": "3.11.7", "threads": 1},
    **{"packages": {"torch": "2.11.0"}, "clock": "wall", "load": [0.1], "gpu": "NVIDIA H200"},
    **{"gpu_memory_gib": 139.8, "cuda": "13.0", "cudnn": 91900},
}
NUMBERS = {
    **{"samples_per_second": 1000.0, "samples_per_second_low": 990.0, "samples_per_second_high": 1010.0},
    **{"step_ms": 128.0, "mfu": 0.314, "of_products": 0.4, "data_wait": 0.02, "memory_gib": 12.5},
    **{"times_as_fast": 1.5, "peer_memory_gib": 20.0},
}


def report(*lines, running=""):
    return GpuReport(MACHINE, False, 8, list(lines), {"equal": 12.0}, running)


def table(text, title):
    return [line for line in text.split(f"## {title}")[1].split("\n## ")[0].splitlines() if line.startswith("|")][2:]


def test_checks_and_speeds_have_a_table_each():
    made = report(
        Line("equal", "MAE 3-D, fp32", "failed", "losses | apart\nby 1"),
        Line("mae-3d-bf16", "beside SelfMedMAE", "measured", "21 pairs", NUMBERS),
        Line("mae-2d", "beside facebookresearch/mae", "not measured", "no checkout"),
        Line("rates", "bf16 products", "measured", "790 TFLOP/s", {"tflops": 790.0}),
    )
    text = page.markdown(made)
    assert table(text, "Does it work?") == ["| equal | MAE 3-D, fp32 | failed | losses / apart by 1 |"]
    assert table(text, "How fast is it?") == [
        "| mae-3d-bf16 | beside SelfMedMAE | 1000 [990, 1010] | 128 | 31.4% | 40.0% | 2.0% | 12.50 / 20.00 "
        "| 1.5 | measured |",
        "| mae-2d | beside facebookresearch/mae |  |  |  |  |  |  |  | not measured |",
    ]
    for part in ("GPU: NVIDIA H200.", "139.8 GiB; CUDA 13.0", "0.2 of 8 minutes", "bf16 products: 790 TFLOP/s"):
        assert part in text
    assert made.failed == ["equal"]


def test_a_run_that_was_cut_off_says_in_which_row(tmp_path):
    page.write(report(Line("equal", "", "passed"), running="resume"), tmp_path / "gpu.md")
    assert "Under way: resume." in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["running"] == "resume"


def test_numbers_that_are_not_finite_are_null_in_json():
    line = Line("bf16", "UNETR", "failed", numbers={"apart": float("nan")})
    assert page.as_json(report(line))["lines"][0]["numbers"] == {"apart": None}


def test_a_line_of_the_terminal_begins_with_what_counts():
    assert page.line(Line("mae-3d", "beside X", "measured", "21 pairs", NUMBERS)) == (
        "mae-3d, beside X: measured: 1000 samples/s; 31.4% MFU; 2.0% wait; 1.50 times as fast; 21 pairs"
    )
    assert page.line(Line("memory", "", "failed", "no")) == "memory: failed: no"
