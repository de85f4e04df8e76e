"""Products of bfloat16 factors with float32 sums, by the processor's own instruction for it.

    (1) c[i, j] = sum over k of a[i, k] b[k, j]

AVX512-BF16 has `vdpbf16ps c, b, a`: to each of 16 float32 sums it adds two products of bfloat16
numbers, c[l] += a[2l] b[2l] + a[2l+1] b[2l+1]. That is twice the work of a float32 instruction, so
the factors are laid out in pairs of k, and it has to find its operands in time:

    pack    a in panels of 12 rows, b in panels of 32 columns (pack_bfloat16.py); within a panel the
            pairs of one k lie side by side, so that the tile reads memory from front to end
    tile    12 x 32 sums of c in 24 registers of 16; for each pair of k it loads 32 columns of b and
            one row of a after the other, spread over a register: 24 instructions for 14 loads
    blocks  at most DEPTH pairs at a time; a panel of a stays in the first cache while as many
            panels of b as IN_CACHE holds come from the second, so that c is written along its rows;
            what a tile will write is fetched before it is needed; sums of the next pairs are added
    cores   each takes a part of c's columns, or of its rows where these are more

With few rows (generation) reading b is all that counts, so it is not packed: `_few_rows` takes
pairs of k out of two rows of b, and fetches the next ones from end to end, as `matmul_few_rows.py`
does; `_few_columns` lets b and a change places where b's own columns are contiguous (a token
table). All three add the pairs of k to a sum in the same order by the same instruction: the bits of
a row do not depend on how many rows there are.

What the instruction does (Intel's manual, volume 2, VDPBF16PS): it rounds to the nearest, and takes
numbers below 1.2e-38 for zeros. The assembly stands in this file because Numba's cache on the disk
looks at no other.
"""

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, row_blocks
from minisft.backend.cpu.allocator import aligned
from minisft.backend.cpu.compiled.pack_bfloat16 import lies_in_rows, pack, shares

ROWS, COLUMNS = 12, 32      # of a tile
DEPTH = 832                 # pairs of k: 39 KiB of a panel of a, 104 KiB of a panel of b
IN_CACHE = 704 << 10        # bytes of b
FEW = 12                    # up to so many rows b is not packed
# `_few_rows` by its number of rows: how many times 32 columns at once; 24 sums stay in registers
STRIPS = {1: 12, 4: 3, 12: 1}
WIDE, SHALLOW = 384, 24     # columns of b at a time then, and pairs of k

A, B, C, PAIRS, STRIDE, NEXT = "%rcx", "%rdx", "%rax", "%r8", "%r9", "%r10"
USED = [*"rax rcx rdx r8 r9 r10 r11 memory flags".split(), *(f"zmm{i}" for i in range(32))]


def _sums(count):
    return [f"%zmm{31 - i}" for i in range(count)]


def _start(*operands):
    """Operands $0.. into registers, which the loop then changes."""
    return [f"movq ${i}, {register}" for i, register in enumerate(operands)]


def _tile_text(first):
    """Operands: a's panel, b's panel, pairs, where c is, bytes of a row of c."""
    sums, text = _sums(24), _start(A, B, PAIRS, C, STRIDE)
    at = [(f"({C})", f"64({C})", sums[2 * r:2 * r + 2]) for r in range(ROWS)]
    if first:
        for left, right, _ in at:
            text += [f"prefetchw {left}", f"prefetchw {right}", f"addq {STRIDE}, {C}"]
        text += [f"movq $3, {C}", *(f"vpxord {z}, {z}, {z}" for z in sums)]
    else:
        for left, right, (z0, z1) in at:
            text += [f"vmovups {left}, {z0}", f"vmovups {right}, {z1}", f"addq {STRIDE}, {C}"]
        text += [f"movq $3, {C}"]
    text += [".p2align 5", "1:", f"vmovups ({B}), %zmm0", f"vmovups 64({B}), %zmm1"]
    for r in range(ROWS):
        spread = f"%zmm{2 + r % 6}"
        text += [f"vpbroadcastd {4 * r}({A}), {spread}",
                 *(f"vdpbf16ps {spread}, %zmm{j}, {sums[2 * r + j]}" for j in (0, 1))]     # (1)
    text += [f"addq $${4 * ROWS}, {A}", f"addq $${4 * COLUMNS}, {B}", f"decq {PAIRS}", "jnz 1b"]
    for left, right, (z0, z1) in at:
        text += [f"vmovups {z0}, {left}", f"vmovups {z1}, {right}", f"addq {STRIDE}, {C}"]
    return text


def _few_rows_text(rows, fetches=False):
    """Operands: a's panel of so many rows, b (2 pairs, ...), pairs, sums, bytes of a row of b.

    With `fetches` there are SHALLOW pairs, and instead of their number the rows of b to fetch.

    `vpunpck` interleaves two rows of b within each 16 bytes, so the sums of 32 columns come out as
    columns 0-3, 8-11, 16-19, 24-27 and then the others.
    """
    strips = STRIPS[rows]
    lines, of_row = 2 * strips, 2 * WIDE // 64      # fetched for a pair; in a row of b
    turns = of_row // lines if fetches else 1
    sums, text = _sums(2 * rows * strips), _start(A, B, NEXT if fetches else PAIRS, C, STRIDE)
    text += [f"vmovups {64 * i}({C}), {z}" for i, z in enumerate(sums)]
    if fetches:
        text += [f"movq $${SHALLOW // turns}, {PAIRS}"]
    text += [".p2align 5", "1:"]
    spread = [f"%zmm{r % 3}" for r in range(rows)]
    for turn in range(turns):
        if fetches:
            text += [f"prefetcht0 {64 * (turn * lines + i)}({NEXT})" for i in range(lines)]
        for s in range(strips):
            text += [f"vmovups {64 * s}({B}), %zmm3", f"vmovups {64 * s}({B},{STRIDE}), %zmm4",
                     "vpunpcklwd %zmm4, %zmm3, %zmm5", "vpunpckhwd %zmm4, %zmm3, %zmm6"]
            for r in range(rows):
                if rows > 1 or not s:
                    text += [f"vpbroadcastd {4 * r}({A}), {spread[r]}"]
                text += [f"vdpbf16ps {spread[r]}, %zmm{5 + j}, {sums[2 * (r * strips + s) + j]}"
                         for j in (0, 1)]                                                  # (1)
        text += [f"addq $${4 * rows}, {A}", f"leaq ({B},{STRIDE},2), {B}"]
    if fetches:
        text += [f"addq {STRIDE}, {NEXT}"]
    text += [f"decq {PAIRS}", "jnz 1b"]
    return text + [f"vmovups {z}, {64 * i}({C})" for i, z in enumerate(sums)]


def _few_columns_text():
    """Operands: b.T (12, ...), a's panel of 16 rows, pairs, sums (12,16), bytes of a row of b.T."""
    sums, base = _sums(ROWS), (A, "%r10", "%r11")
    text = _start(A, B, PAIRS, C, STRIDE)
    text += [f"leaq ({A},{STRIDE},4), %r10", f"leaq (%r10,{STRIDE},4), %r11", f"movq {C}, %rdi",
             f"leaq (%r11,{STRIDE},4), %rsi",     # the next columns, fetched from end to end
             f"leaq ({STRIDE},{STRIDE},2), %rax", *(f"vpxord {z}, {z}, {z}" for z in sums),
             ".p2align 5", "1:", "prefetcht0 (%rsi)", f"vmovups ({B}), %zmm0"]
    for r in range(ROWS):
        row = base[r // 4] + ("", f",{STRIDE}", f",{STRIDE},2", ",%rax")[r % 4]
        text += [f"vpbroadcastd ({row}), %zmm{1 + r % 6}",
                 f"vdpbf16ps %zmm{1 + r % 6}, %zmm0, {sums[r]}"]                           # (1)
    text += [*(f"addq $$4, {register}" for register in base), f"addq $${4 * ROWS}, %rsi",
             f"addq $$64, {B}", f"decq {PAIRS}", "jnz 1b"]
    return text + [f"vmovups {z}, {64 * r}(%rdi)" for r, z in enumerate(sums)]


_first, _next = (jit.assembly(_tile_text(first), USED) for first in (True, False))
_one_row, _four_rows, _twelve_rows = (jit.assembly(_few_rows_text(r), USED) for r in STRIPS)
_four_fetch, _twelve_fetch = (jit.assembly(_few_rows_text(r, True), USED) for r in (4, 12))
_few_columns = jit.assembly(_few_columns_text(), [*USED, "rdi", "rsi"])


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a (M,K), b (K,N), both bfloat16 -> (M,N) float32; `out` (M,N), contiguous: where it goes.

    Raises ValueError for factors that do not go together, and for another `out`.
    """
    out = result_of(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    if not (m and n and k):
        out[...] = 0
    elif m <= FEW and k % 2 == 0 and lies_in_rows(b) and \
            n >= COLUMNS * STRIPS[rows := min(r for r in STRIPS if r >= m)]:
        packed = pack(a, rows)
        width = COLUMNS * STRIPS[rows]
        tiles = min(WIDE, n) // width
        if ceil_div(n, tiles * width) < row_blocks.threads():     # narrower groups, one for each
            tiles = 1
        parts = shares(ceil_div(n, tiles * width))
        row_blocks.each(lambda part: _each_strip(packed, b, out, tiles, part.start, part.stop),
                        parts)
    elif m <= FEW and k % 2 == 0 and lies_in_rows(b.T) and n >= ROWS:
        packed = pack(a, 16)
        parts = shares(ceil_div(n, ROWS))
        row_blocks.each(lambda part: _each_group(packed, b.T, out, part.start, part.stop), parts)
    else:
        packed = pack(a, ROWS), pack(b.T, COLUMNS)
        wide = len(packed[1]) >= len(packed[0])
        parts = [(slice(0, len(packed[0])), part) if wide else (part, slice(0, len(packed[1])))
                 for part in shares(len(packed[wide]))]
        row_blocks.each(lambda part: _each_tile(*packed, out, part[0].start, part[0].stop,
                                                part[1].start, part[1].stop), parts)
    return out


def result_of(a: np.ndarray, b: np.ndarray, out: np.ndarray | None,
              dtypes: tuple = (np.float32,)) -> np.ndarray:
    """a (M,K), b (K,N) -> `out` or a new array (M,N) float32; raises as `matmul` says."""
    (m, k), (inner, n) = a.shape, b.shape
    if inner != k:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: {k} and {inner} should be equal")
    if out is None:
        return aligned((m, n), np.float32)
    if out.shape != (m, n) or out.dtype not in dtypes or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected "
                         f"{' or '.join(map(str, map(np.dtype, dtypes)))} {(m, n)}, contiguous")
    return out


@jit.loop()
def _each_tile(a, b, c, first_row, last_row, first_column, last_column):
    """Panels of a, of b, c (M,N), and which of the panels: fills that part of c."""
    m, n = c.shape
    pairs = a.shape[1]
    edge = np.empty((ROWS, COLUMNS), np.float32)
    blocks = -(-pairs // DEPTH)
    depth = -(-pairs // blocks)     # of equal blocks
    panels = IN_CACHE // (4 * COLUMNS * depth)
    for p in range(0, pairs, depth):
        count = min(depth, pairs - p)
        for left in range(first_column, last_column, panels):
            for i in range(first_row, last_row):
                rows = min(ROWS, m - i * ROWS)
                for j in range(left, min(left + panels, last_column)):
                    columns = min(COLUMNS, n - j * COLUMNS)
                    at_a = a.ctypes.data + 4 * ROWS * (i * pairs + p)
                    at_b = b.ctypes.data + 4 * COLUMNS * (j * pairs + p)
                    whole = rows == ROWS and columns == COLUMNS
                    corner = c[i * ROWS:i * ROWS + rows, j * COLUMNS:j * COLUMNS + columns]
                    if not whole and p:
                        edge[:rows, :columns] = corner
                    at_c = corner.ctypes.data if whole else edge.ctypes.data
                    stride = 4 * (n if whole else COLUMNS)
                    if p:
                        _next(at_a, at_b, count, at_c, stride)
                    else:
                        _first(at_a, at_b, count, at_c, stride)
                    if not whole:
                        corner[:] = edge[:rows, :columns]


@jit.loop()
def _each_strip(a, b, c, tiles, start, stop):
    """One panel of a, b (K,N) in rows, c (M,N), and which groups of so many tiles' columns."""
    m, n = c.shape
    pairs, rows = a.shape[1], a.shape[2]
    strips, stride = 12 // rows, b.strides[0]
    width = strips * COLUMNS
    depth = pairs if rows == 1 else SHALLOW     # a row's sums stay where they are
    sums = np.empty((tiles, rows, strips, 2, 4, 4), np.float32)
    for g in range(start, stop):
        left = min(g * tiles * width, n - tiles * width)     # may overlap the group before
        sums[:] = 0
        for first in range(0, pairs, depth):
            count = min(depth, pairs - first)
            at_a = a.ctypes.data + 4 * rows * first
            at_b = b.ctypes.data + 2 * left + 2 * first * stride
            for s in range(tiles):
                tile, at_sums = at_b + 2 * s * width, sums[s].ctypes.data
                share = at_b + 2 * SHALLOW * stride + s * (2 * SHALLOW // tiles) * stride
                fetches = tiles * width == WIDE and count == SHALLOW
                if rows == 1:
                    _one_row(at_a, tile, count, at_sums, stride)
                elif rows == 4 and fetches:
                    _four_fetch(at_a, tile, share, at_sums, stride)
                elif rows == 4:
                    _four_rows(at_a, tile, count, at_sums, stride)
                elif fetches:
                    _twelve_fetch(at_a, tile, share, at_sums, stride)
                else:
                    _twelve_rows(at_a, tile, count, at_sums, stride)
        for i in range(m):
            for s in range(tiles):
                for j in range(width):
                    c[i, left + s * width + j] = sums[
                        s, i, j // 32, j // 4 % 2, j % 32 // 8, j % 4]


@jit.loop()
def _each_group(a, b, c, start, stop):
    """One panel of a (16 rows), b.T (N,K) in rows, c (M,N), and which groups of 12 columns."""
    m, n = c.shape
    sums = np.empty((ROWS, 16), np.float32)
    for g in range(start, stop):
        left = min(g * ROWS, n - ROWS)
        _few_columns(b.ctypes.data + left * b.strides[0], a.ctypes.data, a.shape[1],
                     sums.ctypes.data, b.strides[0])
        for i in range(m):
            for j in range(ROWS):
                c[i, left + j] = sums[j, i]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """x (...) float32 -> the nearest bfloat16 (...) uint16, as backend/bfloat16.py has it."""
    x = np.asarray(x, order="C")
    y = aligned(x.shape, np.uint16)
    bits, flat = x.reshape(-1).view(np.uint32), y.reshape(-1)
    jit.each(lambda start, stop: _round(bits[start:stop], flat[start:stop]), flat.size, 4)
    return y


@jit.loop()
def _round(bits, y):
    for i in range(bits.size):
        b = bits[i]
        nearest = (b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        y[i] = np.uint16(0x7FFF) if nan else np.uint16(nearest)

