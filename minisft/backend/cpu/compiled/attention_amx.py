"""Self-attention of bfloat16 factors with float32 sums, on the tiles of `matmul_amx.py`.

Equations (1) to (7) are those of ops/attention.py. A core takes some heads of a text; scores,
probabilities and what is multiplied with them stay in its caches. Texts are filled up with zeros to
a multiple of 32 tokens, and with a causal mask blocks of 32 x 32 scores that it hides are left out.

    factor on the left     q, dy, p, ds as they lie, in rows; p and ds turned over, for the
                           gradients of values and keys, as tiles (`_turn_rows`)
    factor on the right    in panels of 32 columns: k and v turned over, for scores and dp, in pairs
                           of a row's numbers (`_turn_panels`); for the other products in pairs of
                           two rows (`_lay_panels`)

q, k, v, dy, the probabilities and ds are rounded, sums are not: as on a card. The assembly of
products and packing is imported: after changing it delete the folders `__pycache__`, since Numba's
cache on the disk looks at this file alone.
"""

from math import sqrt
from typing import Any

import numpy as np

from minisft.backend import random
from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled import matmul_amx, pack_bfloat16
from minisft.backend.cpu.compiled.bits import rounded, widened
from minisft.backend.cpu.compiled.exp import (
    INFINITY,
    LOG2_E,
    LOG_2_HIGH,
    LOG_2_LOW,
    MIN_INPUT,
    ONE,
    P0,
    P1,
    P2,
    P3,
    P4,
    P5,
    ZERO,
    F,
)
from minisft.backend.cpu.compiled.matmul_amx import CONFIG, TILE
from minisft.backend.cpu.compiled.pack_bfloat16 import SIDE
from minisft.backend.cpu.compiled.philox import U, philox

SHORT = 256     # tokens of a text: of longer ones the backward computes probabilities again
VECTOR = 16     # random words are drawn in whole vectors; those beyond a row's end are not used

_configure, _release = matmul_amx._configure, matmul_amx._release
_product = matmul_amx.product
_turn, _interleave, _turn_tile = (pack_bfloat16._turn_32, pack_bfloat16._interleave_32,
                                  pack_bfloat16._turn_tile)


def _round_text():
    """Operands: float32 rows, bytes to the next, how many, where bfloat16 rows go, 32s of a row."""
    return ["movq $0, %rax", "movq $2, %rcx", "movq $3, %rdx", ".p2align 5", "1:",
            "movq %rax, %r8", "movq $4, %r9", "2:",
            "vmovups (%r8), %zmm16", "vmovups 64(%r8), %zmm17",
            "vcvtne2ps2bf16 %zmm16, %zmm17, %zmm18", "vmovups %zmm18, (%rdx)",
            "addq $$128, %r8", "addq $$64, %rdx", "decq %r9", "jnz 2b",
            "addq $1, %rax", "decq %rcx", "jnz 1b"]


def _softmax_text():
    """Operands: a row of scores, where its probabilities go in bfloat16, how many 32s of both,
    which of the last 32 are hidden (bits), `_numbers`. Leaves the probabilities in the row, too."""
    names = ("scale", "least", "log2_e", "high", "low", *(f"p{i}" for i in range(6)), "one",
             "hides")
    at = {name: f"%zmm{31 - i}" for i, name in enumerate(names)}
    text = ["movq $0, %rax", "movq $2, %rcx", "movq $3, %r8", "movq $4, %r9",
            "movq %rcx, %rdx", "shlq $$7, %rdx", "addq %rax, %rdx",
            "kmovw %r8d, %k1", "shrq $$16, %r8", "kmovw %r8d, %k2",
            *(f"vbroadcastss {4 * i}(%r9), {at[name]}" for i, name in enumerate(names)),
            "vmovups {hides}, -128(%rdx) {{%k1}}", "vmovups {hides}, -64(%rdx) {{%k2}}",
            "vmovaps {hides}, %zmm18", ".p2align 5", "1:",
            "vmaxps (%rax), %zmm18, %zmm18", "vmaxps 64(%rax), %zmm18, %zmm18",
            "addq $$128, %rax", "decq %rcx", "jnz 1b",
            *_over_lanes("vmaxps"),                                                        # (1)
            "movq $0, %rax", "movq $2, %rcx", "vpxord %zmm17, %zmm17, %zmm17",
            "addq %rcx, %rcx", ".p2align 5", "2:",
            "vmovups (%rax), %zmm0", "vsubps %zmm18, %zmm0, %zmm0", "vmulps {scale}, %zmm0, %zmm0",
            # as exp.py has it; NaN stays NaN
            "vcmpps $$5, {least}, %zmm0, %k1", "vmaxps %zmm0, {least}, %zmm1",
            "vmulps {log2_e}, %zmm1, %zmm2", "vrndscaleps $$8, %zmm2, %zmm2",
            "vfnmadd231ps {high}, %zmm2, %zmm1", "vfnmadd231ps {low}, %zmm2, %zmm1",
            "vmovaps {p0}, %zmm3", *(f"vfmadd213ps {{p{i}}}, %zmm1, %zmm3" for i in range(1, 6)),
            "vmulps %zmm1, %zmm1, %zmm4", "vfmadd213ps %zmm1, %zmm4, %zmm3",
            "vaddps {one}, %zmm3, %zmm3", "vscalefps %zmm2, %zmm3, %zmm3 {{%k1}} {{z}}",
            "vmovups %zmm3, (%rax)", "vaddps %zmm3, %zmm17, %zmm17",
            "addq $$64, %rax", "decq %rcx", "jnz 2b",
            "vmovaps %zmm17, %zmm18", *_over_lanes("vaddps"), "vdivps %zmm18, {one}, %zmm18",
            "movq $0, %rax", "movq $1, %rdx", "movq $2, %rcx", ".p2align 5", "3:",
            "vmulps (%rax), %zmm18, %zmm0", "vmulps 64(%rax), %zmm18, %zmm1",              # (2)
            "vmovups %zmm0, (%rax)", "vmovups %zmm1, 64(%rax)",
            "vcvtne2ps2bf16 %zmm0, %zmm1, %zmm2", "vmovups %zmm2, (%rdx)",
            "addq $$128, %rax", "addq $$64, %rdx", "decq %rcx", "jnz 3b"]
    return [line.format(**at) for line in text]


def _scores_backward_text():
    """Operands: a row of dp behind the mask, of p in bfloat16, where ds goes in bfloat16, how many
    32s of each, `_numbers`."""
    wide = [f"vpmovzxwd {32 * i}(%rdx), %zmm{i}" for i in range(2)] + [
        f"vpslld $$16, %zmm{i}, %zmm{i}" for i in range(2)]
    return ["movq $0, %rax", "movq $1, %rdx", "movq $3, %rcx", "movq $4, %r9",
            "vbroadcastss (%r9), %zmm31", "vpxord %zmm18, %zmm18, %zmm18", ".p2align 5", "1:",
            *wide, "vfmadd231ps (%rax), %zmm0, %zmm18", "vfmadd231ps 64(%rax), %zmm1, %zmm18",
            "addq $$128, %rax", "addq $$64, %rdx", "decq %rcx", "jnz 1b",
            *_over_lanes("vaddps"),
            "movq $0, %rax", "movq $1, %rdx", "movq $2, %r8", "movq $3, %rcx", ".p2align 5", "2:",
            *wide, "vmovups (%rax), %zmm2", "vmovups 64(%rax), %zmm3",
            *(f"vsubps %zmm18, %zmm{i}, %zmm{i}" for i in (2, 3)),
            "vmulps %zmm2, %zmm0, %zmm0", "vmulps %zmm3, %zmm1, %zmm1",                    # (6)
            *(f"vmulps %zmm31, %zmm{i}, %zmm{i}" for i in range(2)),
            "vcvtne2ps2bf16 %zmm0, %zmm1, %zmm2", "vmovups %zmm2, (%r8)",
            "addq $$128, %rax", "addq $$64, %rdx", "addq $$64, %r8", "decq %rcx", "jnz 2b"]


def _over_lanes(instruction):
    """-> zmm18: every lane gets the largest, or the sum, of all."""
    return [line for move in ("vshuff32x4 $$0x4E, %zmm18,", "vshuff32x4 $$0xB1, %zmm18,",
                              "vshufps $$0x4E, %zmm18,", "vshufps $$0xB1, %zmm18,")
            for line in (f"{move} %zmm18, %zmm16", f"{instruction} %zmm16, %zmm18, %zmm18")]


def _numbers(scale):
    """-> what the two texts above read."""
    return np.array([scale, MIN_INPUT, LOG2_E, LOG_2_HIGH, LOG_2_LOW, P0, P1, P2, P3, P4, P5, ONE,
                     -INFINITY], np.float32)


VECTORS = [*(f"zmm{i}" for i in (*range(5), *range(16, 32))), "k1", "k2"]
_softmax = jit.assembly(_softmax_text(), [*matmul_amx.USED, *VECTORS])
_scores_backward = jit.assembly(_scores_backward_text(), [*matmul_amx.USED, *VECTORS])
_round_rows = jit.assembly(_round_text(), [*matmul_amx.USED, "zmm16", "zmm17", "zmm18"])


def forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, cu_seqlens: np.ndarray,
            key_starts: Any = None, key_lengths: Any = None, causal: bool = True,
            drop: tuple[float, random.Scores] | None = None) -> tuple[np.ndarray, tuple]:
    """q, k, v (N,H,D), cu_seqlens (B+1,) -> y (N,H,D), cache; D a multiple of 32.

    Raises RuntimeError where there are no tiles.
    """
    if reason := processor.why_not_amx():     # the instruction would end the process
        raise RuntimeError(f"attention on AMX's tiles: {reason}")
    _, heads, d = q.shape
    lengths, y = np.diff(cu_seqlens).tolist(), np.empty(q.shape, q.dtype)
    shapes = [(heads, t, t) if n <= SHORT else (0, 0, 0)
              for n, t in zip(lengths, map(_filled, lengths), strict=True)]
    kept = [aligned(shape, np.uint16) for shape in shapes]
    keep = [np.empty(shape if drop else (0, 0, 0), np.bool_) for shape in shapes]
    q, k, v = map(_in_rows, (q, k, v))
    cache = q, k, v, cu_seqlens, lengths, kept, keep, causal, _words(drop, len(lengths))
    places, words, numbers = _places(q, k, v), cache[-1], _numbers(1 / sqrt(d))

    def work(part):
        b, first, last = part
        t = _filled(lengths[b])
        rows = 2 * t * d * (3 * (last - first) + 2)
        memory = aligned((rows + SIDE * (8 * t + 4 * d),), np.uint8)
        _forward(places, y, kept[b], keep[b], cu_seqlens[b], lengths[b], t, first, last, causal,
                 drop is not None, words[b], numbers, CONFIG, memory)

    row_blocks.each(work, _parts(lengths, heads))
    return y, cache


def backward(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (N,H,D) -> dq, dk, dv (N,H,D)."""
    q, k, v, cu_seqlens, lengths, kept, keep, causal, words = cache
    n, heads, d = q.shape
    dy, gradients = _in_rows(dy), np.empty((n, 3, heads, d), q.dtype)
    places, numbers, drops = _places(q, k, v, dy), _numbers(1 / sqrt(d)), bool(words[:, 5].any())

    def work(part):
        b, first, last = part
        t = _filled(lengths[b])
        rows = 2 * t * d * (4 * (last - first) + 5)
        memory = aligned((rows + 7 * t * t + SIDE * (12 * t + 4 * d),), np.uint8)
        _backward(places, gradients, kept[b], keep[b], cu_seqlens[b], lengths[b], t, first, last,
                  causal, drops, words[b], numbers, CONFIG, memory)

    row_blocks.each(work, _parts(lengths, heads))
    dq, dk, dv = gradients.swapaxes(0, 1)
    return dq, dk, dv


def _words(drop, n):
    """-> for each of n texts what its random words are made of (n,6): step, example id, two words
    of the key, the limit of rate and the bits of 1 / (1 - rate); zeros without dropout."""
    made = np.zeros((n, 6), np.uint32)
    if drop is not None:
        rate, words = drop[0], drop[1].of_groups()
        stream = words.stream
        made[:, 0], made[:, 1] = stream.step & random.WORD, np.asarray(words.example_ids)
        made[:, 2], made[:, 3] = stream.seed & random.WORD, words.layer << 16 | random.SCORES
        made[:, 4], made[:, 5] = int(rate * 2**32), F(1 / (1 - rate)).view(np.uint32)
    return made


def _filled(n):
    return ceil_div(int(n), SIDE) * SIDE


def _in_rows(x):
    """x (N,H,D), the numbers of a row side by side."""
    return x if x.strides[1:] == (x.shape[2] * x.itemsize, x.itemsize) else np.ascontiguousarray(x)


def _places(*arrays):
    """-> of each array where it begins, bytes to its next row and to the next head: loops are
    compiled once, however the arrays lie."""
    return np.array([(x.ctypes.data, *x.strides[:2]) for x in arrays])


def _parts(lengths, heads):
    """-> (text, its first head, its last), the longest texts first."""
    step = heads if len(lengths) >= 2 * row_blocks.threads() else ceil_div(
        heads, 2 * row_blocks.threads())
    return [(b, first, min(first + step, heads))
            for b in np.argsort(-np.asarray(lengths), kind="stable").tolist() if lengths[b]
            for first in range(0, heads, step)]


@jit.loop()
def _forward(places, y, kept, keep, start, n, t, first, last, causal, drops, words, numbers, config,
             memory):
    """A text of n tokens from `start` on, filled up to t, and which heads: fills y (N,H,D), and
    kept and keep (H,T,T) unless they are empty."""
    _configure(config.ctypes.data)
    d = y.shape[2]
    heads, size = last - first, 2 * t * d
    stride, whole = 2 * d * heads, size * heads
    at_rows = memory.ctypes.data
    for i in range(3):     # all heads of a row: read in the order in which they lie
        _round_rows(places[i, 0] + start * places[i, 1] + first * places[i, 2], places[i, 1], n,
                    at_rows + whole * i, heads * d // SIDE)
        memory[whole * i + n * stride:whole * (i + 1)] = 0
    at_k, at_v = at_rows + 3 * whole, at_rows + 3 * whole + size
    rest = memory[3 * whole + 2 * size:]
    s = rest[:4 * SIDE * t].view(np.float32).reshape(SIDE, t)
    p_here = rest[4 * SIDE * t:6 * SIDE * t].view(np.uint16).reshape(SIDE, t)
    dropped = rest[6 * SIDE * t:8 * SIDE * t].view(np.uint16).reshape(SIDE, t)
    sums = rest[8 * SIDE * t:8 * SIDE * t + 4 * SIDE * d].view(np.float32).reshape(SIDE, d)
    bits = np.empty((SIDE, t), np.bool_)
    drawn = np.empty(4 * VECTOR * (t // (4 * VECTOR) + 1), np.uint32)
    for h in range(first, last):
        at_q = at_rows + 2 * d * (h - first)
        _turn_panels(at_q + whole, stride, d, t, at_k)
        _lay_panels(at_q + 2 * whole, stride, d, t, at_v)
        for i in range(t // SIDE):
            seen = i + 1 if causal else t // SIDE
            rows = slice(SIDE * i, SIDE * i + SIDE)
            p = kept[h, rows] if kept.size else p_here
            keeps = keep[h, rows] if keep.size else bits
            _scores(at_q, stride, at_k, i, seen, d, s)
            _probabilities(s, p, dropped, keeps, i, seen, n, h, causal, drops, words, numbers,
                           drawn)
            left = dropped if drops else p
            for c in range(d // SIDE):
                _product(left.ctypes.data, 2 * t, 64, at_v + 2 * SIDE * t * c, seen,
                         sums.ctypes.data + 4 * SIDE * c, 4 * d)                     # (3)
            for r in range(min(SIDE, n - SIDE * i)):
                _copy(sums[r], y[start + SIDE * i + r, h])
    _release()


@jit.loop()
def _backward(places, gradients, kept, keep, start, n, t, first, last, causal, drops, words,
              numbers, config, memory):
    """A text of n tokens from `start` on, filled up to t, and which heads: fills gradients
    (N,3,H,D)."""
    _configure(config.ctypes.data)
    d = gradients.shape[3]
    blocks, heads, size = t // SIDE, last - first, 2 * t * d
    stride, whole = 2 * d * heads, size * heads
    at_rows = memory.ctypes.data
    for i in range(4):
        _round_rows(places[i, 0] + start * places[i, 1] + first * places[i, 2], places[i, 1], n,
                    at_rows + whole * i, heads * d // SIDE)
        memory[whole * i + n * stride:whole * (i + 1)] = 0
    at_q = at_rows + 4 * whole
    at_k, at_v, at_dy, at_turned_k = (at_q + size, at_q + 2 * size, at_q + 3 * size,
                                      at_q + 4 * size)
    rest = memory[4 * whole + 5 * size:]
    dp = rest[:4 * SIDE * t].view(np.float32).reshape(SIDE, t)
    s = rest[4 * SIDE * t:8 * SIDE * t].view(np.float32).reshape(SIDE, t)
    at_tiles, rest = rest[8 * SIDE * t:].ctypes.data, rest[12 * SIDE * t:]
    sums, rest = rest[:4 * SIDE * d].view(np.float32).reshape(SIDE, d), rest[4 * SIDE * d:]
    ds = rest[:2 * t * t].view(np.uint16).reshape(t, t)
    dropped = rest[2 * t * t:4 * t * t].view(np.uint16).reshape(t, t)
    p_here = rest[4 * t * t:6 * t * t].view(np.uint16).reshape(t, t)
    bits = rest[6 * t * t:7 * t * t].view(np.bool_).reshape(t, t)
    drawn = np.empty(4 * VECTOR * (t // (4 * VECTOR) + 1), np.uint32)
    for h in range(first, last):
        here = at_rows + 2 * d * (h - first)
        _lay_panels(here, stride, d, t, at_q)
        _lay_panels(here + whole, stride, d, t, at_k)
        _turn_panels(here + 2 * whole, stride, d, t, at_v)
        _lay_panels(here + 3 * whole, stride, d, t, at_dy)
        if not kept.size:
            _turn_panels(here + whole, stride, d, t, at_turned_k)
        p, keeps = kept[h] if kept.size else p_here, keep[h] if keep.size else bits
        for i in range(blocks):
            seen = i + 1 if causal else blocks
            rows = slice(SIDE * i, SIDE * i + SIDE)
            if not kept.size:
                _scores(here, stride, at_turned_k, i, seen, d, s)
                _probabilities(s, p[rows], dropped[rows], keeps[rows], i, seen, n, h, causal, drops,
                               words, numbers, drawn)
            elif drops:
                _mask_again(p[rows], keeps[rows], dropped[rows], i, seen, n, words)
            _scores(here + 3 * whole, stride, at_v, i, seen, d, dp)
            for r in range(SIDE):
                out = ds[SIDE * i + r]
                if SIDE * i + r >= n:
                    out[:SIDE * seen] = 0
                    continue
                if drops:
                    _mask(dp[r, :SIDE * seen], keeps[SIDE * i + r], words)           # (5)
                _scores_backward(dp[r:].ctypes.data, p[SIDE * i + r:].ctypes.data, out.ctypes.data,
                                 seen, numbers.ctypes.data)                          # (6)
            for c in range(d // SIDE):
                _product(ds[SIDE * i:].ctypes.data, 2 * t, 64, at_k + 2 * SIDE * t * c, seen,
                         sums.ctypes.data + 4 * SIDE * c, 4 * d)                     # (7)
            _give(sums, gradients, start + SIDE * i, 0, h, n - SIDE * i)
        left = dropped if drops else p
        for j in range(blocks):
            top = j if causal else 0
            for x, at_y, which in ((ds, at_q, 1), (left, at_dy, 2)):                 # (7), (4)
                _turn_rows(x, top, j, blocks, at_tiles)
                for c in range(d // SIDE):
                    _product(at_tiles, 64, 2 * TILE, at_y + 2 * SIDE * t * c + 2 * TILE * top,
                             blocks - top, sums.ctypes.data + 4 * SIDE * c, 4 * d)
                _give(sums, gradients, start + SIDE * j, which, h, n - SIDE * j)
    _release()


@jit.loop(part="pasted")
def _scores(rows, stride, panels, i, seen, d, s):
    """bfloat16 rows (T,D), panels of keys or values -> products of row block i in s (32,T)."""
    for j in range(seen):
        _product(rows + SIDE * stride * i, stride, 64, panels + 2 * SIDE * d * j, d // SIDE,
                 s.ctypes.data + 4 * SIDE * j, s.strides[0])


@jit.loop(part="own")
def _probabilities(s, p, dropped, keep, i, seen, n, h, causal, drops, words, numbers, drawn):
    """s (32,T) of row block i -> p, and with dropout p * M in `dropped` and `keep` (32,T)."""
    for r in range(SIDE):
        place = SIDE * i + r
        if place >= n:
            p[r, :SIDE * seen] = 0
            dropped[r, :SIDE * seen] = 0
            continue
        row, used = s[r], place + 1 if causal else n
        hidden = 0xFFFFFFFF & ~((1 << (used - SIDE * (seen - 1))) - 1)
        _softmax(row.ctypes.data, p[r:].ctypes.data, seen, hidden, numbers.ctypes.data)
        if drops:
            for j in range(-(-used // (4 * VECTOR)) * VECTOR):
                drawn[4 * j], drawn[4 * j + 1], drawn[4 * j + 2], drawn[4 * j + 3] = philox(
                    words[0], words[1], U(place), U(U(h << 20) + U(j)), words[2], words[3])
            bits, times, out = keep[r], U(words[5]).view(np.float32), dropped[r]
            for j in range(used):
                bits[j] = drawn[j] >= words[4]
                out[j] = rounded(row[j] * (times if drawn[j] >= words[4] else ZERO))
            bits[used:SIDE * seen] = False
            out[used:SIDE * seen] = 0


@jit.loop(part="own")
def _mask_again(p, keep, dropped, i, seen, n, words):
    """p (32,T) in bfloat16 and `keep` of row block i -> p * M in `dropped`."""
    times = U(words[5]).view(np.float32)
    for r in range(SIDE):
        row, bits, out = p[r], keep[r], dropped[r]
        if SIDE * i + r >= n:
            out[:SIDE * seen] = 0
            continue
        for j in range(SIDE * seen):
            out[j] = rounded(widened(row[j]) * (times if bits[j] else ZERO))


@jit.loop(part="own")
def _mask(row, keep, words):
    """row * M, in its place."""
    times = U(words[5]).view(np.float32)
    for j in range(row.size):
        row[j] *= times if keep[j] else ZERO


@jit.loop(part="pasted")
def _turn_panels(rows, stride, d, t, to):
    """bfloat16 rows (T,D) -> panels of 32 rows, pairs of a row's numbers."""
    for j in range(t // SIDE):
        for half in range(2):
            _turn(rows + (SIDE * j + 16 * half) * stride, stride,
                  to + 2 * SIDE * d * j + 64 * half, d // SIDE, 0)


@jit.loop(part="pasted")
def _lay_panels(rows, stride, d, t, to):
    """bfloat16 rows (T,D) -> panels of 32 columns, pairs of two rows."""
    for c in range(d // SIDE):
        _interleave(rows + 64 * c, stride, to + 2 * SIDE * t * c, t // 2, 0xFFFFFFFF)


@jit.loop(part="pasted")
def _turn_rows(x, top, j, blocks, to):
    """x (T,T), blocks of 32 columns: block j, from row block `top` on -> tiles of its columns."""
    for i in range(top, blocks):
        for half in range(2):
            _turn_tile(x[SIDE * i:, SIDE * j + 16 * half:].ctypes.data, x.strides[0],
                       to + 2 * TILE * (i - top) + TILE * half)


@jit.loop(part="own")
def _give(sums, gradients, first, which, h, n):
    """sums (32,D), of which n rows are the text's -> into gradients (N,3,H,D)."""
    for r in range(min(SIDE, n)):
        _copy(sums[r], gradients[first + r, which, h])


@jit.loop(part="own")
def _copy(row, to):
    """Rows of a multiple of 32 numbers: loops of a fixed length have no rest outside vectors."""
    for j in range(row.size // SIDE):
        part, out = row[SIDE * j:SIDE * j + SIDE], to[SIDE * j:SIDE * j + SIDE]
        for c in range(SIDE):
            out[c] = part[c]
