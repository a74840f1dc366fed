"""Being asked to stop: by a scheduler, or by Ctrl-C."""

import signal

from utils.cli import EXIT_STOPPED, CleanExit

# SIGUSR1 is what schedulers are told to send some time before they end a job.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(CleanExit):
    """Training has stopped because it was asked to; everything is saved."""

    exit_code = EXIT_STOPPED


class StopRequest:
    """Whether somebody has asked to stop, and how: the signal's name, or None."""

    signal_name: str | None = None

    def receive(self, number: int, _frame) -> None:
        """Note the request. A second Ctrl-C stops at once."""
        if self.signal_name == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def listen() -> StopRequest:
    """From now on turn signals into a request that the program looks at when it suits it."""
    request = StopRequest()
    for number in _SIGNALS:
        signal.signal(number, request.receive)
    return request
