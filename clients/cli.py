"""The ``ladle`` command: an entrance that says what to install when it cannot go on."""

import sys


def main() -> None:
    """Run the command line; exits with 0, 1 (it failed), 2 (it was called wrongly) or 130 (interrupted)."""
    try:
        from ladle.clients.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit("error: the command line needs typer and rich: pip install 'ladle[cli]'")
    app()
