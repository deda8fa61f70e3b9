"""The fields of a sweep's file: the space, and how to search it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from premed.config.decide import Decide
from premed.config.expand import AUTO, check_list
from premed.config.spec import Spec, added_field, runtime_field
from premed.tuning.space import Choice, Range, Values

COSTS = ("seconds", "pretrain_seconds", "finetune_seconds", "peak_memory_mb")
"""Metrics of cost: measured seconds of a trial's stages (a shared pre-training counts in full), and peak memory."""

LONGEST_NAME = 200  # bytes of UTF-8: a file's name has 255

Mode = Literal["min", "max"]


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


def _parse_seeds(value: Any) -> Any:
    return value if value == AUTO else check_list("[0, 1, 2], or auto", value)


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
    seeds: Annotated[tuple[StrictInt, ...] | Literal["auto"], BeforeValidator(_parse_seeds)] = (0,)
    """Of the fine-tuning; a trial's value is the mean over them. Or `auto`: a trial that is known to be no better than
    the best so far gets no more seeds, see `decide`."""
    decide: Decide | None = added_field(None)
    """With `seeds: auto`: the looks at which a trial is compared with the best so far, and `margin`, by which it must
    be better. By default those of `Decide`."""
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
        self._check_seeds()
        return self

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            most = f"no /, no line break and {LONGEST_NAME} bytes at most"
            raise ValueError(f"names the sweep's folder: a word or some, with {most} (it is {name[:80]!r})")
        return name

    def _check_seeds(self) -> None:
        if self.seeds != AUTO:
            if self.decide is not None:
                raise ValueError("decide: is for seeds: auto, and the seeds are listed; leave one of them out")
            return
        if len(self.metric) > 1:
            raise ValueError("seeds: auto needs a single metric, and there are several; list the seeds")
        if self.metric and self.metric[0] in COSTS:
            raise ValueError(f"seeds: auto needs a score, and {self.metric[0]} is a cost; list the seeds")
        for name in ("baseline", "hours"):
            if self.decide is not None and name in self.decide.model_fields_set:
                raise ValueError(f"decide.{name}: is for premed run, and a sweep compares with its best; leave it out")

    @property
    def looks(self) -> Sequence[int]:
        """`seeds: auto`: the numbers of seeds at which a trial is compared with the best so far; else empty."""
        return (self.decide or Decide()).planned if self.seeds == AUTO else ()

    @property
    def margin(self) -> float:
        """`seeds: auto`: by how much a trial must be better than the best so far to be of interest; 0 by default."""
        return (self.decide and self.decide.margin) or 0.0

    @property
    def all_seeds(self) -> Sequence[int]:
        """Those of a trial that is not stopped."""
        return self.seeds if isinstance(self.seeds, tuple) else range(self.looks[-1])
