"""Expands YAMLs and overrides into one Experiment for every combination of strategy, fold, label fraction and seed.

`pretext: [none, mae]`, `task: {fold: [0, 1, 2]}`, `finetune: {label_fraction: [0.05, 1.0]}` and `seeds: [0, 1, 2]`
multiply. Seeds apply to the fine-tuning, so that all share one pre-training; `vary: [pretrain]`, or both, applies them
to the pre-training. `seeds: auto` means as many seeds as it takes to decide (`decide`), of both: it expands into all
that there may be.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StrictInt, model_validator

from premed.config.compose import merge, merge_trees, read_trees, refuse_mistakes, validate_experiment
from premed.config.decide import Decide
from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.policy import Full
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


AUTO = "auto"
Varied = Annotated[
    tuple[Literal["pretrain", "finetune"], ...], BeforeValidator(partial(check_list_or_word, "[pretrain]"))
]


class Seeds(Spec):
    """The seeds of a run, and the stages that they apply to."""

    seeds: Annotated[tuple[StrictInt, ...], BeforeValidator(partial(check_list, "[0, 1, 2]"))]
    """Or `auto`: seeds are added until each strategy is told apart from the baseline, see `decide`."""
    vary: Varied = ("finetune",)
    """With `seeds: auto` both stages vary; [finetune] pins the pre-training."""


class AutoSeeds(Spec):
    """`seeds: auto`: as many as it takes to decide."""

    seeds: Literal["auto"]
    vary: Varied = ("pretrain", "finetune")
    decide: Decide = Decide()

    @model_validator(mode="after")
    def _pairs(self) -> "AutoSeeds":
        if "finetune" not in self.vary:
            raise ValueError("vary: strategies are compared seed by seed; with seeds: auto, finetune must be in it")
        return self


def load_all(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> list[Experiment]:
    """Returns the experiments of YAML files and `key=value` overrides, by strategy, label fraction and seed.

    With `seeds: auto`: all that there may be. Raises UserError with the field and a remedy.
    """
    return load_command(files, overrides)[0]


def load_command(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> tuple[list[Experiment], Decide | None]:
    """Returns the same, and when seeds are enough, where they are added one look after the other (`seeds: auto`)."""
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
    decide = next((each.decide for each in seeds if isinstance(each, AutoSeeds)), None)
    if decide is not None:
        check_arms(decide, merged)
    if all(each and each.vary == ("pretrain",) for each in seeds) and not any(map(has_pretraining, merged)):
        raise UserError("vary: names the pre-training, and none of these strategies has one; leave it out")
    if any(each and "pretrain" not in each.vary for each in seeds) and not all(tree.get("finetune") for tree in merged):
        raise UserError("seeds: are the fine-tuning's, and there is no finetune; set vary=[pretrain], too")
    varied = [name for each in seeds if each for name in each.vary if decide is None or name != "pretrain"]
    refuse_overridden([*trees, above], varied)  # of seeds: auto, `is_varied` refuses the pre-training's
    experiments = [experiment for tree in merged for experiment in fan_out(tree)]
    refuse_twice(experiments)
    return experiments, decide


def refuse_twice(experiments: Sequence[Experiment]) -> None:
    """Raises UserError for two experiments that are the same once their fields are read, as of fractions 0.5 and "0.5":
    they would count as two seeds."""
    texts = [experiment.model_dump_json() for experiment in experiments]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise UserError(f"{title(experiments[i])}: is listed twice, written in two ways; keep one")


def refuse_overridden(trees: Sequence[dict[str, Any]], varied: Sequence[str]) -> None:
    """Raises UserError for a stage's own seed that `seeds` would override: that of a later file or of the command line,
    and one in the same file that is none of them. trees: the last has the fields of the command line."""
    numbers = [number for number, tree in enumerate(trees) if "seeds" in tree]
    if not numbers:
        return
    seeds, last = trees[numbers[-1]]["seeds"], len(trees) - 1
    for stage in dict.fromkeys(varied):
        stated = [number for number, tree in enumerate(trees) if "seed" in (tree.get(stage) or ())]
        if not stated or stated[-1] < numbers[-1]:
            continue
        seed = trees[stated[-1]][stage]["seed"]
        listed = isinstance(seeds, list) and seed in seeds
        if stated[-1] > numbers[-1] or stated[-1] == last or not listed:
            raise UserError(
                f"{stage}.seed: is {seed}, and every experiment has one of seeds: {seeds}; set seeds=[{seed}], or "
                f"leave {stage}.seed out"
            )


def check_arms(decide: Decide, trees: Sequence[dict[str, Any]]) -> None:
    """Raises UserError unless `seeds: auto` has fine-tunings to compare, and one strategy is the baseline."""
    if not all(tree.get("finetune") for tree in trees):
        raise UserError("finetune: is missing, and seeds: auto compares fine-tunings; set it in a YAML")
    names = [str(of["name"] if isinstance(of := tree.get("pretext"), dict) and "name" in of else of) for tree in trees]
    if len(names) < 2:
        raise UserError("seeds: auto compares strategies, and there is one; list them, as in pretext=[none,mae]")
    if names.count(decide.baseline) != 1:
        found = "several strategies are" if decide.baseline in names else "no strategy is"
        remedy = f"name one that is there once, of {', '.join(dict.fromkeys(names))}"
        raise UserError(f"decide.baseline: {found} called {decide.baseline}; {remedy}")


def with_strategy(tree: dict[str, Any], strategy: Any) -> dict[str, Any]:
    """Returns `tree` with that strategy in place of a list of strategies."""
    return tree | {"pretext": strategy} if isinstance(tree.get("pretext"), list) else tree


def fan_out(tree: dict[str, Any]) -> list[Experiment]:
    """Returns one strategy's experiments, by fold, label fraction and seed, without `pretrain` if it has none."""
    rest = {name: value for name, value in tree.items() if name not in AutoSeeds.model_fields}
    by_fold = by_value(rest, "task", "fold", "[0, 1, 2, 3, 4]")
    by_fraction = by_value(rest, "finetune", "label_fraction", "[0.05, 0.1, 1.0]")
    refuse_mistakes(merge(merge(rest, by_fold[0]), by_fraction[0]))
    if not has_pretraining(tree):
        rest.pop("pretrain", None)
    by_seed: list[dict[str, Any]] = [{}]
    if seeds := parse_seeds(tree):
        varied = [name for name in seeds.vary if isinstance(rest.get(name), dict)]
        numbers: Sequence[int] = seeds.seeds if isinstance(seeds, Seeds) else range(seeds.decide.max_seeds)
        if isinstance(seeds, AutoSeeds) and "pretrain" in varied:
            varied = [name for name in varied if name != "pretrain" or is_varied(rest["pretrain"])]
        by_seed = [{name: {"seed": seed} for name in varied} for seed in numbers] if varied else [{}]
    if len(by_fold) > 1 and isinstance(seeds, AutoSeeds):
        raise UserError("task.fold: with seeds: auto each fold would have seeds of its own; list the seeds")
    return [
        validate_experiment(merge(merge(merge(rest, fold), fraction), seed))
        for fold, fraction, seed in product(by_fold, by_fraction, by_seed)
    ]


def by_value(tree: dict[str, Any], section: str, field: str, example: str) -> list[dict[str, Any]]:
    """Returns, for each value of a field that is a list, the tree that sets it; else one empty tree."""
    fields = tree.get(section)
    values = fields.get(field) if isinstance(fields, dict) else None
    if not isinstance(values, list):
        return [{}]
    return [{section: {field: each}} for each in check_field(f"{section}.{field}", check_list, example, values)]


def parse_seeds(tree: dict[str, Any]) -> Seeds | AutoSeeds | None:
    """Returns the `seeds` and `vary` of `tree`, with `decide` for `seeds: auto`; or None if it has none of them."""
    fields = {name: tree[name] for name in AutoSeeds.model_fields if name in tree}
    if fields.get("seeds") == AUTO:
        return validate_spec(AutoSeeds, fields)
    if isinstance(given := fields.get("seeds"), str):
        raise UserError(f"seeds: {given!r} is neither a list, as in [0, 1, 2], nor auto")
    if "decide" in fields:
        raise UserError("decide: is for seeds: auto, and the seeds are listed; leave one of them out")
    return validate_spec(Seeds, fields) if fields else None


def is_varied(pretrain: dict[str, Any]) -> bool:
    """Whether `seeds: auto` gives this pre-training other seeds: not if it is finished. Raises UserError if its seed
    is stated."""
    if pretrain.get("encoder") is not None:
        return False
    if "seed" in pretrain:
        raise UserError("pretrain.seed: varies with seeds: auto; leave it out, or pin it with vary=finetune")
    return True


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


def arm_title(experiment: Experiment) -> str:
    """Returns its name or strategy, its fine-tuning's policy unless that is full, and its fold: `mae lora fold 2`."""
    return f"{experiment.name or experiment.strategy}{policy_words(experiment)}{fold_words(experiment)}"


def fold_words(experiment: Experiment) -> str:
    """The fold of its task in a name: ` fold 2`; empty of the usual one, 0, where a data set comes with its folds."""
    fold, is_dealt = (getattr(experiment.task, name, None) for name in ("fold", "folds"))
    return f" fold {fold}" if fold or (fold == 0 and is_dealt) else ""


def policy_words(experiment: Experiment) -> str:
    """The policy of its fine-tuning in a name: ` lora`; empty of the usual one, full."""
    policy = experiment.finetune.policy if experiment.finetune else Full()
    return "" if isinstance(policy, Full) else f" {policy.name}"


def title(experiment: Experiment) -> str:
    """Returns a display name: `mae 5 % seed 1`; it includes the policy of the fine-tuning unless that is full, and the
    pre-training's seed unless that is 0."""
    pretrain, finetune = experiment.pretrain, experiment.finetune
    other = f" pre-training seed {pretrain.seed}" if pretrain and pretrain.seed else ""
    if finetune is None:
        return f"{experiment.name or experiment.strategy}{fold_words(experiment)}{other or ' pre-training'}"
    share = percent(finetune.label_fraction)
    return f"{arm_title(experiment)} {share} seed {finetune.seed}{other}"


def distinct_titles(experiments: Sequence[Experiment], tasks: Sequence[str]) -> list[str]:
    """Returns the shortest titles that distinguish a command's experiments. tasks: the name of each one's task."""
    finetunes = [experiment.finetune for experiment in experiments]
    columns = [
        list(tasks),
        [arm_title(experiment) for experiment in experiments],
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
