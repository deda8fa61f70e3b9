"""`pretext.init`: the weights that a strategy's pre-training starts from."""

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from premed.config.plugins import plugin, plugin_names
from premed.config.spec import Spec

DEFAULT = "pretrained"


def parse_init(value: Any) -> Any:
    """Returns the configuration of a strategy that imports weights. Raises ValueError for another."""
    if value is None or isinstance(value, Spec):
        return value
    fields = {"name": DEFAULT, **value} if isinstance(value, dict) else {"name": value}
    module = plugin("pretext", fields)
    if module.build is not None or not hasattr(module, "weights"):
        importing = [name for name in plugin_names("pretext") if hasattr(plugin("pretext", name), "weights")]
        raise ValueError(f"{fields['name']} imports no weights; use one of {', '.join(importing)}")
    return module.Config.model_validate(fields)


Init = Annotated[SerializeAsAny[Spec] | None, BeforeValidator(parse_init)]
"""The type of a strategy's field `init`; None: random weights."""
