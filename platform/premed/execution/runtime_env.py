"""The YAML of a Ray runtime environment, checked before a job is packed: Ray's own errors name no file."""

from pathlib import Path
from typing import Any

from premed.config.compose import read_with_base
from premed.errors import UserError

LISTS = "excludes", "py_modules"


def read_runtime_env(path: Path) -> dict[str, Any]:
    """Its fields, merged over those of its `base:`; numbers among the variables are text.

    Raises UserError for a file that cannot be read, a field that Ray has not, or a value of the wrong type.
    """
    from ray.runtime_env import RuntimeEnv

    settings = read_with_base(path)
    for name in settings:
        if name == "working_dir":
            raise UserError(f"{path}: working_dir: is what premed submit uploads by itself; leave it out")
        if name not in RuntimeEnv.known_fields:
            known = sorted(each for each in RuntimeEnv.known_fields if not each.startswith("_"))
            raise UserError(f"{path}: {name}: no such field of a runtime environment; Ray has {', '.join(known)}")
    for name in LISTS:
        value = settings.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise UserError(
                f"{path}: {name}: is {value!r}; write a list of text, [{value if isinstance(value, str) else '…'}]"
            )
    variables = settings.get("env_vars")
    if variables is not None:
        settings["env_vars"] = checked_variables(path, variables)
    return settings


def checked_variables(path: Path, variables: Any) -> dict[str, str]:
    """Names and values as text. A truth value is refused: `true` and `True` are different text, and both are meant."""
    if not isinstance(variables, dict):
        raise UserError(f"{path}: env_vars: is {variables!r}; write NAME: value, one in a line")
    for name, value in variables.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{path}: env_vars.{name}: is {value!r}; write text, in quotes")
    return {name: str(value) for name, value in variables.items()}
