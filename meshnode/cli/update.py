"""`meshnode update`: new versions of meshnode, for who runs a node, and for who publishes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshnode.cli.address import find_api_key, locate
from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json, printable
from meshnode.config.loading import LoadedConfig
from meshnode.config.paths import DataPaths

__all__ = ["update"]


@click.group()
def update() -> None:
    """See, check and apply new versions of meshnode.

    Off unless the settings name a publisher and its keys; docs/updates.md.

    \b
    Examples:
      meshnode config set updates.url https://example.com/meshnode/release.json
      meshnode config set updates.keys KEY,KEY
      meshnode config set updates.enabled true
      meshnode update check
      meshnode update apply
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is


@update.command()
@node_options
@json_option
def status(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Say which version runs, which one there is, and what came of the last look."""
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    try:
        answer = _ask(loaded, "GET", "")
    except NodeDown:
        answer = _at_rest(loaded)
    _show(loaded, answer)


@update.command()
@node_options
@json_option
def check(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Have the running node look for a release now."""
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    _show(loaded, _ask(loaded, "POST", "/check"))


@update.command()
@node_options
@json_option
def apply(*, data_dir: Path | None, port: int | None, api_key: str | None, as_json: bool | None) -> None:
    """Have the running node install the release that is newer, finish what it is doing, and restart into it.

    When the new version does not become ready, the old one is back, and the new
    one is not tried again; `meshnode update status` says which one runs.
    """
    loaded = settings(data_dir, port, as_json, api_key=api_key)
    _show(loaded, _ask(loaded, "POST", "/apply"))


@update.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def key(file: Path, *, as_json: bool | None) -> None:
    """Make a key that signs releases: the private one in FILE, the public one printed.

    \b
    Example:
      meshnode update key ~/release-key      keep it off the machine that publishes
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    from meshnode.update.publishing import make_key

    public = make_key(file)
    _report(as_json, public, key=public, file=str(file))


@update.command()
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option("--sequence", type=click.IntRange(1), required=True, help="Number of this release, above the last one's.")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="Days until it expires.")
@click.option("--channel", default="stable", show_default=True, help="What nodes have in updates.channel.")
@click.option("--platform", default="any", show_default=True, help="Tag such as linux_x86_64.")
@click.option("--url", help="Where the wheel will lie; its name, beside the document, unless told.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("release.json"), show_default=True)
@json_option
def release(
    wheel: Path,
    *,
    sequence: int,
    days: int,
    channel: str,
    platform: str,
    url: str | None,
    output: Path,
    as_json: bool | None,
) -> None:
    """Write the document of a release that consists of WHEEL, for signing.

    \b
    Example:
      meshnode update release dist/meshnode-0.2.0-py3-none-any.whl --sequence 7
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    from meshnode.update.publishing import make_release

    document = make_release(
        wheel, sequence=sequence, days=days, channel=channel, url=url or wheel.name, platform=platform
    )
    try:
        output.write_bytes(document)
    except OSError as error:
        raise CommandFailed(f"cannot write {output}: {error.strerror}") from error
    words = f"{output} is written; sign it with `meshnode update sign {output} --key FILE`, once for each key"
    _report(as_json, words, document=str(output), sequence=sequence)


@update.command()
@click.argument("document", type=click.Path(path_type=Path))
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, help="From `meshnode update key`.")
@json_option
def sign(document: Path, *, key_file: Path, as_json: bool | None) -> None:
    """Add the signature of one key to DOCUMENT.

    \b
    Example:
      meshnode update sign release.json --key ~/release-key
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    from meshnode.update.publishing import sign as add

    public, signed = add(document, key_file)
    expires = signed.expires.isoformat(timespec="seconds")
    words = f"{public} has signed meshnode {signed.version}, sequence {signed.sequence}, which expires {expires}"
    _report(as_json, words, key=public, version=signed.version, sequence=signed.sequence, expires=expires)


def _report(as_json: bool | None, words: str, **values: object) -> None:
    if settings(None, as_json=as_json).config.cli.json:
        print_json(values)
    else:
        click.echo(words)


def _ask(loaded: LoadedConfig, method: str, path: str) -> dict[str, Any]:
    address = locate(loaded)
    from meshnode.cli.client import Client

    client = Client(address, find_api_key(loaded))
    place = f"/api/admin/updates{path}"
    answer: dict[str, Any] = client.get(place) if method == "GET" else client.post(place, {}, patient=True)
    return answer


def _at_rest(loaded: LoadedConfig) -> dict[str, Any]:
    """Return what the data folder says while no node runs."""
    from meshnode import __version__
    from meshnode.update.pointer import load_pointer

    pointer = load_pointer(DataPaths(loaded.config.node.data_dir).updates)
    enabled = loaded.config.updates.enabled
    return {
        "enabled": enabled,
        "running": None,
        "installation": __version__,
        "next": (pointer.current if enabled else None) or __version__,
        "channel": loaded.config.updates.channel,
        "failed": pointer.failed,
    }


def _show(loaded: LoadedConfig, answer: Mapping[str, Any]) -> None:
    if loaded.config.cli.json:
        print_json(answer)
    else:
        click.echo(printable("\n".join(_lines(answer))))


def _lines(answer: Mapping[str, Any]) -> list[str]:
    installation, running = answer["installation"], answer["running"]
    if running is None:
        lines = [f"no node runs; the next start runs meshnode {answer['next']}"]
    elif running == installation:
        lines = [f"meshnode {running} runs"]
    else:
        lines = [f"meshnode {running} runs in place of {installation}, which is installed"]
    if not answer["enabled"]:
        lines.append("updates are off; docs/updates.md says which settings turn them on")
    elif answer.get("problem"):
        lines.append(f"no update: {answer['problem']}")
    elif answer.get("installed"):
        lines.append(f"meshnode {answer['installed']} is installed, and the node restarts into it")
    elif answer.get("available"):
        lines.append(f"meshnode {answer['available']['version']} is there; `meshnode update apply` installs it")
    elif answer.get("checked"):
        lines.append(f"nothing newer in channel {answer['channel']}, as of {answer['checked']}")
    lines.extend(f"meshnode {version} was taken back: {why}" for version, why in answer.get("failed", {}).items())
    return lines
