"""`meshnode models`: through the running node, or directly on the data folder when none runs."""

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.address import find_api_key, is_named, locate
from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.cli.options import BLOCKS, json_option, node_options, settings
from meshnode.cli.printing import print_json, print_models, print_wishes
from meshnode.cli.progress import ProgressBar
from meshnode.config.loading import LoadedConfig

if TYPE_CHECKING:
    from meshnode.cli.client import Client

__all__ = ["models"]

_POLL = 0.3  # seconds between looks at a running acquisition


@click.group()
def models() -> None:
    """List, add and remove models.

    \b
    Examples:
      meshnode models add starter
      meshnode models add hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
      meshnode models add ~/models/Llama-3.2-1B-Instruct-Q4_K_M.gguf
      meshnode models add ~/checkpoints/SmolLM2-360M     a folder of safetensors
      meshnode models export starter /media/stick/starter
      meshnode models import /media/stick/starter            on another machine
      meshnode models list
      meshnode models remove llama-3.2-1b-instruct
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is


@models.command("list")
@node_options
@json_option
def list_(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """List the models this node has, and those that its peers serve.

    \b
    HERE     shards on this node's disk, verified, of how many
    COPIES   nodes of the mesh, this one counted, that have the rarest part
    ROUTES   complete routes that share no node; 0: it cannot be asked now
    STATE    loaded, or what is missing and why
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    client = _running(loaded)
    if client is None:
        from meshnode.node.offline import list_models

        found: list[dict[str, Any]] = list_models(loaded)
    else:
        found = client.get("/api/admin/models").get("models") or []
    if loaded.config.cli.json:
        print_json({"models": found})
    elif not found:
        click.echo("no models yet; `meshnode models add starter` fetches a small one")
    else:
        print_models(found)


@models.command()
@click.argument("reference")
@click.option(
    "--blocks", type=BLOCKS, metavar="A:B", help="Hold only blocks A up to but not B.  [env: MESHNODE_BLOCKS]"
)
@click.option(
    "--spread",
    is_flag=True,
    default=None,
    help="Divide a hub's model among the nodes that give room; each fetches a share.  [env: MESHNODE_SPREAD]",
)
@node_options
@json_option
def add(
    *,
    reference: str,
    blocks: str | None,
    spread: bool | None,
    data_dir: Path | None,
    port: int | None,
    api_key: str | None,
    as_json: bool | None,
) -> None:
    """Add a model, from REFERENCE.

    \b
    starter                        a small model, for a first try
    hf:OWNER/REPO                  of a hub; four bits where it has several
    hf:OWNER/REPO:Q8_0             ... this quantisation, or a file's name,
    hf:OWNER/REPO:Q8_0@REVISION    ... as of a branch, a tag or a commit
    MODEL.gguf                     a file; of a split model any part
    FOLDER                         a folder of safetensors, or an export
    NAME                           what another node of the mesh has

    HF_TOKEN opens a hub's gated repositories and HF_ENDPOINT is another hub;
    both are read by the node, when one runs. Waits until every shard is
    written and verified. Ctrl-C stops; what is already there is kept for the
    next try.

    --blocks keeps a part. Of a model that neither this node nor a peer knows,
    all bytes are fetched once even so: its id is made of the hashes of all
    its parts, which no hub tells. Of a known one, only those of the part.

    With --spread, the nodes whose resources.disk_bytes says how much room
    they give fetch a share of a hub's model each, side by side, and hold it;
    this node holds the embedding, the head and the first blocks.
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    if spread and blocks is not None:
        raise click.UsageError(
            "--blocks and --spread exclude each other: spreading decides which blocks are held where"
        )
    path = os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111  # these two raise for no text at all
    if os.path.exists(path) and reference != "starter":  # noqa: PTH110
        reference = path  # the node has another working folder
    loaded = settings(data_dir, port, as_json, api_key=api_key, models_blocks=blocks, models_spread=spread)
    as_json, blocks = loaded.config.cli.json, loaded.config.models.blocks
    divides = spread or (loaded.config.models.spread and blocks is None and reference.startswith("hf:"))
    bar = ProgressBar(enabled=not as_json or sys.stderr.isatty())  # for a person, who may look on while a program reads
    client = _running(loaded)
    try:
        if client is None:
            from meshnode.node.offline import add_model

            if divides:
                raise click.UsageError("--spread needs other nodes; start this one with `meshnode run` first")
            added: Mapping[str, Any] = add_model(loaded, reference, blocks, bar.show)
        else:
            wanted = {"reference": reference, "blocks": blocks} | ({"spread": True} if divides else {})
            added = _add_through_node(client, wanted, bar)
    finally:
        bar.finish()
    if as_json:
        print_json(added)
    else:
        missing = f": {added['here']}; not here: {added['missing']}" if added.get("missing") else ""
        click.echo(f"added {added['name']}{missing}")


@models.command()
@node_options
@json_option
def wishlist(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Show what the mesh lacks: copies of each model, how many are wanted, and why.

    A node holds parts of models of its own accord when resources.disk_bytes
    says how much room it gives. What is in the mesh is looked at every five
    minutes and whenever a model has come or gone here; popular repositories
    of the hub are asked for once an hour.
    """
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    from meshnode.cli.client import Client

    client = Client(locate(loaded), find_api_key(loaded))
    answer = client.get("/api/admin/wishlist")
    rows = answer.get("models") or []
    if loaded.config.cli.json:
        print_json(answer)
    elif not rows:
        click.echo("no models are known in the mesh yet")
    else:
        print_wishes(rows)
        if answer.get("age_seconds") is not None:
            click.echo(f"as of {answer['age_seconds']:.0f} s ago")


@models.command()
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@node_options
@json_option
def export(
    *, name: str, folder: Path, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None
) -> None:
    """Write what this node holds of a model into FOLDER.

    `meshnode models import FOLDER` takes it from there on another machine,
    each part verified; --blocks says which, where the folder does not hold
    all.
    """
    loaded, target = settings(data_dir, port, as_json, api_key=api_key), str(folder.expanduser().absolute())
    client = _running(loaded)
    if client is None:
        from meshnode.node.offline import export_model

        name = export_model(loaded, name, target)
    else:
        name = client.post("/api/admin/models/export", {"name": name, "folder": target}, patient=True)["name"]
    if loaded.config.cli.json:
        print_json({"name": name, "folder": target})
    else:
        click.echo(f"exported {name} to {target}")


@models.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--blocks", type=BLOCKS, metavar="A:B", help="Hold only blocks A up to but not B.  [env: MESHNODE_BLOCKS]"
)
@node_options
@json_option
@click.pass_context
def import_(context: click.Context, /, *, folder: Path, **options: object) -> None:
    """Take what `meshnode models export` has written into FOLDER.

    The same as `meshnode models add FOLDER`; nothing is asked of a network.
    A folder that lacks parts is refused, and it is said which it has, to be
    named with --blocks; what is not here then is said at the end.
    """
    context.invoke(add, reference=str(folder), spread=False, **options)


@models.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Remove also what no other node of the mesh is known to have.")
@node_options
@json_option
def remove(
    *, name: str, force: bool, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None
) -> None:
    """Remove a model and the shards that no other model uses.

    What no other node of the mesh is known to have is removed by --force
    only; without it, the command says what that is. Where no node runs, or
    it knows no other, nobody is asked.
    """
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    client = _running(loaded)
    if client is None:
        from meshnode.node.offline import remove_model

        name = remove_model(loaded, name)
    else:
        client.delete("/api/admin/models", name, force=force)
    if loaded.config.cli.json:
        print_json({"removed": name})
    else:
        click.echo(f"removed {name}")


def _running(loaded: LoadedConfig) -> "Client | None":
    """Return a client if a node answers; None if none does, unless its port was named: then that is an error."""
    try:
        address = locate(loaded)
        from meshnode.cli.client import Client

        client = Client(address, find_api_key(loaded))
        client.get("/api/admin/status")
    except NodeDown:  # also a runtime file that a killed node left behind; the folder's lock guards against a live one
        if is_named(loaded):
            raise
        return None
    return client


def _add_through_node(client: "Client", wanted: Mapping[str, Any], bar: ProgressBar) -> Mapping[str, Any]:
    """Ask the node, and show its progress until it answers."""
    outcome: list[Mapping[str, Any] | CommandFailed] = []
    over = threading.Event()

    def ask() -> None:
        try:
            outcome.append(client.post("/api/admin/models", wanted, patient=True))
        except CommandFailed as error:
            outcome.append(error)
        finally:
            over.set()

    threading.Thread(target=ask, name="models add", daemon=True).start()
    while not over.wait(_POLL):
        for progress in client.get("/api/admin/status").get("acquisitions") or ():
            if progress.get("reference") == wanted["reference"]:
                bar.show(progress)
    if not outcome:
        raise CommandFailed("the request to the node ended without an answer; see the node's log")
    answer = outcome[0]
    if isinstance(answer, CommandFailed):
        raise answer
    return answer
