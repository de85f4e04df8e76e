"""Products of a few rows with a matrix of float32, which is read from memory once.

    (1) y[i, j] = sum over k of x[i, k] w[k, j]

A new token of each of eight texts is eight rows times every weight matrix, so what counts is how
fast the weights come from memory. BLAS, made for many rows, packs them first.

    tile     24 registers of 16 sums: 8 rows of x, or 4, or 2, and as many columns of w as they
             leave room for; each vector of w that is loaded meets all rows
    rows     w lies in rows: 384 columns of it in blocks of DEPTH rows; a tile takes its sums up
             from the first cache, adds (1) for the block's k and lays them down again
    fetching meanwhile a tile fetches what comes later. Intel's processors read on by themselves
             wherever they have seen a few lines asked for, and in many rows at once: there it is
             the tile after the next. On AMD's, memory would give half as much that way: there it
             is a share of the next block, row after row from end to end
    columns  w lies in columns (a token table): a tile takes whole columns; a register has the sums
             of one column and row over every 16th k, which are added at the end
    panels   more than 8 rows are two tiles, of which the second finds w in the cache
    cores    each takes a part of w's columns

Each sum adds its products in the order of k, or of every 16th, by the same instruction, and long
sums are added in parts, which keeps more digits: the bits of a row do not depend on how many rows
or threads there are. The assembly stands in this file because Numba's cache on the disk looks at no
other.
"""

import numpy as np

from minisft.backend.constants import ceil_div
from minisft.backend.cpu import jit, processor, row_blocks

LANES, SUMS = 16, 24     # float32 numbers of a register; registers of sums
TILES = 2, 4, 8          # rows of a tile
WIDE = LANES * SUMS      # columns of w at a time where it lies in rows
BY_TILES = not processor.is_amd()
# rows of w at a time: with what is fetched they fit the first cache, or the first two
DEPTH = 16 if BY_TILES else 32
APART = 256              # products of a sum before it is added to the whole
THREADED = 1 << 19       # numbers of w from which on waking another thread is worth it

X, W, C, STRIDE, COUNT, NEXT = "%rcx", "%rdx", "%rdi", "%r9", "%r8", "%r11"
USED = [*"rax rcx rdx rdi r8 r9 r10 r11 memory flags".split(), *(f"zmm{i}" for i in range(32))]
_REGISTERS = [f"%zmm{31 - i}" for i in range(SUMS)]


def _start(*operands):
    """Operands $0.. into registers, which the loop then changes."""
    return [f"movq ${i}, {register}" for i, register in enumerate(operands)]


def _products(rows, row_of_x, load, vectors, first):
    """(1) for one k, or 16: `vectors` of w times `rows` of x into the registers from `first` on."""
    few = rows < 8     # then those of x stay in registers, else those of w
    held, passing = (rows, vectors) if few else (vectors, rows)
    take_held, take_passing = (row_of_x, load) if few else (load, row_of_x)
    text = [take_held(i, f"%zmm{i}") for i in range(held)]
    for i in range(passing):
        now = f"%zmm{held + i % (32 - SUMS - held)}"
        text.append(take_passing(i, now))
        for j in range(held):
            r, s = (j, i) if few else (i, j)
            text.append(f"vfmadd231ps %zmm{j}, {now}, {_REGISTERS[first(r, s)]}")
    return text


def _rows_text(rows, fetches):
    """Operands: x's panel, w, sums, bytes of a row of w, and what of w to fetch; without `fetches`
    how many k."""
    strips = SUMS // rows
    last = NEXT if fetches else COUNT
    text = _start(X, W, C, STRIDE, last)
    text += [f"vmovups {64 * i}({C}), {z}" for i, z in enumerate(_REGISTERS)]
    turns = rows if fetches and not BY_TILES else 1      # their lines are a row of 384 columns
    if fetches:
        text += [f"movq $${DEPTH // turns}, {COUNT}"]
    text += [".p2align 5", "1:"]
    for turn in range(turns):
        if fetches:
            text += [f"prefetcht0 {64 * (turn * strips + s)}({NEXT})" for s in range(strips)]
        text += _products(rows, lambda r, to: f"vbroadcastss {4 * r}({X}), {to}",
                          lambda s, to: f"vmovups {64 * s}({W}), {to}", strips,
                          lambda r, s: r * strips + s)
        text += [f"addq $${4 * rows}, {X}", f"addq {STRIDE}, {W}"]
    if fetches:
        text.append(f"addq {STRIDE}, {NEXT}")
    text += [f"decq {COUNT}", "jnz 1b"]
    return text + [f"vmovups {z}, {64 * i}({C})" for i, z in enumerate(_REGISTERS)]


def _columns_text(rows):
    """Operands: x's panel, w.T, sums, bytes of a row of w.T, how many times 16 k."""
    columns, base = SUMS // rows, (W, "%r10", "%rsi")
    text = _start(X, W, C, STRIDE, COUNT)
    text += [f"leaq ({W},{STRIDE},4), %r10", f"leaq (%r10,{STRIDE},4), %rsi",
             f"imulq $${columns}, {STRIDE}, {NEXT}", f"addq {W}, {NEXT}",
             f"leaq ({STRIDE},{STRIDE},2), %rax", *(f"vpxord {z}, {z}, {z}" for z in _REGISTERS),
             ".p2align 5", "1:"]
    places = ["(" + base[j // 4] + ("", f",{STRIDE}", f",{STRIDE},2", ",%rax")[j % 4] + ")"
              for j in range(columns)]
    to = "t1" if BY_TILES else "t0"     # which cache
    text += [f"prefetch{to} {64 * j}({NEXT})" for j in range(columns)]
    text += _products(rows, lambda r, to: f"vmovups {64 * r}({X}), {to}",
                      lambda j, to: f"vmovups {places[j]}, {to}", columns,
                      lambda r, j: j * rows + r)
    text += [f"addq $${64 * rows}, {X}", *(f"addq $$64, {register}" for register in base),
             f"addq $${64 * columns}, {NEXT}", f"decq {COUNT}", "jnz 1b"]
    return text + [f"vmovups {z}, {64 * i}({C})" for i, z in enumerate(_REGISTERS)]


_rows_2, _rows_4, _rows_8 = (jit.assembly(_rows_text(r, True), USED) for r in TILES)
_end_2, _end_4, _end_8 = (jit.assembly(_rows_text(r, False), USED) for r in TILES)
_columns_2, _columns_4, _columns_8 = (
    jit.assembly(_columns_text(r), [*USED, "rsi"]) for r in TILES)


def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (M,K), w (K,N), both float32 -> (M,N).

    w lies in rows of at least WIDE numbers, or in at least SUMS // 2 columns of a multiple of LANES
    numbers: dispatch/few_rows.py sees to that.
    """
    (m, k), n = x.shape, w.shape[1]
    rows = next((r for r in TILES if r >= m), TILES[-1])
    padded = np.zeros((ceil_div(m, rows), rows, k), np.float32)
    padded.reshape(-1, k)[:m] = x
    y = np.empty((m, n), np.float32)
    if w.strides[1] == w.itemsize:
        panels, work, step = padded.swapaxes(1, 2), _each_strip, WIDE
    else:
        panels = padded.reshape(len(padded), rows, -1, LANES).swapaxes(1, 2)
        w, work, step = w.T, _each_group, SUMS // rows
    panels = np.ascontiguousarray(panels)
    row_blocks.each(lambda part: work(panels, w, y, part.start, part.stop),
                    _shares(ceil_div(n, step), w.size))
    return y


def _shares(n, size):
    threads = min(n, row_blocks.threads()) if size >= THREADED else 1
    step = ceil_div(n, threads)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@jit.loop()
def _each_strip(x, w, y, start, stop):
    """Panels of x (P,K,rows), w (K,N) in rows, y (M,N), and which of its 384 columns."""
    m, n = y.shape
    panels, k, rows = x.shape
    width, stride = WIDE // rows, w.strides[0]
    sums = np.zeros((panels, rows, rows, width), np.float32)
    whole = np.empty_like(sums)
    part, total = sums.reshape(-1), whole.reshape(-1)
    for g in range(start, stop):
        left = min(g * WIDE, n - WIDE)     # the last ones may overlap those before
        total[:] = 0
        for first in range(0, k, DEPTH):
            at = w.ctypes.data + first * stride + 4 * left
            for s in range(rows):
                for p in range(panels):
                    at_x, at_w = x[p, first:].ctypes.data, at + 4 * s * width
                    at_sums, count = sums[p, s].ctypes.data, min(DEPTH, k - first)
                    if p == 0 and count == DEPTH:
                        if not BY_TILES:
                            fetch = at + (DEPTH + s * (DEPTH // rows)) * stride
                        elif s + 2 < rows:
                            fetch = at_w + 8 * width
                        elif first + DEPTH < k or g + 1 == stop:
                            fetch = at + DEPTH * stride + 4 * (s + 2 - rows) * width
                        else:
                            fetch = (w.ctypes.data
                                     + 4 * (min(left + WIDE, n - WIDE) + (s + 2 - rows) * width))
                        if rows == 2:
                            _rows_2(at_x, at_w, at_sums, stride, fetch)
                        elif rows == 4:
                            _rows_4(at_x, at_w, at_sums, stride, fetch)
                        else:
                            _rows_8(at_x, at_w, at_sums, stride, fetch)
                    elif rows == 2:
                        _end_2(at_x, at_w, at_sums, stride, count)
                    elif rows == 4:
                        _end_4(at_x, at_w, at_sums, stride, count)
                    else:
                        _end_8(at_x, at_w, at_sums, stride, count)
            if (first + DEPTH) % APART == 0 or first + DEPTH >= k:
                for i in range(part.size):
                    total[i] += part[i]
                part[:] = 0
        for p in range(panels):
            for i in range(min(rows, m - p * rows)):
                for s in range(rows):
                    for j in range(width):
                        y[p * rows + i, left + s * width + j] = whole[p, s, i, j]


@jit.loop()
def _each_group(x, w, y, start, stop):
    """Panels of x (P,K/16,rows,16), w.T (N,K) in rows, y (M,N), and which groups of columns."""
    m, n = y.shape
    panels, count, rows, _ = x.shape
    columns = SUMS // rows
    sums = np.empty((SUMS, LANES), np.float32)
    for g in range(start, stop):
        left = min(g * columns, n - columns)
        for p in range(panels):
            at = (x[p].ctypes.data, w.ctypes.data + left * w.strides[0], sums.ctypes.data,
                  w.strides[0], count)
            if rows == 2:
                _columns_2(*at)
            elif rows == 4:
                _columns_4(*at)
            else:
                _columns_8(*at)
            half = LANES // 2
            while half:
                for i in range(SUMS):
                    for j in range(half):
                        sums[i, j] += sums[i, j + half]
                half //= 2
            for i in range(min(rows, m - p * rows)):
                for j in range(columns):
                    y[p * rows + i, left + j] = sums[j * rows + i, 0]
