"""A dictionary learnt from pairs of sentences, the baseline of a translator: IBM model 1.

Brown, Della Pietra, Della Pietra and Mercer 1993, "The mathematics of statistical machine
translation", section 4.1. Sentence e has the words e_1 ... e_l and the empty word e_0, its
translation f the words f_1 ... f_m. t(f|e) is how probable f is as the translation of e:
    (1) P(f|e) = eps / (l + 1)^m * prod over j of  sum over i of t(f_j|e_i)
Expectation: how much of each f_j comes from each e_i, summed over all sentences,
    (2) c(f|e) = sum over pairs of sentences, j, i with f_j = f, e_i = e of
                 t(f|e) / sum over i' of t(f_j|e_i')
Maximisation:
    (3) t(f|e) = c(f|e) / sum over f' of c(f'|e)
which begins with t the same for all f, and never lowers (1).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"     # and kana: each is a word
# a word with the apostrophe that it ends with (l'), or a mark
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+['\u2019]?|[^\w\s]")
_NO_SPACE = re.compile(rf"(?<=['\u2019(]) | (?=[,.;:!?)%])|(?<=[{_HAN}]) (?=[^\s])")
MOST_PAIRS = 50_000     # more change little and take memory


def words(text: str) -> list[str]:
    """A text -> its words and marks, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


class WordTranslator:
    """t(f|e) of the pairs, after some rounds of (2) and (3)."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str], rounds: int = 5) -> None:
        """Raises ValueError for lists of different lengths."""
        pairs = [(words(e), words(f)) for e, f in
                 zip(sources, targets, strict=True)][:MOST_PAIRS]
        e_ids, f_ids = _numbered(e for e, _ in pairs), _numbered(f for _, f in pairs)
        self.f_words = list(f_ids)
        self.spellings = _spellings(targets[:MOST_PAIRS])
        n = len(self.f_words)
        # every f_j beside every e_i of its sentence and e_0, which has the number 0
        rows, of_word, begun = [], [], 0
        for e, f in pairs:
            es = np.array([0, *(e_ids[word] + 1 for word in e)])
            fs = np.array([f_ids[word] for word in f], dtype=np.int64)
            rows.append((es[None, :] * n + fs[:, None]).ravel())
            of_word.append(np.repeat(np.arange(begun, begun + len(fs)), len(es)))
            begun += len(fs)
        keys, place = np.unique(np.concatenate(rows), return_inverse=True)
        of_word, of_e = np.concatenate(of_word), keys // n
        t = np.full(len(keys), 1 / n)
        self.log_likelihood = []     # of (1), without its constants
        for _ in range(rounds):
            shares = t[place]
            sums = np.bincount(of_word, shares)
            self.log_likelihood.append(float(np.log(sums).sum()))
            c = np.bincount(place, shares / sums[of_word], len(keys))       # (2)
            t = c / np.bincount(of_e, c)[of_e]                              # (3)
        self.e_ids, self.t, self.keys = e_ids, t, keys
        # the most probable f of each e: the last of its stretch when sorted by t
        order = np.lexsort((t, of_e))
        last = np.append(of_e[order][1:] != of_e[order][:-1], True)
        self.best = dict(zip(of_e[order][last].tolist(), (keys[order][last] % n).tolist(),
                             strict=True))

    def probability(self, e: str, f: str) -> float:
        """-> t(f|e), 0 where they never stood in one pair of sentences."""
        key = (self.e_ids[e] + 1) * len(self.f_words) + self.f_words.index(f)
        i = np.searchsorted(self.keys, key)
        return float(self.t[i]) if i < len(self.keys) and self.keys[i] == key else 0.0

    def translate(self, texts: Iterable[str]) -> list[str]:
        """Texts -> each word by its most probable translation, spelt as it mostly is within a
        sentence, in the order of the source; a word that was never seen stays."""
        return [_sentence([self._translated(word) for word in _WORD.findall(text)])
                for text in texts]

    def _translated(self, word):
        e = self.e_ids.get(word.lower())
        if e is None:
            return word
        f = self.f_words[self.best[e + 1]]
        return self.spellings.get(f, f)


def _numbered(sentences):
    """-> a number for each different word, in the order in which they come."""
    return {word: i for i, word in enumerate(dict.fromkeys(
        word for sentence in sentences for word in sentence))}


def _spellings(texts):
    """-> how each word is mostly spelt where it does not begin a text, by its lower case."""
    counts = Counter(word for text in texts for word in _WORD.findall(text)[1:])
    # the first of equally frequent ones
    return {word.lower(): word for word, _ in reversed(counts.most_common())}


def _sentence(found):
    """Words -> a text, with a capital where it begins."""
    text = _NO_SPACE.sub("", " ".join(found))
    return text[:1].upper() + text[1:]
