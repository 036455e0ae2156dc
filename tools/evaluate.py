"""`python3 tools/host.py evaluate`: edit a data set by workflows and measure; see --help."""

import signal
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))

from evaluating.command import main  # noqa: E402
from hosting.errors import HostError  # noqa: E402


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt  # so that servers that were started are stopped on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"evaluate: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate: stopped; the same command goes on where this one was.")
