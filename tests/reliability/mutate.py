"""Hostile versions of a file: each draw of `mutate` is one, repeatable from its random.Random.

What knows nothing of the file flips bits, cuts, repeats and splices; what knows its kind edits JSON
values, safetensors headers, tables and gzip streams. Each returns what it did, for the report.
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable

WORDS = (b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b'"', b",", b"\t", b"{", b"[",
         b"null", b"NaN", b"-1", b"1e999", b"\\ud800", b"\xed\xa0\x80", b"\x1b[2J", b"=1+1",
         b"<|endoftext|>", b"9" * 400, b"\xe2\x80\xae", b"\x1f\x8b")
NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63,
           2**64, 10**18, 10**30, 10**300, -(10**18), 1e308, 1e-320, float("nan"), float("inf"))
TEXTS = ("", " ", "\0", "a", "true", "../../x", "/etc/passwd", "\ud800", "\x1b[31m", "=cmd",
         "a\nb", "x" * 100_000, "é" * 50, "##", "[UNK]", "<|endoftext|>", "gpt2", "bert", "F64",
         "U8", "gelu", "head", "classify", "none", "__metadata__", "🙂", "%s%n", "{}")


LARGE = 1_000_000     # bytes: that is hostile enough


def _nested(rng):
    value = rng.choice(NUMBERS)
    for _ in range(rng.choice((3, 50, 400))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def hostile(rng: random.Random):
    """-> a JSON value that is not what anybody expects."""
    return rng.choice((
        lambda: rng.choice(NUMBERS), lambda: rng.choice(NUMBERS), lambda: rng.choice(TEXTS),
        lambda: rng.choice((None, True, False, [], {}, [[]], {"": None})),
        lambda: [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 50)))],
        lambda: [rng.choice(TEXTS), rng.choice(NUMBERS), None],
        lambda: {rng.choice(TEXTS): rng.choice(NUMBERS), "id": 0},
        lambda: _nested(rng)))()


def _places(value, found, at=()):
    """-> the paths to all values within a JSON value."""
    found.append(at)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, inner in pairs:
        _places(inner, found, (*at, key))
    return found


def _pick(rng, value):
    """-> a path; the few at the top as often as the many below."""
    places = _places(value, [])
    depth = rng.choice(sorted({len(place) for place in places}))
    return rng.choice([place for place in places if len(place) == depth])


def _near(rng, value):
    """-> a value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 2 * value, value * 10**6, value * 10**12))
    if isinstance(value, float):
        return rng.choice((-value, value * 10, value + 1e-6, value * 1e30))
    if isinstance(value, str):
        i = rng.randrange(len(value) + 1)
        return rng.choice((value[:i], value[:i] + rng.choice(TEXTS) + value[i:], value.upper(),
                           value * 2, value + " "))
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value, value[::-1], value * 50))
    if isinstance(value, dict):
        keys = list(value)
        return {key: value[rng.choice(keys)] for key in keys} if keys else {"a": 1}
    return 0


def edit_json(rng: random.Random, value):
    """A JSON value -> one with an edit, what it was."""
    at = _pick(rng, value)
    if not at:
        return hostile(rng), "whole value"
    outer = value
    for key in at[:-1]:
        outer = outer[key]
    key, how = at[-1], rng.choice(("replace", "replace", "near", "near", "delete", "rename",
                                   "swap"))
    if how == "replace":
        outer[key] = hostile(rng)
    elif how == "near":
        outer[key] = _near(rng, outer[key])
    elif how == "delete":
        del outer[key]
    elif how == "rename" and isinstance(outer, dict):
        outer[rng.choice((key.upper(), key + "x", key[1:], rng.choice(TEXTS)))] = outer.pop(key)
    else:
        other = rng.choice(list(outer) if isinstance(outer, dict) else range(len(outer)))
        outer[key], outer[other] = outer[other], outer[key]
    return value, f"{how} at {'/'.join(map(str, at))[:80]}"


def _dump(value):
    return json.dumps(value, ensure_ascii=True).encode()


def json_text(rng, data):
    if rng.random() < 0.1:
        raw = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"", b"null", b"[]", b"{}", b'""',
                          b"\xef\xbb\xbf" + data, data + data, data.decode().encode("utf-16"),
                          b"1" * 5000, b'{"a":1,"a":2}', data.replace(b'"', b"'"),
                          b"[" + b"0," * 300_000 + b"0]"))
        return raw, "raw JSON"
    value, how = edit_json(rng, json.loads(data))
    return _dump(value), how


def json_lines(rng, data):
    lines = data.splitlines(keepends=True)
    if not lines:
        return data + b"{}\n", "a line"
    i = rng.randrange(len(lines))
    how = rng.choice(("edit", "edit", "delete", "repeat", "swap", "raw"))
    if how == "edit":
        value, what = edit_json(rng, json.loads(lines[i]))
        lines[i] = _dump(value) + b"\n"
        how = f"line {i + 1}: {what}"
    elif how == "delete":
        del lines[i]
    elif how == "repeat":
        lines[i:i] = [lines[i]] * rng.choice((1, 2, 100))
    elif how == "swap":
        j = rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = rng.choice((b"[" * 100_000 + b"\n", b"\n", b"{}\n", b"[]\n", b"{}{}\n"))
    return b"".join(lines), how


def safetensors(rng, data):
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    how = rng.choice(("length", "header", "header", "tensor", "tensor", "metadata", "many", "body",
                      "deep"))
    if how == "length":
        n = rng.choice((0, 1, length - 1, length + 1, length + 8, 2**31, 2**40, 2**63, 2**64 - 1,
                        len(data), 100_000_000))
        return (n % 2**64).to_bytes(8, "little") + data[8:], f"header length {n}"
    if how == "header":
        header, what = edit_json(rng, header)
        how = f"header: {what}"
    elif how == "tensor":
        name = rng.choice([n for n in header if n != "__metadata__"])
        entry = header[name]
        key = rng.choice(("dtype", "shape", "data_offsets"))
        start, end = entry["data_offsets"]
        other = rng.choice([n for n in header if n != "__metadata__"])
        entry[key] = rng.choice({
            "dtype": ("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "I64", "C64", "X"),
            "shape": ([], [0], entry["shape"][::-1], [*entry["shape"], 1], [2**32, 2**32],
                      [2**62], [10**12], [-1], entry["shape"] * 2, [1.5]),
            "data_offsets": ([start, end + 4], [start + 4, end + 4], [end, start],
                             [start - 4, end - 4], [0, 0], [2**63, 2**63 + (end - start)],
                             [start, len(body) + 10**9], header[other]["data_offsets"], [start])}
            [key])
        how = f"{key} of {name} is {entry[key]}"
    elif how == "metadata":
        texts = header.get("__metadata__") or {}
        key = rng.choice([*texts, "format", "info", "minisft_crc32", "minisft_config_crc32",
                          "minisft_files_crc32"])
        texts[key] = rng.choice(("[" * 100_000, "{}", "[]", "null", "", '{"__metadata__": "x"}',
                                 '{"a": [1]}', '[["a", 1], [1, "b"]]', '[[null, 1], ["a", 2]]',
                                 texts.get(key, "")[1:], texts.get(key, "").replace("1", "2"),
                                 "1" * 5000))
        header["__metadata__"] = texts
        how = f"metadata {key}"
    elif how == "many":
        n = rng.choice((1, 100, 20_000))
        header |= {f"extra.{i}": {"dtype": "F32", "shape": [0], "data_offsets":
                                  [len(body), len(body)]} for i in range(n)}
        how = f"{n} more tensors"
    elif how == "deep":
        text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        return len(text).to_bytes(8, "little") + text + body, "deep header"
    else:
        i = rng.randrange(max(len(body) // 4, 1)) * 4
        value = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"))
        return data[:8 + length] + body[:i] + value + body[i + 4:], f"value at {i}"
    text = _dump(header)
    if rng.random() < 0.8:
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body, how


def table(rng, data):
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    char = rng.choice((b",", b"\t", b";", b"|"))
    how = rng.choice(("quote", "wide", "long", "nul", "half", "header", "repeat", "latin",
                      "delimiter", "crs", "blank", "label"))
    if how == "quote":
        lines[i] = lines[i].replace(b"a", b'"', 1)
    elif how == "wide":
        lines[i] += char * rng.choice((1, 10, 100_000))
    elif how == "long":
        lines[i] = rng.choice((b"a", b"a ", b"\xf0\x9f\x98\x80", b"&amp;", b"<b>", b"<!--",
                               b"\\", b"&#39;")) * 100_000 + lines[i]
    elif how == "nul":
        lines[i] = b"\0" + lines[i]
    elif how == "half":
        lines[i] = lines[i].replace(b"e", rng.choice((b"\xed\xa0\x80", b"\\ud83d", b"\xff")), 1)
    elif how == "header":
        lines[0] = rng.choice((b"", char, lines[0] + lines[0], lines[0].upper(), b"sep=" + char,
                               b"text" + char + b"text", lines[0].replace(b"text", b"")))
    elif how == "repeat":
        lines[i:i] = [lines[i]] * min(1000, LARGE // (len(lines[i]) + 1))
    elif how == "latin":
        lines[i] = lines[i].replace(b"e", b"\xe9")
    elif how == "delimiter":
        lines = [line.replace(b",", char) for line in lines]
    elif how == "crs":
        return b"\r".join(lines), how
    elif how == "blank":
        lines[i] = rng.choice((b"", b" ", b"\t", b",", b'""', b"\xc2\xa0"))
    else:
        lines[i] = lines[i][:rng.randrange(len(lines[i]) + 1)] + rng.choice(WORDS)
    return b"\n".join(lines), f"{how} in line {i + 1}"


def plain(rng, data):
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    how = rng.choice(("word", "repeat", "delete", "endless", "latin"))
    if how == "word":
        lines[i] += rng.choice(WORDS)
    elif how == "repeat":
        lines[i:i] = [lines[i]] * rng.choice((1, 1000))
    elif how == "delete":
        del lines[i]
    elif how == "endless":
        lines[i] = rng.choice((b"a", b"ab", b"\xe4\xb8\xad", b" ", b"\xcc\x81")) * 20_000
    else:
        lines[i] = b"\xe9" + lines[i]
    return b"\n".join(lines), f"{how} in line {i + 1}"


def _bomb(rng):
    """-> two gigabytes of one byte in some kilobytes: members that follow one another count as
    one file."""
    return gzip.compress(rng.choice((b"a", b"\n", b"\0", b"a,b\n")) * 2_500_000, mtime=0) * 200


def compressed(inner: Callable) -> Callable:
    """A mutation -> one of the same file compressed by gzip."""
    def gz(rng, data):
        how = rng.choice(("inner", "inner", "stream", "stream", "bomb", "members", "trailer"))
        if how == "inner":
            made, what = inner(rng, gzip.decompress(data)[:LARGE])
            return gzip.compress(made, mtime=0), what
        if how == "bomb":
            return _bomb(rng), "bomb"
        if how == "members":
            return (data * rng.choice((2, 100)))[:20_000], "members"
        if how == "trailer":
            return data + rng.choice((b"\0" * 1000, b"junk", data[:10])), "behind the end"
        return any_bytes(rng, data)
    return gz


def any_bytes(rng, data):
    """Bytes of any file -> damaged ones."""
    n = len(data)
    i = rng.randrange(n + 1)
    j = min(n, i + rng.choice((1, 2, 8, 64, 4096)))
    how = rng.choice(("flip", "flip", "flip", "flips", "cut", "delete", "insert", "set", "zero",
                      "repeat", "swap"))
    if how == "flip" and n:
        return flip(rng, data)
    if how == "flips" and n:
        made = bytearray(data)
        for _ in range(rng.choice((2, 10, 100))):
            made[rng.randrange(n)] ^= 1 << rng.randrange(8)
        return bytes(made), how
    if how == "cut":
        return data[:i], f"cut to {i}"
    if how == "delete":
        return data[:i] + data[j:], f"bytes {i} to {j} deleted"
    if how == "insert":
        return data[:i] + rng.choice((*WORDS, rng.randbytes(16))) + data[i:], f"inserted at {i}"
    if how == "zero":
        return data[:i] + bytes(j - i) + data[j:], f"zeros at {i}"
    if how == "repeat":
        return data[:j] + data[i:], f"bytes {i} to {j} twice"
    if how == "swap":
        half = (i + j) // 2
        return data[:i] + data[half:j] + data[i:half] + data[j:], f"swapped at {i}"
    return data[:i] + rng.randbytes(j - i) + data[j:], f"random at {i}"


def flip(rng, data):
    """-> one bit of it the other way."""
    i, bit = rng.randrange(len(data)), rng.randrange(8)
    return data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1:], f"bit {bit} of byte {i}"


def _replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def tokenizer(rng, data):
    """A tokenizer.json -> one whose steps take memory or time without an end."""
    value = json.loads(data)
    longer = [_replace({"String": "e"}, "e" * 40)] * 6
    how = rng.choice(("normalizer", "decoder", "regex", "empty", "word", "template", "added",
                      "ids"))
    if how == "normalizer":
        value["normalizer"] = {"type": "Sequence", "normalizers": longer}
    elif how == "decoder":
        value["decoder"] = {"type": "Sequence", "decoders": [value["decoder"], *longer]}
    elif how == "regex":
        value["pre_tokenizer"] = {"type": "Split", "behavior": "Isolated", "invert": False,
                                  "pattern": {"Regex": rng.choice(("(a+)+$", "(.*)*x", "", "(?=a)",
                                                                   "[", "(\\w|\\w\\w)*$"))}}
    elif how == "empty":
        value["normalizer"] = _replace(rng.choice(({"String": ""}, {"Regex": ""}, {"Regex": "a*"})),
                                       "x" * rng.choice((1, 10_000)))
    elif how == "word":
        value["model"]["max_input_chars_per_word"] = rng.choice((0, 10**9, 2**63))
    elif how == "template":
        name = next(iter(value["model"]["vocab"]))
        piece = {"SpecialToken": {"id": name, "type_id": 0}}
        value["post_processor"] = {
            "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "single": [piece] * rng.choice((1, 50_000)) + [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {name: {"id": name, "ids": [0] * rng.choice((1, 1000)),
                                      "tokens": [name] * rng.choice((1, 1000))}}}
    elif how == "added":
        content = rng.choice(("", " ", "e", "\0", "the " * 100))
        value["added_tokens"] = [
            {"id": i, "content": content * (i + 1), "special": i % 2 == 0, "normalized": True,
             "single_word": False, "lstrip": True, "rstrip": True}
            for i in range(rng.choice((1, 2, 300)))]
    else:
        for key in list(value["model"]["vocab"])[-3:]:
            value["model"]["vocab"][key] = rng.choice((2**31, 2**32 - 1, 0, 10**7, -1))
    return _dump(value), f"hostile {how}"


BY_SUFFIX = {".json": json_text, ".jsonl": json_lines, ".safetensors": safetensors, ".csv": table,
             ".tsv": table, ".txt": plain, ".conll": plain, ".conllu": table}


def mutate(rng: random.Random, name: str, data: bytes) -> tuple[bytes, str]:
    """A file's name and bytes -> a hostile version of it, and what was done."""
    suffixes = ["." + part for part in name.split(".")[1:]]
    known = BY_SUFFIX.get(suffixes[-1] if suffixes else "")
    if name == "tokenizer.json" and rng.random() < 0.4:
        known = tokenizer
    if suffixes[-1:] == [".gz"]:
        known = compressed(BY_SUFFIX[suffixes[-2]])
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(data) > LARGE:
            break
        chosen = any_bytes if known is None or rng.random() < 0.4 else known
        try:
            data, how = chosen(rng, data)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, OSError,
                RecursionError, zlib.error):
            data, how = any_bytes(rng, data)      # the first damage was too much for the second
        done.append(how)
    return data, "; ".join(done)
