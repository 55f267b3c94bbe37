"""Each test's end, written down at once in the file that $BERTH_E2E_JOURNAL names. A run that finds tests ended there
does the others: so an emulated host that is lost costs the tests it was at, not those that had ended."""

import os
from pathlib import Path

REASON_CHARACTERS = 300


def path():
    name = os.environ.get("BERTH_E2E_JOURNAL")
    return Path(name) if name else None


class Journal:
    """One line a test: its outcome (passed, failed, skipped), a space, its id, and after a tab why it failed. A try that
    another one follows has a line of its own, with `rerun`."""

    def __init__(self, file):
        self._file = file
        self._outcomes = {}
        self._reasons = {}

    def pytest_collection_modifyitems(self, config, items):
        lines = (line.split("\t")[0].split(" ", 1) for line in self._lines())
        ended = {test for outcome, test in lines if outcome != "rerun"}
        done = [item for item in items if item.nodeid in ended]
        items[:] = [item for item in items if item.nodeid not in ended]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report):
        test = report.nodeid
        if report.when == "setup":
            self._outcomes[test] = "passed"
        if report.outcome in ("failed", "skipped"):
            self._outcomes[test] = report.outcome
        if report.outcome in ("failed", "rerun"):
            self._reasons.setdefault(test, _reason(report))
        if report.outcome == "rerun":
            self._outcomes[test] = "rerun"
            self._write("rerun", test)
        elif report.when == "teardown":
            outcome = self._outcomes.pop(test)
            # A try that another one follows has not ended the test.
            if outcome != "rerun":
                self._write(outcome, test)

    def _write(self, outcome, test):
        reason = self._reasons.pop(test, None)
        with self._file.open("a") as file:
            file.write(f"{outcome} {test}" + (f"\t{reason}" if reason else "") + "\n")

    def _lines(self):
        return self._file.read_text().splitlines() if self._file.exists() else []


def _reason(report):
    """The first words of what went wrong, on one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.split())[:REASON_CHARACTERS]
