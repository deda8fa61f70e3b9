"""A block's rows in numbers: what each scored over its seeds, how it stands to the baseline, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from premed.config.settings import TRUNK
from premed.lineup import Block, Row
from premed.runs import Run
from premed.scorecards import LOWER_IS_BETTER, SCALES, Card
from premed.stats import SEEDS, Interval, Scale, holm, interval

LEVEL = 0.05  # of a Holm-corrected p-value, below which a row is called better or worse


def measured(block: Block, base: Mapping[float, Row], cards: Mapping[str, Card], main: str) -> dict[str, Any]:
    """A block's part of the outcome. base: the baseline's row at each label fraction; cards: by run."""
    rows = sorted(block.rows, key=lambda row: (row.fraction, row is not base.get(row.fraction), row.label))
    found = [outcome(row, base.get(row.fraction), cards, main) for row in rows]
    judged = [row["scores"][main]["difference"] for row in found if row["scores"][main]["difference"]]
    for difference, corrected in zip(judged, holm([each["p"] for each in judged]), strict=True):
        difference["p_holm"] = corrected
        difference["verdict"] = verdict(difference, main not in LOWER_IS_BETTER)
    return {"head": block.head, "notes": words(rows, found, main), "rows": found}


def outcome(row: Row, base: Row | None, cards: Mapping[str, Card], main: str) -> dict[str, Any]:
    mine = [cards[member.run.run_id] for member in row.members]
    constants = [
        member.stages["test"].metrics.get("test/constant", np.nan) for member in row.members if "test" in member.stages
    ]
    return {
        "label": row.label,
        "strategy": row.strategy,
        "encoder": row.fields.get("encoder.name", ""),
        "label_fraction": row.fraction,
        "is_baseline": row is base,
        "same_architecture": base is None or architecture(row) == architecture(base),
        "differs": row.differs,
        "num_seeds": len(row.units),
        "varied": row.varied,
        "scores": {name: score(name, row, None if row is base else base, cards) for name in mine[0].sheets},
        "counts": {name: float(np.mean([card.counts[name] for card in mine])) for name in mine[0].counts},
        "constant": float(np.mean(constants)) if constants else np.nan,
        "cost": cost(row),
        "runs": [
            {
                "run_id": member.run.run_id,
                "experiment_id": member.run.experiment_id,
                "name": member.run.name,
                "seed": member.seed,
                "pretrain_seed": member.pretrain_seed,
                "value": float(card.sheets[main].full[0]),
                "stages": {kind: stage.run_id for kind, stage in member.stages.items()},
            }
            for member, card in zip(row.members, mine, strict=True)
        ],
    }


def architecture(row: Row) -> dict[str, str]:
    return {name: value for name, value in row.fields.items() if name.startswith("encoder.")}


# ---- scores


def score(name: str, row: Row, base: Row | None, cards: Mapping[str, Card]) -> dict[str, Any]:
    """One score of a row: overall, by class, and against the baseline's."""
    full, pseudo = stacked(name, row, cards)
    sheets = [cards[member.run.run_id].sheets[name] for member in row.members]
    numbers = [number(full[:, k], pseudo[:, :, k], SCALES[name]) for k in range(full.shape[1])]
    apart: list[dict[str, Any] | None] = [None] * len(numbers)
    if base is not None:
        pairing, ours, theirs = row.paired(base, SEEDS)
        other, other_pseudo = stacked(name, base, cards)
        for k in range(len(numbers)):
            one, two = (full[ours, k], pseudo[ours, :, k]), (other[theirs, k], other_pseudo[theirs, :, k])
            apart[k] = difference(pairing, one, two)
    alone = np.any([sheet.alone for sheet in sheets], axis=0)
    classes = {
        label: numbers[k] | {"alone": bool(alone[k]), "difference": apart[k]}
        for k, label in enumerate(sheets[0].classes, start=1)
    }
    higher = name not in LOWER_IS_BETTER
    return numbers[0] | {"higher_is_better": higher, "difference": apart[0], "classes": classes}


def stacked(name: str, row: Row, cards: Mapping[str, Card]) -> tuple[np.ndarray, np.ndarray]:
    """A score by independent seed, the mean over a seed's runs: [S, 1 + K], and pseudo-values [S, P, 1 + K]."""
    units = [[cards[member.run.run_id].sheets[name] for member in members] for members in row.units.values()]
    full = np.stack([np.mean([sheet.full for sheet in sheets], axis=0) for sheets in units])
    return full, np.stack([np.mean([sheet.pseudo for sheet in sheets], axis=0) for sheets in units])


def number(full: np.ndarray, pseudo: np.ndarray, scale: Scale) -> dict[str, Any]:
    """Mean, standard deviation and interval of a score [S], from its pseudo-values [S, P]; undefined seeds left out."""
    known = ~np.isnan(full)
    if not known.any():
        return {"mean": np.nan, "std": np.nan, "interval": [np.nan, np.nan], "df": np.nan, "with_seeds": False}
    found = interval(float(full[known].mean()), [pseudo[known]], scale)
    spread = float(full[known].std(ddof=1)) if known.sum() > 1 else np.nan
    return {"mean": found.value, "std": spread} | told(found)


def difference(pairing: str, one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """One score less another, each [S] with its pseudo-values [S, P]; seeds in which one is undefined are left out."""
    known = [~np.isnan(full) for full, _ in (one, two)]
    if matched := len(one[0]) == len(two[0]) and pairing != "unpaired":
        known = [known[0] & known[1]] * 2
    (full, pseudo), (other, other_pseudo) = (
        (full[k], pseudo[k]) for k, (full, pseudo) in zip(known, (one, two), strict=True)
    )
    about = {"pairing": pairing, "num_seeds": min(len(full), len(other)), "p_holm": np.nan, "verdict": ""}
    if not len(full) or not len(other):
        return {"value": np.nan, "interval": [np.nan, np.nan], "df": np.nan, "with_seeds": False, "p": np.nan} | about
    groups = [pseudo - other_pseudo] if matched else [pseudo, -other_pseudo]
    found = interval(float(full.mean() - other.mean()), groups)
    return {"value": found.value} | told(found) | {"p": found.p} | about


def told(found: Interval) -> dict[str, Any]:
    return {"interval": [found.low, found.high], "df": found.df, "with_seeds": found.seeds}


def verdict(difference: Mapping[str, Any], higher_is_better: bool) -> str:
    """In words. The interval is for this one comparison; to be called better or worse takes the corrected p-value."""
    low, high = difference["interval"]
    if difference["value"] == 0 or low <= 0 <= high:
        return "not separable"
    if np.isnan(low):
        return "no interval"
    if difference["p_holm"] >= LEVEL:
        return "not separable after correction"
    word = "better" if (difference["value"] > 0) == higher_is_better else "worse"
    return word if difference["with_seeds"] else f"{word}, these seeds"


# ---- cost


def cost(row: Row) -> dict[str, Any]:
    """What went before fine-tuning, each run once, and the fine-tunings: seconds, device hours, peak memory.

    A pre-training is what it took to get there: the trunk's segments on its path, and the cool-down.
    """
    before, whole = {}, set()
    for member in row.members:
        for kind, stage in member.stages.items():
            if kind not in ("finetune", "test"):
                before[stage.run_id] = stage
                whole |= set() if kind.startswith(TRUNK) else {stage.run_id}
    return {
        "pretrain": spent([*before.values()]) | {"runs": len(whole)} if before else None,
        "finetune": spent([member.stages["finetune"] for member in row.members]),
    }


def spent(runs: Sequence[Run]) -> dict[str, Any]:
    seconds = [run.metrics.get("seconds", np.nan) for run in runs]
    devices = [run.tags.get("compute", "1 CPU").split(" ") for run in runs]
    kinds = {kind for _, kind in devices}
    return {
        "runs": len(runs),
        "seconds": float(np.sum(seconds)),
        "device": " and ".join(sorted(kinds)),
        "device_hours": float(
            sum(float(number) * each for (number, _), each in zip(devices, seconds, strict=True)) / 3600
        ),
        "peak_memory_mb": float(np.max([run.metrics.get("peak_memory_mb", np.nan) for run in runs])),
    }


# ---- what the numbers do not say


def words(rows: Sequence[Row], found: Sequence[Mapping[str, Any]], main: str) -> list[str]:
    """What a reader of the table must know of its rows."""
    said: list[str] = []
    if few := [row for row in rows if len(row.units) < SEEDS]:
        said.append(
            f"fewer than {SEEDS} seeds, so how another seed would come out is not in the interval: {named(few, rows)}"
        )
    once = [row for row in rows if len({member.pretrain_seed for member in row.members} - {None}) == 1]
    if once := [row for row in once if len(row.units) > 1]:
        said.append(f"one pre-training, so how another would come out is not in the interval: {named(once, rows)}")
    for row, told in zip(rows, found, strict=True):
        if not (apart := told["scores"][main]["difference"]):
            continue
        if apart["pairing"] == "unpaired":
            said.append(f"{name(row)}: its seeds are not the baseline's, compared unpaired")
        elif apart["num_seeds"] < len(row.units):
            said.append(f"{name(row)}: compared on the {apart['num_seeds']} seeds that the baseline has too")
    return said


def name(row: Row) -> str:
    return f"{row.label} at {100 * row.fraction:.4g} %"


def named(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """The names of some rows; a label alone where it is all of its rows."""
    labels = {row.label: [each for each in rows if each.label == row.label] for row in some}
    whole = {label for label, kin in labels.items() if all(each in some for each in kin)}
    return ", ".join(dict.fromkeys(row.label if row.label in whole else name(row) for row in some))
