"""Options of the library, checked by the sections of params.yaml that the stages take them from."""

from typing import Any, TypeVar

from pydantic import ValidationError

from pag_core.errors import ParamsError
from pag_core.params.values import Section

Options = TypeVar("Options", bound=Section)


def checked_options(section: type[Options], **values: Any) -> Options:
    """The options as a section; raises ParamsError that names each refused one."""
    try:
        return section(**values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['input']!r} is refused: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ParamsError("; ".join(lines)) from None
