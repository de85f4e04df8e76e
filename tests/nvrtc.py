"""Compiles the kernels for real cards without one: NVIDIA's NVRTC, called through ctypes.

    python tests/nvrtc.py        writes tests/golden/kernel_resources.json anew
"""

import ctypes
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minisft.backend.gpu import cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")
NOT_FOR = {("attention_bfloat16", "sm_75")}     # its tensor cores know no bfloat16
TABLE = Path(__file__).parent / "golden" / "kernel_resources.json"

# Every .cu with each set of sizes that it is compiled for here.
BUILDS = {
    "adamw": [{}],
    "attention": [{"HEAD_WIDTH": d} for d in (16, 32, 64, 80, 128)],
    "attention_bfloat16": [{"HEAD_WIDTH": d} for d in (16, 64, 128)],
    "attention_naive": [{}],
    "bfloat16": [{}],
    "cross_entropy": [{}],
    "dropout": [{}],
    "embedding": [{}],
    "gelu": [{}],
    "layer_norm": [{"WIDTH": c, "THREADS": t} for c, t in ((128, 32), (768, 192), (1600, 256))],
    "softmax": [{}],
    "softmax_naive": [{}],
}


def folder():
    """-> where the wheel nvidia-cuda-nvrtc put its libraries, or None."""
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(root).glob("*/lib/libnvrtc.so.13"):
            return found.parent
    return None


def library():
    """-> NVRTC through ctypes; it must find its builtins loaded."""
    for found in sorted(folder().glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder() / "libnvrtc.so.13"))


def version(nvrtc):
    """-> such as 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compiled(nvrtc, text, name, architecture, defines):
    """CUDA source -> the compiler's log; raises ValueError when it refuses."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    options = [f"-arch={architecture}", "-std=c++17", "-ftz=true", "--ptxas-options=-v",
               *(f"-D{key}={value}" for key, value in sorted(defines.items()))]
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = log.value.decode()
    if status:
        raise ValueError(f"NVRTC refuses {name} for {architecture}:\n{log}")
    return log


def resources(log):
    """ptxas's report -> {kernel: {registers, spilled, shared}}, the last two in bytes."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)\
            .groups()
        shared = re.search(r"(\d+) bytes smem", part)
        found[part.split("'")[0]] = {
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),
            "spilled": int(stores) + int(loads), "shared": int(shared[1]) if shared else 0}
    return found


def label(defines):
    """{name: value} -> the key of the table."""
    return " ".join(f"{k}={v}" for k, v in sorted(defines.items())) or "-"


def measured(nvrtc, file, architecture, defines):
    """-> resources of the kernels of one file, and the warnings."""
    log = compiled(nvrtc, cuda.source(file), f"{file}.cu", architecture, defines)
    return resources(log), [line for line in log.splitlines() if "warning" in line.casefold()]


def write():
    """Measures everything and writes the table."""
    nvrtc = library()
    table = {"nvrtc": version(nvrtc)}
    for file, builds in BUILDS.items():
        for defines in builds:
            for architecture in ARCHITECTURES:
                if (file, architecture) in NOT_FOR:
                    continue
                for kernel, used in measured(nvrtc, file, architecture, defines)[0].items():
                    rows = table.setdefault(file, {}).setdefault(label(defines), {})
                    rows.setdefault(kernel, {})[architecture] = used
    lines = json.dumps(table, indent=1)
    TABLE.write_text(re.sub(r"\{\s+(\"registers[^}]*?)\s+\}",
                            lambda m: "{" + " ".join(m[1].split()) + "}", lines) + "\n")


if __name__ == "__main__":
    write()
