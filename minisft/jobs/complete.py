"""The task `complete`: prompts and completions in, a language model that answers out."""

import numpy as np

from minisft.data.dataset import TokenizedDataset
from minisft.data.read import Prompts, draw, read_prompts, shared_texts, split
from minisft.data.text import encode_all
from minisft.errors import UserError
from minisft.evaluation import metrics, report
from minisft.evaluation.evaluate import completion_loss, completions
from minisft.io.checkpoint import load
from minisft.io.model_folder import END, end_token
from minisft.models.heads import LanguageModel
from minisft.ops.cross_entropy import IGNORE


def join(prompt_ids, completion_ids, end, max_length):
    """Ids of a prompt (its separator included) and a completion -> ids (T,), labels (T,), cut.

    The loss counts the completion and the end token only. What is too long loses the beginning of
    its prompt first, then the end of its completion.
    """
    answer = np.append(completion_ids, end)
    cut = len(prompt_ids) + len(answer) > max_length
    answer = answer[:max_length - 1]
    prompt_ids = prompt_ids[len(prompt_ids) - min(len(prompt_ids), max_length - len(answer)):]
    ids = np.concatenate([prompt_ids, answer])
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    first = len(prompt_ids) - 1      # the prompt's last token predicts the completion's first
    labels[first:-1] = ids[first + 1:]
    return ids, labels, cut


def encode(tokenizer, prompts, preprocessing):
    """Prompts -> Sequences, the prompts' token ids to generate from, how many were cut.

    Generation is given the same part of the prompt as the loss; it ends at the model's length.

    Raises UserError for a tokenizer or a length that cannot do it.
    """
    end = end_token(tokenizer)
    if end is None:
        raise UserError(f"the tokenizer has no {END}, which ends a completion")
    if preprocessing.max_length < 2:
        raise UserError(f"at most {preprocessing.max_length} token for prompt and completion, "
                        "expected 2 or more: see --max-length and --context-length")
    starts, _ = encode_all(tokenizer,
                           [p + (preprocessing.separator or "") for p in prompts.prompts])
    answers, _ = encode_all(tokenizer, prompts.completions)
    joined = [join(p, a, end, preprocessing.max_length)
              for p, a in zip(starts, answers, strict=True)]
    # the first label that counts stands at the prompt's last token
    kept = [ids[:np.flatnonzero(labels != IGNORE)[0] + 1] for ids, labels, _ in joined]
    return (TokenizedDataset([ids for ids, _, _ in joined], [labels for _, labels, _ in joined]),
            kept, sum(cut for _, _, cut in joined))


def measure(model, tokenizer, sequences, starts, expected, batch_tokens, max_new_tokens, shown):
    """-> loss, perplexity and exact match as a dict, and the generated completions."""
    results = completion_loss(model, sequences, batch_tokens, "evaluating" if shown else None)
    answers = completions(model, tokenizer, starts, max_new_tokens, end_token(tokenizer),
                          "generating" if shown else None)
    return results | metrics.exact_match(expected, answers), answers


def headline(where, results):
    """"test" or "validation", the figures -> one line for the terminal."""
    return (f"{where} loss {results['loss']:.4f} (perplexity {results['perplexity']:.2f}) over "
            f"{results['tokens']} tokens of completions, exact match "
            f"{results['exact_match']:.4f} (95% interval {results['exact_match_low']:.4f} to "
            f"{results['exact_match_high']:.4f}), {results['n']} prompts")


class Completion:
    """Reads and checks all data when it is made; nothing is written before it has been."""

    weights = None

    def __init__(self, settings, clean):
        self.settings = settings
        if settings.train is None:
            raise UserError("--task complete needs --train FILE with prompts and completions")
        self.paths = {"train": settings.train, "valid": settings.valid, "test": settings.test}
        train, valid, self.test = (None if path is None else read_prompts(
            path, list(settings.prompt_column), settings.completion_column, clean,
            settings.encoding, not settings.no_header) for path in self.paths.values())
        if settings.train_texts is not None:
            train = _part(train, draw(train.path, None, len(train.prompts), settings.train_texts,
                                      settings.seed))
        self.cleaned = train.cleaned
        if valid is None:
            kept, held_out = split(None, train.prompts, settings.valid_fraction, settings.seed)
            self.train, self.valid = _part(train, kept), _part(train, held_out)
        else:
            self.train, self.valid = train, valid

    @property
    def texts(self):
        """-> all training texts."""
        return self.train.prompts + self.train.completions

    def load(self, folder, seed, dropout):
        """A checkpoint's folder -> LanguageModel."""
        return load(folder, task="complete", seed=seed, dropout=dropout)

    def scratch(self, config, seed):
        """-> LanguageModel from random weights."""
        return LanguageModel(config, seed=seed)

    def encode(self, tokenizer, preprocessing):
        """Turns all texts into token ids."""
        self.tokenizer = tokenizer
        none = None, [], 0
        (self.train_ids, _, cut_train), (self.valid_ids, self.valid_starts, cut_valid), \
            (self.test_ids, self.test_starts, cut_test) = (
                none if part is None else
                encode(tokenizer, part, preprocessing)
                for part in (self.train, self.valid, self.test))
        self.cut = {"cut_train": cut_train + cut_valid, "cut_test": cut_test}

    def loss_options(self):
        """-> what the model's loss is told beside the batch."""
        return {}

    def sample(self):
        """-> lines that show on the first text where the loss is taken."""
        ids, labels = self.train_ids.ids[0], self.train_ids.labels[0]
        counted = int((labels != IGNORE).sum())
        prompt, answer = ids[:len(ids) - counted], labels[labels != IGNORE]
        decode = self.tokenizer.decode
        return [f"the first sample, {len(ids)} tokens; the loss counts the last {counted} only:",
                f"  no loss: {decode(prompt.tolist())!r}",
                f"  loss:    {decode(answer.tolist(), skip_special_tokens=False)!r}"]

    def validate(self, model):
        """-> figures of the validation part, with the score that chooses the best epoch."""
        found = completion_loss(model, self.valid_ids, self.settings.micro_tokens)
        return {"score": [-found["loss"]], "valid_loss": found["loss"],
                "valid_perplexity": found["perplexity"]}

    def data(self):
        """-> what the report says of the data."""
        s, test = self.settings, self.test
        return {
            "train_path": s.train, "test_path": None if test is None else s.test,
            "n_train": len(self.train.prompts), "n_valid": len(self.valid.prompts),
            "n_test": None if test is None else len(test.prompts), "cleaned": dict(self.cleaned),
            "shared_with_training": None if test is None else shared_texts(
                self.train.prompts + self.valid.prompts, test.prompts), **self.cut}

    def evaluate(self, model):
        """Reads the test set once (without one: the validation part) -> results, samples."""
        part, ids, starts = ((self.valid, self.valid_ids, self.valid_starts)
                             if self.test is None else
                             (self.test, self.test_ids, self.test_starts))
        s = self.settings
        results, answers = measure(model, self.tokenizer, ids, starts, part.completions,
                                   s.micro_tokens, s.max_new_tokens, not s.quiet)
        samples = [{"prompt": p, "expected": c, "generated": a} for p, c, a in
                   zip(part.prompts[:20], part.completions, answers, strict=False)]
        return results, samples

    def write(self, folder, results, samples, settings, history):
        """The report; its picture of the curves is there already."""
        report.write_completion_report(folder / "report.md", results, self.data(), settings,
                                       history, samples)

    def headline(self, results):
        """-> one line for the terminal."""
        return headline("validation" if self.test is None else "test", results)


def _part(prompts, indices):
    return Prompts(path=prompts.path, prompts=[prompts.prompts[n] for n in indices],
                   completions=[prompts.completions[n] for n in indices],
                   lines=[prompts.lines[n] for n in indices], cleaned=prompts.cleaned)
