"""The command `minisft`, and `python -m minisft` for a plain checkout."""

import sys


def main() -> int:
    """-> exit code of the command line."""
    try:
        from minisft.cli import main
    except KeyboardInterrupt:      # so OpenBLAS ends a process that may have no thread
        print("minisft: interrupted while it was loaded; if you did not do that, the system allows "
              "no further thread: expected a higher limit (ulimit -u) or OPENBLAS_NUM_THREADS=1",
              file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(main())
