"""The command as a whole: exit statuses, what goes to which stream, completion."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import brats, save_nifti

from brats_cli import __version__, app, console
from brats_cli.core.errors import BratsError

COMMANDS = sorted(typer.main.get_command(app.app).commands)


def run(*words, cwd, **settings):
    """The installed command, as a shell runs it."""
    command = Path(sys.executable).with_name("brats")
    return subprocess.run(
        [command, *map(str, words)], cwd=cwd, capture_output=True, text=True, **settings
    )


def run_work(body):
    """A process of brats with a command `work` besides, which it runs; its body is given."""
    code = f"""
import time
from brats_cli.__main__ import main
from brats_cli.app import app

@app.command()
def work():
    {body}

main()
"""
    command = [sys.executable, "-c", code, "work"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def work():
    """Gives brats a command `work` that does what the function given does."""
    yield lambda function: app.app.command("work")(function)
    app.app.registered_commands.pop()


@pytest.fixture
def seg(tmp_path):
    """A label map with one voxel of edema and one of enhancing tumour, far apart."""
    data = np.zeros((7, 3, 3), dtype=np.uint8)
    data[1, 1, 1], data[5, 1, 1] = 2, 4
    path = tmp_path / "seg.nii.gz"
    save_nifti(path, data)
    return path


# Status 0, and the streams


def test_version_is_told_on_stdout():
    result = brats("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"brats {__version__}\n", "")


def test_the_installed_command_and_the_program_are_one(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"brats {__version__}\n", "")


def test_help_is_there_under_both_names():
    long, short = brats("--help"), brats("-h")
    assert long.exit_code == 0
    assert long.stdout == short.stdout
    for name in COMMANDS:
        assert f"│ {name} " in long.stdout


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_no_flag_looks_in_the_help_as_if_it_took_a_value(words):
    # As Typer 0.29 prints it by itself: `--json <bool>`, and `{CASE...}...` for several.
    text = brats(*words, "--help").stdout
    assert "--help" in text
    assert "<bool>" not in text
    assert "...}" not in text


def test_results_go_to_stdout_and_messages_to_stderr(seg):
    result = brats("mesh", seg, "--smooth", "none")
    assert result.exit_code == 0
    assert "seg_WT.stl" in result.stdout
    assert result.stderr == f"written to {seg.parent}\n"


def test_quiet_silences_messages_and_not_results(seg):
    result = brats("-q", "mesh", seg)
    assert result.exit_code == 0
    assert "seg_WT.stl" in result.stdout
    assert result.stderr == ""


def test_quiet_does_not_silence_errors(tmp_path):
    result = brats("-q", "split", tmp_path / "none")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 2


def test_no_bar_is_drawn_where_stderr_is_no_terminal(seg):
    done = run("mesh", seg, "--smooth", "none", cwd=seg.parent)
    assert done.returncode == 0
    assert done.stderr == f"written to {seg.parent}\n"
    assert "\x1b" not in done.stdout


# Status 3: the user's data, file or setting


def test_a_users_mistake_is_two_lines_and_status_3(tmp_path):
    result = brats("split", tmp_path / "none")
    assert result.exit_code == 3
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error == f"error: cannot read {tmp_path / 'none'}: it is not a folder"
    assert hint == " hint: give the folder of a data set"
    assert list(tmp_path.iterdir()) == []


def test_it_is_the_same_in_a_shell(tmp_path):
    done = run("split", "none", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        "error: cannot read none: it is not a folder\n hint: give the folder of a data set\n"
    )


def test_an_error_stays_one_line_however_long_and_whatever_is_in_it(work):
    def fail():
        raise BratsError("long " * 50 + "[red]\nname[/red]", hint="see [1]")

    work(fail)
    result = brats("work")
    assert result.exit_code == 3
    assert result.stderr == f"error: {'long ' * 50}[red] name[/red]\n hint: see [1]\n"


def test_verbose_names_the_cause(work):
    def fail():
        try:
            raise OSError("the disk is on fire")
        except OSError as error:
            raise BratsError("cannot", hint="use water") from error

    work(fail)
    assert brats("work").stderr == "error: cannot\n hint: use water\n"
    *_, cause = brats("-v", "work").stderr.splitlines()
    assert cause == "cause: OSError('the disk is on fire')"


# Status 2: wrong usage


@pytest.mark.parametrize(
    "words",
    [[], ["spilt", "data"], ["split"], ["split", "data", "--rations", "1/1/1"], ["mesh"]],
    ids=["nothing", "unknown command", "no argument", "unknown option", "no label map"],
)
def test_wrong_usage_is_status_2(words):
    result = brats(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_a_misspelt_option_names_the_right_one():
    assert "--ratios" in brats("split", "data", "--rations", "1/1/1").stderr


# Status 130: Ctrl-C


def test_an_interrupted_command_says_so_in_status_130(work):
    def interrupted():
        raise KeyboardInterrupt

    work(interrupted)
    result = brats("work")
    assert (result.exit_code, result.stdout) == (130, "")


@pytest.mark.skipif(os.name != "posix", reason="Windows has another Ctrl-C")
def test_ctrl_c_ends_a_command_without_a_traceback():
    with run_work("print('ready', flush=True); time.sleep(60)") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT  # in a shell 130
    assert stdout == ""
    assert "Traceback" not in stderr


# Status 1: a bug


def test_a_bug_is_a_plain_traceback_and_status_1():
    with run_work("1 / 0") as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    first, *_, last = stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "ZeroDivisionError: division by zero"


# Completion


def completed(line, shell="bash"):
    """What `brats` offers for a line that ends where the cursor is."""
    words = line.split(" ")
    settings = {
        "_BRATS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = run(cwd=Path.cwd(), env={**os.environ, **settings})
    assert done.returncode == 0
    return done.stdout.split()


def test_commands_are_completed():
    assert sorted(completed("brats ")) == COMMANDS
    assert completed("brats pre") == ["predict"]


def test_options_and_their_values_are_completed():
    assert completed("brats mesh seg.nii.gz --reg") == ["--region"]
    assert completed("brats mesh seg.nii.gz --space ") == ["ras", "lps"]


def test_bash_completes_with_the_script_that_is_shipped(tmp_path):
    script = Path(__file__).parents[1] / "completions/brats.bash"
    line = (
        f"source {script}; COMP_WORDS=(brats ev); COMP_CWORD=1; "
        '_brats_completion brats; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "evaluate\n"


# The console


def test_a_number_that_is_not_one_is_a_dash():
    assert console.number(None) == "-"
    assert console.number(float("nan")) == "-"
    assert console.number(0.12345, 2) == "0.12"


def test_volumes_are_told_in_millilitres():
    assert console.volume(12_345) == "12.35 ml"  # 1 ml is 1,000 mm3; 12.345 is rounded half even up


@pytest.mark.parametrize(("stop", "status"), [("SIGINT", -2), ("SIGTERM", -15)])
@pytest.mark.parametrize("words", [["--version"], ["check", "nowhere"], ["evaluate", "a", "b"]])
def test_a_stop_while_python_exits_prints_nothing(tmp_path, words, stop, status):
    # When all is written, Python still runs what was registered for its end, and waits for threads.
    code = (
        "import atexit, os, signal, sys, time\n"
        f"atexit.register(lambda: (os.kill(os.getpid(), signal.{stop}), time.sleep(9)))\n"
        f"sys.argv = ['brats', *{words!r}]\n"
        "from brats_cli.app import main\n"
        "main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert "ignored" not in ended.stderr
