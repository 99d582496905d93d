"""One HTML file of sections, with everything that it needs inside: it opens from disk, and asks no network."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

import jinja2
from bokeh.embed import components
from bokeh.models import LayoutDOM
from bokeh.resources import Resources
from markupsafe import Markup

from beacon_jax.version import VERSION
from experiments.reports.table import Table, text_of

WIDTH = 1180  # of the page, in pixels
_TEMPLATE = "page.html.jinja"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page: its title and a note, then a plot or table of Bokeh's, then plain tables of facts.

    `folded`: the tables of facts are closed at first.
    """

    anchor: str
    title: str
    note: str = ""
    plot: LayoutDOM | None = None
    facts: tuple[Table, ...] = ()
    folded: bool = False


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML of sections, below a title and leading sentences; all texts are escaped."""
    script, divs = components({str(i): section.plot for i, section in enumerate(sections) if section.plot is not None})
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["text"] = text_of
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(_TEMPLATE).render(
        title=title,
        lead=lead,
        sections=sections,
        plots={int(i): Markup(div) for i, div in divs.items()},
        resources=Markup(resources.render()),
        script=Markup(script),
        width=WIDTH,
        written=f"Written by beacon_jax {VERSION}, {now}. A dash stands for what was not measured.",
    )
