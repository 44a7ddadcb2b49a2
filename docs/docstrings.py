"""How the site reads docstrings, beside mkdocstrings' own rules."""

from typing import Any

import griffe


class CodeExamples(griffe.Extension):
    """Shows what is under `Example:` as code, as it does for `Examples:`; else it would be an admonition of prose."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
