"""How the pages are made from their templates, which lie beside this file."""

from pathlib import Path
from typing import Any

import jinja2


def rendered(template: str, **content: Any) -> str:
    """A template of this folder filled in as HTML: what `content` holds is escaped, and an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)
