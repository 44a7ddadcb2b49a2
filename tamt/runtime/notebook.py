"""What objects show in a notebook."""

import html
from collections.abc import Mapping


def table(entries: Mapping[str, str], more: str = "") -> str:
    """A small HTML table: a row for each entry, whose text is escaped, and `more` rows, which are HTML already."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in entries.items()
    )
    return f"<table>{rows}{more}</table>"
