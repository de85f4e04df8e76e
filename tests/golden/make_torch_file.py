"""Writes tests/golden/torch_file/: what torch.save makes of tensors of every kind that is read.

    python tests/golden/make_torch_file.py      needs the extra `parity`

Made with PyTorch 2.13. `expected.npz` holds the same values by NumPy.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent / "torch_file"


def tensors():
    """-> a state dict with all dtypes, shared storages, views and an empty tensor."""
    torch.manual_seed(0)
    whole = torch.randn(4, 3)
    made = OrderedDict(
        float32=whole, tied=whole, transposed=whole.T, part=whole[1:3, 1],
        parameter=torch.nn.Parameter(torch.randn(2)), scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3), float64=torch.randn(2, dtype=torch.float64),
        float16=torch.randn(3).half(), bfloat16=torch.randn(3).bfloat16(),
        int64=torch.tensor([-2**40, 7]), int32=torch.tensor([-5], dtype=torch.int32),
        int16=torch.tensor([-5], dtype=torch.int16), int8=torch.tensor([-5], dtype=torch.int8),
        uint8=torch.tensor([250], dtype=torch.uint8), bool=torch.tensor([True, False]))
    made._metadata = OrderedDict(version=1)
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    made = tensors()
    torch.save(made, FOLDER / "pytorch_model.bin")
    np.savez_compressed(FOLDER / "expected.npz", **{
        name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
        for name, x in made.items()})
