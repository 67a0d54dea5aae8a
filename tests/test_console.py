"""Results and progress bars, on a terminal and with only one of them on it."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from brats_cli import console

LIVE = {
    "progress": (console.progress, lambda bars: bars.add_task("1/2", total=2, completed=1)),
    "counted": (lambda: console.counted("cases"), lambda count: count(1, 2)),
    "last_line": (console.last_line, lambda show: show("1/2", 0.5, "behind")),
}
"""Each bar, and how it is drawn."""

PRINT = {
    "result": (lambda: console.result("a b"), "a b\n"),
    # Longer than a terminal's 80 columns.
    "json": (lambda: console.result_json({"a": "b " * 60}), '{\n  "a": "' + "b " * 60 + '"\n}\n'),
    "table": (lambda: console.table(["a", "b"], [["c", "1"]]), "a  b\nc  1\n"),
}


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns as stderr: what it is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(
        console, "_stderr", Console(file=sent, force_terminal=True, width=80, stderr=True)
    )
    return sent


@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("kind", PRINT)
def test_results_beside_a_bar_go_to_stdout_unchanged(terminal, capsys, live, kind):
    (shown, draw), (show, expected) = LIVE[live], PRINT[kind]
    with shown() as bars:
        draw(bars)
        show()
    assert capsys.readouterr().out == expected
    assert "1/2" in terminal.getvalue()
    assert "b" not in terminal.getvalue().replace("behind", "")


@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("kind", PRINT)
def test_a_bar_is_gone_before_a_result_appears_on_the_same_terminal(
    terminal, monkeypatch, live, kind
):
    monkeypatch.setattr(sys, "stdout", terminal)
    (shown, draw), (show, expected) = LIVE[live], PRINT[kind]
    with shown() as bars:
        draw(bars)
        show()
        draw(bars)
    before, found, after = terminal.getvalue().partition(expected)
    assert found == expected
    # The bar's line is erased last, and the cursor, which was hidden, shown again.
    assert before.endswith("\x1b[2K")
    assert before.count("\x1b[?25l") == before.count("\x1b[?25h") == 1
    assert after == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("kind", PRINT)
def test_results_that_cannot_be_printed_are_an_error_with_a_hint(kind):
    # In a process of its own, because Python tries once more as it ends.
    code = (
        "from test_console import PRINT\n"
        "from brats_cli.app import app, main\n"
        f"app.command('show')(PRINT[{kind!r}][0])\n"
        "main()\n"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", code, "show"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
    assert done.returncode == 3
    assert done.stderr == (
        "error: cannot write standard output: No space left on device\n hint: is the disk full?\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_version_that_cannot_be_printed_is_one_as_well():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "brats_cli", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot write standard output: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("kind", [*PRINT, "version"])
def test_results_that_nobody_reads_end_as_other_programs_do_then(kind):
    show = "None" if kind == "version" else f"PRINT[{kind!r}][0]"
    code = (
        "import sys\n"
        "from test_console import PRINT\n"
        "from brats_cli.app import app, main\n"
        f"{show} and app.command('show')({show})\n"
        "sys.stdin.read()\n"  # until the reader has gone
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "--version" if kind == "version" else "show"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    ) as process:
        process.stdout.close()
        process.stdin.close()
        stderr = process.stderr.read()
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "status", "error"),
    [(">&-", 0, ""), ("<&-", 3, "error: standard input is empty"), ("2>&-", 3, "")],
)
def test_a_closed_stream_is_an_empty_one(tmp_path, closed, status, error):
    words = "--version" if closed == ">&-" else "predict - -o out"
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m brats_cli {words} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr.partition("\n")[0]) == (status, error)
