"""`premed compare`: the rows of a line-up measured, set against a baseline, and what they cost. docs/compare.md."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from premed.config.settings import TRUNK
from premed.contenders import Member, chosen, counted, gather, known, listed, scored
from premed.contracts import Part
from premed.contrast import architecture, measured
from premed.errors import UserError
from premed.lineup import Block, Row, lineup
from premed.paths import home
from premed.runs import RunStore
from premed.scorecards import Card, card
from premed.tracking import masked

NOBODY = "none"  # the baseline, unless another is named


def compare(
    store: RunStore,
    *,
    task: str | None = None,
    baseline: str | None = None,
    allow: Sequence[str] = (),
    where: Sequence[str] = (),
    part: Part | None = None,
) -> dict[str, Any]:
    """Everything that can be told of the store's experiments, by task; UserError where they cannot be compared."""
    members, notes = gather(store, task)
    if not members:
        why = f"; {notes[0]}" if notes else ""
        raise UserError(f"{masked(store.uri)}: holds no finished run to compare{why}; premed run makes one")
    allow = [known(members, field, "--allow") for field in allow]
    members = chosen(members, where)
    names = sorted({member.task for member in members})
    tasks = [told(store, [m for m in members if m.task == name], baseline, allow, part) for name in names]
    if baseline and not any(each["baseline"] for each in tasks):
        labels = {row["label"] for each in tasks for block in each["blocks"] for row in block["rows"]}
        raise UserError(f"--baseline {baseline}: no run is called so; there are {listed(labels)}")
    return {"part": part or ("test" if any(each["part"] == "test" for each in tasks) else "val")} | {
        "notes": notes,
        "tasks": tasks,
    }


def store_in_use() -> RunStore:
    """The store that `premed run` writes to; UserError where there is none yet."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and not Path(path := uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"{path} is not there yet: run something first, or set PREMED_HOME")
    return RunStore(uri, str(home() / "artifacts") if uri.startswith("sqlite") else None)


# ---- one task


def told(
    store: RunStore, members: list[Member], baseline: str | None, allow: Sequence[str], part: Part | None
) -> dict[str, Any]:
    """A task's part of the outcome."""
    name = members[0].task
    used, members, notes = scored(members, part)
    blocks, more = lineup(members, used, allow)
    notes += more
    score = next((m.run.tags["score"] for m in members if "score" in m.run.tags), None)
    cards = cards_of(store, members, used, score)
    bases = [base_of(block, baseline or NOBODY) for block in blocks]
    refuse_heads(name, blocks, bases)
    if not any(bases) and baseline is None:
        notes.append(f"no run of {NOBODY}, so there is nothing to set the others against; --baseline names another")
    first = next(iter(cards.values()))
    main = first.score
    outcomes = [measured(block, base, cards, main) for block, base in zip(blocks, bases, strict=True)]
    rows = [row["scores"][main]["classes"] for block in outcomes for row in block["rows"]]
    if alone := {label for classes in rows for label, each in classes.items() if each["alone"]}:
        notes.append(f"hangs on one patient, so how it is in others is not in the interval: {listed(alone)}")
    return {
        "task": name,
        "part": used,
        "score": main,
        "classes": list(first.sheets[main].classes),
        "num_cases": len(first.cases),
        "num_patients": first.num_patients,
        "baseline": (baseline or NOBODY) if any(bases) else None,
        "notes": notes + shared(blocks),
        "blocks": outcomes,
    }


def cards_of(store: RunStore, members: list[Member], part: Part, score: str | None) -> dict[str, Card]:
    """What each member scored, by its run; all on the same cases."""
    cards: dict[str, Card] = {}
    for member in members:
        stage = member.stages["test" if part == "test" else "finetune"]
        cards[member.run.run_id] = mine = card(store.columns(stage), score, f"{part}/accuracy" in member.run.metrics)
        first = next(iter(cards.values()))
        if not np.array_equal(mine.cases, first.cases):
            raise UserError(
                f"{member.task}: the run {stage.run_id} has scores of other cases than the rest; "
                f"leave it out (--where) or run it again"
            )
    return cards


def base_of(block: Block, name: str) -> dict[float, Row]:
    """The baseline's row at each label fraction; of several architectures the one that most of the block has."""
    called = [row for row in block.rows if name in (row.label, row.strategy)]
    exact = [row for row in called if row.label == name] or called
    usual = usual_architecture(block)
    exact = [row for row in exact if architecture(row) == usual] or exact
    if len(labels := {row.label for row in exact}) > 1:
        raise UserError(f"--baseline {name}: may be {listed(labels, 'or')}; name one of them")
    return {row.fraction: row for row in exact}


def usual_architecture(block: Block) -> dict[str, str]:
    """The one that most strategies, and then most runs, have."""

    def having(row: Row) -> tuple[int, int, str]:
        kin = [each for each in block.rows if architecture(each) == architecture(row)]
        return len({each.strategy for each in kin}), sum(len(each.members) for each in kin), row.label

    return architecture(max(block.rows, key=having))


def refuse_heads(task: str, blocks: list[Block], bases: list[dict[float, Row]]) -> None:
    """Another head is a block of its own, unless that keeps a strategy from the baseline altogether."""
    with_base = {row.strategy for block, base in zip(blocks, bases, strict=True) if base for row in block.rows}
    for block, base in zip(blocks, bases, strict=True):
        if with_base and not base and (lost := {row.strategy for row in block.rows} - with_base):
            heads = ", ".join(
                f"{each.head} ({counted(sum(len(row.members) for row in each.rows), 'run')})" for each in blocks
            )
            raise UserError(
                f"{task}: runs differ in finetune.head.name: {heads}, and {listed(lost)} has no baseline with its own; "
                f"--where finetune.head.name={blocks[0].head} or --allow finetune.head"
            )


def shared(blocks: list[Block]) -> list[str]:
    """Which pre-trainings stand in the cost of several rows."""
    rows: dict[str, set[str]] = {}
    for row in chain.from_iterable(block.rows for block in blocks):
        for kind, ids in first_stages(row).items():
            for run_id in ids:
                rows.setdefault(f"{kind} {run_id}", set()).add(f"{row.label} at {row.fraction}")
    many = [key for key, some in rows.items() if len(some) > 1]
    trunk = [key for key in many if key.startswith(TRUNK)]
    numbers = {"pre-training": len(many) - len(trunk), "trunk segment": len(trunk)}
    told = [counted(number, word) for word, number in numbers.items() if number]
    return [f"{each} served several rows and stand in the cost of each" for each in told]


def first_stages(row: Row) -> dict[str, set[str]]:
    """The runs of what came before fine-tuning, by kind."""
    kinds = {kind for member in row.members for kind in member.stages} - {"finetune", "test"}
    return {
        kind: {member.stages[kind].run_id for member in row.members if kind in member.stages} for kind in sorted(kinds)
    }
