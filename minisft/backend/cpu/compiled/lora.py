"""The gradients of minisft/ops/lora.py behind merged maps, as compiled loops.

Reading x and dy from memory is most of what products with so few rows or columns, r, take. Here a
few rows of both serve (1), (3), (4) and (5) before the next ones are read, those of x the factors
of all maps. FOUR of r are computed at a time, or EIGHT where the processor has AVX-512: rows of
zeros fill A and B^T up to a multiple of it.

With AVX-512 and widths that are multiples of WIDE two pieces of assembly take the place of the
loops, whose sums would be added up too often and go to the cache and back: `_pair` keeps 16 sums of
two rows in registers, `_outer` those of EIGHT by WIDE numbers over all rows.
"""

from collections.abc import Sequence

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks
from minisft.backend.cpu.compiled.exp import ZERO, F

FOUR, EIGHT = 4, 8
WIDE = 32      # columns of `_outer`
ROWS = 64      # of x and dy at a time: they stay in a core's cache
PARTS = 8      # of the rows, at most: the sums do not depend on the number of threads

Factors = tuple[np.ndarray, np.ndarray, float]     # A (r,C), B (M,r), scale


def _rows_text(base, stride, far):
    """-> the places of eight rows; `far`: a register that gets the fourth's, and rax 3 strides."""
    places = ("({0})", "({0},{1},1)", "({0},{1},2)", "({0},%rax,1)")
    return ([f"leaq ({stride},{stride},2), %rax", f"leaq ({base},{stride},4), {far}"],
            [place.format(at, stride) for at in (base, far) for place in places])


def _pair_text():
    """Operands: two rows of x; eight rows of A, bytes to the next; 16s of columns; where the eight
    sums of each row of x go."""
    begin, rows = _rows_text("%rcx", "%r8", "%r9")
    text = ["movq $0, %rdx", "movq $1, %r10", "movq $2, %rcx", "movq $3, %r8", "movq $4, %r11",
            *begin, *(f"vpxord %zmm{i}, %zmm{i}, %zmm{i}" for i in range(16)), ".p2align 5", "1:",
            "vmovups (%rdx), %zmm16", "vmovups (%r10), %zmm17"]
    for k, row in enumerate(rows):
        text += [f"vmovups {row}, %zmm{18 + k}",
                 f"vfmadd231ps %zmm16, %zmm{18 + k}, %zmm{k}",                           # (1), (4)
                 f"vfmadd231ps %zmm17, %zmm{18 + k}, %zmm{8 + k}"]
    text += [f"addq $$64, {at}" for at in ("%rdx", "%r10", "%rcx", "%r9")]
    text += ["decq %r11", "jnz 1b"]
    # numbers of two registers, of four, then of four lanes, beside one another, until one is left
    for low, high, count in (("vunpcklps", "vunpckhps", 16), ("vunpcklpd", "vunpckhpd", 8),
                             ("vshuff32x4 $$0x88,", "vshuff32x4 $$0xDD,", 4),
                             ("vshuff32x4 $$0x88,", "vshuff32x4 $$0xDD,", 2)):
        for i in range(0, count, 2):
            text += [f"{low} %zmm{i + 1}, %zmm{i}, %zmm16", f"{high} %zmm{i + 1}, %zmm{i}, %zmm17",
                     f"vaddps %zmm17, %zmm16, %zmm{i // 2}"]
    return [*text, "movq $5, %rax", "vmovups %ymm0, (%rax)", "movq $6, %rax",
            "vextractf64x4 $$1, %zmm0, (%rax)"]


def _outer_text():
    """Operands: eight numbers of u's first row, bytes to the next; WIDE of x's first row, bytes to
    the next; rows; WIDE of eight rows of sums, bytes to the next."""
    begin, rows = _rows_text("%rcx", "%r8", "%r9")
    sums = [(row if half == 0 else f"64{row}", 2 * k + half)
            for k, row in enumerate(rows) for half in range(2)]
    text = ["movq $0, %rdx", "movq $2, %r10", "movq $4, %r11", "movq $5, %rcx", "movq $6, %r8",
            *begin, *(f"vmovups {place}, %zmm{i}" for place, i in sums), ".p2align 5", "1:",
            "vmovups (%r10), %zmm16", "vmovups 64(%r10), %zmm17"]
    for k in range(EIGHT):
        text += [f"vbroadcastss {4 * k}(%rdx), %zmm{18 + k}",
                 f"vfmadd231ps %zmm16, %zmm{18 + k}, %zmm{2 * k}",                       # (3), (5)
                 f"vfmadd231ps %zmm17, %zmm{18 + k}, %zmm{2 * k + 1}"]
    return [*text, "addq $1, %rdx", "addq $3, %r10", "decq %r11", "jnz 1b",
            *(f"vmovups %zmm{i}, {place}" for place, i in sums)]


_USED = [*"rax rcx rdx r8 r9 r10 r11 memory flags".split(), *(f"zmm{i}" for i in range(26))]
_pair = jit.assembly(_pair_text(), _USED, 7)
_outer = jit.assembly(_outer_text(), _USED, 7)


def factor_gradients(dy: np.ndarray, x: np.ndarray,
                     factors: Sequence[Factors]) -> list[tuple[np.ndarray, np.ndarray]]:
    """dy (N, sum of M), x (N,C), the factors of maps side by side -> dA (r,C), dB (M,r) of each."""
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    step = max(ROWS, FOUR * ceil_div(len(x), FOUR * PARTS))
    fast = not (processor.why_not_avx512() or x.shape[1] % WIDE
                or any(len(b) % WIDE for _, b, _ in factors))
    loop = _fast_factor_gradients if fast else _factor_gradients
    starts = range(0, len(x), step)
    maps, left = [], 0
    for a, b, scale in factors:
        a, b = (_padded(F(scale) * f, EIGHT if fast else FOUR) for f in (a, b.T))
        sums = [np.zeros((len(starts), *f.shape), np.float32) for f in (a, b)]
        maps.append((left, a, b, *sums))
        left += b.shape[1]

    def work(i):
        rows = slice(starts[i], starts[i] + step)
        for *one, da, db in maps:     # x comes from memory for the first of them only
            loop(dy[rows], x[rows], *one, da[i], db[i])

    row_blocks.each(work, range(len(starts)))
    return [(da.sum(axis=0)[:len(a)], db.sum(axis=0)[:len(a)].T)
            for (a, _, _), (*_, da, db) in zip(factors, maps, strict=True)]


def _padded(x, multiple):
    """x (r,n) -> (r rounded up to a multiple, n), contiguous."""
    padded = np.zeros((multiple * ceil_div(len(x), multiple), x.shape[1]), np.float32)
    padded[:len(x)] = x
    return padded


@jit.loop()
def _factor_gradients(dy, x, left, a, b, da, db):
    """dy (N,...), whose columns from `left` on count, x (N,C), a (r,C), b (r,M), both scaled: is
    added to da (r,C), db (r,M)."""
    u = np.empty((ROWS, len(a)), np.float32)
    du = np.empty_like(u)
    for start in range(0, len(x), ROWS):
        stop = min(start + ROWS, len(x))
        _products(x, start, stop, 0, a, u)                                       # (1)
        _products(dy, start, stop, left, b, du)                                  # (4)
        _add_outer(u, dy, start, stop, left, db)                                 # (3)
        _add_outer(du, x, start, stop, 0, da)                                    # (5)


@jit.loop()
def _fast_factor_gradients(dy, x, left, a, b, da, db):
    """The same with assembly, which a processor without it could not even compile."""
    u = np.empty((ROWS, len(a)), np.float32)
    du = np.empty_like(u)
    for start in range(0, len(x), ROWS):
        stop = min(start + ROWS, len(x))
        _fast_products(x, start, stop, 0, a, u)                                  # (1)
        _fast_products(dy, start, stop, left, b, du)                             # (4)
        _add_fast_outer(u, dy, start, stop, left, db)                            # (3)
        _add_fast_outer(du, x, start, stop, 0, da)                               # (5)


@jit.loop(part="own")
def _fast_products(x, start, stop, left, a, u):
    """As `_products`."""
    at_x, at_a, at_u = x.ctypes.data + 4 * left, a.ctypes.data, u.ctypes.data
    for i in range(0, stop - start, 2):
        j = min(i + 1, stop - start - 1)
        for k in range(0, len(a), EIGHT):
            _pair(at_x + (start + i) * x.strides[0], at_x + (start + j) * x.strides[0],
                  at_a + k * a.strides[0], a.strides[0], a.shape[1] // 16,
                  at_u + i * u.strides[0] + 4 * k, at_u + j * u.strides[0] + 4 * k)


@jit.loop(part="own")
def _add_fast_outer(u, x, start, stop, left, sums):
    """As `_add_outer`."""
    at_x = x.ctypes.data + 4 * left + start * x.strides[0]
    for j in range(0, sums.shape[1], WIDE):
        for k in range(0, len(sums), EIGHT):
            _outer(u.ctypes.data + 4 * k, u.strides[0], at_x + 4 * j, x.strides[0], stop - start,
                   sums.ctypes.data + k * sums.strides[0] + 4 * j, sums.strides[0])


@jit.loop(jit.SUMS, part="own")
def _products(x, start, stop, left, a, u):
    """Rows `start` to `stop` of x from column `left` on, a (r,M) -> u (rows,r)."""
    m, last = a.shape[1], stop - 1
    for i in range(start, stop, 2):
        j = min(i + 1, last)     # of an odd number the last one twice
        x0, x1 = x[i, left:left + m], x[j, left:left + m]
        for k in range(0, len(a), FOUR):
            a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = ZERO
            for c in range(m):
                v, w = x0[c], x1[c]
                f0, f1, f2, f3 = a0[c], a1[c], a2[c], a3[c]
                s0 += v * f0
                s1 += v * f1
                s2 += v * f2
                s3 += v * f3
                t0 += w * f0
                t1 += w * f1
                t2 += w * f2
                t3 += w * f3
            for row, (p0, p1, p2, p3) in ((i, (s0, s1, s2, s3)), (j, (t0, t1, t2, t3))):
                out = u[row - start, k:k + FOUR]
                out[0], out[1], out[2], out[3] = p0, p1, p2, p3


@jit.loop(part="own")
def _add_outer(u, x, start, stop, left, sums):
    """u (rows,r), rows `start` to `stop` of x (.., M) from column `left` on: u^T x is added to sums
    (r,M)."""
    m, whole = sums.shape[1], stop - (stop - start) % FOUR
    for i in range(start, whole, FOUR):
        x0, x1 = x[i, left:left + m], x[i + 1, left:left + m]
        x2, x3 = x[i + 2, left:left + m], x[i + 3, left:left + m]
        u0, u1, u2, u3 = u[i - start], u[i - start + 1], u[i - start + 2], u[i - start + 3]
        for k in range(0, len(sums), FOUR):
            s0, s1, s2, s3 = sums[k], sums[k + 1], sums[k + 2], sums[k + 3]
            a0, a1, a2, a3 = u0[k], u0[k + 1], u0[k + 2], u0[k + 3]
            b0, b1, b2, b3 = u1[k], u1[k + 1], u1[k + 2], u1[k + 3]
            c0, c1, c2, c3 = u2[k], u2[k + 1], u2[k + 2], u2[k + 3]
            d0, d1, d2, d3 = u3[k], u3[k + 1], u3[k + 2], u3[k + 3]
            for j in range(m):
                p, q, r, s = x0[j], x1[j], x2[j], x3[j]
                s0[j] += a0 * p + b0 * q + c0 * r + d0 * s
                s1[j] += a1 * p + b1 * q + c1 * r + d1 * s
                s2[j] += a2 * p + b2 * q + c2 * r + d2 * s
                s3[j] += a3 * p + b3 * q + c3 * r + d3 * s
    for i in range(whole, stop):
        row = x[i, left:left + m]
        for k in range(len(sums)):
            to, f = sums[k], u[i - start, k]
            for j in range(m):
                to[j] += f * row[j]
