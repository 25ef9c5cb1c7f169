"""What all tests share."""

import signal


def pytest_configure():
    """Lets SIGINT end commands again, as some tests expect of those that they start.

    A shell without job control (`make test &` in a script) has what it starts in the background
    ignore it, and whatever that starts inherits so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
