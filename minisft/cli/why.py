"""`minisft why`: which implementation of an operation runs, and why the others do not."""

import argparse
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minisft.backend import random
from minisft.backend.cpu import jit
from minisft.backend.gpu import cuda
from minisft.cli.arguments import add_device, whole
from minisft.dispatch import FORMATS, OPERATIONS, Site
from minisft.errors import UserError

EXAMPLES = ("minisft why attention", "minisft why gelu --device cuda --precision bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The operation, and the sizes and the place that decide."""
    parser.add_argument("operation", nargs="?", metavar="OPERATION",
                        help=f"one of {', '.join(OPERATIONS)} (default: all)")
    parser.add_argument("--tokens", type=whole(1, 10**9), default=128, metavar="N",
                        help="tokens of a text")
    parser.add_argument("--texts", type=whole(1, 10**6), default=32, metavar="N",
                        help="texts of a batch")
    parser.add_argument("--width", type=whole(1, 10**6), default=768, metavar="N",
                        help="channels of a token")
    parser.add_argument("--heads", type=whole(1, 10**6), default=12, metavar="N",
                        help="heads of attention")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="X", help="rate of dropout")
    parser.add_argument("--precision", choices=tuple(FORMATS), default="float32",
                        help="of matrix products")
    parser.add_argument("--float64", action="store_true",
                        help="all arrays are float64, as in gradient checks")
    parser.add_argument("--cached", action="store_true",
                        help="attention: one new token of each text asks a cache of past keys, as "
                        "in generation")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Prints a line for each implementation, in the order in which they are tried."""
    if args.operation is not None and args.operation not in OPERATIONS:
        raise UserError(f"no operation {args.operation!r}, expected one of {', '.join(OPERATIONS)}")
    if args.width % args.heads:
        raise UserError(f"--width {args.width} is no multiple of --heads {args.heads}")
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout is {args.dropout}, expected a number in [0, 1)")
    on_gpu = args.device != "cpu"
    kernels = args.kernels if on_gpu or cuda.emulated() else "off"
    site = Site(kernels, not on_gpu and jit.enabled(), not args.float64, not on_gpu)
    for name in [args.operation] if args.operation else OPERATIONS:
        try:
            arguments = _arguments(name, args)
        except (ValueError, MemoryError):     # NumPy's "iterator is too large"
            raise UserError(f"--tokens {args.tokens} --texts {args.texts} --width {args.width}: "
                            "expected no more numbers than an array can have") from None
        rows = OPERATIONS[name].explain(site, arguments)
        runs = next(implementation for implementation, reason in rows if not reason)
        print(f"{name}: {runs}")
        for implementation, reason in rows:
            what = reason or ("runs" if implementation == runs else "applies, but comes later")
            print(f"  {implementation:17}{what}")


def _arguments(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """-> the arguments of a call of that size by name; its arrays take no memory."""
    def array(*shape: int, dtype: Any = np.float64 if args.float64 else np.float32) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    def laid(x: np.ndarray) -> np.ndarray:     # as if it lay in memory, where nobody may look
        strides = [x.itemsize * prod(x.shape[i + 1:]) for i in range(x.ndim)]
        return as_strided(x, strides=strides, writeable=False)

    n, width, low = args.tokens * args.texts, args.width, FORMATS[args.precision]
    x, ids = array(n, width), array(n, dtype=np.int64)
    if name == "attention":
        return _attention(args, array, laid) | {"compute_dtype": low}
    if name == "dropout":
        words = random.Tokens(random.Stream(0, 0), 1, random.MLP_OUT, ids, ids)
        return {"x": x, "words": words, "rate": args.dropout}
    return {
        "linear": {"x": laid(x), "w": laid(array(width, 4 * width, dtype=low or x.dtype))},
        "lora": {"x": x, "a": array(8, width, dtype=low or x.dtype),
                 "b": array(width, 8, dtype=low or x.dtype), "scale": 2.0},
        "matmul": {"a": laid(array(n, width, dtype=low or x.dtype)), "b": laid(x).T},
        "embedding": {"ids": ids, "w": x}, "layer_norm": {"x": x, "w": x[0], "b": x[0]},
        "gelu": {"x": array(n, 4 * width)}, "softmax": {"s": array(args.heads, n, args.tokens)},
        "cross_entropy": {"z": array(n, 2), "labels": ids},
        "span_cross_entropy": {"z": array(n, 2), "cu_seqlens": np.arange(args.texts + 1) *
                               args.tokens, "labels": array(args.texts, 2, dtype=np.int64)},
        "column_sums": {"x": x}, "to_bfloat16": {"x": x},
        "factor_gradients": {"dy": x, "x": x, "factors": ()},
        "adamw": {key: array(n * width) for key in ("values", "grads", "m", "v")},
        "squared_norm": {"grads": array(n * width)}}[name]


def _attention(args: argparse.Namespace, array: Any, laid: Any) -> dict[str, Any]:
    queries, head = 1 if args.cached else args.tokens, (args.heads, args.width // args.heads)
    cu_seqlens = np.arange(args.texts + 1) * queries
    capacity = args.tokens + args.cached     # a cache has room for what is yet to come
    keys, stream = array(args.texts * capacity, *head), random.Stream(0, 0)
    keys = laid(keys) if args.cached else keys
    words = random.Scores(stream, 1, np.arange(args.texts), cu_seqlens, args.heads)
    return {"q": array(args.texts * queries, *head), "k": keys, "v": keys,
            "cu_seqlens": cu_seqlens, "key_starts": np.arange(args.texts) * capacity,
            "key_lengths": np.full(args.texts, args.tokens), "causal": True,
            "drop": (args.dropout, words) if args.dropout else None}
