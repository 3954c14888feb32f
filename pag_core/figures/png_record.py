"""What a figure was drawn from, in the text of its PNG: a picture that is shown beside numbers must be of the same networks."""

import io
import json
from typing import Any

from PIL import Image, UnidentifiedImageError

KEYWORD = "Drawn from"


def as_text(record: dict[str, Any] | None) -> dict[str, str]:
    """`record` as the metadata that matplotlib takes; equal records are equal bytes."""
    return {} if record is None else {KEYWORD: json.dumps(record, sort_keys=True)}


def record_of(png: bytes) -> dict[str, Any] | None:
    """The record in a figure, None where it has none or is no PNG."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            text = image.info.get(KEYWORD)
    except (UnidentifiedImageError, OSError):
        return None
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found
