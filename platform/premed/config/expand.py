"""What one command asks for: an Experiment for every strategy, label fraction and seed that YAMLs and overrides list.

`pretext: [none, mae]`, `finetune: {label_fraction: [0.05, 1.0]}` and `seeds: [0, 1, 2]` multiply. A seed is the
fine-tuning's, so that all share one pre-training, unless `vary: [pretrain]` (or both) is said.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StrictInt

from premed.config.experiment import Experiment
from premed.config.loader import checked, gathered, given, merged
from premed.config.plugins import plugin
from premed.config.spec import Spec, validated
from premed.errors import UserError


def listed(example: str, value: Any) -> Sequence[Any]:
    """`value`, if it is a list of different things."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be a list of at least one, as in {example} (it is {value!r})")
    if twice := [item for i, item in enumerate(value) if item in value[:i]]:
        raise ValueError(f"{twice[0]} stands there twice")
    return value


def listed_or_alone(example: str, value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else listed(example, value)


class Seeds(Spec):
    """The seeds to run with, and the stages they are for."""

    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(partial(listed, "[0, 1, 2]"))]
    vary: Annotated[
        tuple[Literal["pretrain", "finetune"], ...], BeforeValidator(partial(listed_or_alone, "[pretrain]"))
    ] = ("finetune",)


def load_all(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> list[Experiment]:
    """The experiments that YAML files and `key=value` overrides describe, by strategy, label fraction and seed.

    UserError names the field and the mend.
    """
    trees, above = given(files, overrides)
    said = [tree["pretext"] for tree in (*trees, above) if "pretext" in tree]
    if said and isinstance(said[-1], list):
        strategies = named("pretext", listed, "[none, mae]", said[-1])
        wholes = [gathered([chosen(tree, each) for tree in trees], chosen(above, each)) for each in strategies]
    else:
        wholes = [gathered(trees, above)]
    seeds = [seeds_of(tree) for tree in wholes]
    if all(some and some.vary == ("pretrain",) for some in seeds) and not any(map(pre_trains, wholes)):
        raise UserError("vary: names the pre-training, and no strategy here has one; leave it out")
    return [experiment for tree in wholes for experiment in fan_out(tree)]


def chosen(tree: dict[str, Any], strategy: Any) -> dict[str, Any]:
    """`tree` with one strategy where it lists several."""
    return tree | {"pretext": strategy} if isinstance(tree.get("pretext"), list) else tree


def fan_out(tree: dict[str, Any]) -> list[Experiment]:
    """One strategy's experiments, by label fraction and seed. What has no pre-training has no settings of one."""
    dropped = {*Seeds.model_fields, *(() if pre_trains(tree) else ("pretrain",))}
    rest = {name: value for name, value in tree.items() if name not in dropped}
    finetune = rest.get("finetune")
    fractions = finetune.get("label_fraction") if isinstance(finetune, dict) else None
    by_fraction: list[dict[str, Any]] = [{}]
    if isinstance(fractions, list):
        fractions = named("finetune.label_fraction", listed, "[0.05, 0.1, 1.0]", fractions)
        by_fraction = [{"finetune": {"label_fraction": fraction}} for fraction in fractions]
    by_seed: list[dict[str, Any]] = [{}]
    if seeds := seeds_of(tree):
        varied = [name for name in seeds.vary if isinstance(rest.get(name), dict)]
        by_seed = [{name: {"seed": seed} for name in varied} for seed in seeds.seeds] if varied else [{}]
    return [checked(merged(merged(rest, fraction), seed)) for fraction, seed in product(by_fraction, by_seed)]


def seeds_of(tree: dict[str, Any]) -> Seeds | None:
    said = {name: tree[name] for name in Seeds.model_fields if name in tree}
    return validated(Seeds, said) if said else None


def pre_trains(tree: dict[str, Any]) -> bool:
    """Whether its strategy has a pre-training; one that is not known is refused elsewhere."""
    try:
        return plugin("pretext", tree.get("pretext")).build is not None
    except ValueError:
        return True


def named(field: str, check: Any, *args: Any) -> Any:
    """What `check(*args)` gives; its complaint as the field's."""
    try:
        return check(*args)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None


# ---- what experiments are called


def percent(share: float) -> str:
    """0.05 as `5 %`."""
    return f"{100 * share:g} %"


def title(experiment: Experiment) -> str:
    """What a person calls it: `mae 5 % seed 1`; a pre-training of another seed than 0 is said."""
    pretrain = experiment.pretrain
    other = f" pre-training seed {pretrain.seed}" if pretrain and pretrain.seed else ""
    share = percent(experiment.finetune.label_fraction)
    return f"{experiment.name or experiment.strategy} {share} seed {experiment.finetune.seed}{other}"


def told_apart(experiments: Sequence[Experiment], tasks: Sequence[str]) -> list[str]:
    """The shortest titles by which a command's experiments, whose tasks have these names, are told from each other."""
    columns = [
        list(tasks),
        [experiment.name or experiment.strategy for experiment in experiments],
        [percent(experiment.finetune.label_fraction) for experiment in experiments],
        [f"seed {experiment.finetune.seed}" for experiment in experiments],
        [f"pre-training seed {experiment.pretrain.seed if experiment.pretrain else '-'}" for experiment in experiments],
    ]
    differing = [column for i, column in enumerate(columns) if i == 1 or len({*column} - {"pre-training seed -"}) > 1]
    titles = [" ".join(word for word in words if not word.endswith("-")) for words in zip(*differing, strict=True)]
    many, seen = Counter(titles), Counter()
    for i, each in enumerate(titles):
        seen[each] += 1
        if many[each] > 1:  # they differ in something that has no place in a title
            titles[i] = f"{each} ({seen[each]})"
    return titles
