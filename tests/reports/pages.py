"""What is in a page of a report: the data of its plots and tables, and what it would load from elsewhere."""

import html
import json
import re
from html.parser import HTMLParser


def models(page):
    """All of Bokeh's models in a page, as JSON."""
    (text,) = re.findall(r"const docs_json = '(.*?)';\n", page, re.DOTALL)
    found, left = [], [json.loads(html.unescape(text.replace("\\\\", "\\")))]
    while left:
        value = left.pop(0)
        if isinstance(value, dict):
            if value.get("type") == "object" and "name" in value:
                found.append(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found


def columns(page):
    """The data of every source in a page, {column: values}."""
    return [dict(m["attributes"]["data"]["entries"]) for m in models(page) if m["name"] == "ColumnDataSource"]


def external(page):
    """Addresses of scripts, pictures, styles and the like, which a browser would load; links are none."""
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                if tag != "a" and name in ("src", "href", "data") and not value.startswith("data:"):
                    found.append((tag, value))

    Tags().feed(page)
    return found
