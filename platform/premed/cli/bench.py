"""`premed bench`: what premed does beside what a user would use instead."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from premed.cli.options import Json, loading, print_result, redirect_prints, tell_written

Rows = Annotated[list[str] | None, typer.Argument(metavar="ROW…", help="these alone [default: all]")]
Short = Annotated[bool, typer.Option("--short", help="small sizes, about a minute: does it work, did a ratio fall?")]
Pairs = Annotated[int | None, typer.Option(min=1, metavar="N", help="of each row [default: 7; with --short 3]")]
Threads = Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads; with one, CPU seconds are compared")]
PeerMae = Annotated[
    Path | None, typer.Option(metavar="DIR", envvar="PREMED_PEER_MAE", help="a checkout of facebookresearch/mae")
]
PeerSelfmedmae = Annotated[
    Path | None, typer.Option(metavar="DIR", envvar="PREMED_PEER_SELFMEDMAE", help="a checkout of SelfMedMAE")
]
To = Annotated[Path | None, typer.Option(metavar="FILE", help="a Markdown page, written anew after each pair")]
Listed = Annotated[bool, typer.Option("--list", help="measure nothing; print the rows")]


def bench(
    rows: Rows = None,
    short: Short = False,
    pairs: Pairs = None,
    threads: Threads = 1,
    peer_mae: PeerMae = None,
    peer_selfmedmae: PeerSelfmedmae = None,
    to: To = None,
    listed: Listed = False,
    as_json: Json = False,
) -> None:
    """Measure premed beside MONAI, torchvision, SelfMedMAE and MAE, in pairs, after asserting that both do the same.

    Peers are checkouts of others' code, which is run; a row without its peer says so. For example:

    premed bench --short --to speed.md
    """
    from premed.benchmarks.rows import ROWS, chosen

    selected = chosen(rows or ())
    if listed:
        found = [row._asdict() for row in ROWS]
        lines = "\n".join(f"{row.name:15} {row.what}; beside {row.peers}" for row in ROWS)
        print_result({"rows": found}, as_json, lambda _: print(lines))
        return
    with loading():
        from premed.benchmarks import bench, page
        from premed.benchmarks.peers import refuse_others
        from premed.benchmarks.settings import Settings

    if to is not None:
        page.refuse(to)
    given = refuse_others({"mae": peer_mae, "selfmedmae": peer_selfmedmae})
    settings = Settings(short=short, pairs=pairs or (3 if short else 7), threads=threads, peers=given)

    def changed(report: Any, complete: bool) -> None:
        if to is not None:
            page.write(report, to)
        if complete:
            print(page.line(report.results[-1]), file=sys.stderr if as_json else sys.stdout, flush=True)

    bench.settle(settings)
    try:
        with redirect_prints(as_json):
            report = bench.run(settings, selected, changed)
    except KeyboardInterrupt:
        measured = (
            "nothing was written; --to FILE keeps what was measured" if to is None else f"{to} has what was measured"
        )
        raise KeyboardInterrupt(f"stopped; {measured}") from None
    if as_json:
        results = [asdict(each) | {"numbers": each.numbers()} for each in report.results]
        print_result(asdict(report) | {"results": results}, as_json, print)
    tell_written(to)
    if report.differing:
        raise typer.Exit(1)
