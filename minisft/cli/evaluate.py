"""`minisft evaluate`: a trained classifier against labelled texts."""

import json

from minisft import metrics
from minisft.cli.arguments import add_model, add_table
from minisft.data.read import read_examples
from minisft.data.text import encode_all
from minisft.errors import UserError
from minisft.evaluate import log_probabilities
from minisft.folder import read_folder
from minisft.models.heads import Classifier

HELP = "measure a classifier on labelled texts"


def add_arguments(parser):
    """The model, the file, and where to write the figures."""
    add_model(parser, "folder of a classifier, as finetune leaves it")
    parser.add_argument("--test", required=True, metavar="FILE", help="labelled texts")
    parser.add_argument("--label-column", default="label", metavar="NAME",
                        help="column of the label")
    add_table(parser)
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args):
    """Prints the figures, as lines or as JSON."""
    model, tokenizer, treatment = read_folder(args.model, args.download)
    if not isinstance(model, Classifier):
        raise UserError(f"{args.model} is a language model, expected a classifier")
    examples = read_examples(args.test, args.text_column, args.label_column, model.names,
                             treatment.clean, args.encoding, not args.no_header)
    room = model.trunk.config.n_positions
    ids, cut = encode_all(tokenizer, examples.texts, min(treatment.max_length or room, room),
                          treatment.truncate)
    logp = log_probabilities(model, ids, args.batch_tokens, "evaluating")
    found = metrics.classification(examples.labels, logp, model.names)
    if args.json:
        print(json.dumps(found | {"cut": cut}, indent=2))
        return
    print(f"accuracy {found['accuracy']:.4f} (95% interval {found['accuracy_low']:.4f} to "
          f"{found['accuracy_high']:.4f}), macro F1 {found['macro_f1']:.4f}, "
          f"loss {found['loss']:.4f}, {found['n']} texts, {cut} cut")
    width = max(len(name) for name in model.names)
    print(f"{'':{width}}  precision  recall      F1   texts")
    for row in found["per_class"]:
        print(f"{row['name']:{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  "
              f"{row['f1']:6.4f}  {row['support']:6}")
