"""Products of bfloat16 factors with float32 sums on AMX, the tensor cores of an Intel processor.

    (1) c[i, j] = sum over k of a[i, k] b[k, j]

A tile is a register of 16 rows of 64 bytes: 1 KiB. `tdpbf16ps b, a, c` multiplies two of them: to
c, 16 x 16 float32 sums, it adds the products of a's 16 rows of 32 bfloat16 numbers with 32 rows of
b, which lie in pairs: b's tile has 16 rows of 16 columns' pairs. That is 16,384 operations in 16
cycles, 16 times as many as AVX-512 does in float32, so that finding the operands is what is left:

    pack    b in panels of 32 columns, as `matmul_bfloat16.py` has them: 16 pairs of k of a panel
            are two tiles. Rows of a are read where they lie if k lies side by side in them, and
            else (weight gradients) turned over into tiles (`pack_tiles`)
    sums    32 x 32 of c in four tiles, so that each tile of a and of b is used twice
    blocks  DEPTH numbers of k at most, of ROWS_AT_ONCE panels of a and COLUMNS_AT_ONCE of b: both
            stay in the second cache
    fetch   while tiles are multiplied, b's next ones come into the first cache, and the lines of c
            where the next sums go, two rows at a time: all at once they would hold up the tiles
    lines   factors begin at a line of the cache (`aligned`), or each row of a tile would reach over
            two; where c does not, its sums go through a buffer that does
    cores   each takes a part of c's columns, or of its rows where these are more

With few rows (generation) reading b is all that counts, so it is not packed: `_each_strip` brings
32 rows of WIDE columns into pairs in the first cache, and `_each_group` lets b and a change places
where b's own columns are contiguous (a token table). All add 32 products to a sum in the same order
by the same instruction: the bits of a row do not depend on how many rows there are.

What the instruction does (Intel's manual, volume 2, TDPBF16PS): it rounds to the nearest, and takes
numbers below 1.2e-38 for zeros. Linux lends the tiles to a process that asks
(`processor.why_not_amx`). A thread configures them before it uses them and releases them after,
within one loop: the next loop may run on another thread. The assembly stands in this file because
Numba's cache on the disk looks at no other.
"""

from functools import partial

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.cpu.allocator import LINE
from minisft.backend.cpu.compiled.matmul_bfloat16 import result_of, to_bfloat16
from minisft.backend.cpu.compiled.pack_bfloat16 import (
    DEEP,
    SIDE,
    lies_in_rows,
    pack,
    pack_tiles,
    shares,
)

DEPTH = 1024                # numbers of k at most: 64 KiB of a panel
ROWS_AT_ONCE = 8            # panels of a
COLUMNS_AT_ONCE = 16        # panels of b
AHEAD = 4                   # tiles of b are fetched so many before they are multiplied
FEW = 16                    # up to so many rows b is not packed
WIDE = 384                  # columns of b at a time then
TILE = 1024                 # bytes

USED = [*"rax rcx rdx r8 r9 r10 memory flags".split()]

CONFIG = np.zeros(64, np.uint8)
CONFIG[0] = 1                                    # the palette
CONFIG[16:32].view(np.uint16)[:] = 64            # bytes of a row, of each of the eight tiles
CONFIG[48:56] = 16                               # rows


def _begin_text(begin):
    """Sums begin with "zeros", with the "bias", each of whose rows is the same, or with those of
    "c". Operands: the bias, or c and bytes to its next row."""
    if begin == "zeros":
        return [f"tilezero %tmm{i}" for i in range(4)]
    if begin == "c":
        return _of_c("tileloadd {memory}, {tile}")
    return ["xorl %eax, %eax", *(f"tileloadd {64 * (i % 2)}($0,%rax,1), %tmm{i}" for i in range(4))]


def _add_text(lines=()):
    """Operands: a, bytes to its next row, and to its next tile; b's panel; how many tiles deep; c
    where the next sums will go, bytes to its next row. `lines`: that is fetched, so many bytes into
    a row, and b's next tiles."""
    fetch = [*[f"prefetchw {at}(%r10)" for at in lines], "addq $6, %r10"] * bool(lines)
    ahead = [f"prefetcht0 {AHEAD * 2 * TILE + at}(%rdx)" for at in range(0, 2 * TILE, LINE)]
    return ["movq $0, %rax", "movq $1, %rcx", "shlq $$4, %rcx", "addq %rax, %rcx", "movq $3, %rdx",
            "movq $4, %r8", "movq $$128, %r9", "movq $5, %r10", ".p2align 5", "1:",
            *fetch, "tileloadd (%rax,$1,1), %tmm4", "tileloadd (%rdx,%r9,1), %tmm6",
            "tdpbf16ps %tmm6, %tmm4, %tmm0",                                              # (1)
            "tileloadd 64(%rdx,%r9,1), %tmm7", "tdpbf16ps %tmm7, %tmm4, %tmm1",
            *fetch, "tileloadd (%rcx,$1,1), %tmm5", "tdpbf16ps %tmm6, %tmm5, %tmm2",
            "tdpbf16ps %tmm7, %tmm5, %tmm3", *ahead * bool(lines),
            "addq $2, %rax", "addq $2, %rcx", "addq $$2048, %rdx", "decq %r8", "jnz 1b"]


def _of_c(instruction, c="$0", row="$1"):
    """-> the four tiles of c, whose place and bytes to the next row are operands, once each."""
    text = [f"movq {row}, %rax", "shlq $$4, %rax", f"addq {c}, %rax"]
    places = (f"({c},{row},1)", f"64({c},{row},1)", f"(%rax,{row},1)", f"64(%rax,{row},1)")
    return text + [instruction.format(memory=place, tile=f"%tmm{i}")
                   for i, place in enumerate(places)]


def _round_text():
    """Operands: 32 x 32 float32 numbers, where they go in bfloat16, bytes to its next row."""
    text = ["movq $0, %rax", "movq $1, %rcx"]
    for _ in range(SIDE):
        text += ["vmovups (%rax), %zmm16", "vmovups 64(%rax), %zmm17",
                 "vcvtne2ps2bf16 %zmm16, %zmm17, %zmm16", "vmovups %zmm16, (%rcx)",
                 f"addq $${4 * SIDE}, %rax", "addq $2, %rcx"]
    return text


def _move_text():
    """Operands: 32 x 32 numbers, bytes to their next row, where they go, bytes to its next row."""
    text = ["movq $0, %rax", "movq $2, %rcx"]
    for _ in range(SIDE):
        text += ["vmovups (%rax), %zmm16", "vmovups 64(%rax), %zmm17", "addq $1, %rax",
                 "vmovups %zmm16, (%rcx)", "vmovups %zmm17, 64(%rcx)", "addq $3, %rcx"]
    return text


def _pairs_text():
    """Operands: 32 rows of b from column 0 on, bytes to the next, rows to fetch, the tiles' place.

    WIDE columns of 32 rows -> WIDE / 16 tiles. `vpunpck` interleaves two rows within each 16 bytes,
    so the two tiles of 32 columns have columns 0-3, 8-11, 16-19, 24-27 and then the others.
    """
    text = ["movq $0, %rax", "movq $2, %rdx", "movq $3, %r8", "movq $$16, %rcx", ".p2align 5", "1:"]
    for s in range(WIDE // 32):
        text += [f"prefetcht0 {64 * s}(%rdx)", f"prefetcht0 {64 * s}(%rdx,$1)",
                 f"vmovups {64 * s}(%rax), %zmm16", f"vmovups {64 * s}(%rax,$1), %zmm17",
                 "vpunpcklwd %zmm17, %zmm16, %zmm18", "vpunpckhwd %zmm17, %zmm16, %zmm19",
                 f"vmovups %zmm18, {2 * TILE * s}(%r8)",
                 f"vmovups %zmm19, {2 * TILE * s + TILE}(%r8)"]
    return [*text, "leaq (%rax,$1,2), %rax", "leaq (%rdx,$1,2), %rdx", "addq $$64, %r8",
            "decq %rcx", "jnz 1b"]


def _strip_text():
    """Operands: a's tile, tiles of b, sums, how many tiles: adds the product with each."""
    return ["movq $1, %rdx", "movq $2, %rax", "movq $3, %r8", "movq $$64, %r9",
            "tileloadd ($0,%r9,1), %tmm4", ".p2align 5", "1:",
            "tileloadd (%rax,%r9,1), %tmm0", "tileloadd (%rdx,%r9,1), %tmm6",
            "tdpbf16ps %tmm6, %tmm4, %tmm0", "tilestored %tmm0, (%rax,%r9,1)",             # (1)
            f"addq $${TILE}, %rdx", f"addq $${TILE}, %rax", "decq %r8", "jnz 1b"]


def _group_text():
    """Operands: 16 rows of b.T, bytes to the next, tiles of a's pairs, tiles deep, sums."""
    return ["movq $0, %rax", "movq $2, %rdx", "movq $3, %r8", "movq $$64, %r9",
            "tileloadd ($4,%r9,1), %tmm0", ".p2align 5", "1:",
            "tileloadd (%rax,$1,1), %tmm4", "tileloadd (%rdx,%r9,1), %tmm6",
            "tdpbf16ps %tmm6, %tmm4, %tmm0",                                               # (1)
            "addq $$64, %rax", f"addq $${TILE}, %rdx", "decq %r8", "jnz 1b",
            "tilestored %tmm0, ($4,%r9,1)"]


_configure = jit.assembly(["ldtilecfg ($0)"], ["memory"], 1)
_release = jit.assembly(["tilerelease"], ["memory"], 0)
_zeros = jit.assembly(_begin_text("zeros"), USED, 0)
_bias = jit.assembly(_begin_text("bias"), USED, 1)
_load = jit.assembly(_begin_text("c"), USED, 2)
# 32 numbers of c lie in two lines of the cache, or reach over three
_add, _add_over = (jit.assembly(_add_text(lines), USED, 7)
                   for lines in ((0, LINE), (0, LINE, 2 * LINE - 1)))
_store = jit.assembly(_of_c("tilestored {tile}, {memory}"), USED, 2)
# of little matrices that are at hand (attention_amx.py): as `_add`, but for c where the sums go
product = jit.assembly([*_begin_text("zeros"), *_add_text(),
                        *_of_c("tilestored {tile}, {memory}", "$5", "$6")], USED, 7)
_round = jit.assembly(_round_text(), [*USED, "zmm16", "zmm17"], 3)
_move = jit.assembly(_move_text(), [*USED, "zmm16", "zmm17"], 4)
_pairs = jit.assembly(_pairs_text(), [*USED, *(f"zmm{i}" for i in range(16, 20))], 4)
_strip = jit.assembly(_strip_text(), USED, 4)
_group = jit.assembly(_group_text(), USED, 5)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None,
           bias: np.ndarray | None = None) -> np.ndarray:
    """a (M,K), b (K,N), both bfloat16 -> (M,N) float32; `out` (M,N), contiguous: where it goes,
    float32, or bfloat16, to which each sum is rounded once. bias (N,) float32: sums begin with it.

    Raises ValueError for factors that do not go together, and for another `out`; RuntimeError where
    there are no tiles.
    """
    if reason := processor.why_not_amx():     # the instruction would end the process
        raise RuntimeError(f"a product on AMX's tiles: {reason}")
    (m, k), n = a.shape, b.shape[1]
    low = out is not None and out.dtype == np.uint16
    if low and (m <= FEW or not k):     # sums are float32 first
        out[...] = to_bfloat16(matmul(a, b, bias=bias))
        return out
    out = result_of(a, b, out, (np.float32, np.uint16))
    begin = np.zeros(ceil_div(n, SIDE) * SIDE, np.float32)
    begin[:n] = 0 if bias is None else bias
    if not out.size or not k:
        out[...] = begin[:n]
    elif m <= FEW and lies_in_rows(b) and n >= WIDE:
        tiles = pack_tiles(a)
        row_blocks.each(lambda part: _each_strip(tiles, b, out, begin, CONFIG, part.start,
                                                 part.stop),
                        shares(ceil_div(n, WIDE)))
    elif m <= FEW and lies_in_rows(b.T) and n >= 16:
        pairs = pack(a, 16, DEEP // 2)
        row_blocks.each(lambda part: _each_group(b.T, pairs, out, begin, CONFIG, part.start,
                                                 part.stop),
                        shares(ceil_div(n, 16)))
    else:
        panels, rows = pack(b.T, SIDE, DEEP // 2), rows_of(a)
        n_rows, n_columns = ceil_div(m, SIDE), len(panels)
        wide = n_columns >= n_rows
        parts = [(0, n_rows, part.start, part.stop) if wide else
                 (part.start, part.stop, 0, n_columns) for part in shares(max(n_rows, n_columns))]
        fill = partial(_each_rounded if low else _each_sum, begin, bias is not None)
        row_blocks.each(lambda part: fill(*rows, panels, out, CONFIG, *part), parts)
    return out


def rows_of(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a (M,K) -> (those of its rows that can be read where they lie, tiles of the others)."""
    there = lies_in_rows(a) and not (a.shape[1] % DEEP or a.strides[0] % LINE
                                     or a.ctypes.data % LINE)
    n = len(a) // SIDE * SIDE if there else 0
    return a[:n] if n else np.empty((0, 0), a.dtype), pack_tiles(a[n:])


@jit.loop(part="pasted")
def _lines(size):
    """-> so many bytes from the start of a line of the cache on."""
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start:start + size]


@jit.loop()
def _each_sum(bias, biased, a, tiles, b, c, config, first_row, last_row, first_column, last_column):
    """What c's columns begin with, and whether that is more than zeros; what `rows_of` gives,
    panels of b, c (M,N), and which panels: fills that part of c."""
    _configure(config.ctypes.data)
    m, n = c.shape
    edge = _lines(4 * TILE).view(np.float32).reshape(SIDE, SIDE)
    at_edge = edge.ctypes.data
    depth, in_a = 2 * b.shape[1] // DEEP, len(a) // SIDE
    lined = c.ctypes.data % LINE == 0 and 4 * n % LINE == 0
    for top in range(first_row, last_row, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, last_row)
        for left in range(first_column, last_column, COLUMNS_AT_ONCE):
            for p in range(0, depth, DEPTH // DEEP):
                count = min(DEPTH // DEEP, depth - p)
                for j in range(left, min(left + COLUMNS_AT_ONCE, last_column)):
                    columns = min(SIDE, n - j * SIDE)
                    at_b = b[j].ctypes.data + 2 * TILE * p
                    first = c[top * SIDE:, j * SIDE:].ctypes.data
                    for i in range(top, bottom):
                        if i < in_a:
                            at_a, next_row, next_tile = a[i * SIDE:].ctypes.data, a.strides[0], 64
                        else:
                            at_a, next_row, next_tile = tiles[i - in_a].ctypes.data, 64, 2 * TILE
                        at_a += p * next_tile
                        rows = min(SIDE, m - i * SIDE)
                        whole = rows == SIDE and columns == SIDE
                        corner = c[i * SIDE:i * SIDE + rows, j * SIDE:j * SIDE + columns]
                        there = corner.ctypes.data
                        at_c, stride = (there, 4 * n) if whole and lined else (at_edge, 4 * SIDE)
                        if p and whole and not lined:
                            _move(there, 4 * n, at_edge, 4 * SIDE)
                        elif p and not whole:
                            _copy(corner, edge)
                        if p:
                            _load(at_c, stride)
                        elif biased:
                            _bias(bias[j * SIDE:].ctypes.data)
                        else:
                            _zeros()
                        coming = there + 4 * n * SIDE if i + 1 < bottom else first + 4 * SIDE
                        if lined:
                            _add(at_a, next_row, next_tile, at_b, count, coming, 4 * n)
                        else:
                            _add_over(at_a, next_row, next_tile, at_b, count, coming, 4 * n)
                        _store(at_c, stride)
                        if whole and not lined:
                            _move(at_edge, 4 * SIDE, there, 4 * n)
                        elif not whole:
                            _copy(edge, corner)
    _release()


@jit.loop()
def _each_rounded(bias, biased, a, tiles, b, c, config, first_row, last_row, first_column,
                  last_column):
    """As `_each_sum` for c (M,N) in bfloat16; sums that are not complete yet stay in a buffer."""
    _configure(config.ctypes.data)
    m, n = c.shape
    depth, in_a = 2 * b.shape[1] // DEEP, len(a) // SIDE
    step = 4 * TILE if depth > DEPTH // DEEP else 0     # from one block's sums to the next one's
    sums = _lines(max(4 * TILE, step * ROWS_AT_ONCE * COLUMNS_AT_ONCE))
    low = _lines(2 * TILE).view(np.uint16).reshape(SIDE, SIDE)
    for top in range(first_row, last_row, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, last_row)
        for left in range(first_column, last_column, COLUMNS_AT_ONCE):
            for p in range(0, depth, DEPTH // DEEP):
                count = min(DEPTH // DEEP, depth - p)
                for j in range(left, min(left + COLUMNS_AT_ONCE, last_column)):
                    columns = min(SIDE, n - j * SIDE)
                    at_b = b[j].ctypes.data + 2 * TILE * p
                    first = c[top * SIDE:, j * SIDE:].ctypes.data
                    at_sums = sums.ctypes.data + step * (j - left) * ROWS_AT_ONCE
                    for i in range(top, bottom):
                        if i < in_a:
                            at_a, next_row, next_tile = a[i * SIDE:].ctypes.data, a.strides[0], 64
                        else:
                            at_a, next_row, next_tile = tiles[i - in_a].ctypes.data, 64, 2 * TILE
                        at_a += p * next_tile
                        rows = min(SIDE, m - i * SIDE)
                        corner = c[i * SIDE:i * SIDE + rows, j * SIDE:j * SIDE + columns]
                        whole = rows == SIDE and columns == SIDE
                        there = corner.ctypes.data
                        if p:
                            _load(at_sums, 4 * SIDE)
                        elif biased:
                            _bias(bias[j * SIDE:].ctypes.data)
                        else:
                            _zeros()
                        if p + count < depth:
                            _add(at_a, next_row, next_tile, at_b, count, at_sums + step, 4 * SIDE)
                            _store(at_sums, 4 * SIDE)
                            at_sums += step
                            continue
                        coming = there + 2 * n * SIDE if i + 1 < bottom else first + 2 * SIDE
                        _add(at_a, next_row, next_tile, at_b, count, coming, 2 * n)
                        _store(at_sums, 4 * SIDE)
                        if whole:
                            _round(at_sums, there, 2 * n)
                        else:
                            _round(at_sums, low.ctypes.data, 2 * SIDE)
                            _copy(low, corner)
                        at_sums += step
    _release()


@jit.loop(part="own")
def _copy(x, y):
    """The corner that both have, from x to y."""
    for i in range(min(len(x), len(y))):
        row, to = x[i], y[i]
        for j in range(min(len(row), len(to))):
            to[j] = row[j]


@jit.loop()
def _each_strip(a, b, c, bias, config, start, stop):
    """One panel of tiles of a, b (K,N) in rows, c (M,N), what its columns begin with, and which
    groups of WIDE columns."""
    _configure(config.ctypes.data)
    m, n = c.shape
    k, stride = b.shape[0], b.strides[0]
    sums = _lines(WIDE // 16 * TILE).view(np.float32).reshape(WIDE // 32, 2, 16, 4, 4)
    pairs = _lines(WIDE // 16 * TILE)
    rest = np.zeros((DEEP, WIDE), np.uint16)
    for g in range(start, stop):
        left = min(g * WIDE, n - WIDE)     # may overlap the group before
        for i in range(m):
            for j in range(WIDE):
                sums[j // 32, j // 4 % 2, i, j % 32 // 8, j % 4] = bias[left + j]
        for q in range(a.shape[1]):
            count = min(DEEP, k - q * DEEP)
            at_b = b.ctypes.data + q * DEEP * stride + 2 * left
            if count == DEEP:
                fetched = at_b + DEEP * stride if k - q * DEEP >= 2 * DEEP else at_b
                _pairs(at_b, stride, fetched, pairs.ctypes.data)
            else:
                rest[:count] = b[q * DEEP:, left:left + WIDE]
                _pairs(rest.ctypes.data, 2 * WIDE, rest.ctypes.data, pairs.ctypes.data)
            _strip(a[0, q].ctypes.data, pairs.ctypes.data, sums.ctypes.data, WIDE // 16)
        for i in range(m):
            for j in range(WIDE):
                c[i, left + j] = sums[j // 32, j // 4 % 2, i, j % 32 // 8, j % 4]
    _release()


@jit.loop()
def _each_group(b, a, c, bias, config, start, stop):
    """b.T (N,K) in rows, one panel of a (16 rows), c (M,N), what its columns begin with, and which
    groups of 16 columns."""
    _configure(config.ctypes.data)
    m, n = c.shape
    k, stride = b.shape[1], b.strides[0]
    depth = k // DEEP
    sums = _lines(TILE).view(np.float32).reshape(16, 16)
    rest = np.zeros((16, DEEP), np.uint16)
    for g in range(start, stop):
        left = min(g * 16, n - 16)
        for j in range(16):
            sums[j] = bias[left + j]
        if depth:
            _group(b.ctypes.data + left * stride, stride, a.ctypes.data, depth, sums.ctypes.data)
        if depth * DEEP < k:
            rest[:, :k - depth * DEEP] = b[left:left + 16, depth * DEEP:]
            _group(rest.ctypes.data, 2 * DEEP, a.ctypes.data + TILE * depth, 1, sums.ctypes.data)
        for i in range(m):
            for j in range(16):
                c[i, left + j] = sums[j, i]
    _release()
