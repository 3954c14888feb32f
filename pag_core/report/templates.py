"""How the pages are made from their templates."""

from pathlib import Path
from typing import Any

import jinja2


def rendered(template: Path, **content: Any) -> str:
    """A template filled in as HTML: what `content` holds is escaped, and an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**content)
