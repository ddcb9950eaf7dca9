"""The root command. Subcommands are imported when they are called, so that help and status stay fast."""

import importlib

import click

from meshnode import __version__
from meshnode.cli.failures import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_INTERRUPTED, CommandFailed
from meshnode.errors import ConfigError, MeshnodeError

__all__ = ["main", "root"]

_COMMANDS = (
    ("run", "meshnode.cli.run:run", "Start a node and serve models until stopped."),
    ("status", "meshnode.cli.status:status", "Show what the running node is doing."),
    ("chat", "meshnode.cli.chat:chat", "Talk to a model of the running node."),
    ("peers", "meshnode.cli.peers:peers", "List the nodes this one knows."),
    ("invite", "meshnode.cli.invite:invite", "Print a code with which others join this node's mesh."),
    ("join", "meshnode.cli.invite:join", "Join a mesh with a code."),
    ("demo", "meshnode.cli.demo:demo", "See a mesh lose a node and finish its answer, on this machine."),
    ("models", "meshnode.cli.models:models", "List, add and remove models."),
    ("token", "meshnode.cli.api_token:token", "Print the key of the HTTP API."),
    ("update", "meshnode.cli.update:update", "See, check and apply new versions of meshnode."),
    ("config", "meshnode.cli.configure:config", "Show and change settings."),
)


class _Root(click.Group):
    """Loads a command when it is asked for, and turns our errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [name for name, _, _ in _COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        for name, place, _ in _COMMANDS:
            if name == cmd_name:
                module, _, attribute = place.partition(":")
                command = getattr(importlib.import_module(module), attribute)
                assert isinstance(command, click.Command)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, _, summary in _COMMANDS])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo(f"meshnode: {error}", err=True)
            ctx.exit(EXIT_CONFIGURATION)
        except (CommandFailed, MeshnodeError) as error:
            click.echo(f"meshnode: {error}", err=True)
            ctx.exit(EXIT_FAILED)
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nmeshnode: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)


@click.group(
    cls=_Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="meshnode")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Run language models on the machines you own.

    \b
    First steps:
      meshnode models add starter        fetch a small model to try things with
      meshnode run                       start the node (another terminal from here on)
      meshnode chat "Why is the sky blue?"

    \b
    A node keeps everything in one data folder; --data-dir chooses another.
    Every option of `meshnode run` is also a variable (MESHNODE_PORT=9000) and a
    line in config.toml; `meshnode config show` says where each value came from.

    \b
    Commands find the running node and its key through the data folder. A node
    elsewhere, or one that systemd gave its key, is reached with
    MESHNODE_PORT=8800 MESHNODE_API_KEY=... (or --port and --api-key).

    \b
    Exit codes: 0 done, 1 the command failed, 2 wrong usage (a flag that is wrong in
    itself), 64 wrong configuration (a variable, config.toml, or what this machine
    does not have), 69 the node stopped because a vital part failed, 130 interrupted.
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line and exit."""
    root(prog_name="meshnode")
