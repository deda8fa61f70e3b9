"""What one sweep file asks for: a base experiment, a space of values over any of its fields, and how to search it.

base: [mae.yaml, small.yaml]                  # as for `premed run`, relative to this file
set: {finetune: {steps: 60}}                  # what else is to hold for all trials
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

from premed.config.expand import check_list, fan_out
from premed.config.experiment import Experiment
from premed.config.loader import merge, merge_trees, nest, parse_value, read_trees, read_with_base, read_yaml
from premed.config.spec import Spec, runtime_field, validate_spec
from premed.errors import UserError
from premed.reporting.sweep import fields

COSTS = ("seconds", "pretrain_seconds", "finetune_seconds", "peak_memory_mb")
"""What a trial costs: measured seconds of its stages (a shared pre-training counts whole), and the most memory."""
MOST = 1000  # combinations, or whole numbers of a range, that are looked at one by one

Mode = Literal["min", "max"]


class Choice(Spec):
    """One of several values, of any kind a YAML may hold."""

    choice: Annotated[tuple[Any, ...], BeforeValidator(lambda said: check_list("[0.5, 0.75]", said))]

    @property
    def corners(self) -> Sequence[Any]:
        return self.choice


class Range(Spec):
    """A range, both ends included; exactly one of the fields is set."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: tuple[StrictInt, StrictInt] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Range":
        said = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(said) != 1:
            raise ValueError("must be a list of values, or one of {uniform: [low, high]}, {loguniform: …}, {int: …}")
        if self.low >= self.high:
            raise ValueError(f"{said[0]}: {self.low} is not below {self.high}")
        if self.loguniform and self.low <= 0:
            raise ValueError(f"loguniform: {self.low} has no logarithm; begin above 0")
        return self

    @property
    def ends(self) -> tuple[Any, Any]:
        return next(ends for ends in (self.uniform, self.loguniform, self.int) if ends is not None)

    @property
    def low(self) -> Any:
        return self.ends[0]

    @property
    def high(self) -> Any:
        return self.ends[1]

    @property
    def corners(self) -> Sequence[Any]:
        """Values of which one is refused if any of the range is: fields are bounded by intervals."""
        if self.int and self.high - self.low <= MOST:
            return range(self.low, self.high + 1)
        return self.ends


def _values(said: Any) -> Any:
    if isinstance(said, Spec):
        return said
    if isinstance(said, dict) and "choice" not in said:
        return Range.model_validate(said)
    return Choice.model_validate(said if isinstance(said, dict) else {"choice": said})


Values = Annotated[Choice | Range, BeforeValidator(_values)]


class Asha(Spec):
    """Stops trials that fall behind others (asynchronous successive halving), by the first seed's validations."""

    name: Literal["asha"] = "asha"
    grace: int = Field(1, ge=1)
    """No trial ends before so many validations."""
    reduction: float = Field(3.0, gt=1)
    """One of so many goes on at each rung."""


def _scheduler(said: Any) -> Any:
    if said in (None, "none"):
        return None
    return {"name": said} if isinstance(said, str) else said


def _several(said: Any) -> Any:
    return [said] if isinstance(said, str) else said


class Search(Spec):
    """A sweep file, without its base."""

    name: str = runtime_field("")
    """What people call the sweep; the file's name, if nothing is said."""
    space: Annotated[dict[str, Values], Field(min_length=1)]
    """Values by a field's dotted path."""
    metric: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """A number of the fine-tuning's validation (`val/dice`) or a cost (`seconds`, …); several are weighed against each
    other. The task's score, if nothing is said."""
    mode: Annotated[tuple[Mode, ...], BeforeValidator(_several)] = ()
    """What is better; `max`, for costs `min`, if nothing is said."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """Every combination; at random; or where earlier trials promise most (TPE)."""
    scheduler: Annotated[Asha | None, BeforeValidator(_scheduler)] = None
    trials: int | None = runtime_field(None, ge=1)
    """How many; a grid has as many as it has."""
    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(lambda said: check_list("[0, 1, 2]", said))] = (0,)
    """Of the fine-tuning: a trial's value is the mean over them."""
    seed: int = 0
    """The search's own."""
    concurrency: int = runtime_field(4, ge=1)
    """Trials under way at once. Each stage of them waits for room; only with 1 is a search by Optuna reproducible."""
    retries: int = runtime_field(0, ge=0)
    """How often a failed trial is tried again."""
    snapshots: Literal["full", "trunk"] = "full"
    """Several `pretrain.epochs`: a full run for each, or one trunk at a constant rate with a cool-down for each."""
    study: str | None = runtime_field(None)
    """The database of the search's history, as Optuna names it; PREMED_HOME/sweeps.db, if nothing is said."""

    @model_validator(mode="after")
    def _fits(self) -> "Search":
        if self.search == "grid":
            for path, values in self.space.items():
                if isinstance(values, Range):
                    raise ValueError(f"space.{path}: a grid needs a list of values; or set search: optuna")
            if self.trials is not None:
                raise ValueError("trials: a grid has as many as it has; leave it out, or set search: random")
        elif self.trials is None:
            raise ValueError(f"trials: is missing; say how many a search by {self.search} may have")
        if self.mode and len(self.mode) != len(self.metric):
            raise ValueError(f"mode: there are {len(self.mode)} for {len(self.metric)} metrics; name one for each")
        if len(set(self.metric)) < len(self.metric):
            raise ValueError("metric: one stands there twice")
        for name in self.metric:
            if not name.startswith("val/") and name not in COSTS:
                raise ValueError(f"metric: {name!r} is neither a val/… score nor one of {', '.join(COSTS)}")
        if len(self.metric) > 1 and self.scheduler:
            raise ValueError("scheduler: asha goes by one metric, and there are several; set scheduler: none")
        if self.snapshots == "trunk" and not isinstance(self.space.get("pretrain.epochs"), Choice):
            raise ValueError("snapshots: a trunk needs space.pretrain.epochs as a list of values")
        if self.scheduler and self.metric and self.metric[0] in COSTS:
            raise ValueError(f"scheduler: asha goes by a score, and {self.metric[0]} is a cost; set scheduler: none")
        return self


Setting = dict[str, Any]
"""A trial's values by dotted path."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file with its base: makes the experiments of any setting."""

    search: Search
    trees: tuple[dict[str, Any], ...]
    above: dict[str, Any]

    @cached_property
    def base(self) -> Experiment:
        """The first combination's first seed: what is the same for all is said by it."""
        return self.experiments(next(self.combinations()))[0]

    def experiments(self, setting: Setting) -> list[Experiment]:
        """One for each seed; none opens the test part. UserError names the field."""
        return [each.model_copy(update={"test": False}) for each in self.whole(setting)]

    def whole(self, setting: Setting) -> list[Experiment]:
        """The same, with the test as the base has it."""
        above = self.above
        if self.search.snapshots == "trunk":
            epochs = self.search.space["pretrain.epochs"]
            above = merge(above, {"pretrain": {"trunk": sorted(epochs.corners)}})
        for path, value in setting.items():
            above = merge(above, nest(path.split("."), value))
        tree = merge_trees(self.trees, above)
        return fan_out(tree | {"seeds": list(self.search.seeds)})

    def combinations(self) -> Iterator[Setting]:
        """All of a grid, the last path fastest; of ranges, the ends."""
        space = self.search.space
        for values in product(*(each.corners for each in space.values())):
            yield dict(zip(space, values, strict=True))

    def look(self) -> None:
        """Refuses a path that does not exist and a value that fits nowhere, by name."""
        for path, values in self.search.space.items():
            if any(not part for part in path.split(".")):
                raise UserError(f"space.{path}: names no field")
            if path.split(".")[0] in ("seeds", "vary", "test") or path == "finetune.seed":
                raise UserError(f"space.{path}: is the sweep's own; set seeds: beside space:")
            for value in values.corners:
                self.try_one(path, value)

    def try_one(self, path: str, value: Any) -> None:
        """A value is right if any combination with it is; else what is wrong with it on the base is told."""
        others = ({**each, path: value} for each in islice(self.combinations(), MOST))
        complaint = None
        for setting in chain([{path: value}], others):
            try:
                self.whole(setting)
                return
            except UserError as error:
                complaint = complaint or error
        raise UserError(f"space.{path}: {value!r} does not fit: {complaint}")

    def label(self, setting: Setting) -> str:
        """The setting in few words: `mask_ratio=0.5 epochs=20`."""
        names = fields.short_names(list(self.search.space))
        return " ".join(f"{names[path]}={fields.format_value(value, 4)}" for path, value in setting.items())

    @property
    def num_trials(self) -> int:
        if self.search.trials is not None:
            return self.search.trials
        return sum(1 for _ in self.combinations())


def load_sweep(file: Path | str, files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> Sweep:
    """The sweep that a file describes; more files go over its base, overrides over both.

    An override whose first word is the sweep's own (`trials=4`, `space.finetune.lr=[0.1]`) is the sweep's, any other
    the experiment's.
    """
    tree = read_yaml(Path(file))
    if not isinstance(tree.get("space"), dict):
        raise UserError(
            f"{file}: has no space: {{field: values}}, so that it is no sweep (`premed run` is for experiments)"
        )
    base, over = tree.pop("base", None), tree.pop("set", None) or {}
    if not isinstance(over, dict):
        raise UserError(f"{file}: set: must hold fields of the experiment, as in set: {{finetune: {{steps: 60}}}}")
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not bases or not all(isinstance(each, str) for each in bases):
        raise UserError(f"{file}: base: must name the YAML files of an experiment, relative to this one")
    above: dict[str, Any] = {}
    for override in overrides:
        path, _, value = override.partition("=")
        own, _, rest = path.partition(".")
        if own == "space" and rest:
            tree["space"] = {**tree["space"], rest: parse_value(value, override)}
        elif own in Search.model_fields and own != "version":
            tree = merge(tree, nest(path.split("."), parse_value(value, override)))
        else:
            above = merge(above, read_trees([], [override])[1])
    try:
        search = validate_spec(Search, {"name": Path(file).stem} | tree)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    folder = Path(file).parent
    trees = [*(read_with_base(folder / each) for each in bases), over, *(read_with_base(Path(each)) for each in files)]
    return Sweep(search, tuple(trees), above)
