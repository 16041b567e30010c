"""Why a server process could not begin; apart from the web errors, so that the command line needs no web imports."""


class StartError(Exception):
    """The process cannot begin to serve; one message for whoever started it."""
