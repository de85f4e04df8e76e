"""The bytes of a file -> text; what is no text, or has another encoding, is named."""

import gzip
import re
import sys
import zlib
from pathlib import Path

from minisft.errors import UserError, setting, short_repr

# How files begin that are given in place of text, and what to do about them.
_NO_TEXT = (
    (b"PK\x03\x04", "a zip archive, as the spreadsheets .xlsx and .ods are: save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Office file, such as .xls: save it as CSV"),
    (b"PAR1", "a Parquet file: save it as CSV or JSON lines"),
    (b"%PDF-", "a PDF: save its text"),
)
_BYTE_ORDER_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
                     (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_ESCAPED = re.compile("[\udc80-\udcff]")     # a byte that `surrogateescape` could not decode
_SAMPLE = 200_000     # characters by which an encoding is told
_HIGH = re.compile(rb"[\x80-\xff]+")
_RUSSIAN = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
_KANA = "".join(map(chr, (*range(0x3041, 0x3097), *range(0x30a1, 0x30fd))))
# Encodings of a language, the usual one first, and its most frequent characters: of running text
# they make a third or more, of the same bytes in another of these encodings one in thirty.
_EAST_ASIAN = (
    (("gb18030",),
     "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
     "年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小"),
    (("big5", "cp950"),
     "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之"
     "年過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小"),
    (("shift_jis", "cp932"), _KANA), (("euc_jp",), _KANA),
    (("euc_kr", "cp949"),
     "이다는을의에가고하도지로한은를서사기시나리어자있그아대인일수해과정보라면들만니여게부으내"
     "요스전까안거위원주장음때것"),
)


COMPRESSION_RATIO_HELP = ("most bytes of text that a byte of a .gz file may give, beyond the first "
                          "64 MB: more is taken for a bomb")
STDIN = "-"     # the name of a file that is standard input
MAX_COMPRESSION_RATIO = 100     # text has 3 to 10, the worst that gzip can do is 1,032
_ANY_RATIO = 64 * 2**20         # bytes: so much is unpacked of any file
_CHUNK = 2**20


def read_text(path: str | Path, encoding: str = "utf-8", escape: bool = False,
              max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> str:
    """A file, plain or .gz -> its text; UserError names the file and the line of the first error.

    A .gz that becomes more than `max_compression_ratio` times as large, and more than 64 MB, is
    refused before it fills the memory.

    Where no line ends in a line feed, carriage returns end them. With `escape`, bytes of another
    encoding and NUL stay in the text, for `fault` to find.
    """
    path = Path(path)
    require_file(path)
    data = _bytes(path, max_compression_ratio)
    for start, name in _NO_TEXT:
        if data.startswith(start):
            raise UserError(f"{path}: is {name}")
    text = _decode(path, data, encoding, escape)
    return text if "\n" in text else text.replace("\r", "\n")


def require_file(path: Path) -> None:
    """Raises UserError unless there is a file, or it is standard input."""
    if str(path) == STDIN:
        return
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a file")


def fault(text: str, encoding: str) -> str | None:
    """A part of an escaped text -> why it is no text, or None."""
    if byte := _ESCAPED.search(text):
        return f"byte 0x{ord(byte[0]) - 0xdc00:02x} is not {encoding}"
    return "holds a NUL byte" if "\0" in text else None


def reads_as_utf8(path: Path, encoding: str, text: str,
                  max_compression_ratio: int = MAX_COMPRESSION_RATIO) -> str | None:
    """A file, the encoding that was asked for, its text -> a note where it is UTF-8 instead."""
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig") or text.isascii() \
            or str(path) == STDIN:     # which is gone once it is read
        return None
    data = _bytes(path, max_compression_ratio)
    if data.startswith(tuple(mark for mark, _ in _BYTE_ORDER_MARKS)) or not _decodes(data, "utf-8"):
        return None
    return f"{path}: is read as {encoding}, but all of it is valid UTF-8: is that its encoding?"


def _bytes(path, max_compression_ratio):
    if str(path) == STDIN:
        return sys.stdin.buffer.read()
    try:
        if path.suffix.lower() == ".gz":
            return _unpacked(path, max_compression_ratio)
        data = path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if data.startswith(b"\x1f\x8b"):
        raise UserError(f"{path}: is compressed by gzip: its name should end in .gz")
    return data


def _unpacked(path, max_compression_ratio):
    """-> the bytes of a .gz, read piece by piece: some kilobytes can hold gigabytes."""
    packed = path.stat().st_size
    limit = max(_ANY_RATIO, max_compression_ratio * packed)
    data = bytearray()
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise UserError(f"{path}: {packed:,} bytes unpack to more than {limit:,}, expected "
                                f"at most {max_compression_ratio} times as many (or 64 MB); if the "
                                f"file is right, raise {setting('max_compression_ratio')}")
    return bytes(data)


def _decode(path, data, encoding, escape):
    """Bytes -> text without byte order mark; UserError if empty, of another encoding, or NUL."""
    try:
        text = data.decode(encoding, "surrogateescape" if escape else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: byte 0x{data[error.start]:02x} (number {column} of "
                        f"the line) is not {encoding}; "
                        f"{_suggestion(data, error.start)}") from None
    except (LookupError, ValueError):
        raise UserError(f"{path}: unknown encoding {encoding!r}; expected one such as utf-8, "
                        "utf-16, latin-1 or cp1252") from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{path}: is empty")
    if "\0" in text and not escape:
        line = text.count("\n", 0, text.index("\0")) + 1
        # without a byte order mark; in little-endian order the NUL is the second of two bytes
        order = "utf-16" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        raise UserError(f"{path}, line {line}: holds a NUL byte, which no text has; if the file is "
                        f"UTF-16, give {setting('encoding', order)}")
    return text


def _suggestion(data, start):
    """Bytes, the place of the first that could not be decoded -> what to do, for a message."""
    likely = _likely_encoding(data)
    if likely is None:
        return f"give the right {setting('encoding')}"
    text, before = data.decode(likely), len(data[:start].decode(likely, "ignore"))
    word = re.search(r"\S{0,15}\Z", text[max(before - 15, 0):before])[0] + re.match(
        r"\S{0,15}", text[before:before + 15])[0]
    return (f"with {setting('encoding', likely)} it would read {short_repr(word)}; give the right "
            f"{setting('encoding')}")


def _likely_encoding(data):
    """Bytes that could not be decoded -> the encoding that they most likely have, or None."""
    for mark, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return name if _decodes(data, name) else None
    if _decodes(data, "utf-8"):
        return "utf-8"
    runs = _HIGH.findall(data)
    high = sum(map(len, runs))
    if len(_ESCAPED.findall(data.decode("utf-8", "surrogateescape"))) < 0.1 * high:
        return None      # UTF-8 with a few damaged letters
    shares = {name: _share(data, name, common) for names, common in _EAST_ASIAN
              if (name := next((name for name in names if _decodes(data, name)), None))}
    likely = max(shares, key=shares.__getitem__) if max(shares.values(), default=0) > 0.1 else None
    # whole words of them, where French has an accent here and there
    words = sum(len(run) for run in runs if len(run) > 2) > 0.7 * high
    for name in ("cp1251", "koi8-r") if words else ():
        # Russian is mostly small letters, which the other of the two reads as capitals
        if _decodes(data, name) and _share(data, name, _RUSSIAN) > (0.85 if likely else 0.75):
            return name
    if likely:
        return likely
    # GB 2312 puts nearly all characters of running text, and the punctuation, into these two bytes
    chinese = 2 * len(re.findall(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]", data))
    if chinese >= 0.8 * high and _decodes(data, "gb18030"):
        return "gb18030"
    return "cp1252" if _decodes(data, "cp1252") else None


def _share(data, encoding, letters):
    """-> which part of the characters beyond ASCII are some of these letters."""
    text = [char for char in data.decode(encoding)[:_SAMPLE] if not char.isascii()]
    return sum(char in letters for char in text) / max(len(text), 1)


def _decodes(data, encoding):
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
