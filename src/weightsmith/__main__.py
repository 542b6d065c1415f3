"""`python -m weightsmith`, and the command that installing makes."""

import os
import sys
from typing import NoReturn

from weightsmith.cli import main


def run() -> NoReturn:
    """Run one command and end the process, without the fifth of a second in which Python takes itself apart."""
    code = main()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed before Python began
                stream.flush()
    except OSError:  # a closed pipe, say: Python tells it as it does for every program
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    run()
