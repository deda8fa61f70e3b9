"""`premed run`: trains, or with `--estimate` measures what that would take."""

import sys
from typing import Any

from premed.cli.options import load_command, loading, print_outcomes, print_result, redirect_prints


def run(what: list[str], as_json: bool) -> None:
    """Runs the experiments, and prints their outcomes."""
    with loading(what):
        experiments, decide = load_command(what)
        from premed.cli.progress import ProgressPrinter
        from premed.execution import runner
        from premed.reporting.outcomes import show_outcomes

    if decide is not None:
        from premed.execution import sequential

        with ProgressPrinter() as show, redirect_prints(as_json):
            result: Any = sequential.run_until_decided(experiments, decide, show)
        print_outcomes(result["outcomes"], as_json, result, lambda result: print(result["decision"]["words"]))
    elif len(experiments) == 1:
        with ProgressPrinter() as show, redirect_prints(as_json):
            outcome = runner.run(experiments[0], show)
        print_result(outcome, as_json, lambda outcome: show_outcomes([outcome]))
    else:
        with ProgressPrinter() as show, redirect_prints(as_json):
            outcomes = runner.run_all(experiments, show)
        print_outcomes(outcomes, as_json)


def estimate(what: list[str], as_json: bool) -> None:
    """Measures what the experiments take, and prints it. Raises UserError for what cannot fit."""
    with loading(what):
        experiments, _ = load_command(what)
        from premed.execution.estimate import estimate
        from premed.reporting import console

    with redirect_prints(as_json):
        result = estimate(experiments, lambda line: print(line, file=sys.stderr))
    print_result(result, as_json, console.show_estimate)
