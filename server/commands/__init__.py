"""Commands of ``ladle`` that need more than the SDK; the command line finds them as entry points ``ladle.commands``.

In: options of the command line. Out: what is printed, files, or a server that runs.
"""
