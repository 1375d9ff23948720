"""Run pytest in ComfyUI's Python: run.py FOLDER_OF_PYTEST REPORT ARGUMENTS; the report is {test: [failures]} as JSON.

Where ComfyUI has no pytest, the one of the tests' own environment is lent to it, and nothing else of that environment:
these tests also show that the extension needs only what ComfyUI brings.
"""

import json
import sys
from pathlib import Path

folder, report_path, *arguments = sys.argv[1:]
try:
    import pytest
except ImportError:
    sys.path.append(folder)
    try:
        import pytest
    except ImportError as error:  # of another version of Python
        sys.exit(f"NO PYTEST IN COMFYUI ({error}): {sys.executable} -m pip install pytest")
    sys.path.remove(folder)


class Report:
    """What failed, by the name of the test without its parameters."""

    def __init__(self):
        self.failures: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report):
        failures = self.failures.setdefault(report.nodeid.split("[")[0], [])
        if not report.passed:
            failures.append(f"{report.nodeid} {report.outcome} in {report.when}:\n{report.longreprtext}\n"
                            f"{report.capstdout}{report.capstderr}")

    def pytest_sessionfinish(self):
        Path(report_path).write_text(json.dumps(self.failures), encoding="utf-8")


sys.exit(pytest.main(arguments, plugins=[Report()]))
