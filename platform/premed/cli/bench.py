"""`premed bench`: what premed does beside what a user would use instead, and whether a GPU does what a CPU does."""

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
Gpu = Annotated[bool, typer.Option("--gpu", help="does premed work on this GPU, and how fast? Other rows; see --list")]
Minutes = Annotated[float, typer.Option(min=0.01, metavar="N", help="with --gpu: it ends after so many minutes")]
Device = Annotated[str, typer.Option(hidden=True, help="with --gpu: in place of cuda; cpu runs its rows without a GPU")]
Listed = Annotated[bool, typer.Option("--list", help="measure nothing; print the rows")]


def bench(
    rows: Rows = None,
    short: Short = False,
    pairs: Pairs = None,
    threads: Threads = 1,
    peer_mae: PeerMae = None,
    peer_selfmedmae: PeerSelfmedmae = None,
    to: To = None,
    gpu: Gpu = False,
    minutes: Minutes = 8,
    device: Device = "cuda",
    listed: Listed = False,
    as_json: Json = False,
) -> None:
    """Measure premed beside MONAI, torchvision, SelfMedMAE and MAE, in pairs, after asserting that both do the same.

    Peers are checkouts of others' code, which is run; a row without its peer says so. For example:

    premed bench --short --to speed.md

    premed bench --gpu --minutes 8 --to gpu.md
    """
    peers = {"mae": peer_mae, "selfmedmae": peer_selfmedmae}
    if gpu:
        bench_gpu(rows, short, pairs, threads, peers, to, minutes, device, listed, as_json)
    else:
        bench_beside_others(rows, short, pairs, threads, peers, to, listed, as_json)


def bench_beside_others(
    rows: list[str] | None,
    short: bool,
    pairs: int | None,
    threads: int,
    peers: dict[str, Path | None],
    to: Path | None,
    listed: bool,
    as_json: bool,
) -> None:
    """`premed bench` without --gpu: exit code 1 if premed and a peer do not do the same work."""
    from premed.benchmarks.rows import ROWS, chosen

    selected = chosen(rows or ())
    if listed:
        list_rows(ROWS, [f"{row.name:15} {row.what}; beside {row.peers}" for row in ROWS], as_json)
        return
    with loading():
        from premed.benchmarks import bench, page
        from premed.benchmarks.peers import refuse_others
        from premed.benchmarks.settings import Settings

    if to is not None:
        page.refuse(to)
    given = refuse_others(peers)
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


def list_rows(rows: Any, lines: list[str], as_json: bool) -> None:
    """Prints the rows that there are."""
    print_result({"rows": [row._asdict() for row in rows]}, as_json, lambda _: print("\n".join(lines)))


def bench_gpu(
    rows: list[str] | None,
    short: bool,
    pairs: int | None,
    threads: int,
    peers: dict[str, Path | None],
    to: Path | None,
    minutes: float,
    device: str,
    listed: bool,
    as_json: bool,
) -> None:
    """`premed bench --gpu`: exit code 1 if a check failed, or was not reached."""
    from premed.benchmarks.gpu.rows import ROWS, chosen

    selected = chosen(rows or ())
    if listed:
        list_rows(ROWS, [f"{row.name:15} {row.what}" for row in ROWS], as_json)
        return
    with loading():
        from premed.benchmarks.gpu import page, run
        from premed.benchmarks.page import refuse
        from premed.benchmarks.peers import refuse_others
        from premed.benchmarks.settings import Settings

    to = to or Path("gpu.md")
    for file in (to, page.json_path(to)):
        refuse(file)
    settings = Settings(short, pairs or (2 if short else 21), threads, device, refuse_others(peers))
    run.settle(settings)
    shown = 0

    def changed(report: Any) -> None:
        nonlocal shown
        page.write(report, to)
        changing = any(line.row == report.running for line in report.lines[-1:])
        ended = report.lines[:-1] if changing else report.lines
        for found in ended[shown:]:
            print(page.line(found), file=sys.stderr if as_json else sys.stdout, flush=True)
        shown = max(shown, len(ended))

    try:
        with redirect_prints(as_json):
            report = run.run(settings, selected, minutes, changed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {to} has what was measured") from None
    if as_json:
        print_result(page.as_json(report), as_json, print)
    tell_written(to, page.json_path(to))
    if report.failed:
        print(f"premed: failed: {', '.join(report.failed)}", file=sys.stderr)
        raise typer.Exit(1)
