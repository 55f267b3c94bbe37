"""Each test's end, written down at once in the file that $BERTH_E2E_JOURNAL names. A run that finds tests ended there
does the others: so an emulated host that is lost costs the tests it was at, not those that had ended."""

import os
from pathlib import Path


def path():
    name = os.environ.get("BERTH_E2E_JOURNAL")
    return Path(name) if name else None


class Journal:
    """One line a test: its outcome (passed, failed, skipped), a space, its id."""

    def __init__(self, file):
        self._file = file
        self._outcomes = {}

    def pytest_collection_modifyitems(self, config, items):
        ended = {line.split(" ", 1)[1] for line in self._lines()}
        done = [item for item in items if item.nodeid in ended]
        items[:] = [item for item in items if item.nodeid not in ended]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":
            self._outcomes[report.nodeid] = "passed"
        if report.outcome in ("failed", "skipped"):
            self._outcomes[report.nodeid] = report.outcome
        if report.when == "teardown" and report.outcome != "rerun":
            with self._file.open("a") as file:
                file.write(f"{self._outcomes.pop(report.nodeid)} {report.nodeid}\n")

    def _lines(self):
        return self._file.read_text().splitlines() if self._file.exists() else []
