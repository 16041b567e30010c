"""Why a server process could not begin, or cannot go on; apart from the web errors, so that the command line needs no
web imports."""


class StartError(Exception):
    """The process cannot begin to serve; one message for whoever started it."""


class EngineStopped(Exception):
    """An engine has ended by itself: this process is of no further use, and another one should be started."""
