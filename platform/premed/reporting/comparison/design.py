"""The design of a comparison: sizes of training sets, seeds, what was scored; and where its runs come from.

Of a run's stages, MLflow has tags (digest, versions, fingerprints of data) and the files `result.json` and
`curve.jsonl`; what a stage no longer has is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from premed.reporting.comparison.artifacts import SCORING, curve_points, pretraining_stages, stage_result
from premed.reporting.comparison.result import ArmResult, BlockResult, TaskResult, experiments
from premed.reporting.comparison.sentences import Pretraining
from premed.reporting.formatting import counted, listed, percent
from premed.tracking.run_store import RunStore

DIGITS = 12  # of digests, as in the terminal and in --where
MANY = 6  # strategies; more are not named
PRETRAINED_ON = "pre-training"  # the part of the data that pre-training learns from


class StageRecord(NamedTuple):
    """What is known of one stage."""

    tags: Mapping[str, str]
    num_cases: int | None
    """Images that it trained on, or scored."""
    gate: Mapping[str, Any] | None
    day: str | None
    """On which its training ended: 2026-11-28, UTC."""
    selected_by: str | None = None
    """The score of val, so with labels, by which a pre-training was ended and its weights selected."""

    @property
    def digest(self) -> str:
        return self.tags.get("premed.digest", "")[:DIGITS]

    @property
    def data(self) -> dict[str, str]:
        """Fingerprints by part: train, val, test, images."""
        parts = self.tags.get("premed.data", "").split()
        return {name: digest[:DIGITS] for name, colon, digest in (part.partition(":") for part in parts) if colon}


Records = Mapping[str, StageRecord]
"""By run: those of experiments and of their stages."""


def stage_records(store: RunStore, arms: Iterable[ArmResult]) -> Records:
    ids = {
        run_id: kind
        for arm in arms
        for run in experiments(arm)
        for kind, run_id in {"experiment": run.run_id, **run.stages}.items()
    }
    with TemporaryDirectory() as folder:
        return {run_id: stage_record(store, run_id, kind, folder) for run_id, kind in ids.items()}


def stage_record(store: RunStore, run_id: str, kind: str, folder: str) -> StageRecord:
    run = store.get(run_id)
    if kind in ("experiment", "test", "import"):  # none of these trains
        return StageRecord(run.tags, None, None, None)
    recorded = stage_result(store, run, folder)
    times = [point["time"] for point in curve_points(store, run, folder) if point["time"]]
    day = datetime.fromtimestamp(max(times) / 1000, UTC).date().isoformat() if times else None
    return StageRecord(run.tags, recorded.get("num_cases"), recorded.get("gate"), day, recorded.get("selected_by"))


# ---- sizes


def trained_on(arms: Iterable[ArmResult], records: Records) -> str:
    """The sizes of the training sets of these arms' fine-tunings: `31 images`, `29–31 images`; "": not known."""
    return sizes(records[run.stages["finetune"]].num_cases for arm in arms for run in experiments(arm))


def pretrained_on(arm: ArmResult, records: Records) -> str:
    """The same of its pre-training; "" where there is none, or it is not known."""
    return sizes(records[run_id].num_cases for run in experiments(arm) for run_id in pretraining_stages(run))


def selected_by_labels(arm: ArmResult, records: Records) -> bool:
    """Whether labels of val decided how long a pre-training of it was."""
    return any(records[run_id].selected_by for run in experiments(arm) for run_id in pretraining_stages(run))


def sizes(numbers: Iterable[int | None]) -> str:
    known = sorted({number for number in numbers if number})
    if not known:
        return ""
    return f"{'–'.join(f'{each:,}' for each in dict.fromkeys([known[0], known[-1]]))} image{'s' * (known[-1] != 1)}"


def pretrainings(arms: Sequence[ArmResult], records: Records) -> dict[str, Pretraining]:
    """By label: the pre-training of an arm's first run, where it is known."""
    found = {}
    for arm in arms:
        for run_id in pretraining_stages(arm.runs[0]):
            if (record := records[run_id]).num_cases:
                gate = record.gate or {}
                about = {name: gate[name] for name in Pretraining._fields[1:] if name in gate}
                found[arm.label] = Pretraining(record.num_cases, **about)
    return found


# ---- in a sentence


def design_sentence(task: TaskResult, block: BlockResult, records: Records) -> str:
    """Who was compared, on how many seeds, trained and scored on what."""
    arms = block.rows
    labels = list(dict.fromkeys(arm.label for arm in arms))
    who = listed(labels) if len(labels) <= MANY else f"{len(labels)} arms"
    seeds = sorted({arm.num_seeds for arm in arms})
    each = " each" if len(arms) > 1 else ""
    number = counted(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    encoders = listed({arm.encoder for arm in arms if arm.encoder})
    network = ", ".join(
        filter(None, [f"encoder {encoders}" if encoders else "", f"head {block.head}" * bool(block.head)])
    )
    before = listed({size for arm in arms if (size := pretrained_on(arm, records))})
    words = f"{who}, {number}{each}" + (f" ({network})" if network else "")
    words += f", fine-tuned on {fractions_in_words(arms, records)}"
    words += f", pre-trained on {before}" if before else ""
    scored = f"{counted(task.num_cases, 'case')} of {counted(task.num_patients, 'patient')}"
    if task.num_folds > 1:
        where = f"in {task.num_folds} folds, each by networks without its patients"
        return f"{words}; all scored on the same {scored}, {where}"
    return f"{words}; all scored on the same {scored}, the {task.part} part{PARTS.get(task.part, '')}"


PARTS = {
    "test": ", which no training and no choice of weights has seen",
    "val": ", which selected the weights: these numbers are optimistic",
}


def fractions_in_words(arms: Sequence[ArmResult], records: Records) -> str:
    """`16 images (5 % of the labels) and 320 images (100 %)`."""
    words = []
    for fraction in sorted({arm.label_fraction for arm in arms}):
        size = trained_on([arm for arm in arms if arm.label_fraction == fraction], records)
        of = percent(fraction) + ("" if words else " of the labels")
        words.append(f"{size} ({of})" if size else of)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# ---- where it comes from


def provenance(tasks: Sequence[TaskResult], records: Records, written: datetime, version: str) -> list[tuple[str, str]]:
    """(what, in words): when the page was written and its runs trained, with which versions, and on which data."""
    days = sorted({record.day for record in records.values() if record.day})
    lines = [("page written", f"{written:%Y-%m-%d %H:%M} UTC, by premed {version}")]
    if days:
        lines.append(("fine-tunings and pre-trainings ended", " to ".join(dict.fromkeys([days[0], days[-1]]))))
    versions: dict[str, set[str]] = {}
    for record in records.values():
        for tag, value in record.tags.items():
            if tag.startswith("version."):
                versions.setdefault(tag.removeprefix("version."), set()).add(value)
    if versions:
        lines.append(("versions", ", ".join(f"{name} {listed(some)}" for name, some in versions.items())))
    if commits := {tag for each in records.values() if (tag := each.tags.get("mlflow.source.git.commit"))}:
        lines.append(("premed's commit", listed(commits)))
    for task in tasks:
        parts: dict[str, set[str]] = {}
        for run in (run for block in task.blocks for arm in block.rows for run in experiments(arm)):
            for kind, run_id in run.stages.items():
                of_data = records[run_id].data
                shown = of_data if kind in SCORING else {PRETRAINED_ON: of_data.get("images", "")}
                for part, digest in shown.items():
                    parts.setdefault(part, set()).update(filter(None, [digest]))
        if words := [f"{part} {listed(some)}" for part, some in parts.items() if some]:
            lines.append((f"data of {task.task}", ", ".join(words)))
    return lines
