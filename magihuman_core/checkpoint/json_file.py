"""JSON that lies beside weights or in their metadata, read without trusting its size or content."""

import json
from pathlib import Path
from typing import Any

MAX_JSON = 1 << 20  # bytes of a configuration; the official ones have under 3 kB


def read_json(source: Path | str, limit: int = MAX_JSON) -> Any:
    """The content of a file or of a text. Raises OSError, and ValueError where it is too large or is not JSON.

    limit: bytes of a file at most.
    """
    if isinstance(source, Path) and source.stat().st_size > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    try:
        return json.loads(source.read_bytes() if isinstance(source, Path) else source)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(source: Path | str) -> dict[str, Any] | None:
    """The object in a file or a text, or None where there is no such thing."""
    try:
        content = read_json(source)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
