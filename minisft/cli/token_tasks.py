"""What `predict` and `evaluate` do with a model whose head reads every token."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from minisft.cli.arguments import say
from minisft.data.questions import Questions, read_questions
from minisft.data.tagged import TaggedSentences, read_tagged
from minisft.errors import UserError
from minisft.evaluation.figures import count
from minisft.io.files import write_text
from minisft.io.model_folder import Preprocessing
from minisft.jobs import answer, tag
from minisft.models.token_heads import SpanClassifier, TokenClassifier


def predict(args: argparse.Namespace, model: TokenClassifier | SpanClassifier,
            tokenizer: Tokenizer, preprocessing: Preprocessing) -> None:
    """Prints or writes the tags of each sentence, or the answer to each question."""
    run = _tags if isinstance(model, TokenClassifier) else _answers
    text, n, what = run(args, model, tokenizer, preprocessing)
    if args.out is None:
        sys.stdout.write(text)
        return
    write_text(args.out, text, new=not args.overwrite)
    say(f"wrote {count(n, what)} to {args.out}")


def evaluate(args: argparse.Namespace, model: TokenClassifier | SpanClassifier,
             tokenizer: Tokenizer, preprocessing: Preprocessing) -> tuple[dict, list[Any]]:
    """-> the figures, and the lines that show them."""
    if isinstance(model, TokenClassifier):
        columns = preprocessing.columns
        sentences = read_tagged(args.test, args.word_column or columns.word_column,
                                args.tag_column or columns.tag_column, model.label_names,
                                args.encoding, max_compression_ratio=args.max_compression_ratio)
        _tell(sentences.notes)
        found = tag.sentence_windows(sentences, tokenizer, preprocessing, model)
        figures, _ = tag.measure(model, sentences, found, args.batch_tokens, "evaluating")
        return figures, tag.headlines("test", figures)
    questions = read_questions(args.test, args.encoding, args.max_compression_ratio)
    _tell(questions.notes)
    dataset = answer.question_windows(questions, tokenizer, preprocessing, model)
    figures, _, loss = answer.measure(model, dataset, args.batch_tokens,
                                      preprocessing.no_answer_margin, "evaluating")
    figures |= {"loss": loss, "sliding_window": answer.baseline(questions)}
    return figures, answer.headlines("test", figures)


def _tags(args, model, tokenizer, preprocessing):
    if args.file:
        columns = preprocessing.columns
        sentences = read_tagged(args.file, args.word_column or columns.word_column,
                                encoding=args.encoding, with_tags=False,
                                max_compression_ratio=args.max_compression_ratio)
        _tell(sentences.notes)
    else:
        sentences = _sentences(args.text)
    found = tag.sentence_windows(sentences, tokenizer, preprocessing, model)
    logp = tag.log_probabilities(model, sentences, found, args.batch_tokens, "predicting")
    names, lines = model.label_names, []
    for words, rows in zip(sentences.words, logp, strict=True):
        tags = [names[k] for k in rows.argmax(axis=1)]
        if args.out is None and sys.stdout.isatty():
            lines.append(" ".join(f"{word}/{name}" for word, name in
                                  zip(words, tags, strict=True)))
        else:
            lines.append(json.dumps({
                "words": words, "tags": tags,
                "p": [round(float(p), 6) for p in np.exp(rows.max(axis=1))]}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines), len(lines), "sentence"


def _sentences(texts) -> TaggedSentences:
    sentences = tag.words_of(texts)
    for n, words in enumerate(sentences.words, 1):
        if not words:
            raise UserError(f"text {n} is empty, expected some words")
    return sentences


def _answers(args, model, tokenizer, preprocessing):
    if args.file:
        questions = read_questions(args.file, args.encoding, args.max_compression_ratio)
        _tell(questions.notes)
    elif len(args.text) == 2:
        questions = Questions(Path("text"), ["1"], args.text[:1], args.text[1:], [""], [[]])
    else:
        raise UserError(f"{len(args.text)} texts, expected a question and the text that holds its "
                        "answer, or --file, JSON as SQuAD's")
    dataset = answer.question_windows(questions, tokenizer, preprocessing, model)
    answers, _ = answer.find_answers(model, dataset, args.batch_tokens, "predicting")
    margin = preprocessing.no_answer_margin
    given = ["" if margin is not None and found.margin <= margin else found.text
             for found in answers]
    if args.file:     # as the official evaluation reads them
        return json.dumps(dict(zip(questions.ids, given, strict=True)), ensure_ascii=False,
                          indent=1) + "\n", len(given), "answer"
    return f"{given[0] or '(no answer)'}\n", 1, "answer"


def _tell(notes):
    for note in notes:
        say(f"note: {note}")
