"""Compiles the kernels for real cards without one: NVIDIA's NVRTC, called through ctypes.

    python tests/nvrtc.py [FILE ...]      writes tests/golden/kernel_resources.json anew, or the
                                          rows of some kernels/FILE.cu
"""

import ctypes
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minisft.backend.gpu import cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_120")
TABLE = Path(__file__).parent / "golden" / "kernel_resources.json"


def too_old(file, architecture, defines):
    """Whether a build needs what this architecture has not: sm_75 multiplies no bfloat16."""
    return (file, architecture, defines.get("FLOAT16")) == ("attention_tensor_cores", "sm_75", 0)


# Every .cu with each set of sizes that it is compiled for here.
BUILDS = {
    "adamw": [{"FLOAT16": n} for n in (0, 1)],
    "attention": [{"HEAD_WIDTH": d, "DROPOUT": drop, "WIDE": wide} for d, drop, wide in (
        (16, 0, 1), (32, 0, 1), (64, 0, 1), (64, 1, 1), (64, 0, 0), (80, 0, 1), (128, 0, 1))],
    "attention_decode": [{"HEAD_WIDTH": d, "FLOAT16": n} for d, n in (
        (33, 0), (64, 0), (64, 1), (80, 0), (128, 0))],
    "attention_tensor_cores": [
        {"HEAD_WIDTH": d, "DROPOUT": drop, "FLOAT16": float16}
        for d, drop, float16 in ((16, 0, 0), (64, 0, 0), (64, 1, 0), (64, 0, 1), (64, 1, 1),
                                 (80, 0, 0), (128, 0, 0), (128, 1, 1))],
    "attention_naive": [{}],
    "bfloat16": [{}],
    "column_sums": [{"FLOAT16": n} for n in (0, 1)],
    "cross_entropy": [{"FLOAT16": n} for n in (0, 1)],
    "dropout": [{}],
    "embedding": [{}],
    "gelu": [{"FLOAT16": f, "FORM": form, "ALIGNED": at} for f, form, at in
             ((0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0))],
    "layer_norm": [{"WIDTH": c, "THREADS": t} for c, t in ((128, 32), (768, 192), (1600, 256))],
    "next_token": [{"WIDE": n} for n in (0, 1)],
    "residual_layer_norm": [{"FLOAT16": f, "WIDTH": c, "THREADS": t} for f, c, t in
                            ((0, 130, 64), (0, 768, 192), (1, 768, 192), (0, 1600, 256))],
    "softmax": [{}],
    "softmax_naive": [{}],
}

# The instructions that say how fast a main loop can be: products, loads of shared memory, and the
# unit of exponentials.
COUNTED = {"attention": ("FFMA", "LDS", "LDS.128", "MUFU", "LDG"),
           "attention_tensor_cores": ("HMMA", "LDSM", "LDS", "LDGSTS", "MUFU", "LDG", "SHFL")}


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
    """CUDA source -> the compiler's log, the machine code; raises ValueError when it refuses."""
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
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = log.value.decode()
    if status:
        raise ValueError(f"NVRTC refuses {name} for {architecture}:\n{log}")
    return log, code.raw


def resources(log):
    """ptxas's report -> {kernel: {registers, stack, spilled, shared}}, all but the first in bytes.

    `stack` is local memory, which lies in the memory of the card: spilled registers, and arrays
    whose index the compiler does not know.
    """
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)\
            .groups()
        shared = re.search(r"(\d+) bytes smem", part)
        found[part.split("'")[0]] = {
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),
            "stack": int(re.search(r"(\d+) bytes stack frame", part)[1]),
            "spilled": int(stores) + int(loads), "shared": int(shared[1]) if shared else 0}
    return found


def label(defines):
    """{name: value} -> the key of the table."""
    return " ".join(f"{k}={v}" for k, v in sorted(defines.items())) or "-"


def measured(nvrtc, file, architecture, defines):
    """-> resources of the kernels of one file, and the warnings.

    With nvdisasm also `loop`: the instructions of the main loop of those in COUNTED.
    """
    log, code = compiled(nvrtc, cuda.source(file), f"{file}.cu", architecture, defines)
    used = resources(log)
    if file in COUNTED and disassembler():
        for kernel, counts in loop_instructions(code, COUNTED[file]).items():
            used[kernel]["loop"] = counts
    return used, [line for line in log.splitlines() if "warning" in line.casefold()]


def disassembler():
    """-> the program of the wheel nvidia-cuda-nvdisasm, or None."""
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(root).glob("*/bin/nvdisasm"):
            return found
    return None


def loop_instructions(code, names):
    """Machine code -> {kernel: {name: how many instructions of its longest loop are such}}.

    `all` counts every instruction of the loop, those too that only its first or last rounds take.
    """
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True,
                              check=True).stdout
    counts = {}
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        kernel, body = part.split(":", 1)
        labels, instructions, loop = {}, [], (0, 0)
        for label, instruction in re.findall(r"^\s*(?:(\.L_x_\d+):|/\*\w+\*/\s+(.*?) ?;)", body,
                                             flags=re.MULTILINE):
            if label:
                labels[label] = len(instructions)
                continue
            if instruction.startswith("@!PT "):     # never runs: room that ptxas leaves
                continue
            instructions.append(re.sub(r"^@!?U?P\w+\s+", "", instruction))
            back = re.search(r"BRA.*\((\.L_x_\d+)\)", instruction)
            begin = labels.get(back[1]) if back else None
            if begin is not None and len(instructions) - begin > loop[1] - loop[0]:
                loop = begin, len(instructions)
        inside = instructions[slice(*loop)]
        counts[kernel] = {"all": len(inside), **{
            name: sum(f"{i.split()[0]}.".startswith(f"{name}.") for i in inside)
            for name in names}}
    return counts


def write(files=()):
    """Measures `files`, default all, and writes them into the table; it takes nvdisasm, too."""
    if not disassembler():
        raise SystemExit("no nvdisasm: pip install -e '.[kernels]'")
    nvrtc = library()
    table = {"nvrtc": version(nvrtc)}
    if files:
        table |= json.loads(TABLE.read_text())
    for file in files or BUILDS:
        table[file] = {}
        for defines in BUILDS[file]:
            rows = table[file][label(defines)] = {}
            for architecture in ARCHITECTURES:
                if too_old(file, architecture, defines):
                    continue
                for kernel, used in measured(nvrtc, file, architecture, defines)[0].items():
                    rows.setdefault(kernel, {})[architecture] = used
    lines = json.dumps(table, indent=1)
    TABLE.write_text(re.sub(r"\{\s+\"registers(?:[^{}]|\{[^{}]*\})*\}",
                            lambda m: re.sub(r"\s+(?=\})|(?<=\{)\s+", "",
                                             " ".join(m[0].split())), lines) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
