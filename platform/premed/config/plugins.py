"""Plug-ins by file name: `{name: mae, …}` under `pretext` is `pretext/mae.py` with its `Config`."""

from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo

import premed
from premed.config.spec import Spec

PACKAGES = {"tasks": "tasks", "pretext": "pretext", "encoders": "models.encoders", "heads": "models.heads"}
"""The package of each kind of plug-in, below `premed`."""


def plugin_names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind; `common` is a package, and none."""
    path = Path(premed.__file__).parent.joinpath(*PACKAGES[kind].split("."))
    return sorted(module.name for module in iter_modules([str(path)]) if not module.ispkg)


def plugin(kind: str, config: Any) -> Any:
    """Returns the module that a configuration's `name` selects. Raises ValueError, which lists the valid names."""
    return import_module(f"premed.{PACKAGES[kind]}.{plugin_name(kind, config)}")


def plugin_name(kind: str, config: Any) -> str:
    """Returns a configuration's `name`. Raises ValueError, which lists the valid names."""
    name = config.get("name") if isinstance(config, dict) else getattr(config, "name", config)
    if name not in (names := plugin_names(kind)):
        raise ValueError(f"{'is missing; name' if name is None else f'{name!r} is not'} one of {', '.join(names)}")
    return name


NO_IMPORT = "validates all but plug-ins' own fields, which takes no import of torch"
"""As the context of a validation: what it is for. The result is of no use but that it was valid."""


def _parse_config(kind: str, config: Any, info: ValidationInfo) -> Any:
    if isinstance(config, Spec):
        return config
    if info.context == NO_IMPORT:
        plugin_name(kind, config)
        return Spec()
    module = plugin(kind, config)
    return module.Config.model_validate(config if isinstance(config, dict) else {"name": config})


def plugin_field(kind: str) -> Any:
    """Returns the type of a field that holds a plug-in's configuration: its name, or a mapping with `name`."""
    return Annotated[SerializeAsAny[Spec], BeforeValidator(partial(_parse_config, kind))]
