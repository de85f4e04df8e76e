"""Prompts in, their continuations out: what `generate` does between the texts and the model."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minisft.data.sequences import leading_ids, require_readable
from minisft.data.special_tokens import SpecialTokens
from minisft.data.text import clean, encode_all
from minisft.data.tokenizer import unused_token_ids
from minisft.errors import UserError, tell
from minisft.io.model_folder import Preprocessing, special_tokens_of
from minisft.models.generate import Generated, Sampler, generate
from minisft.models.heads import LanguageModel


def generate_texts(model: LanguageModel, tokenizer: Any, preprocessing: Preprocessing,
                   prompts: list[str], max_new_tokens: int, sampler: Sampler,
                   progress: Callable[[int], Any] | None = None,
                   say: Callable[[str], Any] = tell,
                   on_token: Callable[[int, int], Any] | None = None) -> list[Generated]:
    """Prompts, how many tokens at most, how they are chosen -> Generated for each prompt.

    Prompts are cleaned as in training, and the separator of a model that was fine-tuned on prompts
    stands behind each. Of a prompt beyond the model's length the end is kept, and `say` is told.
    `on_token(i, id)` hears of each token of prompt i as it comes. Raises UserError for an empty
    prompt where the tokenizer has no token that starts a text.
    """
    room = model.trunk.config.n_positions
    texts = [clean(prompt, preprocessing.clean)[0] + (preprocessing.separator or "")
             for prompt in prompts]
    special_tokens = special_tokens_of(model, tokenizer)
    ids, _ = encode_all(tokenizer, texts, parse_special=preprocessing.parse_special)
    leading = leading_ids(tokenizer)
    ids = [np.concatenate([leading, x]) if len(x) else x for x in ids]
    if not preprocessing.parse_special:
        _note_special_tokens(texts, special_tokens, say)
    for n, x in enumerate(ids):
        if len(x) > room:
            ids[n] = x[-max(room - max_new_tokens, 1):]     # the new tokens need a place too
            say(f"prompt {n + 1} is longer than {room} tokens: the last {len(ids[n])} were kept")
    # an empty prompt starts where the model's documents start
    start = special_tokens.end if special_tokens.bos is None else special_tokens.bos
    if not all(texts) and start is None:
        raise UserError("an empty prompt, and the tokenizer has no token that starts a text")
    ids = [x if text else np.array([start]) for x, text in zip(ids, texts, strict=True)]
    require_readable(ids, tokenizer, model.trunk.config, lambda n: f"prompt {n + 1}", what="prompt")
    return generate(model, ids, max_new_tokens, sampler, special_tokens.eos, progress,
                    unused_token_ids(tokenizer, model.trunk.config.vocab_size), on_token)


def _note_special_tokens(texts: list[str], special_tokens: SpecialTokens,
                         say: Callable[[str], Any]) -> None:
    for n, text in enumerate(texts):
        if found := sorted({token for token in special_tokens.tokens.values() if token in text}):
            say(f"note: prompt {n + 1} holds {', '.join(found)}, read as its characters and not "
                "as that token")
