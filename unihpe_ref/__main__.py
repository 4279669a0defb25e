"""The command ``unihpe``; ``unihpe --help`` lists its commands. ``python -m unihpe_ref`` is the same.

Exit codes: 0 for success, 1 if training failed or ``doctor`` or ``data check`` found a fault, 2 for invalid input, 130
if interrupted.
``UNIHPE_TRACEBACK=1`` shows where an error came from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_EXTRA = (
    "unihpe needs the packages of its extra; {missing!r} is not installed. Run `pip install 'multicontrast[unihpe]'`."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from unihpe_ref.applications.escaping import PlainConsole, printable
        from unihpe_ref.applications.options import parse
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("multicontrast", "unihpe_ref"):
            raise
        print(_EXTRA.format(missing=error.name), file=sys.stderr)
        return 2
    try:
        parse(arguments).execute(PlainConsole())
    except SystemExit as stop:  # after a help text, or a message about options
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("unihpe: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("UNIHPE_TRACEBACK") == "1":
            raise
        print(f"unihpe: {printable(_worded(error))}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    return 0


def _worded(error: Exception) -> str:
    """An error of the file system, in three parts like the others."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    place = "a file" if error.filename is None else f"`{error.filename}`"
    return f"reading or writing {place} failed; got {error.strerror}. Check the path, its permissions and the disk."


if __name__ == "__main__":
    sys.exit(main())
