"""How runs that are compared were computed, where no field of an experiment tells it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from premed.reporting.comparison.selection import ExperimentRun
from premed.reporting.formatting import listed


def several_roundings(runs: Iterable[tuple[str, ExperimentRun]]) -> list[str]:
    """Notes if trainings had different precisions, or if some were compiled. runs: with their arms' labels."""
    precisions, compiled = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for label, run in runs:
        tags = [stage.tags for stage in run.stages.values()]
        for precision in {each.get("premed.precision") for each in tags} - {None, ""}:
            precisions[str(precision)].add(label)
        some = any(each.get("premed.compiled") == "True" for each in tags)
        compiled["with" if some else "without"].add(label)
    return [*note("in several precisions", precisions), *note("with torch.compile and without", compiled)]


def note(words: str, labels: dict[str, set[str]]) -> Sequence[str]:
    """The note, if there are several."""
    each = "; ".join(f"{name}: {listed(sorted(labels[name]))}" for name in sorted(labels))
    return [f"trained {words}, which may be what differs ({each})"] if len(labels) > 1 else []
