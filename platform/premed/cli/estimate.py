"""`premed run --estimate`."""

from collections.abc import Sequence
from typing import Any

from premed.cli.options import print_result, redirect_prints


def show_estimate(experiments: Sequence[Any], as_json: bool) -> None:
    """Measures what the experiments take, and prints it. Raises UserError for what cannot fit."""
    from premed.cli.progress import ProgressPrinter
    from premed.execution.estimate import estimate
    from premed.reporting import console

    with ProgressPrinter() as show, redirect_prints(as_json):
        result = estimate(experiments, show)
    print_result(result, as_json, console.show_estimate)
