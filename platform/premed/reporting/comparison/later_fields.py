"""Fields that came later than some of the runs that are compared: at their defaults they tell nothing apart.

A stage's digest leaves out an added field's default, so that older stages count; the parameters of a run in MLflow hold
all fields that there were.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from premed.config.plugins import plugin
from premed.config.settings import Finetune, Pretrain
from premed.config.spec import Spec, is_added
from premed.reporting.comparison.selection import ExperimentRun
from premed.tracking.entities import flatten

PLUGINS = {"finetune.head": "heads", "task": "tasks", "encoder": "encoders", "pretext": "pretext"}
SETTINGS: dict[str, type[Spec]] = {"finetune": Finetune, "pretrain": Pretrain}


def without_later_defaults(runs: list[ExperimentRun]) -> list[ExperimentRun]:
    """The runs without the fields at their defaults that some of them lack, because these are older."""
    later: dict[str, dict[str, str]] = {}  # by the id of a run: what it may leave out
    for section in (*PLUGINS, *SETTINGS):
        for name, some in by_plugin(runs, section).items():
            if names := lacked(some, section):  # only then: importing plug-ins takes seconds
                left_out = {field: value for field, value in defaults(section, name).items() if field in names}
                for run in some:
                    later.setdefault(run.run.run_id, {}).update(left_out)
    return [
        replace(run, fields={name: value for name, value in run.fields.items() if left_out.get(name) != value})
        if (left_out := later.get(run.run.run_id))
        else run
        for run in runs
    ]


def by_plugin(runs: Iterable[ExperimentRun], section: str) -> Mapping[str, list[ExperimentRun]]:
    """The runs that have the section, by the name of its plug-in; by an empty one if it has none."""
    groups: dict[str, list[ExperimentRun]] = {}
    for run in runs:
        if any(name.startswith(f"{section}.") for name in run.fields):
            groups.setdefault(run.fields.get(f"{section}.name", "") if section in PLUGINS else "", []).append(run)
    return groups


def lacked(runs: list[ExperimentRun], section: str) -> set[str]:
    """The fields of the section itself that some of the runs have and others have not."""
    inner = tuple(f"{other}." for other in PLUGINS if other.startswith(f"{section}."))
    fields = [{name for name in run.fields if name.startswith(f"{section}.")} for run in runs]
    return {name for name in set.union(*fields) - set.intersection(*fields) if not name.startswith(inner)}


@cache
def defaults(section: str, name: str) -> dict[str, str]:
    """The added fields of a section and their defaults, as a run's parameters have them."""
    if section in SETTINGS:
        return dict(added(SETTINGS[section], f"{section}."))
    try:
        return dict(added(plugin(PLUGINS[section], name).Config, f"{section}."))
    except ValueError:  # the plug-in no longer exists, and its fields are not known
        return {}


def added(kind: type[Spec], prefix: str) -> Iterable[tuple[str, str]]:
    """The added fields of a Spec, as their digests leave them out."""
    for name, field in kind.model_fields.items():
        if is_added(field):
            yield from ((path, str(value)) for path, value in flatten({f"{prefix}{name}": as_json(field.default)}))


def as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Spec) else value
