"""Reading a pickle runs nothing of it, believes none of its sizes, and gives what torch and numpy put in."""

import collections
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dist_scvi.scvi_tools.safe_unpickle import Foreign, read_pickle, read_torch

GOLDEN = Path(__file__).parents[4] / "shared" / "parity" / "golden"
FLAT = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"  # four numbers of entry 0


def archive(
    path: Path, content: bytes, entries: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    file = path / "model.pt"
    with zipfile.ZipFile(file, "w", method) as written:
        for name, data in {"model/data.pkl": content, **(entries or {"model/data/0": bytes(16)})}.items():
            written.writestr(name, data)
    return file


def stored(path: Path, value: object, **options: int) -> Path:
    file = path / "value.pkl"
    file.write_bytes(pickle.dumps(value, **options))
    return file


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\0") -> bytes:
    rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + FLAT + offset + size + stride + b"\x89ccollections\nOrderedDict\n)RtR."


def array(dtype: str, shape: bytes, content: bytes) -> bytes:
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + text("b") + b"tR"
    typed = (
        b"cnumpy\ndtype\n" + text(dtype) + b"\x85R(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    return made + b"(K\x01" + shape + typed + b"\x89" + content + b"tb."


class Calls:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "was_here"


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_of_the_system_is_refused_by_name_and_not_made(tmp_path: Path, witness: Path, protocol: int) -> None:
    file = stored(tmp_path, {"weights": Calls(os.system, f"touch {witness}")}, protocol=protocol)
    with pytest.raises(ValueError, match=r"names 'posix\.system'.*nothing was run"):
        read_pickle(file)
    with pytest.raises(ValueError, match=r"names 'posix\.system'"):
        read_torch(archive(tmp_path, file.read_bytes()))
    assert not witness.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins eval", "builtins getattr", "builtins __import__", "builtins bytearray", "os system", "nt system"),
        *("numpy.core.multiarray _reconstruct.__globals__", "numpy load", "numpy.testing._private.utils runstring"),
        *("collections OrderedDict.__init__", "collections Counter", "torch load", "torch._utils _rebuild_qtensor"),
        *("torch FloatStorage.from_file", "torch.storage _load_from_bytes", "_codecs decode", "copyreg _reconstructor"),
        *(
            "scvi.model SCVI",
            "pandasx thing",
            "pandas read_pickle",
            "dist_scvi.storage.atomic_files write_folder",
            "sys modules",
        ),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + text(module) + text(attribute) + b"\x93.")
    with pytest.raises(ValueError, match="names"):
        read_pickle(tmp_path / "a.pkl")


def test_names_of_pandas_stand_for_records_that_do_nothing(tmp_path: Path, witness: Path) -> None:
    call = b"\x80\x02cpandas.io.common\nget_handle\n(" + text(str(witness)) + text("w") + b"tR."
    (tmp_path / "a.pkl").write_bytes(call)
    found = read_pickle(tmp_path / "a.pkl")
    assert isinstance(found, Foreign)
    assert found.arguments == [str(witness), "w"]
    assert not witness.exists()


@pytest.mark.parametrize(
    "name",
    [b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n", b"cpandas.core.frame\nDataFrame\n", b"cbuiltins\nslice\n"],
)
@pytest.mark.parametrize("state", [b"}" + text("x") + b"K\1s", b"N}" + text("_make") + b"K\1s\x86"])
def test_what_a_name_stands_for_cannot_be_changed(tmp_path: Path, name: bytes, state: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + name + state + b"b.")
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(tmp_path / "a.pkl")
    assert read_pickle(stored(tmp_path, collections.OrderedDict(a=np.arange(3), b=slice(2))))["b"] == slice(2)


@pytest.mark.parametrize(
    "pid",
    [
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + text("../../../etc/passwd") + text("cpu") + b"K\x04tQ.",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + text("1") + text("cpu") + b"K\x04tQ.",
        b"(X\x07\0\0\0storage" + text("FloatStorage") + text("0") + text("cpu") + b"K\x04tQ.",
        b"(X\x06\0\0\0modulectorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ.",
        b"P0\n.",
        b"]Q.",
    ],
)
def test_a_reference_to_anything_but_tensor_data_of_the_file_is_refused(tmp_path: Path, pid: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_torch(archive(tmp_path, b"\x80\x02" + pid))


@pytest.mark.parametrize("claimed", [3, 5, 1 << 30, -4])
def test_tensor_data_of_another_length_than_claimed_is_refused(tmp_path: Path, claimed: int) -> None:
    content = tensor(b"K\4\x85", b"K\1\x85").replace(b"K\x04tQ", b"J" + struct.pack("<i", claimed) + b"tQ")
    with pytest.raises(ValueError, match="16 bytes where"):
        read_torch(archive(tmp_path, content))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        (b"K\5\x85", b"K\1\x85", b"K\0"),
        (b"K\4\x85", b"K\1\x85", b"K\1"),
        (b"K\2\x85", b"K\4\x85", b"K\0"),
        (b"K\2\x85", b"J\xff\xff\xff\xff\x85", b"K\3"),
        (b"K\2\x85", b"K\1\x85", b"J\xff\xff\xff\xff"),
        (b"J\xff\xff\xff\xff\x85", b"K\1\x85", b"K\0"),
        (b"J\xff\xff\xff\x7f\x85", b"K\0\x85", b"K\0"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\1\x85", b"K\0\x85", b"K\0"),
        (b"K\2K\2\x86", b"K\2\x85", b"K\0"),
        (b"K\2" * 0 + b"(" + b"K\1" * 9 + b"t", b"(" + b"K\1" * 9 + b"t", b"K\0"),
        (text("ab"), text("ab"), b"K\0"),
    ],
)
def test_a_tensor_that_reaches_outside_its_data_is_refused(
    tmp_path: Path, size: bytes, stride: bytes, offset: bytes
) -> None:
    assert read_torch(archive(tmp_path, tensor(b"K\2K\2\x86", b"K\2K\1\x86"))).shape == (2, 2)
    with pytest.raises(ValueError, match="cannot be read"):
        read_torch(archive(tmp_path, tensor(size, stride, offset)))


@pytest.mark.parametrize(
    ("dtype", "shape", "content"),
    [
        ("f4", b"K\3\x85", b"U\x08" + bytes(8)),
        ("f4", b"J\xff\xff\xff\x7f\x85", b"U\x08" + bytes(8)),
        ("O8", b"K\1\x85", b"U\x08" + bytes(8)),
        ("O8", b"K\2\x85", b"]"),
        ("U0", b"J\xff\xff\xff\x7f\x85", b"U\0"),
        ("V8", b"K\1\x85", b"U\x08" + bytes(8)),
        ("M8[ns]", b"K\1\x85", b"U\x08" + bytes(8)),
        ("f4", b"K\2", b"U\x08" + bytes(8)),
    ],
)
def test_an_array_whose_bytes_are_not_there_is_refused(
    tmp_path: Path, dtype: str, shape: bytes, content: bytes
) -> None:
    content = content if content[:1] != b"U" else b"C" + content[1:]
    (tmp_path / "a.pkl").write_bytes(array("f4", b"K\2\x85", b"C\x08" + bytes(8)))
    np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl"), np.zeros(2, np.float32))
    (tmp_path / "a.pkl").write_bytes(array(dtype, shape, content))
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nbytes\n\x8a\x05\0\0\0\0\x10\x85R.",
        b"\x80\x02c__builtin__\nlist\n" + text("abc") + b"\x85R.",
        b"\x80\x02c_codecs\nencode\n" + text("x") + text("bz2_codec") + b"\x86R.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x02Np4000000000\n.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        b"\x80\x02]q\0h\0a.",
        b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".",
        b"\x80\x02})" + b"\x85" * 10**6 + b"K\1s.",
        b"\x80\x02}]K\1s.",
        b"\x80\x02}(K\1K\2\x86K\3u.",
        b"\x80\x02cnumpy\ndtype\n" + text("V8") + b"\x85R(K\x03" + text("<") + b"N" + text("f") + b"\x85}K\1K\1K\1tb.",
        b"",
        b".",
        b"hello",
    ],
)
def test_a_pickle_made_to_take_memory_or_to_crash_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_pickle(tmp_path / "a.pkl")


def test_compressed_repeated_or_missing_parts_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({})
    with pytest.raises(ValueError, match="compressed parts"):
        read_torch(archive(tmp_path, content, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"2 files data\.pkl"):
        read_torch(archive(tmp_path, content, {"other/data.pkl": content}))
    with pytest.raises(ValueError, match="byte order"):
        read_torch(archive(tmp_path, content, {"model/byteorder": b"big"}))
    file = archive(tmp_path, content, {"model/data/0": bytes(1000)})
    directory = bytearray(file.read_bytes())
    at = directory.rindex(b"PK\x01\x02")
    directory[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    file.write_bytes(directory)
    with pytest.raises(ValueError, match="more bytes than it has"):
        read_torch(file)


@pytest.mark.filterwarnings("ignore:invalid .*escape:DeprecationWarning")
def test_a_truncated_or_damaged_file_is_refused_or_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    value = {"w": torch.arange(40.0), "names": np.array(["a", "b"], object), "n": np.int64(3), "x": np.eye(2)}
    torch.save(value, file)
    whole, chance = file.read_bytes(), random.Random(0)
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            read_torch(file)
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(chance.choice([1, 1, 5])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken)
        try:
            found = read_torch(file)
        except ValueError:
            continue
        assert torch.equal(found["w"], value["w"])


@pytest.mark.filterwarnings("ignore:invalid .*escape:DeprecationWarning")
def test_damaged_pickles_never_fail_in_any_other_way(tmp_path: Path) -> None:
    frame = pd.DataFrame({"elbo": [1.0, 2.0]}, index=pd.Index([0, 1], name="epoch"))
    whole = pickle.dumps({"f": frame, "d": collections.defaultdict(dict, a={"b": np.float32(2)}), "i": np.arange(9)}, 2)
    chance = random.Random(1)
    for _ in range(800):
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] = chance.randrange(256)
        (tmp_path / "a.pkl").write_bytes(broken)
        try:
            read_pickle(tmp_path / "a.pkl")
        except ValueError as error:
            assert "cannot be read" in str(error)  # noqa: PT017


def test_a_file_of_torch_before_zip_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch before 1\.6 must be saved again"):
        read_torch(tmp_path / "old.pt")
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "absent.pt")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_tensors_of_every_type_come_back_as_they_were(tmp_path: Path, dtype: str) -> None:
    base = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    value = {"whole": base, "part": base[1:, ::2], "turned": base.t(), "none": base[:0], "one": base[2, 3]}
    torch.save(value, tmp_path / "t.pt")
    found = read_torch(tmp_path / "t.pt")
    for name, expected in value.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_values_of_numpy_and_python_come_back_as_plain_ones(tmp_path: Path, protocol: int) -> None:
    value = {
        "Gene ß → 基因": np.array(["ä", "b", None, np.nan], dtype=object),
        "texts": np.array(["x", "längst"]),
        "numbers": np.array([[1, 2], [3, 4]], dtype=">i4", order="F"),
        "flags": np.array([True, False]),
        "scalars": [np.float64(0.5), np.int64(7), np.bool_(True), np.str_("s")],
        "nothing": np.array([], dtype=np.int64),
        "table": collections.defaultdict(dict, a={"b": {3}}),
        "nan": torch.tensor(float("nan")).item(),
        "tuple": (1, "a", None, b"\xff", slice(1, 2)),
    }
    found = read_pickle(stored(tmp_path, value, protocol=protocol))
    assert found["Gene ß → 基因"][:3] == ["ä", "b", None]
    assert found["texts"].tolist() == ["x", "längst"]
    assert found["numbers"].dtype == np.int32
    assert found["numbers"].tolist() == [[1, 2], [3, 4]]
    assert found["flags"].tolist() == [True, False]
    assert found["scalars"] == [0.5, 7, True, "s"]
    assert found["nothing"].tolist() == []
    assert found["table"] == {"a": {"b": [3]}}
    assert np.isnan(found["nan"])
    assert found["tuple"] == [1, "a", None, b"\xff", slice(1, 2)]


def test_new_and_old_names_of_numpy_mean_the_same(tmp_path: Path) -> None:
    content = pickle.dumps(np.arange(3), 2)
    for new, old in ((b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"numpy.core", b"numpy._core")):
        (tmp_path / "a.pkl").write_bytes(content.replace(new, old))
        assert read_pickle(tmp_path / "a.pkl").tolist() == [0, 1, 2]


def test_what_two_places_share_is_read_once(tmp_path: Path) -> None:
    names = ["a", "b"]
    found = read_pickle(stored(tmp_path, {"var_names": names, "column_names": names}))
    assert found["var_names"] is found["column_names"]


@pytest.mark.parametrize("wrap", [lambda part: [part] * 10, lambda part: dict.fromkeys("abcdefghij", part)])
@pytest.mark.parametrize("leaf", ["ha", 1, np.array(["ha"], dtype=object)])
def test_shared_parts_that_would_be_billions_of_values_are_refused(tmp_path: Path, wrap, leaf: object) -> None:
    laughs = leaf
    for _ in range(12):
        laughs = wrap(laughs)
    with pytest.raises(ValueError, match=r"lists share parts and would be more than 65536 values"):
        read_pickle(stored(tmp_path, {"var_names": laughs}))


def test_a_long_text_that_is_shared_very_often_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would be more than"):
        read_pickle(stored(tmp_path, ["x" * 1_000_000] * 10_000))
    assert len(read_pickle(stored(tmp_path, ["a label of some length"] * 100_000))) == 100_000


def test_a_pipe_where_a_file_should_be_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    for read in (read_torch, read_pickle):
        with pytest.raises(ValueError, match=r"model\.pt cannot be read: it is no regular file"):
            read(tmp_path / "model.pt")


@pytest.mark.real_data
@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden cases are not beside the checkout ({GOLDEN})")
def test_every_golden_file_is_read_as_torch_reads_it() -> None:
    for path in sorted(GOLDEN.glob("*/model.pt")):
        expected = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=False)
        found = read_torch(path)
        assert found["var_names"] == list(expected["var_names"])
        del expected["model_state_dict"]["pyro_param_store"]
        for name, value in expected["model_state_dict"].items():
            torch.testing.assert_close(found["model_state_dict"][name], value, rtol=0, atol=0)
        options = expected["attr_dict"]["init_params_"]
        assert found["attr_dict"]["init_params_"] == options
