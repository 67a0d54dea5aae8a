"""How files are written: completely or not at all, and never over another unless requested."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import FileIO
from pathlib import Path

from .errors import OutputError, OutputExistsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any long work, that `path` could be written now.

    Nothing is created: a folder that does not exist yet is fine if its parent may be written to.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If `path` is a folder or a device, or if its folder may not be written to.
    """
    try:
        if path.is_dir():
            raise OutputError(path, "it is a folder")
        if path.exists() and not path.is_file():
            # A pipe or a device, such as /dev/null, would be replaced by the file.
            raise OutputError(path, "it is not a regular file")
        if path.exists() and not overwrite:
            raise OutputExistsError(path)
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise OutputError(path, f"{folder} is not a folder")
    except OSError as error:  # a name that is too long, a link to itself
        raise OutputError(path, error.strerror or str(error)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(path, f"no permission to write in {folder.absolute()}")


_FORMATS = {
    ".csv", ".tsv", ".xls", ".xlsx", ".ods", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md",
    ".html", ".htm", ".pdf", ".doc", ".docx", ".png", ".jpg", ".jpeg", ".svg", ".tif", ".tiff",
    ".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".h5", ".pkl", ".parquet", ".pt",
    ".pth", ".onnx", ".stl", ".obj", ".ply", ".glb", ".zip",
}  # fmt: skip
"""Endings that people know as formats."""


def require_ending(path: Path, *endings: str) -> None:
    """Check that `path` does not name another format than it is written in: the first of `endings`.

    An ending that stands for no format, as in `scores_0.5`, is fine.

    Raises:
        OutputError: If it does.
    """
    if path.suffix.lower() in _FORMATS.difference(endings):
        raise OutputError(
            path,
            f"it is written in the format {endings[0]}",
            hint=f"end its name in {' or '.join(endings)}",
        )


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
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield partial
        _put(partial, path)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    finally:
        if (partial, path) not in (_waiting.get() or ()):
            _discard(partial)


_waiting: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("waiting", default=None)
"""Whole files that `together` will put in their places: the temporary path of each, and its own."""


@contextmanager
def together(stale: Iterable[Path] = ()) -> Iterator[None]:
    """Let the files that the block writes appear at its end, so that no new one is beside an old.

    The last one written is the main one, as the label map is beside its probabilities. When all
    are whole, the others' old versions are removed, the main one is replaced, and the others
    follow. Whoever is killed in between leaves the main file, old or new, without some of the
    others, and `--skip-existing`, which looks for all of them, does that case again.

    Args:
        stale: Others that may be there of an earlier run. Those that are not written now go.

    Raises:
        OutputError: If the system refuses.
    """
    files: list[tuple[Path, Path]] = []
    before = _waiting.set(files)
    try:
        try:
            yield
        finally:
            _waiting.reset(before)
        main = files[-1][1] if files else None
        for path in (*stale, *(path for _, path in files)):
            if path != main:
                path.unlink(missing_ok=True)
        for partial, path in (*files[-1:], *files[:-1]):
            partial.replace(path)
    except OSError as error:
        where = files[-1][1] if files else Path(error.filename or "")
        raise OutputError(where, error.strerror or str(error)) from error
    finally:
        for partial, _ in files:
            _discard(partial)


def _put(partial: Path, path: Path) -> None:
    files = _waiting.get()
    if files is None:
        partial.replace(path)
    else:
        files.append((partial, path))


def _discard(partial: Path) -> None:
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)


@contextmanager
def growing_file(path: Path) -> Iterator[None]:
    """Make a file that `append_line` adds to while the block runs; if nothing was, it goes again.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
                path.parent.rmdir()


def append(path: Path, content: bytes) -> None:
    """Append to a file that nobody else writes to, all or nothing.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            _write_all(file, content, file.seek(0, os.SEEK_END))
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


def _write_all(file: FileIO, content: bytes, size: int) -> None:
    """Write all of `content`, or nothing: then the file is as long as before, `size` bytes."""
    try:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(size)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, whole or not at all; several processes may do so.

    What a process that was killed left of a line is removed when the next one is appended.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        with path.open("ab+", buffering=0) as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            _write_all(file, f"{line}\n".encode(), _whole_lines(file))
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


def _whole_lines(file: FileIO) -> int:
    """Cut off a line without an end, and return the size that is left."""
    size = whole = file.seek(0, os.SEEK_END)
    while whole:
        start = max(0, whole - _BLOCK)
        file.seek(start)
        block = file.read(whole - start)
        if (end := block.rfind(b"\n")) >= 0:
            whole = start + end + 1
            break
        whole = start
    if whole < size:
        file.truncate(whole)
    return whole


_BLOCK = 4096


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that becomes `path` when the block ends well.

    As `whole_file`: what a killed process left of it goes when it is written again.

    Raises:
        OutputExistsError: If there is something in `path`.
        OutputError: If the system refuses to write.
    """
    partial = _partial(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputExistsError(path)
        _remove_leftovers(path)
        partial.mkdir(parents=True)
        yield partial
        if path.is_dir():
            path.rmdir()
        partial.replace(path)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and keep it for this process while the block runs.

    It is removed at the end if nothing was written into it. (Where the file system has no locks,
    nobody is kept out.)

    Raises:
        OutputError: If another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if fcntl else None
    except OSError as error:
        raise OutputError(folder, error.strerror or str(error)) from error
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle or 0)
        raise OutputError(
            folder, "another process is writing into it", hint="choose another path with -o"
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _partial(path: Path) -> Path:
    """A name beside `path` that says which process writes there.

    Not by its number alone: the first processes of all containers have the same.
    """
    writer = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{writer}.partial.{_short(path.name)}")


def _short(name: str) -> str:
    """`name`, or a shorter one with its ending, so that something may stand before it."""
    if len(os.fsencode(name)) <= 200:
        return name
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{name[-30:]}"


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `path`, but not what one that still runs is writing."""
    for left in path.parent.glob(f".*.partial.{glob.escape(_short(path.name))}"):
        number = left.name[1:].partition(".")[0].partition("-")[0]
        if os.name == "posix" and number.isdecimal() and not _runs(int(number)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process has this number; what has our own, is of one that had it before."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # 0 sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
