"""Lays bfloat16 factors out as `matmul_bfloat16.py` reads them: panels of pairs of k.

    panels[i, p, r] = x[i width + r, 2p] | x[i width + r, 2p + 1] << 16

A compiler makes of that one load and one store a pair, and packing takes a quarter of a product. So
the two layouts that factors have are packed 16 pairs at a time:

    k side by side     16 rows of 16 pairs are turned over in registers (`_turn_text`): pairs change
                       places within 4 lanes of 16 bytes, then the lanes do
    rows side by side  16 columns of two rows are widened to 32 bits and laid over one another
                       (`_interleave_text`); a mask leaves out the columns that x does not have

Tiles of AMX (`matmul_amx.py`) hold 16 rows of 16 pairs. Where rows lie side by side, pairs of 32 of
them are laid over one another and turned over (`_tile_text`); else they are copied.

What is left over at the edges a plain loop packs, with zeros where x ends. The assembly stands in
this file because Numba's cache on the disk looks at no other.
"""

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.allocator import aligned

AT_ONCE = 16     # pairs
SIDE, DEEP = 32, 32     # rows of two tiles of AMX, and numbers of k in them
FAST = (12, 32)     # widths of panels that have assembly

X, STRIDE, TO, COUNT, MASK = "%rcx", "%rdx", "%rax", "%r8", "%r9"
USED = [*"rax rcx rdx r8 r9 r10 r11 k1 k2 memory flags".split(), *(f"zmm{i}" for i in range(32))]


def _start():
    return [f"movq ${i}, {register}" for i, register in enumerate((X, STRIDE, TO, COUNT, MASK))]


def _turn_text(rows, width):
    """Operands: x's first row, bytes to the next, the panel, how many times 16 pairs, 0.

    `rows`: 12 or 16 of the panel's `width` are written.
    """
    text = [*_start(), f"movl $${(1 << rows) - 1}, %r10d", "kmovw %r10d, %k1", ".p2align 5", "1:",
            f"movq {X}, %r10", f"leaq ({STRIDE},{STRIDE},2), %r11"]
    for r in range(0, rows, 4):
        text += [f"vmovups ({place}), %zmm{r + i}" for i, place in enumerate(
            ("%r10", f"%r10,{STRIDE}", f"%r10,{STRIDE},2", "%r10,%r11"))]
        text += [f"leaq (%r10,{STRIDE},4), %r10"]
    return [*text, *_turned(rows, width, TO, " {%k1}"), f"addq $$64, {X}",
            f"addq $${64 * width}, {TO}", f"decq {COUNT}", "jnz 1b"]


def _turned(rows, width, to, mask=""):
    """-> what writes 16 columns of 32 bits of registers 0 to `rows`, each `width` of them apart."""
    text = []
    for r in range(0, rows, 4):     # zmm(r + j) gets numbers 4 lane + j of rows r to r + 3
        for half, into in (("l", 16), ("h", 17)):
            text += [f"vpunpck{half}dq %zmm{r + 1}, %zmm{r}, %zmm{into}",
                     f"vpunpck{half}dq %zmm{r + 3}, %zmm{r + 2}, %zmm{into + 2}"]
        text += [f"vpunpck{half}qdq %zmm{from_ + 2}, %zmm{from_}, %zmm{r + j}"
                 for j, (from_, half) in enumerate(((16, "l"), (16, "h"), (17, "l"), (17, "h")))]
    for j in range(4):
        quads = [j, 4 + j, 8 + j, 12 + j if rows == 16 else 8 + j]
        for into, lanes in ((16, 0x44), (17, 0xEE)):
            text += [f"vshufi32x4 $${lanes}, %zmm{quads[1]}, %zmm{quads[0]}, %zmm{into}",
                     f"vshufi32x4 $${lanes}, %zmm{quads[3]}, %zmm{quads[2]}, %zmm{into + 2}"]
        for lane in range(4):
            from_ = 16 + lane // 2
            text += [f"vshufi32x4 $${(0x88, 0xDD)[lane % 2]}, %zmm{from_ + 2}, %zmm{from_}, %zmm20",
                     f"vmovups %zmm20, {4 * width * (4 * lane + j)}({to}){mask}"]
    return text


def _interleave_text(width):
    """Operands: x's first of two rows, bytes to the next, the panel, pairs, which columns x has."""
    text = [*_start(), f"kmovw {MASK}d, %k1", f"shrq $$16, {MASK}", f"kmovw {MASK}d, %k2",
            ".p2align 5", "1:"]
    for half, mask in ((0, "%k1"), (1, "%k2"))[:ceil_div(width, 16)]:
        text += [f"vpmovzxwd {32 * half}({X}), %zmm{half} {{{mask}}} {{z}}",
                 f"vpmovzxwd {32 * half}({X},{STRIDE}), %zmm{2 + half} {{{mask}}} {{z}}",
                 f"vpslld $$16, %zmm{2 + half}, %zmm{2 + half}",
                 f"vpord %zmm{2 + half}, %zmm{half}, %zmm{half}"]
    if width == 32:
        text += [f"vmovups %zmm0, ({TO})", f"vmovups %zmm1, 64({TO})"]
    else:
        text += [f"vmovups %ymm0, ({TO})", f"vextracti32x4 $$2, %zmm0, 32({TO})"]
    return [*text, f"leaq ({X},{STRIDE},2), {X}", f"addq $${4 * width}, {TO}", f"decq {COUNT}",
            "jnz 1b"]


def _tile_text():
    """Operands: two rows of 16 numbers, bytes to the next two, where the tile goes.

    Pairs of 32 rows are laid over one another and turned over in registers.
    """
    text = ["movq $0, %rax", "movq $2, %rcx"]
    for r in range(16):
        text += ["vpmovzxwd (%rax), %zmm16", "vpmovzxwd (%rax,$1), %zmm17",
                 "vpslld $$16, %zmm17, %zmm17", f"vpord %zmm17, %zmm16, %zmm{r}",
                 "leaq (%rax,$1,2), %rax"]
    return text + _turned(16, 16, "%rcx")


_turn_12, _turn_32 = (jit.assembly(_turn_text(*shape), USED) for shape in ((12, 12), (16, 32)))
_interleave_12, _interleave_32 = (jit.assembly(_interleave_text(width), USED) for width in FAST)
_turn_tile = jit.assembly(_tile_text(), USED, 3)


def pack(x: np.ndarray, width: int, multiple: int = 1) -> np.ndarray:
    """x (n,k) bfloat16 -> (panels, pairs of k, width) uint32, each a pair; zeros at the edges.

    The number of pairs is rounded up to a multiple.
    """
    n, k = x.shape
    pairs = ceil_div(k, 2)
    panels = aligned((ceil_div(n, width), ceil_div(pairs, multiple) * multiple, width), np.uint32)
    panels[:, pairs:] = 0
    pack_panels, x = (_pack_k, x) if lies_in_rows(x) else (_pack_rows, x.T)
    fast = width in FAST and lies_in_rows(x)
    row_blocks.each(lambda part: pack_panels(x, panels, part.start, part.stop, fast),
                    shares(len(panels)))
    return panels


def pack_tiles(x: np.ndarray) -> np.ndarray:
    """x (n,k) bfloat16 -> (panels of 32 rows, 32 numbers deep, 2 tiles, 16, 16) uint32; zeros at
    the edges."""
    n, k = x.shape
    tiles = aligned((ceil_div(n, SIDE), ceil_div(k, DEEP), 2, 16, 16), np.uint32)
    if not (lies_in_rows(x) or lies_in_rows(x.T)):
        x = np.ascontiguousarray(x)
    pack_part, x = (_copy_rows, x) if lies_in_rows(x) else (_turn_columns, x.T)
    if tiles.size:
        row_blocks.each(lambda part: pack_part(x, tiles, part.start, part.stop),
                        shares(len(tiles)))
    return tiles


def lies_in_rows(x: np.ndarray) -> bool:
    """x (m,n) -> whether the numbers of a row lie side by side, and its rows in order."""
    return x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize


def shares(n: int) -> list[slice]:
    """n pieces of work -> a slice for each thread."""
    step = ceil_div(n, min(n, row_blocks.threads()))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def blocks(n: int, most: int) -> list[slice]:
    """n pieces of work -> slices of `most` at most, as many for each thread."""
    threads = row_blocks.threads()
    count = min(n, threads * ceil_div(n, threads * most))
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


@jit.loop()
def _pack_k(x, panels, start, stop, fast):
    """x (n,k): the numbers of a pair lie side by side."""
    n, k = x.shape
    width = panels.shape[2]
    for i in range(start, stop):
        rows, done = min(width, n - i * width), 0
        times = k // (2 * AT_ONCE)
        if fast and rows == width and times:
            done, stride = AT_ONCE * times, x.strides[0]
            source, to = x.ctypes.data + i * width * stride, panels[i].ctypes.data
            if width == 12:
                _turn_12(source, stride, to, times, 0)
            else:
                _turn_32(source, stride, to, times, 0)
                _turn_32(source + 16 * stride, stride, to + 64, times, 0)
        for p in range(done, k // 2):
            for r in range(rows):
                panels[i, p, r] = _pair(x[i * width + r, 2 * p], x[i * width + r, 2 * p + 1])
        _fill(panels[i], rows, done)
        if k % 2:
            for r in range(rows):
                panels[i, k // 2, r] = x[i * width + r, k - 1]


@jit.loop()
def _pack_rows(x, panels, start, stop, fast):
    """x (k,n): the numbers of a pair lie in two rows."""
    k, n = x.shape
    width = panels.shape[2]
    # a few rows at a time, so that what is read of them lies side by side
    for first in range(0, k // 2, AT_ONCE):
        count = min(AT_ONCE, k // 2 - first)
        for i in range(start, stop):
            columns = min(width, n - i * width)
            if fast:
                at = (x.ctypes.data + 2 * first * x.strides[0] + 2 * i * width, x.strides[0],
                      panels[i, first:].ctypes.data, count, (1 << columns) - 1)
                if width == 12:
                    _interleave_12(*at)
                else:
                    _interleave_32(*at)
            else:
                for p in range(first, first + count):
                    for r in range(columns):
                        panels[i, p, r] = _pair(x[2 * p, i * width + r],
                                                x[2 * p + 1, i * width + r])
    for i in range(start, stop):
        columns = min(width, n - i * width)
        _fill(panels[i], columns, k // 2 if fast else 0)
        if k % 2:
            for r in range(columns):
                panels[i, k // 2, r] = x[k - 1, i * width + r]


@jit.loop(part="own")
def _pair(first, second):
    return np.uint32(first) | np.uint32(second) << np.uint32(16)


@jit.loop(part="own")
def _fill(panel, rows, first):
    """Zeros for the rows that a panel has too many, from pair `first` on."""
    for p in range(first, panel.shape[0]):
        for r in range(rows, panel.shape[1]):
            panel[p, r] = 0


@jit.loop()
def _copy_rows(x, tiles, start, stop):
    """x (n,k)."""
    n, k = x.shape
    flat = tiles.view(np.uint16)     # (..., 32)
    for i in range(start, stop):
        for q in range(tiles.shape[1]):
            count = min(DEEP, k - q * DEEP)
            for r in range(SIDE):
                row = flat[i, q, r // 16, r % 16]
                filled = count if i * SIDE + r < n else 0
                for j in range(filled):
                    row[j] = x[i * SIDE + r, q * DEEP + j]
                row[filled:] = 0


@jit.loop()
def _turn_columns(x, tiles, start, stop):
    """x (k,n): a few rows at a time, so that what is read of them lies side by side."""
    k, n = x.shape
    flat = tiles.view(np.uint16)
    for q in range(tiles.shape[1]):
        count = min(DEEP, k - q * DEEP)
        for i in range(start, stop):
            for h in range(2):
                left = i * SIDE + 16 * h
                if count == DEEP and left + 16 <= n:
                    _turn_tile(x[q * DEEP:, left:].ctypes.data, x.strides[0],
                               tiles[i, q, h].ctypes.data)
                    continue
                for r in range(16):
                    row = flat[i, q, h, r]
                    filled = count if left + r < n else 0
                    for j in range(filled):
                        row[j] = x[q * DEEP + j, left + r]
                    row[filled:] = 0
