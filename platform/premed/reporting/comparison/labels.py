"""What an arm is called: its strategy, and what tells it apart: architecture, weights, head, policy, other fields."""

from collections.abc import Sequence

from premed.reporting.comparison.selection import FRACTION, SEEDS, SOURCE, ExperimentRun

ENCODER, POLICY, HEADS, INIT = "encoder.", "finetune.policy.", "finetune.head.", "pretext.init."
MODEL, WEIGHTS = "pretext.model", "data.weights"
ABSENT = "not set"


def label(run: ExperimentRun, siblings: Sequence[ExperimentRun], runs: Sequence[ExperimentRun]) -> str:
    """The label of a run's arm. siblings: the runs of its strategy; runs: all that stand in one table with it.

    Architecture and policy are named where any of these runs has another one; weights, head and other fields where a
    sibling has.
    """
    words = [run.fields["strategy"], *weights(run, siblings)]
    for prefix, others in ((ENCODER, runs), (HEADS, siblings), (POLICY, runs)):
        words += aspect(prefix, run, others)
    of = sources(run.fields)
    if several := len({sources(each.fields) for each in siblings}) > 1:
        words.append(f"sources={of}")
    covered = (ENCODER, HEADS, POLICY, INIT, MODEL, *((SOURCE, "data.images") if several else ()))
    left_out = {"pretext.init", *([WEIGHTS] if weights_are_known_by_name(siblings) else [])}
    rest = [name for name in differing(siblings) if not name.startswith(covered) and name not in left_out]
    return " ".join([*words, *(setting(name, run) for name in rest)])


def differing(runs: Sequence[ExperimentRun]) -> list[str]:
    """The fields in which runs differ, but for seeds and the label fraction."""
    names = sorted({name for run in runs for name in run.fields if name not in (*SEEDS, FRACTION)})
    return [name for name in names if len({run.fields.get(name) for run in runs}) > 1]


def aspect(prefix: str, run: ExperimentRun, runs: Sequence[ExperimentRun]) -> list[str]:
    """A plug-in's name if others have another one, and those of its fields in which others of that name differ."""
    if not any(name.startswith(prefix) for name in differing(runs)):
        return []
    name = named(prefix, run)
    same = [each for each in runs if named(prefix, each) == name]
    words = [name] if len(same) < len(runs) else []
    fields = [each for each in differing(same) if each.startswith(prefix) and each in run.fields]
    return [*words, *(setting(each, run) for each in fields)]


def named(prefix: str, run: ExperimentRun) -> str:
    """`vit`, `lora`; of a plug-in that builds several networks by their names (`timm`), which one."""
    return run.fields.get(f"{prefix}model", run.fields.get(f"{prefix}name", ABSENT))


def weights(run: ExperimentRun, siblings: Sequence[ExperimentRun]) -> list[str]:
    """Whose weights it starts from, where siblings start from others: `dinov2-b`; of a pre-training `from dinov2-b`."""
    names = differing(siblings)
    words = [run.fields.get(MODEL, ABSENT)] if MODEL in names else []
    if any(name.startswith(INIT) for name in names):
        model = run.fields.get(f"{INIT}model", "")
        same = [each for each in siblings if each.fields.get(f"{INIT}model", "") == model]
        words += ["from", model or "scratch"] if len(same) < len(siblings) else []
        words += [setting(name, run) for name in differing(same) if name.startswith(INIT) and name in run.fields]
    return words


def weights_are_known_by_name(siblings: Sequence[ExperimentRun]) -> bool:
    """Whether the names of models tell their files apart."""
    of_model: dict[tuple[str, ...], set[str]] = {}
    for run in siblings:
        model = tuple(run.fields.get(name, "") for name in (MODEL, f"{INIT}model"))
        of_model.setdefault(model, set()).add(run.fields.get(WEIGHTS, ""))
    return len(of_model) > 1 and all(len(files) == 1 for files in of_model.values())


def setting(name: str, run: ExperimentRun) -> str:
    """`mask_ratio=0.5`."""
    return f"{name.rpartition('.')[2]}={run.fields.get(name, ABSENT)}"


def sources(fields: dict[str, str]) -> str:
    """The data sets that a pre-training names, in short: `X-ray+MRI`; `own` where it names none."""
    names: list[str] = []
    while f"{SOURCE}{len(names)}.task.name" in fields:
        source = [fields.get(f"{SOURCE}{len(names)}.{name}", "None") for name in ("group", "task.folder", "task.name")]
        names.append(next(name for name in source if name != "None"))
    return "+".join(names) or "own"
