"""Files from strangers: no code in a pickle runs, no archive writes outside its folder."""

import collections
import contextlib
import io
import os
import pickle
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unihpe_ref.data.archives import Limits, unpack
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
    with pytest.raises(UnsafePickle, match=r"arrays, numbers and texts alone; got .* Do not open it"):
        load_pickle(tmp_path / "evil.pkl")
    assert not os.path.exists(mark)


@pytest.mark.parametrize("name", ["system", "in an object array", "in an object array, twice"])
def test_nothing_inside_an_npz_runs(tmp_path, name):
    """As numpy writes it, and where the array itself is replaced."""
    mark = str(tmp_path / "mark")
    held = HOSTILE[name](mark)
    array = held if isinstance(held, np.ndarray) else np.array({"S1": held}, dtype=object)
    np.savez_compressed(tmp_path / "evil.npz", positions_3d=array)
    with pytest.raises(UnsafePickle, match="positions_3d"):
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
    with pytest.raises(ValueError, match=r"crafted\.pkl needs to"):
        load_pickle(tmp_path / "crafted.pkl")
    assert same(load_after(tmp_path), FRIENDLY)  # and has left no trace


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
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="a whole npz archive"):
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
    with pytest.raises(ValueError, match="would land outside"):
        unpack(archive, place / "out")
    assert not list(place.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "place"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("innocent")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="a link, a device"):
        unpack(tarred(tmp_path / "a.tar", (info, b"")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("innocent")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(ValueError, match="a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("members", "limits", "words"),
    [
        ({"a": b"0" * 1000}, Limits(total_bytes=999), "Raise the limit"),
        ({"a": b"", "b": b""}, Limits(members=1), "2 members of at most 1"),
        ({"zeros": bytes(65 << 20)}, Limits(), "zip bomb"),
        ({"a": b"1", "a/b": b"2"}, Limits(), "below a file"),
    ],
)
def test_sizes_and_clashes_are_refused(tmp_path, members, limits, words):
    with pytest.raises(ValueError, match=words):
        unpack(zipped(tmp_path / "a.zip", members), tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


def test_a_member_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        unpack(
            tarred(tmp_path / "a.tar", (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("./a"), b"2")), tmp_path / "out"
        )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_leaves_nothing(tmp_path, share):
    archive = tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("a"), os.urandom(10_000)))
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(ValueError, match="`unpack` needs"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


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
