"""Which version this is."""

import re


def version() -> str:
    """This package's version: of what is installed, or else of the folder it lies in."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed
    from pathlib import Path

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file() and (found := re.search(r'^version = "([^"]+)"', project.read_text(encoding="utf-8"), re.M)):
        return found[1]
    try:
        return installed("magihuman")
    except PackageNotFoundError:
        return "of unknown version"
