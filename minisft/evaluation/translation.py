"""Figures of translations: BLEU and chrF as `sacrebleu` counts them, BLEU's interval.

BLEU (Papineni et al. 2002), of the n-grams of all sentences together:
    (1) BLEU = min(1, e^(1 - r / c)) * (p1 * p2 * p3 * p4)^(1/4)     r, c: length of the reference
        and of the translation, pn: share of its n-grams that the reference has
Its interval resamples whole sentences (Koehn 2004, section 3).

Figures are of cased text as it is written: scores of tokenised or lower-cased text are others.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from minisft.errors import UserError

MISSING = ("BLEU and chrF need sacrebleu, which is not installed: pip install "
           "'minisft[translate]'; without it there is the loss alone")
SAMPLES = 1000     # of the bootstrap
# Scripts that put no space between words: BLEU counts their characters.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_UNSPACED = re.compile("[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_LETTER = re.compile(r"[^\W\d_]")


def has_sacrebleu() -> bool:
    """-> whether the extra `translate` is there."""
    return find_spec("sacrebleu") is not None


def tokenizer_for(references: Sequence[str]) -> str:
    """Texts of one language -> sacrebleu's tokenizer for it: zh where most letters are Chinese,
    char for other scripts without spaces (kana, Thai, Lao, Burmese, Khmer), else 13a, WMT's."""
    letters = sum(len(_LETTER.findall(text)) for text in references)
    if sum(len(_UNSPACED.findall(text)) for text in references) > 0.1 * letters:
        return "char"
    return "zh" if sum(len(_HAN.findall(text)) for text in references) > 0.5 * letters else "13a"


def translation(references: Sequence[str], translations: Sequence[str],
                baselines: dict[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """M texts as they should be and as they are -> BLEU (0 to 100) with its interval and signature,
    chrF with its own; of each baseline's translations BLEU, and how much better the others are.

    Raises UserError without sacrebleu, and ValueError for other numbers of texts.
    """
    if not has_sacrebleu():
        raise UserError(MISSING)
    from sacrebleu.metrics import BLEU, CHRF
    if not len(references) == len(translations) > 0:
        raise ValueError(f"translation: {len(references)} references, {len(translations)} "
                         "translations")
    metric, chrf = BLEU(tokenize=tokenizer_for(references)), CHRF()
    score = metric.corpus_score(translations, [references]).score
    weights = _resamples(len(references))
    samples = _resampled(metric, references, translations, weights)
    low, high = np.quantile(samples, (0.025, 0.975))
    found = {"bleu": score, "bleu_low": float(low), "bleu_high": float(high),
             "bleu_signature": str(metric.get_signature()),
             "chrf": chrf.corpus_score(translations, [references]).score,
             "chrf_signature": str(chrf.get_signature()), "n": len(references)}
    for name, texts in (baselines or {}).items():
        other = metric.corpus_score(texts, [references]).score
        low, high = np.quantile(samples - _resampled(metric, references, texts, weights),
                                (0.025, 0.975))
        found[name] = {"bleu": other, "better_by": score - other, "better_low": float(low),
                       "better_high": float(high)}
    return found


def sentence_chrf(references: Sequence[str], translations: Sequence[str]) -> np.ndarray:
    """M texts as they should be and as they are -> chrF of each (M,), 0 to 100."""
    from sacrebleu.metrics import CHRF
    chrf = CHRF()
    return np.array([chrf.sentence_score(text, [reference]).score for text, reference in
                     zip(translations, references, strict=True)])


def _resamples(n):
    """-> how often each of n sentences stands in each of the samples (S,n)."""
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.multinomial(n, np.full(n, 1 / n), SAMPLES)


def _resampled(metric, references, translations, weights):
    """-> BLEU of each sample (S,), from the counts of each sentence."""
    from sacrebleu.metrics import BLEU
    single = BLEU(tokenize=metric.tokenizer.signature(), effective_order=True)
    rows = []
    for text, reference in zip(translations, references, strict=True):
        score = single.sentence_score(text, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    sums = weights @ np.array(rows, dtype=np.int64)                         # (S,10)
    smoothing = {"smooth_method": metric.smooth_method, "smooth_value": metric.smooth_value}
    return np.array([BLEU.compute_bleu(row[:4].tolist(), row[4:8].tolist(), int(row[8]),
                                       int(row[9]), **smoothing).score for row in sums])      # (1)
