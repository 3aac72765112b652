"""How commands handle signals: they stop after the current step, or clean up and end."""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType

from sglm.errors import Stopped
from sglm.runtime.process import signals_handled

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that stop; SIGHUP (a closed terminal) too, unless ignored (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return _STOP_SIGNALS if ignored else (*_STOP_SIGNALS, signal.SIGHUP)


class StopRequest:
    """A signal (SIGINT, SIGTERM or SIGHUP) that is kept until the training asks for it; a second
    SIGINT or SIGTERM ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles all these signals."""
        self.received = number
        if number == signal.SIGHUP:  # the shell sends it, then the terminal sends it again
            signal.signal(number, signal.SIG_IGN)
        else:
            for each in _STOP_SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        # Not print(): the signal may have interrupted a print(). Stderr may be closed.
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; once more to stop without saving\n")

    def signal_number(self) -> int | None:
        """Returns the signal that was received; None if there was none."""
        return self.received

    def raise_if_received(self) -> None:
        """Ends if a signal has asked for it; for work that has nothing to save.

        Raises:
            Stopped: A signal was received.
        """
        if self.received is not None:
            raise Stopped("stopped", signal_number=self.received)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside, a signal requests a stop; afterwards the previous handlers are restored."""
    request = StopRequest()
    with signals_handled(request.receive, *_stop_signals()):
        yield request


def termination_raises(message: str) -> AbstractContextManager[None]:
    """Inside, SIGTERM raises `Stopped` with that message, so that unfinished files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(message, signal_number=number)

    return signals_handled(stop, signal.SIGTERM)
