"""Experiment: what one YAML says, as data; and the Stages it comes to.

Later files and then `key=value` override earlier ones by dotted path; a relative `base:` is followed once; what stands
under `only: {mae: …}` holds for that strategy. A plug-in is named by its file: `{name: mae, …}` under `pretext` means
`pretext/mae.py` and is checked by that file's `Config`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import SerializeAsAny, model_validator

from premed.settings import BLIND, PRETRAINING, Finetune, Kind, Origin, Pretrain, Train, origins, plugged, plugin
from premed.spec import Spec, UserError, elsewhere, unscored, validated


class Experiment(Spec):
    """One strategy on one task."""

    name: str | None = elsewhere(None)
    """What people call it; the task and the strategy, if nothing is said."""
    task: plugged("tasks")  # type: ignore[valid-type]
    encoder: plugged("encoders")  # type: ignore[valid-type]
    pretext: plugged("pretext")  # type: ignore[valid-type]
    pretrain: Pretrain | None = None
    finetune: Finetune
    train: Train = Train()
    test: bool = elsewhere(True)
    """False stops after validation; the test part is not even opened."""

    @model_validator(mode="after")
    def _trainable(self) -> "Experiment":
        if self.pretrain is None and plugin("pretext", self.pretext).build is not None:
            raise ValueError(f"pretrain: is missing, and {self.pretext.name} needs it (epochs, batch, lr, …)")  # type: ignore[attr-defined]
        return self

    @property
    def strategy(self) -> str:
        return self.pretext.name  # type: ignore[attr-defined]

    @property
    def kinds(self) -> list[Kind]:
        """Of its stages, in order."""
        return [kind for kind, _ in self.trainings()]

    def trainings(self) -> list[tuple[Kind, Spec | None]]:
        """Kind and settings of its stages: pre-training or import (if the strategy has one), fine-tuning, test."""
        strategy = plugin("pretext", self.pretext)
        first: Sequence[tuple[Kind, Spec | None]] = []
        if strategy.build:
            assert self.pretrain is not None
            first = self.pretrain.stretches()
        elif hasattr(strategy, "weights"):
            first = [("import", None)]
        return [*first, ("finetune", self.finetune), *([("test", self.finetune)] if self.test else [])]

    def origins(self, kind: Kind) -> tuple[Origin, ...]:
        """The data sets that a stage of that kind sees."""
        return origins(self.pretrain if kind in PRETRAINING else None, self.task)

    def stages(self, data: "Callable[[Kind], str]") -> "Iterator[Stage]":
        """Its stages in order, each naming its parent.

        data: a stage's kind to the fingerprint of the data that it sees. It is asked when the stage's turn comes, for
        "test" only after the fine-tuning was taken, and never if `test` is false.
        """
        parent = None
        for kind, training in self.trainings():
            task = self.origins(kind)[0].task
            if kind in BLIND:  # the same, whatever the task is that it is for
                task, training = unscored(task), training and unscored(training)
            stage = Stage(
                kind=kind,
                parent=parent,
                data=data(kind),
                task=task,
                encoder=self.encoder,
                pretext=self.pretext if kind in BLIND else None,
                training=training,
            )
            yield stage
            parent = stage.digest()


class Stage(Spec):
    """What is found by its digest, or run: everything its result depends on."""

    kind: Kind
    parent: str | None
    data: str
    task: SerializeAsAny[Spec]
    encoder: SerializeAsAny[Spec]
    pretext: SerializeAsAny[Spec] | None = None
    training: SerializeAsAny[Spec] | None

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The data sets that it sees; `task` is the first one's."""
        return origins(self.training, self.task)

    @property
    def draws(self) -> str:
        """What its draws are keyed by: the same for all that pre-trains, so that a trunk goes on across its stages."""
        return "pretrain" if self.kind in PRETRAINING else self.kind

    @property
    def folder(self) -> str:
        """Its name below `train.storage`."""
        return f"{self.kind}-{self.digest()[:16]}"


def load(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that YAML files and `key=value` overrides describe; UserError names the field and the mend."""
    return checked(gathered(*given(files, overrides)))


def given(files: Sequence[Path | str], overrides: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each file says, and what the overrides say together."""
    trees = [read(Path(file)) for file in files]
    above: dict[str, Any] = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"{override}: is neither a YAML file nor key=value; overrides read pretext.mask_ratio=0.5")
        if not all(path.split(".")):
            raise UserError(f"{override}: names no field; overrides read pretext.mask_ratio=0.5")
        above = merged(above, nested(path.split("."), parsed(value, override)))
    return trees, above


def gathered(trees: Sequence[dict[str, Any]], above: dict[str, Any]) -> dict[str, Any]:
    """One tree of all: later files over earlier ones, `above` over all, and what stands under `only:` in its place."""
    strategy = reduce(merged, [*trees, above], {}).get("pretext")
    strategy = strategy.get("name") if isinstance(strategy, dict) else strategy
    below: dict[str, Any] = {}
    for tree in trees:  # a file's own `only:` right after the file, so that later files override it too
        only = strategies(tree.get("only") or {})
        below = merged(below, {name: value for name, value in tree.items() if name != "only"})
        if isinstance(strategy, str) and strategy in only:
            below = merged(below, merged({"pretext": {"name": strategy}}, only[strategy]))
    return merged(below, above)


def strategies(only: Any) -> dict[str, dict[str, Any]]:
    """What a file that suits several strategies sets for each: `only: {mae: {pretext: {decoder_depth: 2}}}`."""
    if not isinstance(only, dict) or not all(isinstance(part, dict) for part in only.values()):
        raise UserError("only: must hold fields by strategy, as in only: {mae: {pretext: {decoder_depth: 2}}}")
    for name in only:
        try:
            plugin("pretext", name)
        except ValueError as error:
            raise UserError(f"only: {error}") from None
    return only


def checked(tree: dict[str, Any]) -> Experiment:
    """`tree` as an Experiment, or a UserError of one line for the first thing that is wrong."""
    return validated(Experiment, tree)


def loaded(path: Path) -> dict[str, Any]:
    """What one YAML file says."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `field: value` lines")
    return tree


def read(path: Path, follow: bool = True) -> dict[str, Any]:
    """One YAML file, on top of the `base:` it names."""
    tree = loaded(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r}; name one YAML file, relative to this one")
    if not follow:
        raise UserError(f"{path}: is a base itself and names another (base: {base}); a base is followed once")
    return merged(read(path.parent / base, follow=False), tree)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key; another plug-in `name` replaces the whole plug-in.

    A word stands for the plug-in of that name: `pretext: mae` means `pretext: {name: mae}`.
    """
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"name": old}
        elif isinstance(old, dict) and "name" in old and isinstance(value, str):
            value = {"name": value}
        elif isinstance(old, list) and isinstance(value, dict) and "name" not in value:
            raise UserError(
                f"{name}: is a list, which {name}.{next(iter(value), '')} cannot be set on; set it in its items"
            )
        if isinstance(old, dict) and isinstance(value, dict):
            swapped = "name" in value and value["name"] != old.get("name")
            result[name] = value if swapped else merged(old, value)
        else:
            result[name] = value
    return result


def nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: nested(path[1:], value) if len(path) > 1 else value}


def parsed(value: str, override: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{override}: the value is not YAML; quote it") from None
