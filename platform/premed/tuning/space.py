"""A sweep's YAML: a base experiment, a search space over any of its fields, and how to search it.

base: [mae.yaml, small.yaml]                  # as for `premed run`, relative to this file
set: {finetune: {steps: 60}}                  # other fields, the same in all trials
space:
  pretext.mask_ratio: [0.5, 0.75]             # one of these; all of them where search is grid
  finetune.layer_decay: {uniform: [0.6, 1.0]}
  finetune.lr: {loguniform: [1.0e-3, 1.0e-1]}
  pretrain.epochs: {int: [10, 40]}
search: optuna
trials: 24
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from premed.config.compose import merge, merge_trees, nest, parse_value, read_trees, read_with_base, read_yaml
from premed.config.expand import check_list, fan_out
from premed.config.experiment import Experiment
from premed.config.spec import Spec, runtime_field, validate_spec
from premed.errors import UserError
from premed.reporting.sweep import fields

COSTS = ("seconds", "pretrain_seconds", "finetune_seconds", "peak_memory_mb")
"""Metrics of cost: measured seconds of a trial's stages (a shared pre-training counts in full), and peak memory."""
MAX_CHECKED = 1000  # combinations, or integers of a range, that are checked one by one

Mode = Literal["min", "max"]


class Choice(Spec):
    """One of several values, of any kind a YAML may hold."""

    choice: Annotated[tuple[Any, ...], BeforeValidator(lambda value: check_list("[0.5, 0.75]", value))]

    @property
    def grid_values(self) -> Sequence[Any]:
        """All of the values."""
        return self.choice


class Range(Spec):
    """A range, both ends included; exactly one of the fields is set."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: tuple[StrictInt, StrictInt] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Range":
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError("must be a list of values, or one of {uniform: [low, high]}, {loguniform: …}, {int: …}")
        if self.low >= self.high:
            raise ValueError(f"{names[0]}: {self.low} is not below {self.high}")
        if self.loguniform and self.low <= 0:
            raise ValueError(f"loguniform: {self.low} has no logarithm; start above 0")
        return self

    @property
    def bounds(self) -> tuple[Any, Any]:
        return next(bounds for bounds in (self.uniform, self.loguniform, self.int) if bounds is not None)

    @property
    def low(self) -> Any:
        return self.bounds[0]

    @property
    def high(self) -> Any:
        return self.bounds[1]

    @property
    def grid_values(self) -> Sequence[Any]:
        """The integers of a range, else its bounds: fields are limited by intervals, so these are checked for all."""
        if self.int and self.high - self.low <= MAX_CHECKED:
            return range(self.low, self.high + 1)
        return self.bounds


def _parse_values(value: Any) -> Any:
    if isinstance(value, Spec):
        return value
    if isinstance(value, dict) and "choice" not in value:
        return Range.model_validate(value)
    return Choice.model_validate(value if isinstance(value, dict) else {"choice": value})


Values = Annotated[Choice | Range, BeforeValidator(_parse_values)]


class Asha(Spec):
    """Tune's ASHA (asynchronous successive halving): stops trials that are behind others at a validation.

    It sees the validations of the first seed.
    """

    name: Literal["asha"] = "asha"
    grace: int = Field(1, ge=1)
    """No trial is stopped before this number of validations."""
    reduction: float = Field(3.0, gt=1)
    """At each rung, one trial in this many continues."""


def _parse_scheduler(value: Any) -> Any:
    if value in (None, "none"):
        return None
    return {"name": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Search(Spec):
    """A sweep file, without its base."""

    name: str = runtime_field("")
    """The sweep's name; by default that of the file."""
    space: Annotated[dict[str, Values], Field(min_length=1)]
    """Values by a field's dotted path."""
    metric: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    """A metric of the fine-tuning's validation (`val/dice`) or a cost (`seconds`, …); several make the search
    multi-objective. By default the task's score."""
    mode: Annotated[tuple[Mode, ...], BeforeValidator(_as_list)] = ()
    """For each metric, which way is better; by default `max`, for costs `min`."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """Every combination; random values; or Optuna's TPE, which draws near the values of good earlier trials."""
    scheduler: Annotated[Asha | None, BeforeValidator(_parse_scheduler)] = None
    trials: int | None = runtime_field(None, ge=1)
    """The number of trials; not for a grid, which runs every combination."""
    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(lambda value: check_list("[0, 1, 2]", value))] = (0,)
    """Of the fine-tuning; a trial's value is the mean over them."""
    seed: int = 0
    """Of the search."""
    concurrency: int = runtime_field(4, ge=1)
    """Trials that run at once, each stage as resources are free. A search by Optuna is reproducible only with 1."""
    retries: int = runtime_field(0, ge=0)
    """How often a failed trial is run again."""
    snapshots: Literal["full", "trunk"] = "full"
    """For several `pretrain.epochs`: a full run each, or one trunk at a constant rate with a cool-down each."""
    study: str | None = runtime_field(None)
    """The URL of the Optuna study's database; by default PREMED_HOME/sweeps.db."""

    @model_validator(mode="after")
    def _consistent(self) -> "Search":
        if self.search == "grid":
            for path, values in self.space.items():
                if isinstance(values, Range):
                    raise ValueError(f"space.{path}: a grid needs a list of values; or set search: optuna")
            if self.trials is not None:
                raise ValueError("trials: a grid runs every combination; leave it out, or set search: random")
        elif self.trials is None:
            raise ValueError(f"trials: is missing; set how many trials the {self.search} search runs")
        if self.mode and len(self.mode) != len(self.metric):
            raise ValueError(f"mode: has {len(self.mode)} for {len(self.metric)} metrics; name one for each")
        if len(set(self.metric)) < len(self.metric):
            raise ValueError("metric: one is named twice")
        for name in self.metric:
            if not name.startswith("val/") and name not in COSTS:
                raise ValueError(f"metric: {name!r} is neither a val/… score nor one of {', '.join(COSTS)}")
        if len(self.metric) > 1 and self.scheduler:
            raise ValueError("scheduler: asha needs a single metric, and there are several; set scheduler: none")
        if self.snapshots == "trunk" and not isinstance(self.space.get("pretrain.epochs"), Choice):
            raise ValueError("snapshots: a trunk needs space.pretrain.epochs as a list of values")
        if self.scheduler and self.metric and self.metric[0] in COSTS:
            raise ValueError(f"scheduler: asha needs a score, and {self.metric[0]} is a cost; set scheduler: none")
        return self


Setting = dict[str, Any]
"""A trial's values by dotted path."""


@dataclass(frozen=True)
class Sweep:
    """A sweep's file with its base experiment: makes the experiments of any setting."""

    search: Search
    trees: tuple[dict[str, Any], ...]
    """The base's YAML files and `set`; later ones override earlier."""
    overrides: dict[str, Any]
    """`key=value` of the command line, as a tree; they override `trees`, and a setting overrides both."""

    @cached_property
    def base(self) -> Experiment:
        """The experiment of the first combination and seed, for the fields that are the same in all trials."""
        return self.experiments(next(self.combinations()))[0]

    def experiments(self, setting: Setting) -> list[Experiment]:
        """The experiments of a trial, one for each seed, without their test. Raises UserError that names the field."""
        return [each.model_copy(update={"test": False}) for each in self.experiments_with_test(setting)]

    def experiments_with_test(self, setting: Setting) -> list[Experiment]:
        """The same, with their test if the base has one."""
        overrides = self.overrides
        if self.search.snapshots == "trunk":
            epochs = self.search.space["pretrain.epochs"]
            overrides = merge(overrides, {"pretrain": {"trunk": sorted(epochs.grid_values)}})
        for path, value in setting.items():
            overrides = merge(overrides, nest(path.split("."), value))
        tree = merge_trees(self.trees, overrides)
        return fan_out(tree | {"seeds": list(self.search.seeds)})

    def combinations(self) -> Iterator[Setting]:
        """All combinations of the fields' `grid_values`, the last field changing fastest."""
        space = self.search.space
        for values in product(*(each.grid_values for each in space.values())):
            yield dict(zip(space, values, strict=True))

    def validate(self) -> None:
        """Raises UserError for a path that is no field, and for a value that is valid in no combination."""
        for path, values in self.search.space.items():
            if any(not part for part in path.split(".")):
                raise UserError(f"space.{path}: names no field")
            if path.split(".")[0] in ("seeds", "vary") or path == "finetune.seed":
                raise UserError(f"space.{path}: seeds are no part of the space; set seeds: beside space:")
            if path == "test":
                raise UserError("space.test: no trial opens the test part; leave it out")
            for value in values.grid_values:
                self.validate_value(path, value)
            if isinstance(values, Choice):
                self.refuse_equal(path, values.choice)

    def refuse_equal(self, path: str, choice: Sequence[Any]) -> None:
        """Raises UserError for two values that are one once the field has read them, such as 1e-3 and 0.001."""
        for others in chain([{}], islice(self.combinations(), MAX_CHECKED)):
            try:
                read = [self.experiments_with_test({**others, path: value})[0].model_dump_json() for value in choice]
            except UserError:  # each value is valid in some combination, and these are not in this one
                continue
            for value, text in zip(choice, read, strict=True):
                if (first := choice[read.index(text)]) is not value:
                    raise UserError(f"space.{path}: {first!r} and {value!r} are the same value; keep one")
            return

    def validate_value(self, path: str, value: Any) -> None:
        """Raises UserError if no combination with the value is valid, with the reason from the base experiment."""
        others = ({**each, path: value} for each in islice(self.combinations(), MAX_CHECKED))
        reason = None
        for setting in chain([{path: value}], others):
            try:
                self.experiments_with_test(setting)
                return
            except UserError as error:
                reason = reason or error
        raise UserError(f"space.{path}: {value!r} does not fit: {reason}")

    def label(self, setting: Setting) -> str:
        """The setting in short: `mask_ratio=0.5 epochs=20`."""
        names = fields.short_names(list(self.search.space))
        return " ".join(f"{names[path]}={fields.format_value(value, 4)}" for path, value in setting.items())

    @property
    def num_trials(self) -> int:
        return sum(1 for _ in self.combinations()) if self.search.trials is None else self.search.trials


def load_sweep(file: Path | str, files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep's file. `files` override its base, `overrides` (`key=value`) both. Raises UserError.

    An override of a field of the sweep (`trials=4`, `space.finetune.lr=[0.1]`) changes the sweep, any other the base
    experiment.
    """
    tree = read_yaml(Path(file))
    if not isinstance(tree.get("space"), dict):
        raise UserError(f"{file}: is not a sweep: it has no space: {{field: values}}; `premed run` runs experiments")
    base, fields_set = tree.pop("base", None), tree.pop("set", None) or {}
    if not isinstance(fields_set, dict):
        raise UserError(f"{file}: set: must hold fields of the experiment, as in set: {{finetune: {{steps: 60}}}}")
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not bases or not all(isinstance(each, str) for each in bases):
        raise UserError(f"{file}: base: must name the YAML files of an experiment, relative to this one")
    experiment_overrides: dict[str, Any] = {}
    for override in overrides:
        path, _, value = override.partition("=")
        first, _, rest = path.partition(".")
        if first == "space" and rest:
            tree["space"] = {**tree["space"], rest: parse_value(value, override)}
        elif first in Search.model_fields and first != "version":
            tree = merge(tree, nest(path.split("."), parse_value(value, override)))
        else:
            experiment_overrides = merge(experiment_overrides, read_trees([], [override])[1])
    try:
        search = validate_spec(Search, {"name": Path(file).stem} | tree)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    folder = Path(file).parent
    trees = [
        *(read_with_base(folder / each) for each in bases),
        fields_set,
        *(read_with_base(Path(each)) for each in files),
    ]
    return Sweep(search, tuple(trees), experiment_overrides)
