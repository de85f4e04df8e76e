"""The state of a training run: the same after reading, old or new after a crash, never damaged."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from minisft.errors import UserError
from minisft.io import training_state

GOLDEN = Path(__file__).parent / "golden" / "gpt2_tiny"
ARRAYS = {"m": np.arange(12, dtype=np.float32), "v": np.ones((2, 3)), "order": np.arange(5),
          "key": np.array(2**63, np.uint64), "empty": np.zeros(0, np.float32)}
INFO = {"step": 12, "loss": 0.1 + 0.2, "best": None, "name": "naïve", "seed": 2**70}


def test_state_round_trip(tmp_path):
    training_state.save_state(tmp_path / "training_state", ARRAYS, INFO)
    arrays, info = training_state.load_state(tmp_path / "training_state")
    assert info == INFO and arrays.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert arrays[name].dtype == x.dtype and arrays[name].shape == x.shape
        np.testing.assert_array_equal(arrays[name], x)


def test_state_is_replaced_whole(tmp_path, monkeypatch):
    training_state.save_state(tmp_path, ARRAYS, INFO)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            training_state.save_state(tmp_path, {"m": np.zeros(3)}, {"step": 13})
    assert training_state.load_state(tmp_path)[1] == INFO
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]
    # killed outright, nothing is tidied up: the half file is passed by, and written over later
    (tmp_path / ".state.safetensors.partial").write_bytes(b"half")
    assert training_state.load_state(tmp_path)[1] == INFO
    training_state.save_state(tmp_path, {"m": np.zeros(3)}, {"step": 13})
    assert training_state.load_state(tmp_path)[1] == {"step": 13}
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]


def test_damaged_state(tmp_path, rng):
    with pytest.raises(UserError, match="no training state"):
        training_state.load_state(tmp_path)
    training_state.save_state(tmp_path, ARRAYS, INFO)
    file = tmp_path / "state.safetensors"
    content = file.read_bytes()
    for bit in rng.integers(0, 8 * len(content), 300):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(str(file))):
            training_state.load_state(tmp_path)
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(UserError):
            training_state.load_state(tmp_path)
    shutil.copy(GOLDEN / "model.safetensors", file)
    with pytest.raises(UserError, match="minisft did not write it"):
        training_state.load_state(tmp_path)


def test_a_folder_is_no_state(tmp_path):
    """What a death in the first save leaves."""
    assert not training_state.has_state(tmp_path / "absent")
    assert not training_state.has_state(tmp_path)
    (tmp_path / ".state.safetensors.partial").write_bytes(b"half")
    assert not training_state.has_state(tmp_path)
    training_state.save_state(tmp_path, ARRAYS, INFO)
    assert training_state.has_state(tmp_path)
