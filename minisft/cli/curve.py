"""`minisft curve`: the same fine-tuning with more and more training texts."""

from minisft.cli.arguments import add_settings, run_with_settings
from minisft.jobs import curve

HELP = "learning curve: fine-tune with several numbers of training texts, beside the baselines"


def add_arguments(parser):
    """--sizes, one option for each setting of fine-tuning, and --resume."""
    parser.usage = "minisft curve --sizes N,N,... [--train FILE] [--test FILE] [options]"
    add_settings(parser, curve.CurveSettings)


def run(args):
    """-> exit code."""
    return run_with_settings(args, curve.CurveSettings, "curve", curve.curve, ("sizes",))
