"""Completion in the shells themselves: what stands on the line after a TAB, on a terminal."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

COMPLETIONS = Path(__file__).parents[1] / "completions"

SHELLS = {
    "bash": (["bash", "--norc", "-i"], "source {scripts}/brats.bash"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -D; source {scripts}/brats.zsh"),
    "zsh-fpath": (
        ["zsh", "-f", "-i"],
        "fpath=({folder} $fpath); autoload -U compinit; compinit -D -u",
    ),
    "fish": (["fish", "--no-config", "-i"], "source {scripts}/brats.fish"),
}
"""How each shell starts without anybody's settings, and how it gets the script."""

QUESTIONS = {
    b"\x1b[c": b"\x1b[?62;c",  # what kind of terminal is this?
    b"\x1b[6n": b"\x1b[1;1R",  # where is the cursor?
}
"""What a shell asks of a terminal, and waits for."""

LONGEST = 60
"""Seconds after which a shell that shows nothing more has failed; each takes about one."""


class Terminal:
    """A shell on a terminal of its own; what it shows grows as it is waited for."""

    def __init__(self, words, folder, environment):
        self.shown = b""
        self.process, self.handle = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(words[0], words, environment)

    def type(self, keys):
        os.write(self.handle, keys.encode())

    def wait_for(self, text):
        """Read until `text` is shown, from here on."""
        end, start = time.monotonic() + LONGEST, len(self.shown)
        while text.encode() not in self.shown[start:]:
            assert time.monotonic() < end, f"no {text!r} in {self.shown[start:]!r}"
            if select.select([self.handle], [], [], 0.1)[0]:
                more = os.read(self.handle, 1 << 16)
                self.shown += more
                for question, answer in QUESTIONS.items():
                    if question in more:
                        os.write(self.handle, answer)

    def close(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.handle)


@pytest.fixture
def terminal(request, tmp_path):
    """A shell of the given name that has read its script, beside one file."""
    words, setup = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    (tmp_path / "only_one.nii.gz").touch()
    shutil.copy(COMPLETIONS / "brats.zsh", tmp_path / "_brats")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb", "PATH": path}
    python = {key: value for key, value in os.environ.items() if key.startswith("PYTHON")}
    shell = Terminal(words, tmp_path, {**home, **python})
    # The answer is not what is typed, so that it is not taken for the echo.
    shell.type(f"{setup.format(scripts=COMPLETIONS, folder=tmp_path)}; echo rea''dy\n")
    shell.wait_for("ready")
    yield shell
    shell.close()


@pytest.mark.skipif(os.name != "posix", reason="Windows has other terminals")
@pytest.mark.parametrize("terminal", SHELLS, indirect=True)
def test_a_tab_completes_commands_options_values_and_files(terminal):
    for typed, completed in (
        ("brats ev", "evaluate"),
        ("brats mesh only_", "only_one.nii.gz"),
        ("brats mesh only_one.nii.gz --reg", "--region"),
        ("brats mesh only_one.nii.gz --space l", "--space lps"),
    ):
        terminal.type(f"{typed}\t")
        terminal.wait_for(completed)
        terminal.type("\x15")  # Ctrl-U empties the line


@pytest.mark.skipif(os.name != "posix", reason="Windows has other terminals")
@pytest.mark.parametrize("terminal", ["bash", "zsh"], indirect=True)
def test_ctrl_c_ends_the_loop_that_a_command_runs_in(terminal, tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        "import time\n"
        "from brats_cli.__main__ import main\n"
        "from brats_cli.app import app\n"
        "app.command('wait')(lambda: (print('wai' 'ting', flush=True), time.sleep(20)))\n"
        "main()\n"
    )
    terminal.type(f"for round in 1 2; do {sys.executable} {script} wait; done\n")
    terminal.wait_for("waiting")
    terminal.type("\x03")
    terminal.type("echo status=$?\n")
    terminal.wait_for("status=130")
    assert terminal.shown.count(b"waiting") == 1
