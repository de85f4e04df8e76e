"""What an encoder-decoder makes of pairs: its loss, its translations, where they look."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from minisft.backend.array import to_cpu
from minisft.backend.cpu import allocator
from minisft.data.batch import token_budget_batches
from minisft.data.dataset import TokenizedDataset
from minisft.data.pairs import PairDataset
from minisft.data.text import encode_all
from minisft.data.tokenizer import decode
from minisft.models.finite import require_finite
from minisft.models.seq2seq import EncoderDecoder
from minisft.models.translate import beam_search, greedy
from minisft.nn.layers import no_grad
from minisft.ops.cross_entropy import log_softmax

DECODED_AT_ONCE = 64     # texts: enough to fill the matrix products, little memory


@allocator.reused()
@no_grad()
@np.errstate(over="ignore", invalid="ignore")     # reported by one UserError
def token_loss(model: EncoderDecoder, dataset: TokenizedDataset, batch_tokens: int,
               progress: str | None = None) -> dict[str, float]:
    """-> loss (nats a token, without smoothing), perplexity, accuracy of the next token given the
    right ones before it, how many tokens; UserError on NaN."""
    total = right = tokens = 0.0
    batches = token_budget_batches(dataset.lengths, range(len(dataset)), batch_tokens)
    for indices in _progress(batches, progress):
        batch = dataset.batch(indices)
        loss, denominator, logits = model.loss(batch)
        total, tokens = total + float(loss), tokens + float(denominator)
        right += int((to_cpu(logits.argmax(axis=-1)) == batch.labels).sum())
    require_finite(total)
    return {"loss": total / tokens, "perplexity": float(np.exp(min(total / tokens, 700))),
            "token_accuracy": right / tokens, "tokens": int(tokens)}


def translate(model: EncoderDecoder, tokenizer: Tokenizer, sources: Sequence[np.ndarray],
              beam_size: int = 4, length_penalty: float = 1.0,
              progress: str | None = None) -> list[str]:
    """Token ids of M sources -> their translations; a beam of 1 takes the most probable token."""
    texts = [""] * len(sources)
    order = np.argsort([len(row) for row in sources], kind="stable")
    at_once = max(1, DECODED_AT_ONCE // beam_size)
    groups = [order[i:i + at_once] for i in range(0, len(order), at_once)]
    for group in _progress(groups, progress):
        rows = [sources[n] for n in group]
        # no translation is that much longer than its source
        room = 2 * max(map(len, rows)) + 20
        found = (greedy(model, rows, room) if beam_size == 1 else
                 beam_search(model, rows, beam_size, length_penalty, room))
        for n, translated in zip(group, found, strict=True):
            texts[n] = decode(tokenizer, translated.ids).strip()
    return texts


def cross_attention(model: EncoderDecoder, pairs: PairDataset, n: int) -> np.ndarray | None:
    """Pair n -> where each token of its target looks in its source (T,S), the mean over heads and
    decoder blocks; None in a precision whose queries NumPy cannot read."""
    model.forward(pairs.batch([n]))
    found = []
    for block in model.trunk.decoder.layers:
        q, k = (to_cpu(a) for a in block.encoder_attn.attended[:2])      # (T,H,D), (S,H,D)
        if q.dtype.kind != "f":
            return None
        scores = np.einsum("thd,shd->hts", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
        found.append(np.exp(log_softmax(scores)).mean(axis=0))
    model.clear_cache()
    return np.mean(found, axis=0)


def attention_of_one(model: EncoderDecoder, tokenizer: Tokenizer, pairs: PairDataset,
                     texts: Sequence[str]) -> tuple[list[str], list[str], np.ndarray] | None:
    """Pairs, their translations -> tokens of a source and of its translation, where each of these
    looks (T,S); None if none is short enough to be drawn."""
    # a translation may have more tokens than it was made of, and the decoder reads one before them
    most = min(24, model.trunk.config.n_positions - 1)
    for n, text in enumerate(texts):
        ids = encode_all(tokenizer, [text])[0][0]
        if 4 <= len(ids) <= most and 4 <= len(pairs.ids[n]) <= 24:
            own = replace(pairs, ids=[pairs.ids[n]], targets=[ids])
            weights = cross_attention(model, own, 0)
            # the row of each token is that of the one before, which predicts it
            tokens = [[_shown(tokenizer, i) for i in row]
                      for row in (pairs.ids[n], [*ids, pairs.end])]
            return None if weights is None else (*tokens, weights)
    return None


def _shown(tokenizer, i):
    """-> a token as it is read, or by its name where that is nothing."""
    return decode(tokenizer, [int(i)]).strip() or str(tokenizer.id_to_token(int(i)))


def _progress(batches, description):
    return batches if description is None else tqdm(
        batches, desc=description, unit="batch", dynamic_ncols=True, disable=None)
