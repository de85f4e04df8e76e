"""Products of bfloat16 factors with float32 sums on AMX, the tensor cores of an Intel processor.

    (1) c[i, j] = sum over k of a[i, k] b[k, j]

A tile is a register of 16 rows of 64 bytes: 1 KiB. `tdpbf16ps b, a, c` multiplies two of them: to
c, 16 x 16 float32 sums, it adds the products of a's 16 rows of 32 bfloat16 numbers with 32 rows of
b, which lie in pairs: b's tile has 16 rows of 16 columns' pairs. That is 16,384 operations in 16
cycles, 16 times as many as AVX-512 does in float32, so that finding the operands is what is left:

    pack    b in panels of 32 columns, as `matmul_bfloat16.py` has them: 16 pairs of k of a panel
            are two tiles. Rows of a are read where they lie if k lies side by side in them, and
            else (weight gradients) turned over into tiles (`pack_tiles`)
    blocks  a thread takes ROWS_AT_ONCE panels of 32 rows of a, DEPTH numbers of k deep, which stay
            in its second cache, and of b a panel, CHUNK numbers deep, in its first
    sums    16 x 32 of c in two tiles, so that each tile of a is used twice. They wait in a buffer
            for the next chunk, and are rounded, if they are to be, once they are complete
    fetch   while tiles are multiplied, a's next ones come into the first cache, b's next chunk into
            the second, and the lines of c where the next sums go, a row or two at a time
    lines   factors begin at a line of the cache (`aligned`), or each row of a tile would reach over
            two; where c does not, its sums are copied from the buffer
    cores   each takes the next rows of c when it is done, or where these are few a part of c's
            columns

Why not 32 x 32 of c in four tiles, each tile of a and b used twice: while the core's other
hyperthread is busy, someone else's on a rented machine, a thread has ten registers for its eight
tiles, and what loads or multiplies waits for one that is in nobody's use. With eight tiles in use a
`tdpbf16ps` takes 31 ns then, with four 14; with the core to itself 7 either way (Emerald Rapids).

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

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.cpu.allocator import LINE
from minisft.backend.cpu.compiled.matmul_bfloat16 import result_of, to_bfloat16
from minisft.backend.cpu.compiled.pack_bfloat16 import (
    DEEP,
    SIDE,
    blocks,
    lies_in_rows,
    pack,
    pack_tiles,
    shares,
)

DEPTH = 1024                # numbers of k at most: 64 KiB of a panel
CHUNK = 256                 # 16 KiB of a panel of b
ROWS_AT_ONCE = 8            # panels of a
COLUMNS_AT_ONCE = 16        # panels of b
FEW = 16                    # up to so many rows b is not packed
WIDE = 384                  # columns of b at a time then
TILE = 1024                 # bytes
SHARE = TILE // ROWS_AT_ONCE     # bytes of b that half a panel of a fetches, a tile deep
ROW, SUMS = 4 * SIDE, 2 * TILE      # bytes of a row of 16 x 32 sums, and of all

USED = [*"rax rcx rdx r8 r9 r10 memory flags".split()]

CONFIG = np.zeros(64, np.uint8)
CONFIG[0] = 1                                    # the palette
CONFIG[16:32].view(np.uint16)[:] = 64            # bytes of a row, of each of the eight tiles
CONFIG[48:56] = 16                               # rows


def _two_text():
    """Operand: where fourteen addresses and numbers are.

    Rows of a, of b's panel, how many tiles deep; where sums begin, bytes to their next row, where
    they go, bytes to the next row; what to fetch of a, of b and of c, bytes to its next row; bytes
    to a's next row, to its next tile, and to that less 16 rows.
    """
    given = ("rax", "rcx", "rdx", "rdi", "r9", "rsi", "r8", "r10", "r11", "r12", "r13", "rbx")
    text = [*(f"movq {8 * i}($0), %{register}" for i, register in enumerate(given)),
            "leaq (%rbx,%rbx,2), %r14",
            "tileloadd (%rdi,%r9,1), %tmm0", "tileloadd 64(%rdi,%r9,1), %tmm1",
            "movq $$128, %r9", "movq 96($0), %rdi", ".p2align 5", "1:",
            "tileloadd (%rax,%rbx,1), %tmm2"]
    four = ["prefetcht0 (%r10)", "prefetcht0 (%r10,%rbx)", "prefetcht0 (%r10,%rbx,2)",
            "prefetcht0 (%r10,%r14)", "leaq (%r10,%rbx,4), %r10"]
    of_c = ["prefetchw (%r12)", "prefetchw 64(%r12)", "prefetchw 127(%r12)", "addq %r13, %r12"]
    for half in range(2):
        text += [f"tileloadd {64 * half}(%rcx,%r9,1), %tmm3",
                 f"tdpbf16ps %tmm3, %tmm2, %tmm{half}",                                       # (1)
                 *four, *four, f"prefetcht1 {64 * half}(%r11)", *of_c]
    return [*text, f"addq $${SHARE}, %r11", "addq %rdi, %rax", f"addq $${2 * TILE}, %rcx",
            "addq 104($0), %r10", "decq %rdx", "jnz 1b",
            "tilestored %tmm0, (%rsi,%r8,1)", "tilestored %tmm1, 64(%rsi,%r8,1)"]


def _product_text():
    """Operands: a, bytes to its next row, and to its next tile; b's panel; how many tiles deep; c,
    bytes to its next row. 32 x 32 sums of little matrices that are at hand (attention_amx.py)."""
    text = ["movq $0, %rax", "movq $5, %r10", "movq $$128, %r9"]
    for half in range(2):
        text += ["movq %rax, %r8", "movq $3, %rcx", "movq $4, %rdx", "tilezero %tmm0",
                 "tilezero %tmm1", ".p2align 5", "1:",
                 "tileloadd (%r8,$1,1), %tmm2", "tileloadd (%rcx,%r9,1), %tmm3",
                 "tdpbf16ps %tmm3, %tmm2, %tmm0", "tileloadd 64(%rcx,%r9,1), %tmm3",          # (1)
                 "tdpbf16ps %tmm3, %tmm2, %tmm1", "addq $2, %r8", f"addq $${2 * TILE}, %rcx",
                 "decq %rdx", "jnz 1b",
                 "tilestored %tmm0, (%r10,$6,1)", "tilestored %tmm1, 64(%r10,$6,1)"]
        if not half:
            text += ["movq $1, %rcx", "shlq $$4, %rcx", "addq %rcx, %rax",
                     "movq $6, %rcx", "shlq $$4, %rcx", "addq %rcx, %r10"]
    return text


def _round_text():
    """Operands: 16 x 32 float32 numbers, where they go in bfloat16, bytes to its next row."""
    text = ["movq $0, %rax", "movq $1, %rcx"]
    for _ in range(16):
        text += ["vmovups (%rax), %zmm16", "vmovups 64(%rax), %zmm17",
                 "vcvtne2ps2bf16 %zmm16, %zmm17, %zmm16", "vmovups %zmm16, (%rcx)",
                 f"addq $${4 * SIDE}, %rax", "addq $2, %rcx"]
    return text


def _move_text():
    """Operands: 16 x 32 float32 numbers, where they go, bytes to its next row."""
    text = ["movq $0, %rax", "movq $1, %rcx"]
    for _ in range(16):
        text += ["vmovups (%rax), %zmm16", "vmovups 64(%rax), %zmm17",
                 "vmovups %zmm16, (%rcx)", "vmovups %zmm17, 64(%rcx)",
                 f"addq $${4 * SIDE}, %rax", "addq $2, %rcx"]
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
_two = jit.assembly(_two_text(), [*USED, *"r11 r12 r13 r14 rbx rdi rsi".split()], 1)
product = jit.assembly(_product_text(), USED, 7)
_round = jit.assembly(_round_text(), [*USED, "zmm16", "zmm17"], 3)
_move = jit.assembly(_move_text(), [*USED, "zmm16", "zmm17"], 3)
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
        by_rows = n_rows >= min(n_columns, 2 * ROWS_AT_ONCE)
        parts = [(part.start, part.stop, 0, n_columns) for part in blocks(n_rows, ROWS_AT_ONCE)] \
            if by_rows else [(0, n_rows, part.start, part.stop) for part in shares(n_columns)]
        row_blocks.each(lambda part: _each(begin, *rows, panels, out, low, CONFIG, *part), parts)
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
def _each(bias, a, tiles, b, c, low, config, first_row, last_row, first_column, last_column):
    """What c's columns begin with, what `rows_of` gives, panels of b, c (M,N), whether it is
    bfloat16, and which panels: fills that part of c."""
    _configure(config.ctypes.data)
    m, n = c.shape
    depth, in_a, stride = 2 * b.shape[1] // DEEP, len(a), c.strides[0]
    deep, half_panels = DEPTH // DEEP, 2 * ROWS_AT_ONCE
    # from one column's sums to the next one's: only those of deep factors wait for each other
    apart = half_panels * SUMS if depth > deep else 0
    sums = _lines(half_panels * SUMS + apart * COLUMNS_AT_ONCE)
    edge = _lines(16 * SIDE * c.itemsize).view(c.dtype).reshape(16, SIDE)
    lined = not low and c.ctypes.data % LINE == 0 and stride % LINE == 0
    given = np.zeros(14, np.int64)
    at_given = given.ctypes.data
    for top in range(2 * first_row, 2 * last_row, half_panels):
        panels = min(half_panels, 2 * last_row - top, -(-m // 16) - top)
        for left in range(first_column, last_column, COLUMNS_AT_ONCE):
            for p in range(0, depth, deep):
                count = min(deep, depth - p)
                steps = -(-count // -(-count // (CHUNK // DEEP)))     # of equal chunks
                for j in range(left, min(left + COLUMNS_AT_ONCE, last_column)):
                    for q in range(p, p + count, steps):
                        now = min(steps, p + count - q)
                        then = q + now if q + now < p + count else p
                        following = b[j if then > q else min(j + 1, len(b) - 1), 16 * then:]
                        given[1], given[2] = b[j, 16 * q:].ctypes.data, now
                        complete = q + now == depth
                        for i in range(panels):
                            row = 16 * (top + i)
                            at_sums = sums.ctypes.data + SUMS * i + apart * (j - left)
                            at_c = c.ctypes.data + row * stride + j * SIDE * c.itemsize
                            whole = row + 16 <= m and (j + 1) * SIDE <= n
                            if row < in_a:
                                at_a, next_row, next_tile = a[row:].ctypes.data, a.strides[0], 64
                                next_a = 16 * next_row
                            else:
                                t = (row - in_a) // 16
                                at_a = tiles[t // 2].ctypes.data + TILE * (t % 2)
                                next_row, next_tile = 64, 2 * TILE
                                next_a = tiles.strides[0] - TILE if t % 2 else TILE
                            given[0] = at_a + q * next_tile
                            given[11], given[12] = next_row, next_tile
                            given[13] = next_tile - 16 * next_row
                            given[7] = given[0] + next_a
                            given[8] = following.ctypes.data + i * now * SHARE
                            given[9], given[10] = at_sums, 0
                            given[3], given[4], given[5], given[6] = at_sums, ROW, at_sums, ROW
                            if q == 0:
                                given[3], given[4] = bias[j * SIDE:].ctypes.data, 0
                            if complete and whole:
                                given[9] = at_c + (16 * stride if i + 1 < panels else 0)
                                given[10] = stride
                                if lined:
                                    given[5], given[6] = at_c, stride
                            _two(at_given)
                            if complete and whole and not lined:
                                _hand_over(at_sums, at_c, stride, low)
                            elif complete and not whole:
                                _hand_over(at_sums, edge.ctypes.data, edge.strides[0], low)
                                _copy(edge, c[row:, j * SIDE:])
    _release()


@jit.loop(part="own")
def _hand_over(at_sums, to, next_row, low):
    """Where complete sums go that no tile can be stored to, and bytes to its next row."""
    if low:
        _round(at_sums, to, next_row)
    else:
        _move(at_sums, to, next_row)


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
