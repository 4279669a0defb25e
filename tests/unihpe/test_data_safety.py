"""Untrusted files: no code in a pickle runs, no archive writes outside its folder."""

import collections
import contextlib
import dataclasses
import gzip
import io
import os
import pickle
import re
import resource
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import formats
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from unihpe_ref.data import read_data
from unihpe_ref.data.archives import Limits, unpack
from unihpe_ref.data.pictures import decode
from unihpe_ref.data.prepared import open_prepared
from unihpe_ref.data.readers.bvh import read_bvh
from unihpe_ref.data.readers.common import picture_size
from unihpe_ref.data.safe_hdf5 import read_hdf5
from unihpe_ref.data.safe_mat import read_cells
from unihpe_ref.data.safe_pickle import UnsafePickle, load_pickle, read_npz

FRIENDLY = {
    "text": "S9", "number": 3, "list": [1.5, None, True], "tuple": (b"bytes", 2 + 3j), "set": {1, 2},
    "ordered": collections.OrderedDict(a=1), "scalar": np.float32(0.5), "integer": np.int64(-3), "flag": np.bool_(True),
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4), "fortran": np.asfortranarray(np.eye(3)[:, :2]),
    "big_endian": np.arange(4, dtype=">i2"), "empty": np.zeros((0, 3)), "words": np.array(["walk", "sit"]),
    "objects": np.array([np.zeros(2), None, {"deep": np.ones(1)}], dtype=object), "zero_d": np.array(2.0),
}  # fmt: skip


def same(a: object, b: object) -> bool:
    if isinstance(b, np.ndarray):
        alike = (
            isinstance(a, np.ndarray) and a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=") and a.shape == b.shape
        )
        if b.dtype == object:
            return alike and all(same(x, y) for x, y in zip(a.ravel(), b.ravel()))
        return alike and np.array_equal(a, b)
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    return type(a) is type(b) and a == b


@contextlib.contextmanager
def bounded():
    """What is inside takes at most two seconds of this process and 1 GiB of memory beyond what it has."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + (1 << 30), limits[1]))
    begun = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert time.process_time() - begun < 2


class Evil:
    """Calls something when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_come_back(tmp_path, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(FRIENDLY, protocol))
    assert same(load_pickle(path), FRIENDLY)


def test_a_pickle_of_python_2_comes_back(tmp_path):
    """What Python 2 with numpy 1 wrote for {'a': array([1.5, 2.5])}, protocol 2."""
    content = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq"
        b"\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f8K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10" + np.array([1.5, 2.5]).tobytes() + b"tbs."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(content)
    read = load_pickle(path)
    assert list(read) == ["a"]
    assert read["a"].tolist() == [1.5, 2.5]


HOSTILE = {  # each from the path of a file that it would make
    "system": lambda mark: Evil(os.system, f"touch {mark}"),
    "exec": lambda mark: Evil(exec, f"open({mark!r}, 'w').close()"),
    "eval": lambda mark: Evil(eval, f"open({mark!r}, 'w')"),
    "open": lambda mark: Evil(open, mark, "w"),
    "path": lambda mark: Path(mark),
    "nested": lambda mark: {"poses": [np.zeros(3), {"deep": (Evil(os.system, f"touch {mark}"),)}]},
    "in an object array": lambda mark: np.array([np.zeros(2), Evil(os.system, f"touch {mark}")], dtype=object),
    "in an object array, twice": lambda mark: np.array(
        {"S1": np.array([Evil(os.system, f"touch {mark}"), 1], dtype=object)}, dtype=object
    ),
    "import": lambda _: Evil(__import__, "antigravity"),
    "getattr": lambda _: Evil(getattr, np.ndarray, "tofile"),
    "numpy's own loader": lambda mark: Evil(np.load, mark),
    "a subclass": lambda _: np.ma.zeros(3),
    "records": lambda _: np.zeros(2, [("a", "f8"), ("b", "i4")]),
    "memory": lambda _: Evil(bytearray, 1 << 40),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_in_a_pickle_runs(tmp_path, name, protocol):
    mark = str(tmp_path / "mark")
    content = pickle.dumps(HOSTILE[name](mark), protocol)
    (tmp_path / "evil.pkl").write_bytes(content)
    with bounded(), pytest.raises(UnsafePickle, match=r"arrays, numbers and texts alone; got .* Do not open it"):
        load_pickle(tmp_path / "evil.pkl")
    assert not os.path.exists(mark)


@pytest.mark.parametrize("name", ["system", "in an object array", "in an object array, twice"])
def test_nothing_inside_an_npz_runs(tmp_path, name):
    """As numpy writes it, and where the array itself is replaced."""
    mark = str(tmp_path / "mark")
    held = HOSTILE[name](mark)
    array = held if isinstance(held, np.ndarray) else np.array({"S1": held}, dtype=object)
    np.savez_compressed(tmp_path / "evil.npz", positions_3d=array)
    with bounded(), pytest.raises(UnsafePickle, match="positions_3d"):
        read_npz(tmp_path / "evil.npz")
    assert not os.path.exists(mark)


@pytest.mark.parametrize(
    "body",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n}S'__call__'\nI1\nsb.",  # a state for a function of ours
        b"cnumpy\ndtype\n(N}S'__call__'\nI1\nstb.",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",  # the class itself, called
        b"ccollections\nOrderedDict\n(N}S'x'\nI1\nstb.",  # a state for a class of Python's
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'aaaaaaaa'\ntR.",  # a pointer by hand
        b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.",
        b"\x80\x04P.", b"Pname\n.", b"\x80\x04]", b"", b"\x80\x99.",
    ],
)  # fmt: skip
def test_a_crafted_pickle_is_refused_in_words(tmp_path, body):
    (tmp_path / "crafted.pkl").write_bytes(body)
    with bounded(), pytest.raises(ValueError, match=r"crafted\.pkl needs to"):
        load_pickle(tmp_path / "crafted.pkl")
    assert same(load_after(tmp_path), FRIENDLY)  # and has left no trace


def _shared(make: bytes, times: int) -> bytes:
    """A pair of the one before, twice, and again and again: 2 ** times values in a few bytes."""
    return b"".join(b"\x94h" + bytes([k]) + make for k in range(times))


BOMBS = {
    "a place in the memo": b"]r\xff\xff\xff\x7f.",
    "a place in the memo, in text": b"]p99999999999\n.",
    "bytes of a length that no memory holds": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    "a frame of a length that no memory holds": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"x.",
    "a text of a length that no memory holds": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "a key that is shared": b"\x80\x04}K\x01" + _shared(b"\x86", 60) + b"K\x01s.",
    "a set of what is shared": b"\x80\x04\x8f(K\x01" + _shared(b"\x86", 60) + b"\x90.",
    "lists that are shared": b"\x80\x04K\x01" + b"".join(b"\x94](h%ch%ce" % (k, k) for k in range(60)) + b".",
    "lists that are filled after they are shared": b"\x80\x04" + b"]\x94" * 61
        + b"".join(b"h%c(h%ch%ce0" % (k, k + 1, k + 1) for k in range(60)) + b"h\x00.",
    "a tuple a million deep": b"\x80\x04)" + b"\x85" * 10**6 + b".",
    "a list a hundred thousand deep": b"\x80\x04]" + b"]" * 10**5 + b"a" * 10**5 + b".",
    "a list within itself": b"\x80\x04]\x94h\x00a.",
    "a tuple within its list": b"\x80\x04]\x94(h\x00h\x00te.",
    "an extension code": b"\x80\x02\x82\x01.",
    "an extension code of four bytes": b"\x80\x02\x84\x01\x01\x01\x01.",
    "pops of nothing": b"00000.",
    "an integer of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "a long of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "an array larger than its bytes": pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
    "an array of objects, by hand": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1000000000000\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n(lt b.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_a_few_bytes_that_ask_for_everything_are_refused(tmp_path, name, module):
    (tmp_path / "bomb.pkl").write_bytes(BOMBS[name].replace(b"numpy.core", module.encode()))
    with bounded(), pytest.raises(ValueError, match=r"bomb\.pkl needs to .*; got .*\. "):
        load_pickle(tmp_path / "bomb.pkl")
    assert same(load_after(tmp_path), FRIENDLY)


def npy(shape: str, content: bytes, dtype: str = "<f8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000000,)", b"12345678"),
        npy("(2, 2)", bytes(8)),
        npy("(-1,)", bytes(8)),
        npy("(" + "9" * 4000 + ",)", bytes(8)),
        npy("(True,)", bytes(8)),
        npy("(1,)", bytes(8), "|O"),
        npy("(" * 5000 + ")" * 5000, b""),
        npy("(99999999999,)", pickle.dumps(np.array([None], dtype=object)), "|O"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
        b"\x93NUMPY\x09\x00",
        bytes(200 << 20),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_an_npz_that_asks_for_more_than_it_holds_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("joints.npy", content)
    with bounded(), pytest.raises(ValueError, match=r"bomb\.npz.*; got .*\. "):
        read_npz(tmp_path / "bomb.npz")


def load_after(folder: Path) -> object:
    (folder / "friendly.pkl").write_bytes(pickle.dumps(FRIENDLY))
    return load_pickle(folder / "friendly.pkl")


def test_an_npz_comes_back_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(
        path, positions=np.array({"S1": {"Walking": np.ones((2, 3))}}, dtype=object), plain=np.arange(3)
    )
    read = read_npz(path)
    assert read["positions"].item()["S1"]["Walking"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert list(read_npz(path, ("plain", "absent"))) == ["plain"]
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\5\6") + 16  # where its list of members begins
    content[start : start + 4] = b"\xff\xff\xff\x7f"
    for damaged in (path.read_bytes()[:-30], content):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data\.npz needs to be a whole npz archive"):
            read_npz(path)


# --- archives -------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes | zipfile.ZipInfo]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_plain_files_are_unpacked(tmp_path, kind):
    content = {"S1/Seq1/annot.mat": b"one" * 1000, "S1/readme.txt": b""}
    if kind == "zip":
        archive = zipped(tmp_path / "a.zip", content)
    else:
        archive = tarred(tmp_path / "a.tgz", *((tarfile.TarInfo(name), data) for name, data in content.items()))
    unpack(archive, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == content
    with pytest.raises(FileExistsError):
        unpack(archive, tmp_path / "out")


ESCAPES = ["../out.txt", "/tmp/absolute.txt", "a/../../b", "a\\..\\b", "C:/b", "a/b:c"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_folder_are_refused(tmp_path, name, kind):
    place = tmp_path / "place"
    place.mkdir()
    if kind == "zip":
        archive = zipped(tmp_path / "a.zip", {"fine.txt": b"1", name: b"2"})
    else:
        archive = tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("fine.txt"), b"1"), (tarfile.TarInfo(name), b"2"))
    with bounded(), pytest.raises(ValueError, match="would land outside"):
        unpack(archive, place / "out")
    assert not list(place.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "place"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("innocent")
    info.type, info.linkname = kind, "/etc/passwd"
    with bounded(), pytest.raises(ValueError, match="a link or a device"):
        unpack(tarred(tmp_path / "a.tar", (info, b"")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("innocent")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with bounded(), pytest.raises(ValueError, match="a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("members", "limits", "words"),
    [
        ({"a": b"0" * 1000}, Limits(total_bytes=999), "Raise the limit"),
        ({"a": b"", "b": b""}, Limits(members=1), "more than 1 members"),
        ({"zeros": bytes(65 << 20)}, Limits(), "zip bomb"),
        ({"a": b"1", "a/b": b"2"}, Limits(), "below a file"),
    ],
)
def test_sizes_and_clashes_are_refused(tmp_path, members, limits, words):
    with bounded(), pytest.raises(ValueError, match=words):
        unpack(zipped(tmp_path / "a.zip", members), tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


def test_a_member_that_stands_twice_is_refused(tmp_path):
    with bounded(), pytest.raises(ValueError, match="twice"):
        unpack(
            tarred(tmp_path / "a.tar", (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("./a"), b"2")), tmp_path / "out"
        )


def _sparse(path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410], header[483:495] = b"%011o\0" % 0, b"%011o\0" % 0, b"%011o\0" % (8**11 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(1024))


def _sparse_of_pax(path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    info.pax_headers |= {"GNU.sparse.name": "sparse"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        content = b"1\n0\n0\n".ljust(512, b"\0")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def _sparse_of_many_maps(path: Path) -> None:
    """Each block of headers holds 21 places, and says that another one follows."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:482], header[482] = b"%011o\0" % 1 * 8, 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = (b"%011o\0" % 1 * 42 + b"\1").ljust(512, b"\0")
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes(header))
        for _ in range(200):
            file.write(block * 2048)


def _sparse_of_a_long_map(path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    info.size = 200 << 20
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.write(b"999999999\n".ljust(512, b"0"))
        for _ in range(200):
            file.write(b"1\n" * (1 << 19))


def _long(kind: bytes) -> object:
    def write(path: Path) -> None:
        info = tarfile.TarInfo("header")
        info.type, info.size = kind, 100 << 20
        with gzip.open(path, "wb", 1) as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(100):
                file.write(bytes(1 << 20))

    return write


def _many_below_the_bound(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(4):
            archive.writestr(f"{k}", bytes(60 << 20))


def _deep_name(path: Path) -> None:
    zipped(path, {"a/" * 30_000 + "b": b"1"})


ARCHIVES = {
    "a sparse member": _sparse, "a sparse member of pax": _sparse_of_pax,
    "a sparse member of many maps": _sparse_of_many_maps, "a sparse member of a long map": _sparse_of_a_long_map,
    "a long name": _long(tarfile.GNUTYPE_LONGNAME),
    "a long link": _long(tarfile.GNUTYPE_LONGLINK), "a long comment": _long(tarfile.XHDTYPE),
    "a long comment for all": _long(tarfile.XGLTYPE), "zeros in parts": _many_below_the_bound,
    "thirty thousand folders": _deep_name,
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_asks_for_more_than_it_holds_is_refused(tmp_path, name):
    ARCHIVES[name](tmp_path / "a")
    with bounded(), pytest.raises(ValueError, match="`unpack` needs a zip or tar archive of plain files"):
        unpack(tmp_path / "a", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- pictures, HDF5, BVH, weights -----------------------------------------------------------------------------------


def test_only_formats_of_photographs_are_opened(monkeypatch):
    """An EPS under any name would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    monkeypatch.setattr("subprocess.check_call", pytest.fail)
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    with (
        bounded(),
        pytest.raises(ValueError, match=r"a picture that can be read at photo\.jpg; got another file or a damaged"),
    ):
        decode(eps, "photo.jpg")
    assert picture_size(eps) is None


def test_a_picture_of_more_pixels_than_any_photograph_is_refused_before_it_is_unpacked():
    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    for width, height in ((20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (12_000, 9_000)):
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
        png = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(bytes(100)))
            + chunk(b"IEND", b"")
        )
        with bounded(), pytest.raises(ValueError, match="a picture that can be read at it; got"):
            decode(png, "it")


def test_a_recording_has_no_pictures_outside_its_folder(tmp_path):
    formats.write_coco(tmp_path / "data")
    recording = read_data(tmp_path / "data")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "a/../../secret.jpg"):
        outside = dataclasses.replace(recording, pictures=np.array([name] * len(recording.pictures)))
        with pytest.raises(ValueError, match="needs its pictures below its folder"):
            outside.picture_bytes(int(np.flatnonzero(recording.picture >= 0)[0]))


def _hdf5(path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["numbers"] = np.arange(4.0)
    (path.parent / "raw.bin").write_bytes(bytes(32))
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["numbers"] = h5py.ExternalLink("other.h5", "/numbers")
        elif kind == "soft link":
            file["numbers"] = h5py.SoftLink("/elsewhere")
            file["elsewhere"] = h5py.ExternalLink("other.h5", "/numbers")
        elif kind == "external storage":
            file.create_dataset("numbers", (4,), "f8", external=[(str(path.parent / "raw.bin"), 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "numbers", (4,))
            file.create_virtual_dataset("numbers", layout)
        elif kind == "never written":
            file.create_dataset("numbers", (2**40,), "f8", chunks=(2**16,))
        elif kind == "text":
            file["numbers"] = "text"
        elif kind == "a group":
            file.create_group("numbers")
        elif kind == "empty":
            file["numbers"] = h5py.Empty("f8")
        else:
            file["numbers"] = np.arange(4.0)


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external storage", "virtual", "never written", "text", "a group", "empty"]
)
def test_hdf5_reads_numbers_of_its_own_alone(tmp_path, kind):
    _hdf5(tmp_path / "a.h5", kind)
    with bounded(), pytest.raises(ValueError, match="'numbers'"):
        read_hdf5(tmp_path / "a.h5", ["numbers"])


def test_hdf5_reads_numbers(tmp_path):
    _hdf5(tmp_path / "a.h5", "plain")
    assert {name: list(held) for name, held in read_hdf5(tmp_path / "a.h5", ["numbers", "absent"]).items()} == {
        "numbers": [0, 1, 2, 3]
    }


@pytest.mark.parametrize(
    "skeleton",
    [
        "HIERARCHY ROOT a { OFFSET 0 0 0 CHANNELS -2 } MOTION FRAMES: 1 Frame Time: 1 1",
        "HIERARCHY ROOT a { OFFSET 0 0 0 CHANNELS 99999999999 } MOTION FRAMES: 1 Frame Time: 1 1",
        "HIERARCHY ROOT a { " + "END Site { " * 50_000 + "} " * 50_001 + "MOTION FRAMES: 1 Frame Time: 1 1",
        "HIERARCHY ROOT a { " + "JOINT b { " * 50_000 + "} " * 50_001 + "MOTION FRAMES: 1 Frame Time: 1 1",
        "HIERARCHY ROOT a { } MOTION FRAMES: 99999999999999 Frame Time: 1",
    ],
    ids=lambda text: f"{len(text)} letters",
)
def test_a_bvh_that_has_no_end_is_refused(tmp_path, skeleton):
    (tmp_path / "walk.bvh").write_text(skeleton)
    with bounded(), pytest.raises(ValueError, match=r"walk\.bvh needs to be a whole BVH file"):
        read_bvh(tmp_path / "walk.bvh")


def test_json_a_hundred_thousand_deep_is_refused(tmp_path):
    deep = "[" * 10**5 + "]" * 10**5
    (tmp_path / "person_keypoints.json").write_text('{"images": ' + deep + ', "annotations": [], "categories": []}')
    with bounded(), pytest.raises((ValueError, OSError), match="; got "):
        read_data(tmp_path / "person_keypoints.json")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_text(deep)
    with bounded(), pytest.raises(ValueError, match="; got "):
        open_prepared(tmp_path / "prepared")


# --- MATLAB ---------------------------------------------------------------------------------------------------------


def element(kind: int, content: bytes) -> bytes:
    return np.array([kind, len(content)], "<u4").tobytes() + content.ljust(-(-len(content) // 8) * 8, b"\0")


def matrix(held: int, shape: tuple[int, ...], body: bytes, name: bytes = b"") -> bytes:
    head = element(6, np.array([held, 0], "<u4").tobytes()) + element(5, np.array(shape, "<i4").tobytes())
    return element(14, head + element(1, name) + body)


def packed(*parts: bytes) -> bytes:
    """In one compressed element, which is not padded."""
    compress = zlib.compressobj(1)
    content = b"".join([*map(compress.compress, parts), compress.flush()])
    return np.array([15, len(content)], "<u4").tobytes() + content


ONE = matrix(6, (1, 1), element(9, bytes(8)))
_DEEP = 20_000
MATS = {
    "zeros": packed(np.array([14, 2**31], "<u4").tobytes(), *[bytes(1 << 20)] * 200),
    "zeros in a cell": packed(
        np.array([14, (400 << 20) + 56], "<u4").tobytes(), matrix(1, (1, 1), b"", b"annot2")[8:],
        np.array([14, 400 << 20], "<u4").tobytes(), *[bytes(1 << 20)] * 400,
    ),
    "cells that are not there": matrix(1, (2**31 - 1, 2**31 - 1), ONE, b"annot2"),
    "a billion cells in what is": matrix(1, (10**9, 1), ONE * 100, b"annot2"),
    "numbers that are not there": matrix(1, (1, 1), matrix(6, (2**31 - 1, 4), element(9, bytes(8))), b"annot2"),
    "cells in cells": matrix(1, (1, 1), matrix(1, (1, 1), ONE), b"annot2"),
    "cells deep in cells": matrix(
        1, (1, 1), b"".join(np.array([14, 48 * k + 64], "<u4").tobytes() + matrix(1, (1, 1), b"")[8:]
                           for k in range(_DEEP, 0, -1)) + ONE, b"annot2",
    ),
    "text": matrix(1, (1, 1), matrix(4, (1, 1), element(4, b"ab")), b"annot2"),
    "a structure": matrix(1, (1, 1), matrix(2, (1, 1), element(5, bytes(4))), b"annot2"),
    "a function": matrix(1, (1, 1), matrix(16, (1, 1), ONE), b"annot2"),
    "complex numbers": matrix(1, (1, 1), matrix(6 | 0x0800, (1, 1), element(9, bytes(8)) * 2), b"annot2"),
    "no cells": matrix(6, (1, 1), element(9, bytes(8)), b"annot2"),
    "a shape of a thousand axes": matrix(1, (1,) * 1000, ONE, b"annot2"),
    "a negative shape": matrix(1, (-1, -1), ONE, b"annot2"),
    "an element longer than the file": np.array([14, 2**32 - 1], "<u4").tobytes(),
    "an element longer than its matrix": matrix(1, (1, 1), np.array([14, 2**31], "<u4").tobytes(), b"annot2"),
    "an unknown kind": element(14, element(77, bytes(8))),
    "a short end": matrix(1, (1, 1), ONE, b"annot2")[:-9],
}  # fmt: skip


@pytest.mark.parametrize("name", MATS)
def test_a_mat_file_that_asks_for_more_than_it_holds_is_refused(tmp_path, name):
    place = tmp_path / "S1" / "Seq1"
    place.mkdir(parents=True)
    (place / "annot.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\0\1IM" + MATS[name])
    with bounded(), pytest.raises(ValueError, match=r"annot\.mat needs to be a MATLAB file .*; got .*\. Copy or"):
        read_data(tmp_path)


CELLS = np.empty((3, 1), object)
CELLS[:, 0] = np.arange(6.0).reshape(2, 3) / 7, np.zeros((0, 4), np.float32), np.array([[1, -200, 3]], np.int16)


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_of_a_mat_file_come_back(tmp_path, compressed):
    others = {"frames": np.arange(3.0), "text": "words", "deep": {"a": CELLS}}
    savemat(tmp_path / "a.mat", {"annot2": CELLS, **others, "annot3": CELLS[::-1]}, do_compression=compressed)
    found = read_cells(tmp_path / "a.mat", ("annot2", "annot3", "none"))
    assert list(found) == ["annot2", "annot3"]
    for name, expected in (("annot2", CELLS), ("annot3", CELLS[::-1])):
        assert all(np.array_equal(x, y) and x.shape == y.shape for x, y in zip(found[name], expected[:, 0]))


@given(st.booleans(), st.data())
def test_no_damage_to_a_mat_file_is_anything_but_an_error_in_words(compressed, data):
    file = io.BytesIO()
    savemat(file, {"frames": np.arange(3.0), "annot2": CELLS}, do_compression=compressed)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(ValueError):
            read_cells(path, ("annot2",))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_leaves_nothing(tmp_path, share):
    archive = tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("a"), os.urandom(10_000)))
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(ValueError, match="`unpack` needs"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_changed_byte_of_a_compressed_tar_is_found(tmp_path, kind):
    """What cannot be compressed is stored as it is; only the checksum at the end tells."""
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as file:
        info = tarfile.TarInfo("a")
        info.size = 100_000
        file.addfile(info, io.BytesIO(os.urandom(info.size)))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[50_000] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"`unpack` needs .*; got another file or a damaged one"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_checksum_that_fails_while_members_are_listed_is_told_in_words(tmp_path):
    true, longer = tarfile.TarInfo("a"), tarfile.TarInfo("a")
    longer.size = 100_000
    content = gzip.compress(true.tobuf() + bytes(20_000), 0)  # not packed
    (tmp_path / "a.tar.gz").write_bytes(content.replace(true.tobuf(), longer.tobuf()))
    with pytest.raises(ValueError, match=r"`unpack` needs .*; got another file or a damaged one \(CRC"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")


@settings(max_examples=120)
@given(st.integers(0, 5), st.data())
def test_no_damage_to_a_pickle_is_anything_but_an_error_in_words(protocol, data):
    """Bytes exchanged, inserted or cut: a value comes out, or a ValueError; never another exception, never a call."""
    content = bytearray(pickle.dumps(FRIENDLY, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["exchange", "insert", "cut"]))
        if kind == "exchange":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[place:place] = data.draw(
                st.sampled_from([b"R", b"b", b"\x81", b"c", b"\x93", b"i", b"o", b"0", b"e"])
            )
        else:
            del content[place : place + data.draw(st.integers(1, 9))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.pkl"
        path.write_bytes(bytes(content))
        with contextlib.suppress(ValueError):
            load_pickle(path)
