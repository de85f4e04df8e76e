"""WordNet's data files as text to pretrain on: what words mean, and which belong together."""

import re
import zlib
from collections import defaultdict

# Files 05 and 20, animals and plants: a fifth of all nouns, most of them species that no news
# ever names. Only what has kinds of its own is kept of them.
SPECIES_FILES = ("05", "20")
LATIN = re.compile(r"[A-Z]|(genus|species|sub|super)?(family|order|class|phylum|genus|kingdom) ")


def synsets(lines, part):
    """Lines of a WordNet data file (manual wndb(5WN)) -> (key, words, pointers, gloss) each.

    Pointers are (symbol, key); a key is (part of speech, offset). Satellite adjectives count as
    adjectives. Of animals and plants only what has kinds of its own and an English name.
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
        if part == "n" and fields[1] in SPECIES_FILES and (
                not any(mark == "~" for mark, _ in pointers)
                or all(LATIN.match(word) for word in words)):
            continue
        yield (part, fields[0]), words, pointers, gloss.strip()


def read_wordnet(folder):
    """A folder with WordNet's data files -> words by key, pointers by key, gloss by key."""
    words, pointers, glosses = {}, {}, {}
    for part, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
        with open(folder / f"data.{name}", encoding="utf-8") as file:
            for key, *found in synsets(file, part):
                words[key], pointers[key], glosses[key] = found
    return words, pointers, glosses


def _above(key, pointers, most):
    """-> the keys of what this is a kind of, of what that is a kind of, ..."""
    chain = []
    while len(chain) < most:
        key = next((k for mark, k in pointers.get(key, ()) if mark in ("@", "@i")), None)
        if key is None or key in chain:
            break
        chain.append(key)
    return chain


def wordnet(folder):
    """A folder with WordNet's data files -> a document of a few sentences for each synset.

    What the words mean, what that is a kind of (three steps), its topic and that of what
    stands above it, and the words that are near.
    """
    words, pointers, glosses = read_wordnet(folder)
    found = []
    for key, gloss in glosses.items():
        above = _above(key, pointers, 3)
        text = f"{', '.join(words[key])}: {gloss}."
        for sentence, keys in (
                ("A kind of {}.", above),
                ("Part of {}.", _marked(pointers[key], "#p", "#m")),
                ("Topic: {}.", [k for each in (key, *above[:2])
                                for k in _marked(pointers.get(each, ()), ";c")]),
                ("Similar: {}.", _marked(pointers[key], "&")),
                ("Of {}.", _marked(pointers[key], "\\")),
                ("Related: {}.", _marked(pointers[key], "+")),
                ("The opposite: {}.", _marked(pointers[key], "!"))):
            names = dict.fromkeys(words[k][0] for k in keys if k in words)
            names = [name for name in names if name not in words[key]][:6]
            if names:
                text += " " + sentence.format(", ".join(names))
        found.append(text)
    return found


def _marked(pointers, *marks):
    return [key for mark, key in pointers if mark in marks]


def topics(folder, least=4, most=40):
    """The same folder -> documents that list what belongs together: a topic's words, a kind's.

    No gloss stands here, so a held-out one is nowhere to be read.
    """
    words, pointers, _ = read_wordnet(folder)
    topic, kind = defaultdict(list), defaultdict(list)
    for key in words:
        for mark, other in pointers[key]:
            if mark == ";c":
                topic[other].append(key)
            elif mark in ("@", "@i"):
                kind[other].append(key)
    found = []
    for sentence, groups in (("Words of {}: {}.", topic), ("Kinds of {}: {}.", kind)):
        for key, members in groups.items():
            if key not in words or len(members) < least:
                continue
            # in the order of a checksum: neighbours in the file are too much alike
            members = sorted(members, key=lambda k: zlib.crc32(repr(k).encode()))
            for first in range(0, len(members), most):
                names = dict.fromkeys(words[k][0] for k in members[first:first + most])
                found.append(sentence.format(words[key][0], ", ".join(names)))
    return found
