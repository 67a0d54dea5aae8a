import pickle
from pathlib import Path

import pytest

from brats_cli.core.errors import (
    BratsError,
    CaseError,
    ConfigError,
    GridMismatchError,
    MissingModalityError,
    NoCasesError,
    OutputError,
    OutputExistsError,
    UnreadableFileError,
)

HERE, THERE = Path("here.nii.gz"), Path("there.nii.gz")


def test_message_and_hint_are_one_line_each():
    error = BratsError("two\n  lines", hint="of\n\ttext")
    assert (str(error), error.hint) == ("two lines", "of text")


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("what", hint="remedy"),
        UnreadableFileError(HERE, "it is empty", hint="copy it again"),
        GridMismatchError(HERE, THERE, "corners 3 mm apart"),
        NoCasesError(HERE),
        CaseError.twice("case", HERE, THERE),
        MissingModalityError("case", ["t1"], ["t2"]),
        OutputExistsError(HERE),
        OutputError(HERE, "no room"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_whole_from_another_process(error):
    # What does not survive pickling breaks the pool, and the user reads of a process that died.
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.hint) == (str(error), error.hint)
    assert vars(arrived) == vars(error)
