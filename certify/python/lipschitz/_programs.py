"""The programs `certify` and `train`, as console scripts."""

import os
import signal
import sys


def _run(name: str) -> None:
    # Before any thread runs: candle's own threads spin while they wait, and ours do the work.
    os.environ.setdefault("CANDLE_NUM_THREADS", "1")
    from ._lipschitz import program

    # Signals are the program's own affair, as in a process without Python.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    again = [sys.executable, "-m", "lipschitz._programs", name]
    sys.exit(program(name, sys.argv[1:], again))


def certify() -> None:
    """The program `certify`."""
    _run("certify")


def train() -> None:
    """The program `train`."""
    _run("train")


if __name__ == "__main__":
    _run(sys.argv.pop(1))
