"""Files of torch.save, read without torch: what they hold, and what is refused and never run.

`torch_file` in `golden` was written by PyTorch; the other files are put together here.
"""

import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_writer import Raw, archive, call, opcodes, state_dict, storage, tensor

from minisft.errors import UserError
from minisft.io import restricted_pickle, safetensors
from minisft.io.checkpoint import load
from minisft.io.restricted_pickle import read_pickle
from minisft.io.torch_file import read_tensors, read_torch_file
from minisft.io.weights import folder_tensors

GOLDEN = Path(__file__).parent / "golden"
SAVED = GOLDEN / "torch_file" / "pytorch_model.bin"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


def refused(path, *words):
    with pytest.raises(UserError) as error:
        for found in read_tensors(path).values():
            found.read()
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message


def test_what_pytorch_wrote():
    expected, found = np.load(GOLDEN / "torch_file" / "expected.npz"), read_tensors(SAVED)
    assert found.keys() == set(expected.files) and len(found) == 16
    for key, stored in found.items():
        value = stored.read()
        assert stored.shape == value.shape and value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key])
        assert value.flags.c_contiguous and value.flags.writeable


def test_views_of_a_storage(path):
    archive(path, {"a": tensor(), "column": tensor((2,), (3,), 1), "turned": tensor((3, 2), (1, 3)),
                   "one": tensor((1, 1), (2**60 - 1, 5), 5), "none": tensor((0, 2**59), (7, 1)),
                   "wide": tensor((0, 1), (2**60 - 1, 0), 0,
                                  storage(3, kind="torch.DoubleStorage")),
                   "number": tensor((), (), 4),
                   "parameter": call("torch._utils._rebuild_parameter", tensor(), True, None)})
    found = {key: stored.read().tolist() for key, stored in read_tensors(path).items()}
    assert found == {"a": [[0, 1, 2], [3, 4, 5]], "column": [1, 4],
                     "turned": [[0, 3], [1, 4], [2, 5]], "one": [[5]], "none": [], "wide": [],
                     "number": 4, "parameter": [[0, 1, 2], [3, 4, 5]]}


def test_big_endian(path):
    archive(path, {"a": tensor(), "b": tensor((1,), (1,), 0, storage(1, "1", "torch.BFloat16Storage"
                                                                    ))},
            {"byteorder": b"big", "data/0": np.arange(6, dtype=">f4").tobytes(),
             "data/1": b"\x40\x20"})
    a, b = (stored.read() for stored in read_tensors(path).values())
    np.testing.assert_array_equal(a, [[0, 1, 2], [3, 4, 5]])
    assert a.dtype == np.float32 and b.tolist() == [2.5]
    archive(path, {"a": tensor()}, {"byteorder": b"middle"})
    refused(path, "byteorder", "middle")


@pytest.mark.parametrize(("made", "words"), [
    (tensor((2, 4), (4, 1)), ["a of shape (2, 4)", "beyond the 6 elements"]),
    (tensor((2, 3), (4, 1)), ["a of shape (2, 3) and strides (4, 1)", "beyond"]),
    (tensor((2, 3), (3, 1), 1), ["from 1 on", "beyond"]),
    (tensor((10**6, 10**6), (0, 0)), ["a of shape", "beyond"]),      # a giant of one element
    (tensor((-2, 3)), ["a is no tensor", "numbers from 0"]),
    (tensor((2, 3), (-3, 1), 3), ["a is no tensor"]),
    (tensor((2, 3), (3, 1), -1), ["a is no tensor"]),
    (tensor((2**70, 0), (1, 1)), ["a is no tensor"]),
    (tensor((2, 3), (3,)), ["a is no tensor"]),
    (tensor((2, True), (3, 1)), ["a is no tensor"]),
    (tensor((1,) * 33, (1,) * 33), ["a is no tensor"]),
    (tensor("23", (3, 1)), ["a is no tensor"]),
    (tensor(stored="0"), ["a is no tensor"]),
    (tensor(metadata=({"neg": True},)), ["a is a conjugate or negative view"]),
    (tensor(stored=storage(7)), ["storage '0'", "7 elements of F32", "has 24 bytes"]),
    (tensor(stored=storage(-6)), ["-6 elements"]),
    (tensor(stored=storage(2**61)), ["elements", "has 24 bytes"]),
    (tensor(stored=storage(6, kind="torch.DoubleStorage")), ["6 elements of F64"]),
    (tensor(stored=storage(6, "1")), ["the storage '1' is not in the archive"]),
    (tensor(stored=storage(6, "../data/0")), ["the storage '../data/0' is not in"]),
    (tensor(stored=storage(6, first="module")), ["a persistent id that is no storage's"]),
    (tensor(stored=storage(6, kind="collections.OrderedDict")), ["no storage's"]),
    (tensor(stored=storage(6, kind="torch.ComplexFloatStorage")), ["torch.ComplexFloatStorage"]),
    ([tensor()], ["a is a list, expected a tensor"]),
    (call("torch._utils._rebuild_parameter", 3, True, None), ["a parameter of a int"]),
    (call("torch._utils._rebuild_tensor_v2", storage(6)), ["damaged"]),
])
def test_a_tensor_that_lies(path, made, words):
    archive(path, {"a": made})
    refused(path, *words)


def test_names_are_shown_on_one_line(path):
    for bad in ("a\nb", "x" * 501, 3):
        archive(path, {bad: tensor()})
        refused(path, "has the name")
    archive(path, [tensor()])
    refused(path, "holds a list, expected tensors by name")


# What runs when Python's own unpickler reads it, by each way that a pickle has.
def attacks(marker):
    run, there = f"open({str(marker)!r}, 'w').close()", opcodes(str(marker))

    class Reduced:
        def __reduce__(self):
            return exec, (run,)

    path = opcodes(f"touch {marker}")
    return {
        "os.system": (b"cos\nsystem\n(" + path + b"tR.", "os.system"),
        "posix.system": (b"cposix\nsystem\n(" + path + b"tR.", "posix.system"),
        "exec": (pickle.dumps(Reduced()), "builtins.exec"),
        "exec of protocol 2": (pickle.dumps(Reduced(), 2), "__builtin__.exec"),
        "INST": (b"(" + path + b"ios\nsystem\n.", "os.system"),
        "OBJ": (b"(cos\nsystem\n" + path + b"o.", "os.system"),
        "OBJ of what is known": (b"(ccollections\nOrderedDict\no.", "OBJ"),
        "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        "EXT1": (b"\x82\x01(" + path + b"tR.", "EXT1"),
        "a function of torch": (b"ctorch.hub\nload\n(" + path + b"tR.", "torch.hub.load"),
        "an attribute of what is known": (
            b"\x80\x04\x8c\x0bcollections\x8c\x1dOrderedDict.__init_subclass__\x93)R.",
            "collections.OrderedDict.__init_subclass__"),
        "a call of a text": (path + b"(tR.", "it calls a str"),
        "BUILD of a function": (b"ccollections\nOrderedDict\n}b.", "sets attributes of a Function"),
        "BUILD of a dict": (b"}}b.", "sets attributes of a dict"),
        "BUILD with a text": (b"ccollections\nOrderedDict\n)R" + there + b"b.", "sets attributes"),
        "a text as a persistent id": (b"P" + str(marker).encode() + b"\n.", "PERSID"),
    }


@pytest.mark.parametrize("kind", attacks("x"))
def test_nothing_of_a_hostile_pickle_runs(path, tmp_path, monkeypatch, kind):
    marker = tmp_path / "ran"
    data, word = attacks(marker)[kind]
    monkeypatch.setattr(pickle, "Unpickler", None)      # not even by accident
    monkeypatch.setattr(pickle, "loads", None)
    archive(path, {}, {"data.pkl": data})
    refused(path, word, *([] if kind == "a call of a text" else ["nothing of it was run"]))
    # behind tensors, too, where Python would have run it before anybody looks
    archive(path, {"a": tensor(), "b": Raw(data[2:-1] if data[:1] == b"\x80" else data[:-1])})
    refused(path, "its pickle")
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """Python's own unpickler does run them."""
    marker = tmp_path / "ran"
    for kind in "os.system", "exec", "INST", "OBJ":
        pickle.loads(attacks(marker)[kind][0])
        assert marker.exists(), kind
        marker.unlink()


def test_attributes_of_a_tensor(path):
    archive(path, {"a": Raw(tensor() + b"}" + b"b")})
    refused(path, "sets attributes of a _Rebuilt")
    # a state dict has some, which say nothing of the tensors
    archive(path, Raw(call("collections.OrderedDict") + b"(" + opcodes("a") + tensor() + b"u"
                      + opcodes({"_metadata": {"": {"version": 1}}}) + b"b"))
    assert list(read_tensors(path)) == ["a"]


@pytest.mark.parametrize("data", [
    b"\x80\x02.", b"", b"\x80\x02", b"\x80\x02}", b"\x80\x02}}.", b"(.", b"t.", b"(NNs.", b"u.",
    b"}(Nu.", b"](.", b"N(e.", b"}NNs.", b"}(tNs.", b"}((tNu.", b"h\x05.", b"(q\x00.", b"\x85.",
    b"X\xff\xff\xff\xffa.", b"\x8d" + b"\xff" * 8 + b".", b"\x8b\xff\xff\xff\x7f.", b"R.", b"b.",
    b"NR.", b"N)R.", b"Q.", b"NQ.", b"ccollections\nOrderedDict\n(NtR.", b"X\x02\0\0\0\xff\xfe.",
    b"\xff.", b"\x93.", b"NN\x93.", b"(N", b"}(X\x01\0\0\0a(u.", b"c\xff\nx\n.", b"J\x01.",
], ids=repr)
def test_damaged_pickles(path, data):
    archive(path, {}, {"data.pkl": data})
    refused(path)


def test_bombs(path, monkeypatch):
    """Time and memory stay those of a file of this size."""
    limit, depth = sys.getrecursionlimit(), 100_000
    nested, lists = b"\x80\x02)" + b"\x85" * depth, b"]q\x00" + b"](h\x00h\x00eq\x00" * 40
    for data, words in [
        (nested + b".", ["holds a tuple"]),                         # tuples within tuples
        (b"\x80\x02}" + nested[2:] + b"Ns.", ["a key of a dict is a tuple"]),     # and their hash
        (b"\x80\x02" + b"](" * depth + b"." , ["damaged"]),
        # a million million references by a few bytes
        (b"\x80\x02(" + lists + b"t.", ["holds a tuple"]),
        (b"\x80\x02Nr\xff\xff\xff\xff.", ["holds a NoneType"]),   # a memo of four thousand million
        (b"\x80\x02}(" + b"".join(opcodes(n * (2**61 - 1)) + b"N" for n in range(2000)) + b"u.",
         ["a key of a dict is a int"]),                           # all of one hash
    ]:
        archive(path, {}, {"data.pkl": data})
        refused(path, *words)
    # the shape of a tensor holds the forty lists: they are not shown
    archive(path, {"a": tensor(Raw(b"(" + lists + b"t"))})
    refused(path, "a is no tensor")
    # numbers of so many digits that Python does not show them
    huge = Raw(b"\x8b" + struct.pack("<I", 3000) + b"\x01" * 3000)
    for made in tensor((huge, 2)), tensor(stored=storage(huge)), Raw(b"}" + huge + b"Ns"):
        archive(path, {"a": made})
        refused(path)
    monkeypatch.setattr("minisft.io.torch_file.LARGEST", 100)
    archive(path, {}, {"data.pkl": b"\x80\x02" + b"N0" * 50 + b"N."})
    refused(path, "data.pkl has 104 bytes, expected at most 100")
    assert sys.getrecursionlimit() == limit


def test_a_limit_for_a_pickle_by_itself(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "LARGEST", 3)
    with pytest.raises(UserError, match="x: its pickle has 4 bytes, expected at most 3"):
        read_pickle(b"NN0.", "x")


def test_zip_archives_that_torch_does_not_write(path):
    archive(path, {"a": tensor()}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "'x/data.pkl' is compressed or encrypted")
    for bad in ("../a", "a\\b", "/a", "./a", "data/../../a"):
        archive(path, {"a": tensor()}, {bad: b""})
        refused(path, "has a member called")
    archive(path, {"a": tensor()}, folder="../x")
    refused(path, "has a member called '../x/data.pkl'")
    with zipfile.ZipFile(archive(path, {"a": tensor()}), "a") as file, \
            pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x/data/0", b"\0" * 24)
    refused(path, "two members called 'x/data/0'")
    for more in ("y/data.pkl", "y/else", "data.pkl"):
        with zipfile.ZipFile(archive(path, {"a": tensor()}), "a") as file:
            file.writestr(more, b"N.")
        refused(path, "not one of torch.save")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("book/cells.xml", "")
    refused(path, "not one of torch.save")


def test_members_that_lie(path):
    """About their place, their length, and what they are called."""
    whole = archive(path, {"a": tensor()}).read_bytes()
    central = whole.index(b"PK\1\2")
    second = whole.index(b"PK\1\2", central + 1)      # of data/0
    for at, value, word in [
        (second + 20, struct.pack("<II", 10**6, 10**6), "ends beyond the file"),
        (second + 20, struct.pack("<I", 23), "compressed"),
        (second + 42, struct.pack("<I", 0), "has another name"),
        (second + 42, struct.pack("<I", 3), "no header"),
        (second + 42, struct.pack("<I", len(whole) - 4), "no header"),
        (second + 8, b"\1", "encrypted"),
        (second + 16, b"\0\0\0\0", "the storage 0 is damaged, its checksum differs"),
        (central + 16, b"\0\0\0\0", "data.pkl is damaged"),
    ]:
        path.write_bytes(whole[:at] + value + whole[at + len(value):])
        refused(path, word)


def test_cut_off_or_flipped(path, rng):
    """Every length, and one bit in each byte: refused, or the very same values."""
    data = SAVED.read_bytes()
    expected = {key: stored.read() for key, stored in read_tensors(SAVED).items()}
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        refused(path)
    found = 0
    for at in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            values = {key: stored.read() for key, stored in read_tensors(path).items()}
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
            continue
        assert values.keys() == expected.keys()
        for key, value in values.items():
            np.testing.assert_array_equal(value, expected[key])
    assert found > 150      # the rest is padding


def test_other_forms(path):
    for start in b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"x" * 257 + b"ustar":
        path.write_bytes(start + b"rest")
        refused(path, "old form", "weights_only=True", "torch.save")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(path, "git lfs pull")
    path.write_bytes(b"{}")
    refused(path, "not a file of torch.save")
    path.unlink()
    refused(path, "no such file")


def test_numbers_and_containers(path):
    value = {"a": [1, -5, 2**40, 0.5, None, True, (1, ("b", "ж"), ()), {}], 3: {"x": "y"}}
    assert read_torch_file(archive(path, value)) == value
    plain = io.BytesIO()
    pickle.dump(value, plain)     # of protocol 4, with frames
    assert read_pickle(plain.getvalue(), "x") == value


# A model's folder.

def bin_of(path, names=None):
    """The tensors of golden gpt2_tiny of these names (default: all), as torch.save has them."""
    stored = safetensors.read_header(GOLDEN / "gpt2_tiny" / "model.safetensors")[0]
    return state_dict(path, {key: stored[key].read() for key in names or stored})


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_bytes((GOLDEN / "gpt2_tiny" / "config.json").read_bytes())
    return made


def equal_models(a, b):
    assert [p.name for p in a.store] == [p.name for p in b.store]
    np.testing.assert_array_equal(a.store.values, b.store.values)


def test_a_folder_with_pytorch_model_bin(folder):
    bin_of(folder / "pytorch_model.bin")
    equal_models(load(folder), load(GOLDEN / "gpt2_tiny"))


def test_shards_of_it(folder):
    names = list(safetensors.read_header(GOLDEN / "gpt2_tiny" / "model.safetensors")[0])
    index = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-{i:05}-of-00002.bin"
        bin_of(folder / shard, part)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    equal_models(load(folder), load(GOLDEN / "gpt2_tiny"))
    bin_of(folder / shard, names[3::2])
    with pytest.raises(UserError, match=r"-00002-of-00002.bin: .* is missing, pytorch_model.b"):
        load(folder)


def test_safetensors_come_first(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    data = (GOLDEN / "gpt2_tiny" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data)
    equal_models(load(folder), load(GOLDEN / "gpt2_tiny"))
    assert {tensor.path.name for tensor in folder_tensors(folder)} == {"model.safetensors"}


# Beside PyTorch.

@pytest.mark.parity
def test_pytorch_reads_what_is_put_together_here(path):
    """So the files above are torch.save's, but for what is wrong with them."""
    torch = pytest.importorskip("torch")
    archive(path, {"a": tensor(), "turned": tensor((3, 2), (1, 3)), "b": [1, None, "x", 0.5]},
            {"version": b"3\n"})
    found = torch.load(path, weights_only=True)
    assert found["b"] == read_torch_file(path)["b"]
    for key in "a", "turned":
        np.testing.assert_array_equal(read_tensors_of(path)[key], found[key].numpy())


def read_tensors_of(path):
    from minisft.io.torch_file import named_tensors
    values = {key: value for key, value in read_torch_file(path).items() if key != "b"}
    return {key: stored.read() for key, stored in named_tensors(path, values).items()}


@pytest.mark.parity
def test_the_golden_file_is_what_pytorch_writes_today(path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(GOLDEN))
    import make_torch_file
    made = make_torch_file.tensors()
    torch.save(made, path)
    for key, stored in read_tensors(path).items():
        expected = made[key].detach()
        expected = expected.float() if expected.dtype == torch.bfloat16 else expected
        np.testing.assert_array_equal(stored.read(), expected.numpy())
    torch.save(made, path, _use_new_zipfile_serialization=False)
    refused(path, "old form")
