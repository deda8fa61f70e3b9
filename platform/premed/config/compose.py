"""Reads YAML files and `key=value` overrides into one Experiment.

Later files override earlier ones and `key=value` overrides all files, by dotted path. A relative `base:` is followed
once. Fields under `only: {mae: …}` apply to that strategy alone.
"""

import difflib
import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.scanner import ScannerError

from premed.config.experiment import Experiment
from premed.config.plugins import NO_IMPORT, plugin_name
from premed.config.safe_yaml import MOST_DEPTH, Refused, parse_yaml
from premed.config.spec import UNKNOWN, all_errors, validate_spec
from premed.errors import UserError
from premed.safety.files import MOST_YAML, read_text

NAMED = ("task", "encoder", "pretext", "head", "policy", "init")
"""Fields whose word is short for a mapping with that `name`."""


def load(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> Experiment:
    """Returns the experiment of YAML files and `key=value` overrides. Raises UserError with the field and a remedy."""
    return validate_experiment(merge_trees(*read_trees(files, overrides)))


def read_trees(files: Sequence[Path | str], overrides: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the tree of each file, and one tree of all overrides."""
    trees = [read_with_base(Path(file)) for file in files]
    above: dict[str, Any] = {}
    given: dict[str, str] = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"{override}: is neither a YAML file nor key=value; overrides read pretext.mask_ratio=0.5")
        if not all(path.split(".")) or path.count(".") >= MOST_DEPTH:
            raise UserError(f"{override}: names no field; overrides read pretext.mask_ratio=0.5")
        parsed = parse_value(value, override)
        if not isinstance(parsed, (dict, str)):  # which are merged
            refuse_lost(override, path, given)
        above = merge(above, with_first_names(nest(path.split("."), parsed), override))
        given[path] = override
    return trees, above


def refuse_lost(override: str, path: str, given: dict[str, str]) -> None:
    """Raises UserError if an override of `path` as a whole would undo an earlier one of a field in it, without a word.

    given: the earlier ones, by path.
    """
    if lost := next((each for each in given if each.startswith(f"{path}.")), None):
        raise UserError(f"{override}: undoes {given[lost]}, which stands before it; leave one of them out")


def merge_trees(trees: Sequence[dict[str, Any]], above: dict[str, Any]) -> dict[str, Any]:
    """Merges all into one tree: later files over earlier ones, then `above`. The strategy's fields under `only:` are
    applied right after their file."""
    strategy = reduce(merge, [*trees, above], {}).get("pretext")
    strategy = strategy.get("name") if isinstance(strategy, dict) else strategy
    below: dict[str, Any] = {}
    for tree in trees:  # a file's own `only:` right after the file, so that later files override it too
        only = only_by_strategy(tree.get("only") or {})
        below = merge(below, {name: value for name, value in tree.items() if name != "only"})
        if isinstance(strategy, str) and strategy in only:
            below = merge(below, merge({"pretext": {"name": strategy}}, only[strategy]))
    refuse_idle_epochs(below, above)
    return merge(below, above)


def refuse_idle_epochs(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Raises UserError if epochs are given to a training whose file sets steps, which decide its length."""
    for name in ("pretrain", "finetune"):
        given, there = (part if isinstance(part, dict) else {} for part in (above.get(name), below.get(name)))
        if "epochs" in given and "steps" not in given and (steps := there.get("steps")) is not None:
            what = f"the file sets {name}.steps={steps}, which decides how long it trains"
            raise UserError(f"{name}.epochs: {what}; set {name}.steps, or {name}.steps=null beside the epochs")


def only_by_strategy(only: Any) -> dict[str, dict[str, Any]]:
    """Validates the fields that a file sets per strategy: `only: {mae: {pretext: {decoder_depth: 2}}}`."""
    if not isinstance(only, dict) or not all(isinstance(part, dict) for part in only.values()):
        raise UserError("only: must hold fields by strategy, as in only: {mae: {pretext: {decoder_depth: 2}}}")
    for name in only:
        try:
            plugin_name("pretext", name)
        except ValueError as error:
            raise UserError(f"only: {error}") from None
    return only


def validate_experiment(tree: dict[str, Any]) -> Experiment:
    """Returns `tree` as an Experiment. Raises UserError (one line) for the first invalid field."""
    return validate_spec(Experiment, tree)


def refuse_mistakes(tree: dict[str, Any]) -> None:
    """Raises UserError for the first mistake in a field that is no plug-in's, without the seconds of importing these.

    What is missing may be in a part that the strategy does not need: that is for `validate_experiment` to say.
    """
    try:
        Experiment.model_validate(tree, context=NO_IMPORT)
    except ValidationError as error:
        found = [(kind, f"{where}: {what}") for where, what, kind in all_errors(error) if kind != "missing"]
        if found:
            raise UserError(min(found, key=lambda each: each[0] != UNKNOWN)[1]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the fields of one YAML file; an empty file has none."""
    try:
        tree = parse_yaml(read_text(path, MOST_YAML, "long lists, as of patients, belong into a table"))
    except OSError as error:
        if path.suffix.lower() not in (".yaml", ".yml") and not path.exists():
            field = re.split("[:=]", str(path))[0]
            field = field if re.fullmatch(r"[a-z_]+(\.\w+)*", field) else "finetune.lr"
            raise UserError(f"{path}: is no YAML file; to set a field write {field}=VALUE, without spaces") from None
        raise UserError(f"{path}: {unread(path, error)}") from None
    except Refused as error:
        raise UserError(f"{path}, line {error.line}: {error.problem}") from None
    except ScannerError as error:
        where = f"{path}, line {error.problem_mark.line + 1}" if error.problem_mark else f"{path}"
        if "'\\t'" in str(error.problem):
            raise UserError(f"{where}: has a tab; YAML is indented with spaces") from None
        raise UserError(f"{where}: is not YAML ({error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `field: value` lines")
    return with_first_names(tree, str(path))


def with_first_names(tree: Any, where: str) -> Any:
    """`tree` with the fields that have two names under their first: `base_lr` is `lr`. Raises UserError for both."""
    if isinstance(tree, list):
        return [with_first_names(each, where) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if twice := next(
        (name for name in tree if isinstance(name, str) and first_name(name) in tree.keys() - {name}), None
    ):
        raise UserError(f"{where}: {first_name(twice)} and {twice} are one field; keep {twice}")
    return {
        first_name(name) if isinstance(name, str) else name: with_first_names(value, where)
        for name, value in tree.items()
    }


def first_name(path: str) -> str:
    """Returns a field's path with the first of its names: finetune.base_lr is finetune.lr."""
    return re.sub(r"(^|\.)base_lr$", r"\1lr", path)


def read_with_base(path: Path, follow: bool = True) -> dict[str, Any]:
    """Returns the fields of one YAML file, merged over those of its `base:`."""
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base is {base!r}; name one YAML file, relative to this one")
    if not follow:
        raise UserError(f"{path}: is a base itself and names another (base: {base}); a base is followed once")
    return merge(read_with_base(path.parent / base, follow=False), tree)


def unread(path: Path, error: OSError) -> str:
    """Why a YAML cannot be read, and what to do."""
    if path.is_dir():
        beside = [each for end in (".yaml", ".yml") if (each := path.parent / f"{path.name}{end}").is_file()]
        hint = f"did you mean {beside[0]}" if beside else f"premed init {path} writes a YAML for it"
        return f"is a folder; {hint}"
    others = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, others, n=1, cutoff=0.8)
    return f"cannot be read ({error.strerror}); {f'did you mean {close[0]}' if close else 'check the path'}"


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merges `above` over `below`, key by key; another plug-in `name` replaces the whole plug-in.

    `pretext: mae` is short for `pretext: {name: mae}`. Fields without a name belong to the name that comes later.
    """
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"name": old}
        elif isinstance(old, dict) and isinstance(value, str) and (name in NAMED or "name" in old):
            value = {"name": value}
        elif isinstance(old, list) and isinstance(value, dict) and "name" not in value:
            raise UserError(
                f"{name}: is a list, which {name}.{next(iter(value), '')} cannot be set on; set it in its items"
            )
        if isinstance(old, dict) and isinstance(value, dict):
            replaced = "name" in value and value["name"] != old.get("name", value["name"])
            result[name] = value if replaced else merge(old, value)
        else:
            result[name] = value
    return result


def nest(path: list[str], value: Any) -> dict[str, Any]:
    """Returns `value` in nested dicts: nest([a, b], 1) is {a: {b: 1}}."""
    return {path[0]: nest(path[1:], value) if len(path) > 1 else value}


def parse_value(value: str, override: str) -> Any:
    """Parses the value of an override as YAML."""
    try:
        return parse_yaml(value)
    except Refused as error:
        raise UserError(f"{override}: {error.problem}") from None
    except yaml.YAMLError:
        raise UserError(f"{override}: the value is not YAML; quote it") from None
