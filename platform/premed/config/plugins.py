"""Plug-ins are named by their files: `{name: mae, …}` under `pretext` means `pretext/mae.py` and its `Config`."""

from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    SerializeAsAny,
)

import premed
from premed.config.spec import Spec

PACKAGES = {"tasks": "tasks", "pretext": "pretext", "encoders": "models.encoders", "heads": "models.heads"}
"""Where the plug-ins of each kind are, below `premed`."""


def plugin(kind: str, config: Any) -> Any:
    """The plug-in module that a configuration's `name` means, of that kind; ValueError lists the names there are."""
    name = config.get("name") if isinstance(config, dict) else getattr(config, "name", config)
    path = Path(premed.__file__).parent.joinpath(*PACKAGES[kind].split("."))
    names = sorted(module.name for module in iter_modules([str(path)]) if not module.ispkg)  # `common` is no plug-in
    if name not in names:
        raise ValueError(f"{name!r} is not one of {', '.join(names)}")
    return import_module(f"premed.{PACKAGES[kind]}.{name}")


def _configured(kind: str, config: Any) -> Any:
    if isinstance(config, Spec):
        return config
    module = plugin(kind, config)
    return module.Config.model_validate(config if isinstance(config, dict) else {"name": config})


def plugged(kind: str) -> Any:
    """The type of a field that holds a plug-in's configuration, by its name alone or with more."""
    return Annotated[SerializeAsAny[Spec], BeforeValidator(partial(_configured, kind))]
