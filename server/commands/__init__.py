"""Commands of ``ladle`` that need more than the SDK; the command line finds them as entry points ``ladle.commands``."""
