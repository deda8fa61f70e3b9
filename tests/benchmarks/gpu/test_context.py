"""What the data sheet says, and fp32 without TF32."""

import pytest
import torch

from premed.benchmarks.gpu.context import Context, sheet_rate, tf32
from premed.benchmarks.gpu.result import GpuReport, Line
from premed.benchmarks.settings import Settings


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("", None),
    ],
)
def test_the_data_sheet_s_rate_is_known_by_the_driver_s_name(name, tera):
    assert sheet_rate(name) == (None if tera is None else tera * 1e12)


def context(gpu=""):
    made = Context(Settings(), GpuReport({"gpu": gpu}, False, 1), lambda report: None)
    made.rates |= {torch.bfloat16: 500e12, torch.float32: 50e12}
    return made


def test_mfu_is_the_work_s_flop_a_second_over_the_data_sheet_s_and_over_the_measured_products():
    shares = context("NVIDIA A100-SXM4-80GB").shares(31.2e12, 0.2, torch.bfloat16)
    assert shares == pytest.approx({"tflops": 156.0, "of_products": 156 / 500, "mfu": 0.5})
    assert context("NVIDIA A100-SXM4-80GB").shares(10e12, 1.0, torch.float32) == pytest.approx(
        {"tflops": 10.0, "of_products": 0.2}
    )
    assert "mfu" not in context("a GPU of tomorrow").shares(10e12, 1.0, torch.bfloat16)


def test_a_line_that_changes_stays_one_line():
    made, line = context(), Line("mae-3d", "beside", "measured")
    for found in ("one pair", "two pairs"):
        line.found = found
        made.tell(line)
    assert [each.found for each in made.report.lines] == ["two pairs"]


def test_tf32_is_as_it_was_afterwards():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with tf32(False):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
        with tf32(True):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
