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

# Files whose tests start processes, browsers or trainings: together they take minutes, each test
# seconds. `make quick` leaves them out, like the tests that are marked slow by themselves.
SLOW_FILES = {
    "test_browser.py",
    "test_cluster.py",
    "test_damaged_files.py",
    "test_demo.py",
    "test_demo_command.py",
    "test_distributed.py",
    "test_everyday_files_command.py",
    "test_examples.py",
    "test_executors.py",
    "test_fuzzed_files.py",
    "test_imported.py",
    "test_imported_real.py",
    "test_interruptions.py",
    "test_learner.py",
    "test_machine.py",
    "test_monai.py",
    "test_names_command.py",
    "test_on_a_pretended_gpu.py",
    "test_onnx_export.py",
    "test_pipeline.py",
    "test_release.py",
    "test_sampling.py",
    "test_shells.py",
    "test_start.py",
    "test_train_command.py",
    "test_training.py",
    "test_tutorial.py",
}


def pytest_ignore_collect(collection_path, config):
    """Leave slow files unread where no slow test is wanted: what they import takes seconds."""
    return (
        True
        if config.option.markexpr == "not slow" and collection_path.name in SLOW_FILES
        else None
    )


def pytest_collection_modifyitems(items):
    """Mark every test of a slow file as slow."""
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker("slow")
