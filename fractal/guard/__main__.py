"""`python -m fractal.guard --dir DIR`: start a guard for DIR and return when it serves."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fractal.guard.undertaker import launch


def main() -> int:
    """Parse arguments, start, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fractal.guard", description=__doc__)
    parser.add_argument(
        "--dir", required=True, type=Path, help="folder of the guard's socket, lock, book and log"
    )
    directory = Path(os.path.realpath(parser.parse_args().dir))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return launch(directory)


if __name__ == "__main__":
    sys.exit(main())
