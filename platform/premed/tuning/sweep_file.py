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
from typing import Any

from premed.config.compose import (
    first_name,
    merge,
    merge_trees,
    nest,
    parse_value,
    read_trees,
    read_with_base,
    read_yaml,
)
from premed.config.expand import fan_out
from premed.config.experiment import Experiment
from premed.config.spec import validate_spec
from premed.errors import UserError
from premed.reporting.sweep import fields
from premed.tuning.search import Search
from premed.tuning.space import MAX_CHECKED, Choice, Setting


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

    def first_experiment(self, setting: Setting) -> Experiment:
        """That of the first seed alone, which takes a share of the time where there are many."""
        return fan_out(self.tree(setting) | {"seeds": [self.search.all_seeds[0]]})[0].model_copy(update={"test": False})

    def experiments_with_test(self, setting: Setting) -> list[Experiment]:
        """The same, with their test if the base has one."""
        return fan_out(self.tree(setting) | {"seeds": list(self.search.all_seeds)})

    def tree(self, setting: Setting) -> dict[str, Any]:
        """The fields of a trial's experiments."""
        overrides = self.overrides
        if self.search.snapshots == "trunk":
            epochs = self.search.space["pretrain.epochs"]
            overrides = merge(overrides, {"pretrain": {"trunk": sorted(epochs.grid_values)}})
        for path in sorted(setting, key=lambda each: each.count(".")):  # a strategy before its fields
            overrides = merge(overrides, nest(path.split("."), setting[path]))
        return merge_trees(self.trees, overrides)

    def combinations(self) -> Iterator[Setting]:
        """All combinations of the fields' `grid_values`, the last field changing fastest."""
        space = self.search.space
        for values in product(*(each.grid_values for each in space.values())):
            yield dict(zip(space, values, strict=True))

    def validate(self) -> None:
        """Raises UserError for a path that is no field, and for a value that is valid in no combination."""
        self.refuse_lists()
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
            elif values.inner is not None:
                whole = f"; for whole numbers write {{int: [{values.low:g}, {values.high:g}]}}"
                self.validate_value(path, values.inner, whole)

    def refuse_lists(self) -> None:
        """Raises UserError for a list in the base that `premed run` would make several experiments of."""
        setting = next(self.combinations())
        try:
            tree = self.tree(setting)
        except UserError:  # a field of the space cannot be set on a list
            tree = self.tree({})

        def inner(section: str, field: str) -> Any:
            return of.get(field) if isinstance(of := tree.get(section), dict) else None

        for path, what, values in (
            ("pretext", "strategies", tree.get("pretext")),
            ("finetune.label_fraction", "shares", inner("finetune", "label_fraction")),
            ("task.fold", "folds", inner("task", "fold")),
        ):
            if isinstance(values, list) and path not in setting:
                what = f"lists {len(values)} {what}, and a trial has one"
                raise UserError(f"{path}: {what}; name one of them, or move the list to space:")

    def notes(self) -> Iterator[str]:
        """What the base says and no trial does."""
        seeds = next((tree["seeds"] for tree in reversed(self.trees) if "seeds" in tree), None)
        if seeds is not None and "seeds" not in self.search.model_fields_set:
            own = list(self.search.all_seeds)
            yield f"seeds: the base has {seeds}, and each trial {own}: a sweep's own stand beside space:"

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

    def validate_value(self, path: str, value: Any, remedy: str = "") -> None:
        """Raises UserError if no combination with the value is valid, with the reason from the base experiment."""
        others = ({**each, path: value} for each in islice(self.combinations(), MAX_CHECKED))
        reason = None
        for setting in chain([{path: value}], others):
            try:
                self.experiments_with_test(setting)
                return
            except UserError as error:
                reason = reason or error
        raise UserError(f"space.{path}: {value!r} does not fit: {reason}{remedy}")

    def label(self, setting: Setting) -> str:
        """The setting in short: `mask_ratio=0.5 epochs=20`."""
        names = fields.short_names(list(self.search.space))
        return " ".join(f"{names[path]}={fields.format_value(value, 4)}" for path, value in setting.items())

    @property
    def num_trials(self) -> int:
        return sum(1 for _ in self.combinations()) if self.search.trials is None else self.search.trials


def refuse_swept(overrides: Sequence[str], space: dict[str, Any]) -> None:
    """Raises UserError for a `key=value` of a field that the space has: a trial takes the space's."""
    for override in overrides:
        path = first_name(override.partition("=")[0])
        if path in space:
            what = "is a field of the space, whose values each trial takes"
            raise UserError(f"{override}: {what}; set 'space.{path}=[…]', or move the field out of space:")


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
    of_experiment: list[str] = []
    for override in overrides:
        path, _, value = override.partition("=")
        first, _, rest = path.partition(".")
        if first == "space" and rest:
            tree["space"] = {**tree["space"], rest: parse_value(value, override)}
        elif first in Search.model_fields and first != "version":
            tree = merge(tree, nest(path.split("."), parse_value(value, override)))
        else:
            of_experiment.append(override)
    experiment_overrides = read_trees([], of_experiment)[1]
    refuse_swept(of_experiment, tree["space"])
    if beside := [name for name in ("seeds", "decide") if name in fields_set]:
        raise UserError(f"{file}: set.{beside[0]}: stands beside space: in a sweep, and not below set:; move it there")
    for given in (fields_set, experiment_overrides):
        if isinstance(finetune := given.get("finetune"), dict) and "seed" in finetune:
            seed = finetune["seed"]
            raise UserError(f"finetune.seed: the seeds of a sweep stand beside space:; set seeds=[{seed}] in its place")
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
