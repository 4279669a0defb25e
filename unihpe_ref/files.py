"""Files that are complete or absent even if the process is killed, and folders that only one process at a time writes.

A file is written under a name that begins with a dot and ends in ``.tmp``, and renamed when it is on the disk. A file
that is removed is first renamed to such a name. So a file under its own name is complete, and the next :func:`locked`
removes what a killed process left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from multicontrast._checks import three_beats

try:
    import fcntl
except ImportError:  # Windows, where two processes in one folder are not detected
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: set[Path] = set()  # locks of this process, because the system would grant it the same lock again


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that it is never partial under its name.

    Args:
        path: of the file. content: its bytes, or a function that is given the open file and writes them.
    Raises: OSError if it cannot be written or another process is writing it; the old file then stays.
    """
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with _claimed(partial) as file:
            try:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:
                    partial.replace(path)  # while it is locked
            except BaseException:
                _unlink(partial)
                raise
        if fcntl is None:
            partial.replace(path)  # Windows renames no open file
    except OSError as error:
        if error.errno is None:
            raise
        needed, came = f"writing `{path}` needs space and permission", error.strerror or str(error)
        remedy = "Free some space there, or choose another folder; what was written before is unchanged."
        raise type(error)(three_beats(needed, came, remedy)) from error
    flush_names(path.parent)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes a folder so that it is never partial under its name; replaces an existing one.

    Args:
        folder: its parent exists and is locked by the caller. fill: is given a folder to write in.
    """
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        fill(partial)
        flush_names(partial)
        remove_whole(folder)
        partial.rename(folder)
        flush_names(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_whole(folder: Path) -> None:
    """Removes a folder, if it exists, so that it is never partial under its name."""
    going = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(going, ignore_errors=True)
    try:
        folder.rename(going)
    except FileNotFoundError:
        return
    shutil.rmtree(going)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks an existing ``folder`` against other processes, and removes what a killed one left in it.

    The system releases the lock when the process ends, even if it is killed.

    Raises: FileExistsError when another process holds it.
    """
    place = folder.resolve() / LOCK
    if place.parent in _held:
        raise _in_use(folder, str(os.getpid()))
    with _claimed(place, folder) as file:
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        _held.add(place.parent)
        try:
            clear_partial(folder)
            yield
        finally:
            _held.discard(place.parent)
            _unlink(place)  # while it is held


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, *([PermissionError] if fcntl is None else [])):  # open, on Windows
        path.unlink()


def clear_partial(folder: Path) -> None:
    """Removes what a killed process was writing or removing in a folder that is locked."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def flush_names(folder: Path) -> None:
    """Flushes a folder, so that new names in it are on the disk, if the system supports that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: object, indent: int | None = 2) -> None:
    """Writes JSON, complete or not at all."""
    write_whole(path, (json.dumps(values, indent=indent) + "\n").encode())


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _claimed(path: Path, place: Path | None = None) -> Iterator[IO[bytes]]:
    """An empty file, open for writing, locked against other processes until it is closed."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if not _lock(file):
                holder = file.read(32).decode(errors="replace").strip() if place is not None else "another process"
                raise _in_use(place or path, holder)
            if not _is_still(path, file):  # the previous process renamed or removed it
                continue
            file.truncate(0)
            yield file
            return


def _lock(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True


def _is_still(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _in_use(place: Path, holder: str) -> FileExistsError:
    needed = f"writing `{place}` needs it for one process alone"
    came = f"process {holder} at work there" if holder.isdecimal() else f"{holder or 'another process'} at work there"
    return FileExistsError(three_beats(needed, came, "Wait until it is done, or choose another name."))
