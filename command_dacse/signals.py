"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is half done is taken away."""

import signal
from types import FrameType


def stop_in_order() -> None:
    """Has the signals that would end the process at once raise SystemExit; one that is ignored (nohup) stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as a shell reports it
