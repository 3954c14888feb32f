"""YAML as DVC reads it, which is version 1.2: 0123 is 123 there, 1:30 and yes are words, and 1e-05 is a number."""

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode


class _UniqueKeys(Composer):
    """Refuses a key given twice also in a mapping with a merge (`<<`), where ruamel.yaml silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as it is written; when it is constructed, merged keys stand in it like its own."""
        node: MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            written = (str(key.tag), key.value) if isinstance(key, ScalarNode) else None
            if written in seen:
                raise MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen |= {written} - {None}
        return node


def read_yaml(text: str) -> Any:
    """What `text` holds; raises ValueError that says what in it is no YAML, or is a key given twice, and where."""
    # the parser and its options are those of dvc.utils.serialize: a value that the two read differently would run as one
    # experiment and be recorded as another
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _UniqueKeys
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{error.problem or error.context}{place}") from None
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def written_yaml(content: Any, *, in_rows: bool = False) -> str:
    """`content` as YAML in its order, which `read_yaml` and DVC read as it was.

    `in_rows` is for people: the innermost lists and sections in one line each, and letters of any script as they are.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None if in_rows else False
    # written as they are, some of Unicode's line breaks would be read as blanks
    yaml.allow_unicode = in_rows
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()
