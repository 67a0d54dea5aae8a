"""How files are written: completely or not at all, and never over another unless requested."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError, OutputExistsError


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any long work, that `path` could be written now.

    Nothing is created: a folder that does not exist yet is fine if its parent may be written to.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If `path` is a folder, or if its folder may not be written to.
    """
    if path.is_dir():
        raise OutputError(path, "it is a folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(path)
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(path, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(path, f"no permission to write in {folder.absolute()}")


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`, which replaces `path` if the block succeeds.

    The ending is kept, because nibabel and numpy choose the format by it. If the block fails or
    is interrupted, `path` is unchanged and the temporary file is removed; that of a process that
    was killed is removed when the same file is written again.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If the system refuses to write (permission, full disk).
    """
    require_writable(path, overwrite=overwrite)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` from killed processes, not from one that still runs."""
    for left in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        number = left.name[1:].partition(".")[0]
        if os.name == "posix" and number.isdecimal() and not _runs(int(number)):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # 0 sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
