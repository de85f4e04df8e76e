"""The safetensors file: what the library reads, bfloat16, and every way to be damaged."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minisft.errors import UserError
from minisft.io import checkpoint, safetensors

GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny" / "model.safetensors"
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "c": np.array(2, np.int8),
          "d": np.zeros((0, 3), np.float16), "e": np.asfortranarray(np.ones((2, 3), ">f4")),
          "f": np.array(2**63, np.uint64)}


def read_all(path):
    return {name: tensor.read() for name, tensor in safetensors.read_header(path)[0].items()}


def equal(arrays, others):
    return arrays.keys() == others.keys() and all(
        np.array_equal(x, others[name]) and x.shape == others[name].shape
        for name, x in arrays.items())


def refused(path, *words):
    """Asserts that reading says no, in one line that names the file and holds these words."""
    with pytest.raises(UserError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message, message


@pytest.fixture
def file(tmp_path):
    """One of our files, with the arrays of the golden model."""
    safetensors.write(tmp_path / "x.safetensors", read_all(GOLDEN), {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_the_library_reads_what_we_write(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", ARRAYS, {"format": "pt"})
    assert equal(load_file(tmp_path / "x.safetensors"), ARRAYS)
    assert equal(read_all(tmp_path / "x.safetensors"), ARRAYS)
    for name, tensor in safetensors.read_header(tmp_path / "x.safetensors")[0].items():
        assert tensor.start % ARRAYS[name].itemsize == 0     # whoever maps the file needs it


def test_we_read_what_the_library_writes(tmp_path):
    save_file({name: x for name, x in ARRAYS.items()}, tmp_path / "x.safetensors")
    assert equal(read_all(tmp_path / "x.safetensors"), ARRAYS)


def test_same_arrays_give_the_same_bytes(tmp_path):
    for name, arrays in ("a", ARRAYS), ("b", dict(reversed(ARRAYS.items()))):
        safetensors.write(tmp_path / name, arrays, {"format": "pt", "more": "text"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bfloat16_by_hand(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    data = struct.pack("<4H", 0x3F80, 0xC049, 0x0000, 0x7F80)
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + data)
    x = read_all(tmp_path / "x")["x"]
    assert x.dtype == np.float32 and x.tolist() == [[1.0, -3.140625], [0.0, np.inf]]


def test_dtype_that_the_format_lacks(tmp_path):
    with pytest.raises(ValueError, match="z has dtype complex128"):
        safetensors.write(tmp_path / "x", {"z": np.ones(2, complex)})
    assert not list(tmp_path.iterdir())


def test_dtype_that_numpy_lacks(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    refused(tmp_path / "x", "x has dtype F8_E4M3")


def test_file_of_others_has_no_checksums():
    stored, metadata = safetensors.read_header(GOLDEN)
    assert metadata == {"format": "pt"} and all(t.checksum is None for t in stored.values())


def test_git_lfs_pointer(tmp_path):
    (tmp_path / "x").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 548105171\n")
    refused(tmp_path / "x", "git lfs pull")


def test_no_file(tmp_path):
    refused(tmp_path / "x", "no such file")
    refused(tmp_path)


@pytest.mark.parametrize("ours", [True, False])
def test_cut_off_at_many_lengths(file, ours):
    content = file.read_bytes() if ours else GOLDEN.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for length in [*range(20), header - 1, header, header + 1, len(content) - 1,
                   *np.linspace(20, len(content) - 2, 100).astype(int)]:
        file.write_bytes(content[:length])
        refused(file)
    file.write_bytes(content + b"\0")
    refused(file)


def test_flipped_bits_are_found(file, rng):
    content, arrays = file.read_bytes(), read_all(file)
    header = 8 + int.from_bytes(content[:8], "little")
    found, unseen = 0, 0
    for bit in np.concatenate([rng.integers(0, 8 * header, 200),
                               rng.integers(8 * header, 8 * len(content), 200)]):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        try:
            assert equal(read_all(file), arrays), f"bit {bit}"
            unseen += 1
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            found += 1
    assert unseen == 0


def test_a_damaged_name_does_not_switch_the_checksums_off(file):
    """Nothing that protects is announced by its own name alone: each bit of every name."""
    content = file.read_bytes()
    for name in (safetensors.CHECKSUMS, "__metadata__", "format"):
        start = content.index(f'"{name}"'.encode())
        for bit in range(8 * start, 8 * (start + len(name) + 2)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(damaged)
            refused(file)


def test_damage_names_the_tensor(file):
    content = bytearray(file.read_bytes())
    content[safetensors.read_header(file)[0]["transformer.h.1.ln_2.bias"].start] ^= 1
    file.write_bytes(content)
    refused(file, "transformer.h.1.ln_2.bias is damaged", "checksum")


def test_failed_write_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def out_of_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", out_of_space)
    with pytest.raises(UserError, match="x.safetensors: cannot be written .No space left"):
        safetensors.write(file, ARRAYS)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_folder_that_cannot_be_made(file):
    with pytest.raises(UserError, match="cannot be written"):
        safetensors.write(file / "deeper" / "x", ARRAYS)


@pytest.mark.parametrize("text", ["[" * 100_000, "[[1, 2], [3, 4]]", '{"w": "1"}', "null", ""])
@pytest.mark.parametrize("key", [safetensors.CHECKSUMS, "minisft_config_crc32"])
def test_checksums_that_are_none(tmp_path, key, text):
    """A file that somebody wrote to be read here."""
    folder = tmp_path / "model"
    shutil.copytree(Path(__file__).parent / "golden" / "gpt2_tiny", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["transformers_version"]
    (folder / "config.json").write_text(json.dumps(config))
    stored = safetensors.read_header(folder / "model.safetensors")[0]
    save_file({name: tensor.read() for name, tensor in stored.items()},
              folder / "model.safetensors", {key: text})
    with pytest.raises(UserError, match="what should be checksums is") as caught:
        checkpoint.load(folder)
    assert len(str(caught.value)) < 500


def test_a_header_of_a_million_tensors(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {f"w{i}": np.zeros(1, np.float32) for i in range(30)})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(safetensors, "LARGEST_HEADER", size)
    assert len(safetensors.read_header(path)[0]) == 30
    monkeypatch.setattr(safetensors, "LARGEST_HEADER", size - 1)
    with pytest.raises(UserError, match=f"a header of {size:,} bytes, expected at most"):
        safetensors.read_header(path)
