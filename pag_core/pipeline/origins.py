"""Whether what a stage wrote is of the networks, data and parameters that are there now: stages can be run one by one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pag_core.errors import ArtifactError
from pag_core.params.sections import Params


def require_of_now(
    place: Path | str,
    record: Mapping[str, Any] | None,
    *,
    inputs: Mapping[str, str],
    params: Params | None = None,
    remedy: str,
) -> None:
    """Raise ArtifactError unless the provenance `record` of `place` states these `inputs`, and no other values than `params`.

    `inputs` are fingerprints (SHA-256) by name of what is there now; a record may state others beside them, but lack none.
    `remedy` ends the message, as `run python stages/masking.py again`.
    """
    stated = {} if record is None else record["inputs"]
    for what, fingerprint in inputs.items():
        found = stated.get(what, "unknown")
        if found != fingerprint:
            raise ArtifactError(
                f"{place} was made with another {what} (fingerprint {found[:12]}) than there is now ({fingerprint[:12]}); "
                f"{remedy}"
            )
    if record is None or params is None:
        return
    now = params.model_dump(mode="json", by_alias=True)
    for key, then in record["params"].items():
        # a record may be of some keys of a section
        section = isinstance(then, dict) and isinstance(now.get(key), dict)
        pairs = (
            {f"{key}.{part}": (then[part], now[key].get(part)) for part in then}
            if section
            else {key: (then, now.get(key))}
        )
        for name, (old, new) in pairs.items():
            if old != new:
                raise ArtifactError(
                    f"{place} was made with {name} {old}, and params.yaml has {new}; {remedy}, or set it back"
                )
