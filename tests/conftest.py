"""What no test may depend on: the terminal and the settings of whoever runs it."""

import os

# Before anything is imported: Typer and rich look at these once. CI systems set some of them.
for _name in (
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "PY_COLORS",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "GITHUB_ACTIONS",
    "_BRATS_COMPLETE",
):
    os.environ.pop(_name, None)
os.environ["NO_COLOR"] = "1"
# Networks of two channels gain nothing from threads, and wait for them on a busy machine: a test
# of one second took thirty.
os.environ.setdefault("OMP_NUM_THREADS", "1")
