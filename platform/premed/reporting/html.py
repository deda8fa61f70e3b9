"""HTML pages, rendered from the jinja2 templates in `templates/`: one file each, no network, no script.

Everything that is given to a template is escaped, and what cannot be seen is written out (`printable`). HTML that is
made here, such as the inline SVG of `charts.interval_bar`, is a `Markup`; only that is not escaped.
"""

from base64 import b64encode
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from premed.errors import printable
from premed.reporting.formatting import counted, duration, listed, mean_std, number, p_value, percent, signed, span

FORMATTING = {
    each.__name__: each for each in (counted, duration, listed, mean_std, number, p_value, percent, signed, span)
}
"""As functions and as filters in every template."""


def render(template: str, **values: Any) -> str:
    """Returns the page of a template. Raises UndefinedError if the template uses a name that is not in `values`."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= FORMATTING | {"data_uri": data_uri}
    made.globals |= FORMATTING
    return made


def data_uri(content: bytes) -> str:
    """A PNG or an SVG as a data: URI."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
