"""Expands YAMLs and overrides into one Experiment for every combination of strategy, label fraction and seed.

`pretext: [none, mae]`, `finetune: {label_fraction: [0.05, 1.0]}` and `seeds: [0, 1, 2]` multiply. Seeds apply to the
fine-tuning, so that all share one pre-training; `vary: [pretrain]`, or both, applies them to the pre-training.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StrictInt

from premed.config.compose import merge, merge_trees, read_trees, refuse_mistakes, validate_experiment
from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.spec import Spec, validate_spec
from premed.errors import UserError


def check_list(example: str, value: Any) -> Sequence[Any]:
    """Returns `value` if it is a non-empty list without duplicates. Raises ValueError otherwise."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be a list of at least one, as in {example} (it is {value!r})")
    if twice := [item for i, item in enumerate(value) if item in value[:i]]:
        raise ValueError(f"{twice[0]} is listed twice")
    return value


def check_list_or_word(example: str, value: Any) -> Sequence[Any]:
    """As `check_list`; a single word counts as a list of one."""
    return [value] if isinstance(value, str) else check_list(example, value)


class Seeds(Spec):
    """The seeds of a run, and the stages that they apply to."""

    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(partial(check_list, "[0, 1, 2]"))]
    vary: Annotated[
        tuple[Literal["pretrain", "finetune"], ...], BeforeValidator(partial(check_list_or_word, "[pretrain]"))
    ] = ("finetune",)


def load_all(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> list[Experiment]:
    """Returns the experiments of YAML files and `key=value` overrides, by strategy, label fraction and seed.

    Raises UserError with the field and a remedy.
    """
    trees, above = read_trees(files, overrides)
    pretexts = [tree["pretext"] for tree in (*trees, above) if "pretext" in tree]
    if pretexts and isinstance(pretexts[-1], list):
        strategies = check_field("pretext", check_list, "[none, mae]", pretexts[-1])
        merged = [
            merge_trees([with_strategy(tree, each) for tree in trees], with_strategy(above, each))
            for each in strategies
        ]
    else:
        merged = [merge_trees(trees, above)]
    seeds = [parse_seeds(tree) for tree in merged]
    if all(each and each.vary == ("pretrain",) for each in seeds) and not any(map(has_pretraining, merged)):
        raise UserError("vary: names the pre-training, and none of these strategies has one; leave it out")
    if any(each and "pretrain" not in each.vary for each in seeds) and not all(tree.get("finetune") for tree in merged):
        raise UserError("seeds: are the fine-tuning's, and there is no finetune; set vary=[pretrain], too")
    return [experiment for tree in merged for experiment in fan_out(tree)]


def with_strategy(tree: dict[str, Any], strategy: Any) -> dict[str, Any]:
    """Returns `tree` with that strategy in place of a list of strategies."""
    return tree | {"pretext": strategy} if isinstance(tree.get("pretext"), list) else tree


def fan_out(tree: dict[str, Any]) -> list[Experiment]:
    """Returns one strategy's experiments, by label fraction and seed. Drops `pretrain` if the strategy has none."""
    rest = {name: value for name, value in tree.items() if name not in Seeds.model_fields}
    finetune = rest.get("finetune")
    fractions = finetune.get("label_fraction") if isinstance(finetune, dict) else None
    by_fraction: list[dict[str, Any]] = [{}]
    if isinstance(fractions, list):
        fractions = check_field("finetune.label_fraction", check_list, "[0.05, 0.1, 1.0]", fractions)
        by_fraction = [{"finetune": {"label_fraction": fraction}} for fraction in fractions]
    refuse_mistakes(merge(rest, by_fraction[0]))
    if not has_pretraining(tree):
        rest.pop("pretrain", None)
    by_seed: list[dict[str, Any]] = [{}]
    if seeds := parse_seeds(tree):
        varied = [name for name in seeds.vary if isinstance(rest.get(name), dict)]
        by_seed = [{name: {"seed": seed} for name in varied} for seed in seeds.seeds] if varied else [{}]
    return [validate_experiment(merge(merge(rest, fraction), seed)) for fraction, seed in product(by_fraction, by_seed)]


def parse_seeds(tree: dict[str, Any]) -> Seeds | None:
    """Returns the `seeds` and `vary` of `tree`, or None if it has neither."""
    fields = {name: tree[name] for name in Seeds.model_fields if name in tree}
    return validate_spec(Seeds, fields) if fields else None


def has_pretraining(tree: dict[str, Any]) -> bool:
    """True if its strategy has a pre-training, or is unknown: validation refuses that one later."""
    try:
        return plugin("pretext", tree.get("pretext")).build is not None
    except ValueError:
        return True


def check_field(field: str, check: Any, *args: Any) -> Any:
    """Returns `check(*args)`; turns its ValueError into a UserError that names the field."""
    try:
        return check(*args)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None


# ---- names of experiments


def percent(share: float) -> str:
    """Formats 0.05 as `5 %`."""
    return f"{100 * share:g} %"


def title(experiment: Experiment) -> str:
    """Returns a display name: `mae 5 % seed 1`; it includes the pre-training's seed unless that is 0."""
    pretrain, finetune = experiment.pretrain, experiment.finetune
    other = f" pre-training seed {pretrain.seed}" if pretrain and pretrain.seed else ""
    if finetune is None:
        return f"{experiment.name or experiment.strategy}{other or ' pre-training'}"
    share = percent(finetune.label_fraction)
    return f"{experiment.name or experiment.strategy} {share} seed {finetune.seed}{other}"


def distinct_titles(experiments: Sequence[Experiment], tasks: Sequence[str]) -> list[str]:
    """Returns the shortest titles that distinguish a command's experiments. tasks: the name of each one's task."""
    finetunes = [experiment.finetune for experiment in experiments]
    columns = [
        list(tasks),
        [experiment.name or experiment.strategy for experiment in experiments],
        [percent(finetune.label_fraction) if finetune else "" for finetune in finetunes],
        [f"seed {finetune.seed}" if finetune else "" for finetune in finetunes],
        [f"pre-training seed {experiment.pretrain.seed if experiment.pretrain else '-'}" for experiment in experiments],
    ]
    differing = [column for i, column in enumerate(columns) if i == 1 or len({*column} - {"pre-training seed -"}) > 1]
    rows = zip(*differing, strict=True)
    titles = [" ".join(word for word in words if word and not word.endswith("-")) for words in rows]
    totals, numbers = Counter(titles), Counter()
    for i, each in enumerate(titles):
        numbers[each] += 1
        if totals[each] > 1:  # they differ in a field that titles do not show
            titles[i] = f"{each} ({numbers[each]})"
    return titles
