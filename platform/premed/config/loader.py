"""YAML files and `key=value` overrides to one tree of fields.

Later files and then `key=value` override earlier ones by dotted path; a relative `base:` is followed once; what stands
under `only: {mae: …}` holds for that strategy.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from premed.config.experiment import Experiment
from premed.config.plugins import plugin
from premed.config.spec import validated
from premed.errors import UserError


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
