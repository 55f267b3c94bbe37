"""A terminal that people use: a tmux with a server of its own, which shows what is on its screen."""

import os
import re
import shlex
import subprocess
import time

SECONDS = 120


class Tmux:
    def __init__(self, folder, environment):
        """Its socket is in `folder`; `environment` is that of the command."""
        self._environment = {**environment, "TMUX_TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
        # It may be run in another tmux.
        self._environment.pop("TMUX", None)
        self._exit_code = folder / "exit-code"

    def start(self, command, columns, rows):
        """One window with this command and nothing else; it stays when the command has ended."""
        # tmux itself now and then loses the status of what ends (3.3a).
        noted = f"{shlex.join(command)}; echo $? > {shlex.quote(str(self._exit_code))}"
        line = ["new-session", "-d", "-x", str(columns), "-y", str(rows), noted]
        # Before the session, so that no command is too quick for them.
        options = ["set-option", "-g", "remain-on-exit", "on", ";", "set-option", "-g", "status", "off"]
        self._tmux("start-server", ";", *options, ";", *line)

    def end(self):
        """Also if it never began."""
        self._tmux("kill-server", check=False)

    def type(self, line):
        self._tmux("send-keys", "-l", line)
        self.press("Enter")

    def press(self, key):
        self._tmux("send-keys", key)

    def resize(self, columns, rows):
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self):
        """Long lines whole."""
        return self._tmux("capture-pane", "-p", "-J")

    def exit_code(self):
        """None while the command runs."""
        noted = self._exit_code.read_text() if self._exit_code.exists() else ""
        return int(noted) if noted else None

    def expect(self, pattern):
        """The screen, once it shows this."""
        self.wait_until(lambda: re.search(pattern, self.screen()), repr(pattern))
        return self.screen()

    def wait_until(self, holds, what):
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"not so in time: {what}; the screen is\n{self.screen()}"
            time.sleep(0.2)

    def _tmux(self, *arguments, check=True):
        done = subprocess.run(
            ["tmux", "-L", "berth", "-f", os.devnull, *arguments],
            capture_output=True,
            text=True,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
        )
        assert not check or done.returncode == 0, f"tmux {arguments} failed: {done.stderr}"
        return done.stdout
