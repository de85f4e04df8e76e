"""Build the text that the bundled model is pretrained on, from where each part comes.

    python scripts/build_corpus.py --out corpus --debian --books BOOKS --speeches SPEECHES.txt.gz

Only what stands in SOURCES is used, each with the licence that was read. Debian's packages are
fetched with `apt-get download` and unpacked beside the corpus; BOOKS is a folder of Project
Gutenberg texts without their headers and footers; SPEECHES is one file, a line <|endoftext|>
between two speeches. Writes a .txt for each source and sources.json.
"""

import argparse
import gzip
import json
import re
import subprocess
from pathlib import Path

BORDER = "\n<|endoftext|>\n"

# name -> (where from, licence as it stands there)
SOURCES = {
    "wordnet": ("WordNet 3.0, Debian package wordnet-base",
                "Permission to use, copy, modify and distribute this software and database and its "
                "documentation for any purpose and without fee or royalty is hereby granted"),
    "jargon": ("The Jargon File 4.4.7, Debian package dict-jargon",
               "in the public domain, to be freely used, shared, and modified"),
    "books": ("Project Gutenberg: Alice, Anne of Green Gables, Grimms' Fairy Tales, Peter Pan, The "
              "Secret Garden, Sherlock Holmes, The Time Machine, Treasure Island, The Wizard of Oz",
              "public domain in the USA"),
    "speeches": ("State of the Union speeches 1945 to 2006", "public domain"),
}


def synsets(lines, part):
    """Lines of a WordNet data file (manual wndb(5WN)) -> (key, words, pointers, gloss) each.

    Pointers are (symbol, key); a key is (part of speech, offset). Satellite adjectives count as
    adjectives.
    """
    for line in lines:
        if line.startswith("  "):      # the licence at the top
            continue
        data, _, gloss = line.partition("|")
        fields = data.split()
        count = int(fields[3], 16)
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ")
                 for word in fields[4:4 + 2 * count:2]]
        rest = fields[4 + 2 * count:]
        pointers = [(rest[i], (rest[i + 2].replace("s", "a"), rest[i + 1]))
                    for i in range(1, 1 + 4 * int(rest[0]), 4)]
        yield (part, fields[0]), words, pointers, gloss.strip()


def render(words, pointers, gloss, names):
    """A synset, the words of all others by key -> a document of a few sentences."""
    def others(symbol):
        return ", ".join(dict.fromkeys(names[key][0] for mark, key in pointers
                                       if mark == symbol and key in names))

    text = f"{', '.join(words)}: {gloss}."
    for symbol, sentence in (("@", "A kind of {}."), ("#p", "Part of {}."), (";c", "Topic: {}."),
                             ("!", "The opposite: {}.")):
        if found := others(symbol):
            text += " " + sentence.format(found)
    return text


def wordnet(folder):
    """A folder with WordNet's data files -> a document for each synset."""
    found = []
    for part, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
        with open(folder / f"data.{name}", encoding="utf-8") as file:
            found += synsets(file, part)
    names = {key: words for key, words, _, _ in found}
    return [render(words, pointers, gloss, names) for _, words, pointers, gloss in found]


def jargon(path):
    """The dictionary file of dict-jargon -> a document for each entry."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    entries = re.split(r"\n(?=\S)", text)
    # the first entries describe the database itself
    return [" ".join(entry.split()) for entry in entries
            if entry and not entry.startswith("00-database")]


def debian(package, work):
    """Fetches and unpacks a package -> its folder."""
    folder = work / package
    if not folder.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True)
        (archive,) = work.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=work, check=True)
    return folder


def main():
    """Writes the corpus that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--debian", action="store_true", help="WordNet and the Jargon File")
    parser.add_argument("--books", type=Path, help="a folder of .txt books")
    parser.add_argument("--speeches", type=Path, help="one file, .txt.gz")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {}
    if args.debian:
        work = args.out / "debian"
        parts["wordnet"] = wordnet(debian("wordnet-base", work) / "usr/share/wordnet")
        parts["jargon"] = jargon(debian("dict-jargon", work) / "usr/share/dictd/jargon.dict.dz")
    if args.books:
        parts["books"] = [path.read_text(encoding="utf-8").strip()
                          for path in sorted(args.books.glob("*.txt"))]
    if args.speeches:
        speeches = gzip.decompress(args.speeches.read_bytes()).decode("utf-8")
        parts["speeches"] = [part.strip() for part in speeches.split("<|endoftext|>")]
    stated = []
    for name, documents in parts.items():
        text = BORDER.join(document for document in documents if document)
        (args.out / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        origin, licence = SOURCES[name]
        stated.append({"name": name, "origin": origin, "licence": licence,
                       "documents": len(documents), "bytes": len(text.encode())})
        print(f"{name}: {len(documents):,} documents, {len(text.encode()):,} bytes")
    (args.out / "sources.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
