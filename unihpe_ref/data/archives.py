"""Unpacks untrusted zip and tar archives: only plain files, only inside the folder.

The whole table of contents is checked before the first byte is written, and the folder gets its name only when it is
complete.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from multicontrast._checks import three_beats
from unihpe_ref.unfit import reading, unfit

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_CHUNK = 1 << 20
_LONGEST = 4096  # characters of a path, as on Linux
_RATIO_FREE = 64 << 20  # bytes below which any compression ratio is allowed


@dataclass(frozen=True)
class Limits:
    """Limits for archives; the defaults allow whole data sets."""

    members: int = 2_000_000
    total_bytes: int = 500 << 30
    ratio: float = 200.0  # unpacked to packed size of zip members above 64 MB; pictures and numbers stay far below it


def is_bomb(size: int, packed: int, ratio: float = Limits.ratio) -> bool:
    """Whether a member is compressed more than pictures and numbers ever are."""
    return size > _RATIO_FREE and size > ratio * max(1, packed)


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive :func:`unpack` reads."""
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpacks ``archive`` into the new folder ``folder``.

    Args:
        archive: ``.zip``, ``.tar``, or a tar compressed with gzip, bzip2 or xz.
        folder: must not exist; its parent must. It appears when all is unpacked.
        limits: sizes beyond which an archive is refused.
    Raises:
        OSError if files cannot be read or written, FileExistsError if ``folder`` exists;
        ValueError for an archive that is damaged, too large, or has members that are absolute, leave the folder by
        ``..``, occur twice, or are links, devices or other special files. Nothing is left behind.
    """
    limits = limits or Limits()
    if folder.exists():
        needed = f"`unpack` needs a folder that does not exist yet at {folder}"
        raise FileExistsError(three_beats(needed, "one that does", "Remove it or choose another."))
    with reading(_needed(archive)), _opened(archive) as file:
        _check(archive, list(itertools.islice(_members(file), limits.members + 1)), limits, folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            for member in _members(file):
                _write(archive, file, member, temporary)
            _check_end(archive, file, limits)
            temporary.chmod(0o755)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    packed: int | None
    kind: str  # "file", "folder", or the name of another kind
    handle: Any


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path, tarinfo=_Header)


def _members(file: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(file, tarfile.TarFile):
        for entry in file:
            kind = "folder" if entry.isdir() else "file" if entry.isreg() else "a link or a device"
            yield _Member(entry.name, entry.size, None, kind, entry)
        return
    for info in file.infolist():
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else "file"
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "a link" if stat.S_ISLNK(mode) else "a special file"
        elif info.flag_bits & 1:
            kind = "encrypted"
        yield _Member(info.filename, info.file_size, info.compress_size, kind, info)


def _content(file: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    found = file.extractfile(member.handle) if isinstance(file, tarfile.TarFile) else file.open(member.handle)
    assert found is not None  # a plain file
    return found


def _check_end(archive: Path, file: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> None:
    """Reads a compressed tar to its end, where its checksum is; a zip has a checksum for each member."""
    if not isinstance(file, tarfile.TarFile) or file.fileobj is None:
        return
    left = 0
    while chunk := file.fileobj.read(_CHUNK):
        left += len(chunk)
        if is_bomb(left, archive.stat().st_size, limits.ratio):
            raise _refused(archive, f"{left / 2**30:.1f} GB after its last member", "Download it again.")


class _Header(tarfile.TarInfo):
    """A header, of limited size, because names and comments are read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if (self.type not in tarfile.SUPPORTED_TYPES or self.type in _LONG) and self.size > _CHUNK:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _no_map(self, *_: object) -> NoReturn:
        """Refuses a sparse file: a few bytes can stand for very many, and its map may have any length."""
        raise tarfile.ReadError("a sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_map


_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _parts(archive: Path, name: str) -> tuple[str, ...]:
    """The parts of a member's path; raises if it leaves the folder."""
    path = PurePosixPath(name)
    if len(name) > _LONGEST:
        raise _refused(archive, f"a name of {len(name)} letters", "Unpack it by hand if you trust it.")
    climbs = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    if climbs or any(":" in part for part in path.parts) or not name:
        raise _refused(archive, f"the member {name!r}", "It would land outside the folder: do not unpack it.")
    return path.parts


def _check(archive: Path, members: list[_Member], limits: Limits, place: Path) -> None:
    if len(members) > limits.members:
        raise _refused(archive, f"more than {limits.members} members", "Raise the limit.")
    seen: dict[tuple[str, ...], str] = {}
    total = 0
    for member in members:
        parts = _parts(archive, member.name)
        if member.kind not in ("file", "folder"):
            raise _refused(archive, f"{member.name!r}, {member.kind}", "Unpack it by hand if you trust it.")
        if member.kind == "file":
            if parts in seen:
                raise _refused(archive, f"{member.name!r} twice", "Unpack it by hand if you trust it.")
            total += member.size
            if member.packed is not None and is_bomb(member.size, member.packed, limits.ratio):
                came = f"{member.name!r}, packed {member.size / max(1, member.packed or 1):.0f} times"
                raise _refused(archive, came, "That is the sign of a zip bomb.")
        seen[parts] = member.kind
    for parts in seen:
        if any(seen.get(parts[:depth]) == "file" for depth in range(1, len(parts))):
            raise _refused(archive, f"{'/'.join(parts)!r} below a file", "Unpack it by hand if you trust it.")
    if is_bomb(total, archive.stat().st_size, limits.ratio):
        came = f"{total / 2**30:.1f} GB in {archive.stat().st_size / 2**20:.1f} MB"
        raise _refused(archive, came, "That is the sign of a zip bomb.")
    if total > limits.total_bytes:
        came = f"{total / 2**30:.1f} GB of at most {limits.total_bytes / 2**30:.1f}"
        raise _refused(archive, came, "Raise the limit.")
    free = shutil.disk_usage(place).free
    if total > free:
        raise _refused(archive, f"{total / 2**30:.1f} GB for {free / 2**30:.1f} GB free on the disk", "Make room.")


def _write(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, member: _Member, folder: Path) -> None:
    target = folder.joinpath(*_parts(archive, member.name))
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    # "x" never writes through an existing file; modes and owners of the archive are ignored
    with _content(opened, member) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise _refused(archive, f"{member.name!r}, longer than it says", "Download it again.")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if left:
        raise _refused(archive, f"{member.name!r}, shorter than it says", "Download it again.")


def _needed(archive: Path) -> str:
    return f"`unpack` needs a zip or tar archive of plain files within their folder at {archive}"


def _refused(archive: Path, came: str, remedy: str) -> ValueError:
    return unfit(_needed(archive), came, remedy)
