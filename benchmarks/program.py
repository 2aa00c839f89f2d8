"""The command lines of the benchmarks: `--help`, and errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from rerankd.core import RerankdError


def parser(name: str, documentation: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`. Its help begins with the first line of the module's documentation."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(documentation or "").splitlines()[0]
    )


def run(main: Callable[[], object]) -> None:
    """Call `main`; an error that a user can act on ends the process with one line and exit code 1."""
    try:
        main()
    except RerankdError as error:
        sys.exit(f"error: {error}")
