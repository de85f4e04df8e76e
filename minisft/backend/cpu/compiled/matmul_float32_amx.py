"""Products of float32 factors on AMX's tiles, which hold bfloat16 numbers: three for each.

A float32 number has 24 digits, a bfloat16 number 8, and the sum of three has them all:

    (1) x = h + m + l,    h = bf16(x),    m = bf16(x - h),    l = x - h - m
    (2) a b = a_h b_h + (a_h b_m + a_m b_h) + (a_h b_l + a_m b_m + a_l b_h) + ...

The three products left out of (2) are below 2^-26 of a b, a quarter of what float32 rounds off.
So six products of bfloat16 factors with float32 sums, as `matmul_amx.py` describes them, are one
of float32 factors (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence
Datatype For Higher-Precision Computations"; XLA's BF16_BF16_F32_X6). A tile's instruction rounds
once for 32 products where a loop rounds 32 times: errors are about those of OpenBLAS's sums, or
less. Tiles do 16 times what AVX-512 does in float32, so six products for one leave 2.7 times.

    split   (1), where a factor is packed: 16 x 32 numbers become three tiles, their BLOCK
    blocks  a thread takes ROWS_AT_ONCE panels of 16 rows of a, DEPTH numbers deep, which stay in
            its second cache, and each panel of 32 columns of b, CHUNK numbers deep, in its first
    sums    16 x 32 of c in two tiles. Each part of a meets those of b in the order `ORDER`, in
            which one tile at most has to be loaded for a product. Four tiles are in use, for the
            reason that `matmul_amx.py` gives
    fetch   the next block of a to the first cache, of b to the second, and the lines of c

What is not finite, so large that a sum may overflow, or so small that parts of (1) fall below what
tiles can hold (1.2e-38 is zero to them), NumPy multiplies.

Some assembly is imported: after changing it delete the folders `__pycache__`, since Numba's cache
on the disk looks at this file alone.
"""

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.cpu.allocator import LINE, aligned
from minisft.backend.cpu.compiled.matmul_amx import (
    CONFIG,
    ROW,
    SUMS,
    TILE,
    _configure,
    _copy,
    _lines,
    _release,
)
from minisft.backend.cpu.compiled.pack_bfloat16 import (
    DEEP,
    _turned,
    blocks,
    lies_in_rows,
    shares,
)

SIDE, WIDE = 16, 32         # rows of a panel of a, columns of one of b
PARTS = HIGH, MIDDLE, LOW = range(3)
BLOCK = len(PARTS) * TILE   # bytes of 16 x DEEP numbers
DEPTH = 1024                # numbers of k at most: 98 KB of a panel of a
CHUNK = 64                  # 12 KiB of a panel of b
ROWS_AT_ONCE = 16           # panels of a
SHARE = 2 * BLOCK // ROWS_AT_ONCE     # bytes of b that each of them fetches
DEEPEST = 4 * DEPTH         # numbers of k that are packed at a time,
PACKED = 1 << 24            # and bytes of b
ALONE = 1 << 18             # numbers of b: fewer are packed by one thread before another wakes
# between them no part of a number that counts and no sum is too large or too small
SMALL, LARGE = 2.0**-80, 2.0**120

# (part of a, which 16 columns of b, its part): one or the other stays, and both columns' sums have
# the same order
ORDER = [(LOW, 0, HIGH), (LOW, 1, HIGH), (MIDDLE, 1, HIGH), (MIDDLE, 0, HIGH), (MIDDLE, 0, MIDDLE),
         (MIDDLE, 1, MIDDLE), (HIGH, 1, MIDDLE), (HIGH, 0, MIDDLE), (HIGH, 0, LOW), (HIGH, 1, LOW),
         (HIGH, 1, HIGH), (HIGH, 0, HIGH)]


def _split_row_text():
    """Operands: a row, where its tiles' row goes, how many times 32 numbers, the largest so far."""
    text = ["movq $0, %rax", "movq $1, %rcx", "movq $2, %rdx", "movq $3, %r8", *_largest_begin(),
            ".p2align 5", "1:", "vmovups (%rax), %zmm0", "vmovups 64(%rax), %zmm1",
            *_largest_of(0, 1)]
    for part in PARTS:                                                                      # (1)
        text += ["vcvtne2ps2bf16 %zmm0, %zmm1, %zmm2", f"vmovups %zmm2, {TILE * part}(%rcx)"]
        if part != LOW:
            text += ["vextracti64x4 $$1, %zmm2, %ymm3", "vpmovzxwd %ymm2, %zmm2",
                     "vpmovzxwd %ymm3, %zmm3", "vpslld $$16, %zmm2, %zmm2",
                     "vpslld $$16, %zmm3, %zmm3", "vsubps %zmm2, %zmm0, %zmm0",
                     "vsubps %zmm3, %zmm1, %zmm1"]
    return [*text, "addq $$128, %rax", f"addq $${BLOCK}, %rcx", "decq %rdx", "jnz 1b",
            "vmovups %zmm31, (%r8)"]


def _split_pairs_text():
    """Operands: 32 rows of 32 numbers, bytes to the next, where two blocks go, the largest so far.

    Tiles of b: the numbers of two rows side by side. Of the rows behind them the lines are fetched.
    """
    text = ["movq $0, %rax", "movq $2, %rcx", "movq $3, %r8", "movq $$16, %rdx",
            "movq $1, %r9", "shlq $$5, %r9", "addq %rax, %r9", *_largest_begin(),
            ".p2align 5", "1:",
            *(f"prefetcht0 {at}(%r9{row})" for at in (0, LINE) for row in ("", ",$1")),
            "vmovups (%rax), %zmm0", "vmovups (%rax,$1), %zmm1",
            "vmovups 64(%rax), %zmm2", "vmovups 64(%rax,$1), %zmm3", *_largest_of(*range(4))]
    for part in PARTS:                                                                      # (1)
        for half in range(2):
            x, y = 2 * half, 2 * half + 1
            u, v = 4 + x, 4 + y
            text += [f"vcvtneps2bf16 %zmm{x}, %ymm{u}", f"vcvtneps2bf16 %zmm{y}, %ymm{v}",
                     f"vpmovzxwd %ymm{u}, %zmm{u}", f"vpmovzxwd %ymm{v}, %zmm{v}",
                     f"vpslld $$16, %zmm{v}, %zmm{v}", f"vpord %zmm{u}, %zmm{v}, %zmm8",
                     f"vmovups %zmm8, {BLOCK * half + TILE * part}(%rcx)"]
            if part != LOW:
                text += [f"vpslld $$16, %zmm{u}, %zmm{u}", f"vsubps %zmm{u}, %zmm{x}, %zmm{x}",
                         f"vsubps %zmm{v}, %zmm{y}, %zmm{y}"]
    return [*text, "leaq (%rax,$1,2), %rax", "leaq (%r9,$1,2), %r9", "addq $$64, %rcx",
            "decq %rdx", "jnz 1b", "vmovups %zmm31, (%r8)"]


def _largest_begin():
    """-> zmm31: the largest numbers so far, without their signs; of bits NaN's are the largest."""
    return ["vmovups (%r8), %zmm31", "movl $$0x7FFFFFFF, %r10d", "vpbroadcastd %r10d, %zmm30"]


def _largest_of(*registers):
    return [line for i in registers for line in (f"vpandd %zmm{i}, %zmm30, %zmm29",
                                                 "vpmaxud %zmm29, %zmm31, %zmm31")]


def _turn_text():
    """Operands: a tile, where it goes turned over: pairs of numbers as 32 bits."""
    return [*(f"vmovups {64 * r}($0), %zmm{r}" for r in range(16)), "movq $1, %rcx",
            *_turned(16, 16, "%rcx")]


def _six_text():
    """Operand: where eleven addresses and numbers are.

    Blocks of a and of b, how many; where sums begin, bytes to their next row, where they go, bytes
    to the next row; what to fetch of a, of b and of c, bytes to its next row.
    """
    given = ("rax", "rcx", "rdx", "rdi", "r9", "rsi", "r8", "r10", "r11", "r12", "r13")
    text = [*(f"movq {8 * i}($0), %{register}" for i, register in enumerate(given)),
            "tileloadd (%rdi,%r9,1), %tmm0", "tileloadd 64(%rdi,%r9,1), %tmm1",
            "movq $$64, %r9", ".p2align 5", "1:"]
    in_a, in_b = None, None
    for i, (part, half, other) in enumerate(ORDER):
        if part != in_a:
            text += [f"tileloadd {TILE * part}(%rax,%r9,1), %tmm2"]
        if (half, other) != in_b:
            text += [f"tileloadd {BLOCK * half + TILE * other}(%rcx,%r9,1), %tmm3"]
        in_a, in_b = part, (half, other)
        text += [f"tdpbf16ps %tmm3, %tmm2, %tmm{half}",                                     # (2)
                 *(f"prefetcht0 {LINE * (4 * i + line)}(%r10)" for line in range(4)),
                 *[f"prefetcht1 {LINE * (i // 2)}(%r11)"] * (i % 2),
                 *["prefetchw (%r12)", f"prefetchw {LINE}(%r12)", "addq %r13, %r12"] * (i % 6 == 3)]
    return [*text, f"addq $${BLOCK}, %rax", f"addq $${2 * BLOCK}, %rcx", f"addq $${BLOCK}, %r10",
            f"addq $${SHARE}, %r11", "decq %rdx", "jnz 1b",
            "tilestored %tmm0, (%rsi,%r8,1)", "tilestored %tmm1, 64(%rsi,%r8,1)"]


USED = "rax rcx rdx rdi rsi r8 r9 r10 r11 r12 r13 memory flags".split()
VECTORS = [f"zmm{i}" for i in range(32)]

_split_row = jit.assembly(_split_row_text(), [*USED, *VECTORS], 4)
_split_pairs = jit.assembly(_split_pairs_text(), [*USED, *VECTORS], 4)
_turn = jit.assembly(_turn_text(), [*USED, *VECTORS], 2)
_six = jit.assembly(_six_text(), USED, 1)


def why_not(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> str:
    """a (M,K), b (K,N) float32, `out` (M,N) or None: where it goes -> why they are not multiplied
    here, on a processor that has the tiles."""
    shape = len(a), b.shape[1]
    if a.shape[1] != len(b) or out is not None and (
            out.shape != shape or out.dtype != np.float32 or not out.flags.writeable):
        return "its shapes do not go together"     # which the formula says better
    if not all(any(map(lies_in_rows, (x, x.T))) for x in (a, b)) or \
            out is not None and not lies_in_rows(out):
        return "its matrices lie neither in rows nor in columns"
    if out is not None and (np.may_share_memory(out, a) or np.may_share_memory(out, b)):
        return "the result goes where a factor lies"
    return ""


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None,
           bias: np.ndarray | None = None) -> np.ndarray:
    """a (M,K), b (K,N) -> (M,N), all float32; `out` (M,N): where it goes. bias (N,): sums begin
    with it. For what `why_not` finds nothing against; factors of any size are.

    Raises RuntimeError where there are no tiles.
    """
    if reason := processor.why_not_amx():     # the instruction would end the process
        raise RuntimeError(f"a product on AMX's tiles: {reason}")
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = aligned((m, n), np.float32)
    if not out.size or not k:
        out[...] = 0 if bias is None else bias
        return out
    begin = np.zeros(ceil_div(n, WIDE) * WIDE, np.float32)
    begin[:n] = 0 if bias is None else bias
    step = _columns_at_once(k)
    for top in range(0, k, DEEPEST):
        for left in range(0, n, step):
            inner, columns = slice(top, top + DEEPEST), slice(left, left + step)
            if not _fill(a[:, inner], b[inner, columns], begin[left:], out[:, columns], top == 0):
                np.matmul(a, b, out=out)
                if bias is not None:
                    out += bias
                return out
    return out


def split_bytes(k: int, n: int) -> int:
    """-> bytes of what a factor (k,n) on the right is split into at a time."""
    return 2 * BLOCK * ceil_div(min(k, DEEPEST), DEEP) * ceil_div(min(n, _columns_at_once(k)), WIDE)


def _columns_at_once(k):
    return max(1, PACKED // (2 * BLOCK * ceil_div(min(k, DEEPEST), DEEP))) * WIDE


def _fill(a, b, bias, c, fresh):
    """c becomes bias + a b, or where it is not `fresh` c + a b -> whether the factors allowed it.
    """
    n_rows, n_columns = ceil_div(len(a), SIDE), ceil_div(b.shape[1], WIDE)
    panels = aligned((n_columns, ceil_div(len(b), DEEP), 2 * len(PARTS), 16, 16), np.uint32)
    turned = not lies_in_rows(b)
    parts = shares(n_columns) if b.size > ALONE else [slice(0, n_columns)]
    in_b = row_blocks.each(lambda part: _pack(b.T if turned else b, turned, panels, part.start,
                                              part.stop), parts)
    # by columns each thread packs all of a
    by_rows = n_rows >= min(n_columns, 2 * ROWS_AT_ONCE)
    parts = [(part.start, part.stop, 0, n_columns) if by_rows else
             (0, n_rows, part.start, part.stop)
             for part in (blocks(n_rows, ROWS_AT_ONCE) if by_rows else shares(n_columns))]
    a_turned = not lies_in_rows(a)
    in_a = row_blocks.each(lambda part: _each(a.T if a_turned else a, a_turned, panels, bias, fresh,
                                              c, CONFIG, *part), parts)
    largest_a, largest_b = (float(np.uint32(max(found)).view(np.float32)) for found in (in_a, in_b))
    return not (largest_a and largest_b) or (
        min(largest_a, largest_b, largest_a * largest_b) >= SMALL
        and max(largest_a, largest_b, largest_a * largest_b * len(b)) <= LARGE)


@jit.loop()
def _pack(b, turned, panels, start, stop):
    """b (K,N), or b.T (N,K) if it is `turned`, and which panels -> the bits of the largest number;
    fills the panels."""
    k, n = b.shape
    largest = np.zeros(16, np.uint32)
    at_largest = largest.ctypes.data
    rest = np.zeros((DEEP, WIDE), np.float32)
    rows = _lines(CHUNK // DEEP * BLOCK)
    depth = panels.shape[1]
    if not turned:
        for q in range(depth):     # so that what is read of some rows lies side by side
            for j in range(start, stop):
                _split_square(b, q * DEEP, j * WIDE, rest, panels[j, q].ctypes.data, at_largest)
    else:
        for j in range(start, stop):
            for q in range(0, depth, CHUNK // DEEP):
                count = min(CHUNK // DEEP, depth - q)
                for half in range(2):
                    _split_rows(b, j * WIDE + SIDE * half, q, count, rest, rows.ctypes.data,
                                at_largest)
                    for i in range(count):
                        _turn_block(rows.ctypes.data + BLOCK * i,
                                    panels[j, q + i].ctypes.data + BLOCK * half)
    return largest.max()


@jit.loop()
def _each(a, turned, b, bias, fresh, c, config, first_row, last_row, first_column, last_column):
    """a (M,K), or a.T (K,M) if it is `turned`, panels of b, what c's columns begin with where they
    are `fresh`, and which panels -> the bits of the largest number of a; fills that part of c."""
    _configure(config.ctypes.data)
    largest = np.zeros(16, np.uint32)
    at_largest = largest.ctypes.data
    rest = np.zeros((DEEP, WIDE), np.float32)
    pair = _lines(2 * BLOCK)
    at_once = min(ROWS_AT_ONCE, last_row - first_row)
    deep = min(b.shape[1], DEPTH // DEEP)
    packed = _lines(at_once * deep * BLOCK)     # a name, or its memory is given back
    sums = _lines(at_once * SUMS).view(np.float32).reshape(at_once, SIDE, WIDE)
    for top in range(first_row, last_row, at_once):
        panels = min(at_once, last_row - top)
        for p in range(0, b.shape[1], deep):
            count = min(deep, b.shape[1] - p)
            if not turned:
                for i in range(panels):
                    _split_rows(a, (top + i) * SIDE, p, count, rest,
                                packed.ctypes.data + i * count * BLOCK, at_largest)
            else:
                for q in range(count):
                    for i in range(0, panels, 2):
                        _split_square(a, (p + q) * DEEP, (top + i) * SIDE, rest, pair.ctypes.data,
                                      at_largest)
                        for half in range(min(2, panels - i)):
                            _turn_block(pair.ctypes.data + BLOCK * half,
                                        packed.ctypes.data + ((i + half) * count + q) * BLOCK)
            _multiply(packed.ctypes.data, panels, count, b, p, bias, fresh and p == 0, c, top, sums,
                      first_column, last_column)
    _release()
    return largest.max()


@jit.loop(part="own")
def _multiply(a, panels, count, b, p, bias, fresh, c, top, sums, first_column, last_column):
    """Panels of a from `top` on, `count` blocks of each, with those of b from block p on."""
    m, n = c.shape
    given = np.zeros(11, np.int64)
    at_given, stride, steps = given.ctypes.data, c.strides[0], CHUNK // DEEP
    lined = c.ctypes.data % LINE == 0 and stride % LINE == 0
    for j in range(first_column, last_column):
        for q in range(0, count, steps):
            now = min(steps, count - q)
            then = q + now if q + now < count else 0
            then_b = b[j if then else min(j + 1, len(b) - 1), p + then].ctypes.data
            given[1], given[2] = b[j, p + q].ctypes.data, now
            # four rows of a panel's 16 at a time, in the last four steps
            coming = SIDE // 4 * (q // steps - (count - 1) // steps + 3)
            for i in range(panels):
                row = (top + i) * SIDE
                whole = lined and row + SIDE <= m and (j + 1) * WIDE <= n
                at_c, at_sums = c.ctypes.data + row * stride + j * ROW, sums[i].ctypes.data
                given[0] = a + (i * count + q) * BLOCK
                given[7] = given[0] + count * BLOCK if i + 1 < panels else a + then * BLOCK
                given[8] = then_b + i * now * SHARE
                given[9], given[10] = at_sums, 0
                if whole and coming >= 0:
                    given[9], given[10] = at_c + coming * stride, stride
                given[3], given[4], given[5], given[6] = at_sums, ROW, at_sums, ROW
                if q == 0 and fresh:
                    given[3], given[4] = bias[j * WIDE:].ctypes.data, 0     # the same in each row
                elif q == 0 and whole:
                    given[3], given[4] = at_c, stride
                elif q == 0:
                    _copy(c[row:, j * WIDE:], sums[i])
                if not then and whole:
                    given[5], given[6] = at_c, stride
                _six(at_given)
                if not then and not whole:
                    _copy(sums[i], c[row:, j * WIDE:])


@jit.loop(part="own")
def _split_rows(x, top, q, count, rest, to, at_largest):
    """16 rows of x (M,K) from `top` on, `count` blocks from q on; zeros where x ends."""
    m, k = x.shape
    whole = max(0, min(count, k // DEEP - q))
    for r in range(min(SIDE, m - top)):
        row = x[top + r, q * DEEP:]
        if whole:
            _split_row(row.ctypes.data, to + LINE * r, whole, at_largest)
        if whole < count:
            rest[0] = 0
            for i in range(whole * DEEP, len(row)):
                rest[0, i - whole * DEEP] = row[i]
            _split_row(rest.ctypes.data, to + LINE * r + BLOCK * whole, 1, at_largest)


@jit.loop(part="own")
def _split_square(x, top, left, rest, to, at_largest):
    """32 x 32 numbers of x (K,N) from there on, zeros where it ends, in two blocks of pairs."""
    k, n = x.shape
    if top + DEEP <= k and left + WIDE <= n:
        _split_pairs(x[top:, left:].ctypes.data, x.strides[0], to, at_largest)
    else:
        rest[:] = 0
        _copy(x[top:, left:], rest)
        _split_pairs(rest.ctypes.data, ROW, to, at_largest)


@jit.loop(part="own")
def _turn_block(x, to):
    for part in range(3):
        _turn(x + TILE * part, to + TILE * part)
