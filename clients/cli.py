"""The ``ladle`` command: an entrance that says what to install when it cannot go on."""

import os
import sys


def main() -> None:
    """Run the command line; exits with 0, 1 (it failed), 2 (it was called wrongly) or 130 (interrupted)."""
    try:
        from ladle.clients.bash_words import answering_bash
        from ladle.clients.sdk_commands import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich"):
            raise
        way = "pip install 'ladle[cli]', or in a checkout: pip install '.[cli]'"
        sys.exit(f"error: the command line needs typer and rich: {way}")
    with answering_bash(os.environ):
        app()
