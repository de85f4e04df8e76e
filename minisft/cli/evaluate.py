"""`minisft evaluate`: a trained model against texts whose answers are known."""

import argparse
import dataclasses
import json
from contextlib import contextmanager

from minisft.cli import token_tasks, translate
from minisft.cli.arguments import (
    add_model,
    add_preprocessing,
    add_table,
    chosen_preprocessing,
    read_model,
    require_used,
    say,
    whole,
)
from minisft.cli.tables import (
    add_bad_rows,
    chosen_columns,
    naming_columns_of_training,
    report_table,
    require_new_bad_rows,
    table_options,
)
from minisft.cli.terminal import show
from minisft.data.in_memory import without_unreadable
from minisft.data.read import UnknownLabelError, read_examples, read_prompts
from minisft.data.sequences import encode_sequences, require_readable
from minisft.data.tokenizer import special_tokens_note
from minisft.errors import UserError, setting
from minisft.evaluation import metrics
from minisft.evaluation.document import one_line
from minisft.evaluation.evaluate import log_probabilities
from minisft.evaluation.figures import Verdict, count, interval, percent
from minisft.evaluation.report import absent_classes_note
from minisft.jobs import classify, complete
from minisft.models.heads import Classifier, LanguageModel
from minisft.models.seq2seq import EncoderDecoder

EXAMPLES = ("minisft evaluate --model runs/mine/model --test test.csv",
            "minisft evaluate --model runs/mine/model --test test.csv --json > figures.json")
BASIC = ("model", "test", "text_column", "label_column", "label_map", "skip_bad_rows", "json")
FILE_OPTION = "--test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the file, and how the figures are shown."""
    parser.usage = "minisft evaluate --model NAME --test FILE [options]"
    add_model(parser, "folder of a model, as finetune leaves it")
    parser.add_argument("--test", required=True, metavar="FILE",
                        help="labelled texts; for a language model prompts and completions, for a "
                        "tagger sentences with tags, for answers JSON as SQuAD's, for a translator "
                        "texts with translations")
    parser.add_argument("--label-column", metavar="NAME",
                        help="column of the label (default: as in training; label)")
    parser.add_argument("--word-column", metavar="NAME",
                        help="tagger: column of the word (default: as in training)")
    parser.add_argument("--tag-column", metavar="NAME",
                        help="tagger: column of the tag (default: as in training)")
    parser.add_argument("--source-column", metavar="NAME", help="translator: column of the text "
                        "(default: as in training; source)")
    parser.add_argument("--target-column", metavar="NAME", help="translator: column of its "
                        "translation (default: as in training; target)")
    parser.add_argument("--test-target", metavar="FILE", help="translator: file whose lines are "
                        "the translations of the lines of --test")
    translate.add_search(parser)
    parser.add_argument("--label-map", nargs="+", default=(), metavar="NAME=NEW",
                        help="what the file calls the labels of the model's folder, as "
                        "LABEL_0=neg LABEL_1=pos")
    parser.add_argument("--prompt-column", nargs="+", metavar="NAME",
                        help="language model: column of the prompt; several are joined by a line "
                        "break (default: as in training; prompt)")
    parser.add_argument("--completion-column", metavar="NAME", help="language model: column of "
                        "the completion (default: as in training; completion)")
    parser.add_argument("--max-new-tokens", type=whole(1), default=128, metavar="N",
                        help="language model: maximum length of a completion in tokens")
    add_preprocessing(parser, separator=True)
    add_table(parser)
    add_bad_rows(parser)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints the figures, as lines or as JSON."""
    require_new_bad_rows(args)
    model, tokenizer, preprocessing = read_model(
        args, label_map=classify.parse_label_map(args.label_map))
    require_used(args, model)
    room = model.trunk.config.n_positions
    preprocessing = chosen_preprocessing(args, dataclasses.replace(
        preprocessing, max_length=min(preprocessing.max_length or room, room)))
    measure = _classifier if isinstance(model, Classifier) else (
        _language_model if isinstance(model, LanguageModel) else
        translate.evaluate if isinstance(model, EncoderDecoder) else token_tasks.evaluate)
    figures, lines = measure(args, model, tokenizer, preprocessing)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for line in lines:
        show(line)


def _classifier(args, model, tokenizer, preprocessing):
    """-> the figures, and the lines that show them."""
    columns = chosen_columns(args, preprocessing.columns)
    with naming_columns_of_training(preprocessing.columns), _naming_label_map():
        examples = read_examples(args.test, columns.text_column, columns.label_column,
                                 model.label_names, preprocessing.clean,
                                 pair_column=columns.pair_column, **table_options(args))
    if args.skip_bad_rows:
        examples = without_unreadable(examples, classify.unreadable_rows(
            examples, tokenizer, preprocessing, model))
    report_table(args, examples.notes, examples.bad_rows)
    ids, types, cut = encode_sequences(tokenizer, examples.texts, preprocessing.max_length,
                                       preprocessing.truncate, examples.pairs,
                                       preprocessing.parse_special)
    require_readable(ids, tokenizer, model.trunk.config, examples.place, types)
    say(str(preprocessing))
    if not preprocessing.parse_special and (note := special_tokens_note(
            tokenizer, examples.full_texts)):
        say(note)
    logp = log_probabilities(model, ids, args.batch_tokens, "evaluating", types)
    figures = metrics.classification(examples.labels, logp, model.label_names)
    names = [one_line(name, 40) for name in model.label_names]
    width = max(map(len, names))
    lines = [Verdict(f"{percent(figures['accuracy'])} of {count(figures['n'], 'text')} are right"),
             f"  {interval(figures['accuracy_low'], figures['accuracy_high'])}, macro F1 "
             f"{percent(figures['macro_f1'])}, loss {figures['loss']:.4f}", *_cut(cut),
             *([] if (note := absent_classes_note(figures)) is None else [f"note: {note}"]),
             f"{'':{width}}  precision  recall      F1   texts"]
    lines += [f"{name:{width}}  {percent(row['precision']):>9}  {percent(row['recall']):>6}"
              f"  {percent(row['f1']):>6}  {row['support']:6}"
              for name, row in zip(names, figures["per_class"], strict=True)]
    return figures | {"cut": cut}, lines


@contextmanager
def _naming_label_map():
    """A label that the model lacks may be one of its own under another name."""
    try:
        yield
    except UnknownLabelError as error:
        raise UserError(f"{error.args[0]}; if the file has other names for the model's labels, "
                        f"{setting('label_map')} says them, as LABEL_0=neg") from None


def _cut(cut):
    return [f"cut {count(cut, 'text')} to the model's length"] if cut else []


def _language_model(args, model, tokenizer, preprocessing):
    """-> the figures, and the line that shows them."""
    columns = chosen_columns(args, preprocessing.columns)
    with naming_columns_of_training(preprocessing.columns):
        prompts = read_prompts(args.test, columns.prompt_column, columns.completion_column,
                               preprocessing.clean, **table_options(args))
    if args.skip_bad_rows:
        prompts = without_unreadable(prompts, complete.unreadable_rows(
            prompts, tokenizer, preprocessing, model))
    report_table(args, prompts.notes, prompts.bad_rows)
    sequences, starts, cut = complete.encode(tokenizer, prompts, preprocessing, model)
    say(str(preprocessing))
    figures, _ = complete.measure(model, tokenizer, sequences, starts, prompts.completions,
                                args.batch_tokens, args.max_new_tokens, show_progress=True)
    return figures | {"cut": cut}, complete.headlines("test", figures) + _cut(cut)
