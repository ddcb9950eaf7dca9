"""`meshnode run`."""

import os
import sys
from pathlib import Path

import click

from meshnode.cli.options import BLOCKS, data_dir_option
from meshnode.cli.screen import Screen
from meshnode.config.loading import load_config

__all__ = ["run"]


@click.command()
@data_dir_option
@click.option("--host", help="Address to listen on; 127.0.0.1 unless told.  [env: MESHNODE_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API; 8800, 0 for any.  [env: MESHNODE_PORT]")
@click.option(
    "--model", "models", multiple=True, metavar="REF", help="Model to serve; may be repeated.  [env: MESHNODE_MODEL]"
)
@click.option(
    "--blocks", type=BLOCKS, metavar="A:B", help="Hold only blocks A up to but not B.  [env: MESHNODE_BLOCKS]"
)
@click.option("--threads", type=click.IntRange(0, 1024), help="CPU threads; 0 for all cores.  [env: MESHNODE_THREADS]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.  [env: MESHNODE_DEVICE]")
@click.option(
    "--offline", is_flag=True, default=None, help="Reach nothing beyond this machine.  [env: MESHNODE_OFFLINE]"
)
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="MULTIADDR",
    help="Node to join, with /p2p/; may be repeated.  [env: MESHNODE_BOOTSTRAP]",
)
@click.option(
    "--p2p-port",
    type=click.IntRange(0, 65535),
    help="Port for other nodes; that of the API + 10.  [env: MESHNODE_P2P_PORT]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to log.  [env: MESHNODE_LOG_LEVEL]",
)
@click.option(
    "--no-browser",
    is_flag=True,
    default=None,
    help="Do not show the node's page when it is ready.  [env: MESHNODE_NO_BROWSER]",
)
@click.pass_context
def run(
    ctx: click.Context,
    *,
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    models: tuple[str, ...],
    blocks: str | None,
    threads: int | None,
    device: str | None,
    offline: bool | None,
    bootstrap: tuple[str, ...],
    p2p_port: int | None,
    log_level: str | None,
    no_browser: bool | None,
) -> None:
    """Start a node and serve models until it is stopped with Ctrl-C or SIGTERM.

    Every model in the data folder is served. Those named with --model are loaded at
    the start and kept loaded. With none named, a model that is alone is; of
    several, each is loaded by its first request. A part of a model (--blocks) is
    always kept loaded. Each model takes for its caches half of the memory that is
    still free and not promised to another one; engine.cache_bytes sets it.

    REF is `starter`, a GGUF file, a folder of Hugging Face safetensors, a model of
    the hub (hf:OWNER/REPO), or the name of a model that was added before.

    \b
    Examples:
      meshnode run
      meshnode run --model starter
      meshnode run --model ~/models/Llama-3.2-1B-Instruct-Q4_K_M.gguf --threads 8
      meshnode run --model big.gguf --blocks 0:16        hold half a model
      meshnode run --bootstrap /ip4/192.168.1.5/tcp/8810/p2p/12D3KooW...
      MESHNODE_PORT=9000 meshnode run --offline

    \b
    Exit codes: 0 stopped as asked, 64 wrong configuration, 69 a vital part
    failed for good, 70 an internal error.
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    flags: dict[str, object] = {
        "node.data_dir": data_dir,
        "node.offline": offline,
        "api.host": host,
        "api.port": port,
        "api.open_browser": False if no_browser else None,
        "engine.threads": threads,
        "engine.device": device,
        "models.names": models or None,
        "models.blocks": blocks,
        "network.bootstrap": bootstrap or None,
        "network.port": p2p_port,
        "log.level": log_level,
    }
    loaded = load_config(flags=flags, env=os.environ, file=None)
    if loaded.config.updates.enabled:
        from meshnode.node.booting import boot

        code = boot(loaded)  # does not return where another version is to run
        if code is not None:
            ctx.exit(code)
    from meshnode.node.process import run_node
    from meshnode.update.reexec import EXIT_RESTART, restart

    for_person = sys.stderr.isatty() and loaded.config.log.format != "json"
    code = run_node(loaded, Screen(sys.stderr, loaded) if for_person else None)
    if code == EXIT_RESTART:
        restart()
    ctx.exit(code)
