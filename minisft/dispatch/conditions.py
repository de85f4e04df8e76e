"""When an implementation takes a call: each condition says why not, or "" where it does."""

from collections.abc import Callable
from operator import add, sub
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.constants import IGNORE
from minisft.backend.gpu import cuda
from minisft.backend.gpu.launch.packed import Placed
from minisft.dispatch.selection import Condition, Site

NOT_FLOAT32 = "not all of its numbers are float32"


def kernels(*versions: str) -> Condition:
    """CUDA kernels of one of these versions run on float32 arrays, on a GPU or the emulator."""
    def condition(site: Site, arguments: dict[str, Any]) -> str:
        if site.kernels not in versions:
            return ("CUDA kernels do not run here" if site.kernels == "off" else
                    f"{site.kernels} kernels are asked for")
        return "" if site.float32 else NOT_FLOAT32
    return condition


def kernels_in_16_bits(name: str, *versions: str) -> Condition:
    """As `kernels`, which take this array in 16 bits, too."""
    in_float32 = kernels(*versions)

    def condition(site: Site, arguments: dict[str, Any]) -> str:
        x = arguments[name]
        if x.dtype not in (np.uint16, np.float16):
            return in_float32(site, arguments)
        return "" if cuda.possible() and cuda.version_for(x) in versions else \
            "CUDA kernels do not run here"
    return condition


def no_kernels(site: Site, arguments: dict[str, Any]) -> str:
    """Its arrays are on the CPU, and no emulator runs."""
    return "" if site.kernels == "off" else "CUDA kernels run here"


def compiled(site: Site, arguments: dict[str, Any]) -> str:
    """Numba's loops run on float32 arrays of the CPU."""
    if not site.compiled:
        return "Numba is not installed or switched off" if site.on_cpu else "the arrays are CuPy's"
    return "" if site.float32 else NOT_FLOAT32


def compiled_in_16_bits(name: str) -> Condition:
    """As `compiled`, which take this array in bfloat16, too."""
    def condition(site: Site, arguments: dict[str, Any]) -> str:
        low = arguments[name].dtype == np.uint16 and site.compiled
        return "" if low else compiled(site, arguments)
    return condition


def on_gpu(site: Site, arguments: dict[str, Any]) -> str:
    """Its arrays are CuPy's."""
    return "the arrays are NumPy's" if site.on_cpu else ""


def on_cpu(site: Site, arguments: dict[str, Any]) -> str:
    """Its arrays are NumPy's."""
    return "" if site.on_cpu else "the arrays are CuPy's"


def in_float32(site: Site, arguments: dict[str, Any]) -> str:
    """All its floats are float32."""
    return "" if site.float32 else NOT_FLOAT32


def has_axis(name: str) -> Condition:
    """The array has at least one axis."""
    return lambda site, arguments: "" if arguments[name].ndim else f"{name} has no axis"


def has_rows(name: str) -> Condition:
    """The array has an axis and at least one number."""
    return lambda site, arguments: "" if arguments[name].ndim and arguments[name].size else \
        f"{name} is empty"


def widest(name: str, most: int) -> Condition:
    """Its last axis is at most so long."""
    return lambda site, arguments: "" if arguments[name].shape[-1] <= most else \
        f"{arguments[name].shape[-1]} channels, it takes at most {most}"


def multiple(name: str, of: int) -> Condition:
    """Its last axis is a multiple of this."""
    return lambda site, arguments: "" if arguments[name].shape[-1] % of == 0 else \
        f"{arguments[name].shape[-1]} channels, it takes multiples of {of}"


def own_words(site: Site, arguments: dict[str, Any]) -> str:
    """Dropout's words are Philox's, which the implementation can make itself."""
    words = arguments.get("words")
    return "" if isinstance(words, random.Tokens) and arguments["x"].ndim == 2 else \
        "its random words are given, not made"


def own_score_words(site: Site, arguments: dict[str, Any]) -> str:
    """There is no dropout, or its words are Philox's, which the implementation can make itself."""
    drop = arguments.get("drop")
    return "" if drop is None or isinstance(drop[1], random.Scores) else \
        "its random words are given, not made"


def labels_are_classes(site: Site, arguments: dict[str, Any]) -> str:
    """Each label that counts is a class: what NumPy makes of others is the formula's matter."""
    z, labels = arguments["z"], arguments["labels"]
    counted = labels[labels != arguments.get("ignore", IGNORE)]
    fine = isinstance(labels, np.ndarray) and (
        not counted.size or 0 <= counted.min() <= counted.max() < z.shape[1])
    return "" if fine else "a label is no class"


def all_ask(site: Site, arguments: dict[str, Any]) -> str:
    """Every token of the batch asks, and the keys are the batch's own."""
    edges = np.asarray(arguments["cu_seqlens"]).tolist()
    same = (len(arguments["q"]) == len(arguments["k"])
            and np.asarray(arguments["key_starts"]).tolist() == edges[:-1]
            and np.asarray(arguments["key_lengths"]).tolist()
            == list(map(sub, edges[1:], edges[:-1])))
    return "" if same else "not every token asks, or keys come from a cache"


def one_asks(site: Site, arguments: dict[str, Any]) -> str:
    """One query of each sequence asks keys that lie in one piece, as a cache does; no dropout."""
    k, v = arguments["k"], arguments["v"]
    if not (k.flags.c_contiguous and v.flags.c_contiguous):
        return "keys and values come from the batch, or lie in several pieces"
    edges, starts, lengths = (np.asarray(arguments[name]).tolist()
                              for name in ("cu_seqlens", "key_starts", "key_lengths"))
    if edges != list(range(len(lengths) + 1)):
        return "not one query of each sequence asks"
    if not lengths or min(lengths) < 1 or min(starts) < 0 or \
            max(map(add, starts, lengths)) > len(k):
        return "a sequence's keys are not there"
    return "" if arguments.get("drop") is None else "there is dropout"


def packed_keys(site: Site, arguments: dict[str, Any]) -> str:
    """The keys are those of a packed batch, not of a cache."""
    if isinstance(arguments["key_lengths"], Placed):
        return ""
    lengths = np.asarray(arguments["key_lengths"])
    packed = lengths.sum() == len(arguments["k"]) and np.array_equal(
        arguments["key_starts"], np.cumsum(lengths) - lengths)
    return "" if packed else "its keys come from a cache"


def longer_than(most: Callable[[], int]) -> Condition:
    """A sequence has more queries than this."""
    def condition(site: Site, arguments: dict[str, Any]) -> str:
        return "" if _longest(arguments) > most() else \
            f"no sequence has more than {most()} queries"
    return condition


def at_most(tokens: int) -> Condition:
    """No sequence has more queries than this."""
    def condition(site: Site, arguments: dict[str, Any]) -> str:
        return "" if _longest(arguments) <= tokens else f"a sequence has more than {tokens} queries"
    return condition


def _longest(arguments):
    edges = np.asarray(arguments["cu_seqlens"]).tolist()
    return max(map(sub, edges[1:], edges[:-1]), default=0)


def computes_in(dtype: Any, name: str) -> Condition:
    """The model's matrix products are in this format."""
    return lambda site, arguments: "" if arguments.get("compute_dtype") == dtype else \
        f"the model does not compute in {name}"
