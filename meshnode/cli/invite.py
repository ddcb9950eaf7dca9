"""`meshnode invite` and `meshnode join`."""

from pathlib import Path

import click

from meshnode.cli.address import find_api_key, locate
from meshnode.cli.config_file import write_setting
from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json
from meshnode.config.loading import LoadedConfig

__all__ = ["invite", "join"]


@click.command()
@node_options
@json_option
def invite(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Print a code that leads another node here; give it to `meshnode join` there.

    The code holds the id of the mesh and addresses of this node. Whoever has it
    can take part: show it to nobody else.

    \b
    Example:
      meshnode invite
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    address = locate(loaded)
    from meshnode.cli.client import Client

    client = Client(address, find_api_key(loaded))
    answer = client.post("/api/admin/invitation", {})
    if loaded.config.cli.json:
        print_json(answer)
    else:
        click.echo(answer["code"])


@click.command()
@click.argument("code")
@node_options
@json_option
def join(code: str, *, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Join the mesh that CODE leads to, now if a node runs, and at every start.

    \b
    Example:
      meshnode join meshnode-gu3tk...
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    from meshnode.network.invitations import decode_invitation

    invitation = decode_invitation(code)
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    known = loaded.config.network.bootstrap
    merged = tuple(dict.fromkeys((*invitation.addresses, *known)))
    write_setting(loaded.file, "network.network_id", invitation.network_id)
    write_setting(loaded.file, "network.bootstrap", list(merged))
    peer, note = _connect(loaded, invitation.network_id, invitation.addresses)
    if loaded.config.cli.json:
        print_json({"network_id": invitation.network_id, "bootstrap": merged, "connected": peer, "note": note})
    else:
        click.echo(note)


def _connect(loaded: LoadedConfig, network_id: str, addresses: tuple[str, ...]) -> tuple[str | None, str]:
    """Have the running node connect, if there is one of that mesh; return whom it reached, and what to tell."""
    from meshnode.cli.client import Client

    if network_id != loaded.config.network.network_id:
        return None, "saved; a node that runs is of another mesh: restart it to join this one"
    try:
        client = Client(locate(loaded), find_api_key(loaded))
        answer = client.post("/api/admin/join", {"addresses": list(addresses)})
    except NodeDown:
        return None, "saved; the next `meshnode run` joins"
    except CommandFailed as error:
        return None, f"saved, but not connected yet: {error}"
    return str(answer["peer"]), f"connected to {answer['peer']}"
