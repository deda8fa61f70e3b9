"""html.py: what a template is given is text, whatever it holds; a page holds all that it needs."""

import pytest
from jinja2 import DictLoader, UndefinedError
from markupsafe import Markup
from support.pages import Page

from premed.reporting import html


@pytest.fixture
def rendered(monkeypatch):
    """The page of a body, as a template that has the shared macros."""

    def of(body: str, **values) -> str:
        start = '{% extends "base.html.jinja" %}{% import "macros.html.jinja" as html %}{% block body %}'
        environment = html.environment().overlay()
        loaded = {"page": start + body + "{% endblock %}"}
        environment.loader = DictLoader(loaded | {name: source(name) for name in html.environment().list_templates()})
        monkeypatch.setattr(html, "environment", lambda: environment)
        return html.render("page", title="a title", **values)

    def source(name: str) -> str:
        return html.environment().loader.get_source(html.environment(), name)[0]  # type: ignore[union-attr]

    return of


ODD = "<script>alert(1)</script>&\"'\x1b[31m\u202e\n"


@pytest.mark.parametrize(
    "body",
    [
        "<p>{{ odd }}</p>",
        '<p title="{{ odd }}">{{ odd ~ odd }}</p>',
        "{{ html.bullets(odd, [odd]) }}",
        "{{ html.figure(odd, odd, chart) }}",
        "{% call html.wide_table() %}<tr><td>{{ odd }}</td>{{ html.interval(odd, '') }}</tr>{% endcall %}",
        "<p>{{ [odd, odd] | listed }}</p>",
    ],
)
def test_what_a_template_is_given_is_text_with_what_cannot_be_seen_written_out(rendered, body):
    text = rendered(body, odd=ODD, chart=b"<svg/>")
    shown = Page(text)
    assert shown.open == [] and "script" not in shown.tags
    assert "<script>alert(1)</script>&\"'\\x1b[31m\\u202e\\n" in shown.words


def test_html_made_by_premed_stays_html(rendered):
    assert "<b>x</b>" in rendered("{{ bar }}", bar=Markup("<b>x</b>"))


def test_a_name_that_is_missing_is_an_error_and_no_gap(rendered):
    with pytest.raises(UndefinedError, match="'absent' is undefined"):
        rendered("{{ absent }}")


@pytest.mark.parametrize(("content", "kind"), [(b"\x89PNG...", "png"), (b"<?xml", "svg+xml")])
def test_pictures_are_in_the_page(rendered, content, kind):
    (address,) = Page(rendered("{{ html.image(content, 'x') }}", content=content)).loads
    assert address.startswith(f"data:image/{kind};base64,")


def test_a_page_runs_no_script_and_loads_nothing(rendered):
    text = rendered("")
    assert text.startswith("<!doctype html>\n") and "default-src 'none'; img-src data:" in text


@pytest.mark.parametrize(
    "template", ["base.html.jinja", "comparison.html.jinja", "data_check.html.jinja", "sweep.html.jinja"]
)
def test_every_page_fits_a_phone_and_has_a_dark_scheme_and_one_for_paper(rendered, template):
    """What a browser makes of these: tests/integration/test_pages_in_browser.py."""
    source, *_ = html.environment().loader.get_source(html.environment(), template)  # type: ignore[union-attr]
    assert template == "base.html.jinja" or '{% extends "base.html.jinja" %}' in source
    page = rendered("")
    assert '<meta name="color-scheme" content="light dark">' in page and "width=device-width" in page
    assert "@media screen and (prefers-color-scheme: dark)" in page and "@media print" in page
