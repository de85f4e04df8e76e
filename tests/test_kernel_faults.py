"""Faults planted in the kernels must be found, and the kernels as they are must be clean.

Every barrier is taken out once: either the values go wrong, or it was not needed.
"""

import re

import pytest
from test_emulator import needs_compiler, sanitized

from minisft.backend.gpu import cuda, emulator
from minisft.verify.kernel_checks import KERNEL_CHECKS

pytestmark = pytest.mark.slow
SOURCE = cuda.source
BARRIER = re.compile(r"__sync(threads|warp)\(\);")
CHECKS = {"attention_tensor_cores": ("attention (bfloat16, 64 channels, dropout, causal)",
                                     "attention (bfloat16 gradients too, sharp)",
                                     "attention (bfloat16, 64 channels, dropout, all keys)"),
          "attention": "attention (fused, 64 channels, dropout, causal)",
          "attention_naive": "attention (naive, 33 channels, dropout, causal)",
          "attention_decode": "attention_decode (bfloat16, 64 channels, joined)",
          "layer_norm": "layer_norm (wide)", "next_token": "next_token",
          "cross_entropy": ("cross_entropy (all options)", "cross_entropy (in place, float32)"),
          "adamw": "adamw", "softmax": "softmax (fused)", "dropout": "dropout",
          "column_sums": "column_sums",
          "residual_layer_norm": "residual_layer_norm (more, bias, dropout, float32)",
          "embedding": "embedding",
          "gelu": ("gelu (tanh, with its bias)", "gelu (tanh, in bfloat16)")}

# Each .cu without one of its barriers, by number; those of device.cuh where they are used.
BARRIERS = [(file, "device.cuh" in place, number)
            for file, place, numbers in [("attention", "attention.cu", range(13)),
                                         ("attention_tensor_cores", "the same", range(3)),
                                         ("attention_decode", "attention_decode.cu", [0]),
                                         ("column_sums", "column_sums.cu", [0]),
                                         ("next_token", "next_token.cu", [0]),
                                         ("adamw", "device.cuh: block_sum", [0]),
                                         ("layer_norm", "device.cuh: block_sums", [1]),
                                         ("residual_layer_norm", "device.cuh: block_sums", [1]),
                                         ("cross_entropy", "device.cuh: block_join", [2])]
            for number in numbers]

# (file, what stands there, what is planted), found by the values
FAULTS = {
    "forgotten rescale": ("attention", "out[r][n][i] *= rescale;", ";"),
    "sum not rescaled": ("attention", "sum[r] *= rescale;", ";"),
    "mask one to the right": ("attention", "key > last + r * ROW_GROUPS",
                              "key > last + r * ROW_GROUPS + 1"),
    "mask left out of the keys": ("attention", "if (causal && of_warp + OF_WARP - 1 >",
                                  "if (false && of_warp + OF_WARP - 1 >"),
    "delta left out": ("attention", "dp[r][j] - row.y", "dp[r][j]"),
    "softmax saw the mask": ("attention", "s[r][j] = p * m;", ";"),
    "one word of four": ("attention", "w.word[i] >= drop", "w.word[0] >= drop"),
    "draw of another query": ("attention", "(threadIdx.x & 14) | (j & 1) | (j & 2) << 3",
                              "threadIdx.x & 14"),
    "a lane's first column for all": ("attention", "+ j * COLUMN_GROUPS * PITCH];", "];"),
    "rows where columns are looked for": ("attention",
                                          "COLUMNS ? of_column(place, four) : of_row(row, four)",
                                          "COLUMNS ? of_column(place, four) : four"),
    "columns side by side": ("attention", "COLUMNS ? row_of_tile<either(COLUMNS, 1)>(row) : row",
                             "row"),
    "rounds before not rescaled": ("attention_decode", "out[i] *= rescale;", ";"),
    "sum of rounds before not rescaled": ("attention_decode", "{top, mine.sum * rescale}",
                                          "{top, mine.sum}"),
    "new key in every block": ("attention_decode", "warp == 0 && last < first + chunk",
                               "warp == 0"),
    "new value not kept": ("attention_decode", "H::store(values + last * stride, v);", ";"),
    "one group of lanes": ("attention_decode", "bit < WARP; bit *= 2", "bit < H::LANES; bit *= 2"),
    "shares joined as they are": ("attention_decode", "factor * running[i].sum",
                                  "running[i].sum"),
    "last chunk left out": ("attention_decode", "lengths[blockIdx.y] / chunk + 1",
                            "lengths[blockIdx.y] / chunk"),
    "last of the largest": ("next_token", "b.token < a.token", "b.token > a.token"),
    "infinite is finite": ("next_token", "fabsf(logit) < INFINITY", "logit == logit"),
    "id of no token": ("next_token", "c % 32 & 1", "(c + 1) % 32 & 1"),
    "logits behind the last four": ("next_token", "c = behind + threadIdx.x; c < v;",
                                    "c = behind + threadIdx.x; c < behind;"),
    "longer than the cache": ("next_token", "min(lengths[blockIdx.x] + 1, capacity - 1)",
                              "lengths[blockIdx.x] + 1"),
    "wrong word of four": ("attention_naive", "key & 1 ? w.word[1] : w.word[0]", "w.word[0]"),
    "log of the sum left out": ("attention", "largest[r] * scale + logf(total)",
                                "largest[r] * scale"),
    "scale left out": ("attention", "sum[r][n][i] *= scale;", ";"),
    "wrong fragment map": ("attention_tensor_cores", "word % 2 * 8;\n            const int c",
                           "word / 2 * 8;\n            const int c"),
    "wrong pieces": ("attention_tensor_cores",
                     "place(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8)",
                     "place(lane % 8 + lane / 8 % 2 * 8, lane / 16 * 8)"),
    "wrong turned pieces": ("attention_tensor_cores",
                            "place(threadIdx.x % 16, threadIdx.x % WARP / 16 * 8)",
                            "place(threadIdx.x % 8 + threadIdx.x % WARP / 16 * 8, "
                            "threadIdx.x / 8 % 2 * 8)"),
    "stored in another order": ("attention_tensor_cores", "&tiles[0][0][place(begin + row, c)]",
                                "&tiles[0][0][(begin + row) * PITCH + c]"),
    "pieces not turned": ("attention_tensor_cores", "load_pieces_turned(right,",
                          "load_pieces(right,"),
    "rescale of one half": ("attention_tensor_cores", "cell(out, half, i) *= rescale;",
                            "cell(out, half, i / 2) *= rescale;"),
    "largest as before": ("attention_tensor_cores", "largest[half] = top[half];", ";"),
    "one buffer": ("attention_tensor_cores", "load_tiles(tiles[now ^ 1], from",
                   "load_tiles(tiles[now], from"),
    "mask left out": ("attention_tensor_cores", "if (key + STEP > min(at.n_keys, last + 1))",
                      "if (key + STEP > at.n_keys)"),
    "end left out": ("attention_tensor_cores", "min(n_keys - 1, last + g_of_lane() + 8 * half)",
                     "last + g_of_lane() + 8 * half"),
    "mask of one line": ("attention_tensor_cores", "mine + g + 8 * half - last - 2 * t",
                         "mine + g - last - 2 * t"),
    "a query past the end": ("attention_tensor_cores", "make_float2(INFINITY, 0.0f)",
                             "make_float2(0.0f, 0.0f)"),
    "two numbers swapped": ("attention_tensor_cores", "pack_16_bits(first, second)",
                            "pack_16_bits(second, first)"),
    "neighbour's draw": ("attention_tensor_cores", "(mine & 0x33333333u) | (other & 0x33333333u)",
                         "(mine & 0x33333333u) | (mine & 0x33333333u)"),
    "draw of another key": ("attention_tensor_cores", "(drawn >> pair & ", "(drawn & "),
    "lse of the first tile": ("attention_tensor_cores",
                              "            load_ahead(tile + TILE);\n", ""),
    "wait for the first copies alone": ("attention_tensor_cores", "        copies_wait();",
                                        "        if (!tile) copies_wait();"),
    "step of a warp's sum": ("softmax", "bit > 0; bit /= 2)\n        v +=", "bit > 1; bit /= 2)\n"
                             "        v +="),
    "maximum left out": ("softmax", "exp_below(s[j], whole.largest)", "exp_below(s[j], 0.0f)"),
    "variance not centred": ("layer_norm", "kept[i] - row_mean : 0.0f", "kept[i] : 0.0f"),
    "third term left out": ("layer_norm", "- normal[i] * (sums.y / WIDTH)", ""),
    "last rows left out": ("layer_norm", "end = min(n, first + rows)",
                           "end = min(n - 1, first + rows)"),
    "label's logit after the gradient": ("cross_entropy", "(on_label - whole.largest",
                                         "(number(z[label]) - whole.largest"),
    "mass left out of the scale": ("cross_entropy", "dloss * mass / whole.sum,",
                                   "dloss / whole.sum,"),
    "last logits left out": ("cross_entropy", "for (int j = MANY * chunks + threadIdx.x; j < k; "
                             "j += threads)\n        mine", "for (int j = k; j < k; j++)\n"
                             "        mine"),
    "label's class one off": ("cross_entropy", "j == label ?", "j == label + 1 ?"),
    "label's class one off, in place": ("cross_entropy", "first + i == row.label",
                                        "first + i == row.label + 1"),
    "another piece of the row": ("cross_entropy", "unpack(s, held[n]);\n        gradients",
                                 "unpack(s, held[0]);\n        gradients"),
    "another piece, of shared memory": (
        "cross_entropy", "laid[n][threadIdx.x]);\n        gradients",
        "laid[0][threadIdx.x]);\n        gradients"),
    "logits in shared memory not waited for": ("cross_entropy", "    copies_wait();", ""),
    "sum not rescaled for several": ("cross_entropy", "a.sum * power_of_two(LOG2_E * "
                                     "(a.largest - base))", "a.sum"),
    "nothing but -inf so far": ("cross_entropy", "largest == -INFINITY ? 0.0f : largest",
                                "largest"),
    "bias not dropped": ("residual_layer_norm", "a[i] += added[i];", ";"),
    "residual left out": ("residual_layer_norm", "= now.above[quad][i] ", "= 0 "),
    "the next row's sums": ("residual_layer_norm", "residual, mean, rstd, row + 1)",
                            "residual, mean, rstd, row)"),
    "bias's gradient before dropout": ("residual_layer_norm", "dbias[quad][i] += d[i];",
                                       "dbias[quad][i] += g[quad][i];"),
    "mask of the neighbours": ("residual_layer_norm", "position, c / 4, seed",
                               "position, c / 4 + 1, seed"),
    "halves of a word swapped": ("gelu", "i % 2 ? word[i / 2] >> 16",
                                 "i % 2 == 0 ? word[i / 2] >> 16"),
    "sums of eight columns mixed": ("gelu", "sum[i] += d[i];", "sum[i] += d[0];"),
    "last warp's rows left out": ("column_sums", "other < warps; other++",
                                  "other < warps - 1; other++"),
    "added where it should not": ("column_sums", "add ? *to + sum : sum", "*to + sum"),
    "row of the next id": ("embedding", "(long long)id * width;\n    y +=",
                           "(long long)(id + 1) * width;\n    y +="),
    "id of an earlier piece": ("embedding", "from == 0 && id == before", "false"),
    "id that goes on": ("embedding", "else if (id == after)", "else if (false)"),
    "tokens of the next id": ("embedding", "next != id && first + i > 0", "false"),
    "sum not begun anew": ("embedding", "sum[j] = 0.0f;\n                from", ";\n"
                           "                from"),
    "the piece after the next": ("embedding", "int first = end, same", "int first = end + PIECE, "
                                 "same"),
    "a few pieces of an id": ("embedding", "same; first += AT_ONCE * PIECE",
                              "same; first = n"),
    "joined once more": ("embedding", "(begin > 0 && ids[order[begin - 1]] == id)", "false"),
    "ten rounds, not nine": ("dropout", "round < 10", "round < 9"),
    "no bias correction": ("adamw", "sqrtf(square[i]) * v_root", "sqrtf(square[i])"),
    "group of the number before": ("adamw", "ends[group] <= first + i", "ends[group] < first + i"),
    "group of a thread's first": ("adamw", "while (group < groups - 1", "while (false"),
    "clipped to another norm": ("adamw", "limit / (sqrtf(*squares) * scale)",
                                "limit / sqrtf(*squares)"),
    "bias left out": ("gelu", "gelu(v[i] + bias[i])", "gelu(v[i])"),
    "slope without its second term": ("gelu", "g + v * (2 * g * (1 - g)) * du", "g"),
}

# Faults that leave the values right: found by a sanitizer.
HIDDEN = {
    "unguarded store": ("address", "attention",
                        " + at.head;\n        if (query >= at.n_queries) continue;", " + at.head;"),
    "unguarded load": ("address", "attention", "exists = ALL || first + row < n;",
                       "exists = true;"),
    "shared memory too small": ("address", "attention", "w_tile[WARPS * W::FOURS_OF_WARP];",
                                "w_tile[WARPS * W::FOURS_OF_WARP - 1];"),
    "key behind the cache": ("address", "attention_decode", "(key < end ? key : first) * stride",
                             "key * stride"),
    "one scratch for every row": ("thread", "layer_norm", "scratch[row % 2]", "scratch[0]"),
    "one place for two warps": ("thread", "attention", "+ threadIdx.x / WARP * FOURS_OF_WARP", ""),
    "a barrier of the tiles": ("thread", "attention",
                               "__syncthreads();     // all have done with the tiles before", ""),
    "unguarded copy": ("address", "attention_tensor_cores",
                       "min(first + begin + (int)row, from.n - 1)", "first + begin + (int)row"),
    "one barrier for two tiles": (
        "thread", "attention_tensor_cores", "__syncthreads();     // the tile is there",
        "if (!now) __syncthreads();     // the tile is there"),
}


def planted(file, text, old, new):
    assert old in text, f"{file}.cu does not hold {old!r} any more"
    return text.replace(old, new)


def is_found(monkeypatch, file, text, size=77):
    monkeypatch.setattr(cuda, "source", lambda name: text if name == file else SOURCE(name))
    try:
        with emulator.thread_order("ahead", seed=1):
            names = CHECKS[file] if isinstance(CHECKS[file], tuple) else (CHECKS[file],)
            rows = [row for name in names for row in KERNEL_CHECKS[name].results(size)]
    except emulator.KernelError:
        return True
    return any(row.error > row.limit for row in rows)


@needs_compiler
@pytest.mark.parametrize("file", CHECKS)
def test_without_a_fault_nothing_is_found(monkeypatch, file):
    assert not is_found(monkeypatch, file, SOURCE(file))


@needs_compiler
@pytest.mark.parametrize("file, of_device, number", BARRIERS)
def test_every_barrier_is_needed(monkeypatch, file, of_device, number):
    text = SOURCE(file)
    begin = 0 if of_device else text.index(f'"{file}.cu"')
    places = list(BARRIER.finditer(text, begin))
    assert of_device or len(places) == sum(f == file and not d for f, d, _ in BARRIERS)
    place = places[number]
    assert is_found(monkeypatch, file, text[:place.start()] + text[place.end():])


@needs_compiler
@pytest.mark.parametrize("file", ["attention", "attention_tensor_cores"])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("change", ["", "after the barrier"])
def test_every_wait_for_copies_is_needed(monkeypatch, file, number, change):
    """Also before the barrier: a thread waits for its own copies only."""
    text = SOURCE(file)
    waits = list(re.finditer(r"copies_wait\(\);\n\s*__syncthreads\(\);", text))
    assert len(waits) == 3
    wait = waits[number]
    swapped = "__syncthreads();" + " copies_wait();" * bool(change)
    assert is_found(monkeypatch, file, text[:wait.start()] + swapped + text[wait.end():])


@needs_compiler
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(monkeypatch, name):
    file, old, new = FAULTS[name]
    assert is_found(monkeypatch, file, planted(file, SOURCE(file), old, new))


PROGRAM = """
from minisft.backend.gpu import cuda, emulator
from minisft.verify.kernel_checks import KERNEL_CHECKS
source = cuda.source
if {file!r}:
    cuda.source = lambda name: {text!r} if name == {file!r} else source(name)
for name in {names!r}:
    for order in ("forward", "ahead"):
        with emulator.thread_order(order):
            for row in KERNEL_CHECKS[name].results({size}):
                assert {file!r} or row.error <= row.limit, (name, row)
print("done")
"""


@needs_compiler
@pytest.mark.parametrize("sanitizer", emulator.SANITIZERS)
def test_kernels_are_clean_under_the_sanitizers(sanitizer):
    names = [name for name in KERNEL_CHECKS if not re.search(" (16|32|33|128) channels", name)]
    done = sanitized(sanitizer, PROGRAM.format(file="", text="", names=names, size=34))
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-4000:]


@needs_compiler
@pytest.mark.parametrize("name", HIDDEN)
def test_the_sanitizers_see_what_values_hide(name):
    sanitizer, file, old, new = HIDDEN[name]
    text = planted(file, SOURCE(file), old, new)
    names = CHECKS[file] if isinstance(CHECKS[file], tuple) else (CHECKS[file],)
    done = sanitized(sanitizer, PROGRAM.format(file=file, text=text, names=names, size=70))
    report = {"address": "AddressSanitizer", "thread": "data race"}[sanitizer]
    assert report in done.stderr and f"{file}.cu:" in done.stderr, done.stderr[-4000:]
