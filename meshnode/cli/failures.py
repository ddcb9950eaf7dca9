"""How commands fail: one line on standard error, and an exit code that scripts can rely on."""

__all__ = ["EXIT_CONFIGURATION", "EXIT_FAILED", "EXIT_INTERRUPTED", "CommandFailed", "NodeDown"]

EXIT_FAILED = 1  # the command was understood and did not work; 2 is click's, for wrong usage
EXIT_CONFIGURATION = 64  # a setting is wrong
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells expect it


class CommandFailed(Exception):
    """The command did not work; the message says why and what to do next."""


class NodeDown(CommandFailed):
    """No node answers where one was looked for."""
