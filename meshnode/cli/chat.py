"""`meshnode chat`: one question, or a conversation on a terminal."""

import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import attrs
import click

from meshnode.cli.address import find_api_key, locate
from meshnode.cli.client import Client
from meshnode.cli.failures import CommandFailed, NodeDown
from meshnode.cli.options import json_option, node_options, settings
from meshnode.cli.printing import print_json, printable

__all__ = ["chat"]

_SILENCE_BEYOND_TIMEOUT = 30.0  # seconds we wait longer than the node's own limit, so that its error reaches us


@attrs.define
class _Answer:
    """What has come so far."""

    model: str
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def take(self, event: Mapping[str, Any]) -> str:
        """Add one event and return its text."""
        self.usage = event.get("usage") or self.usage
        piece = ""
        for choice in event.get("choices") or ():
            piece += (choice.get("delta") or {}).get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.text += piece
        return piece


@attrs.frozen
class _Conversation:
    """A client with the parts of the request that stay the same."""

    client: Client
    model: str
    fixed: dict[str, object]  # sampling settings that were given
    silence: float

    def ask(self, messages: list[dict[str, str]], *, show: bool) -> _Answer:
        answer = _Answer(self.model)
        body = {
            **self.fixed,
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with closing(self.client.stream("/v1/chat/completions", body, silence=self.silence)) as events:
            for event in events:
                piece = answer.take(event)
                if show and piece:
                    click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)
                    sys.stdout.flush()
        return answer


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Model to ask; one that is loaded unless told.  [env: MESHNODE_CHAT_MODEL]")
@click.option("--system", help="System message.  [env: MESHNODE_CHAT_SYSTEM]")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    help="0 always takes the likeliest word.  [env: MESHNODE_CHAT_TEMPERATURE]",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.  [env: MESHNODE_CHAT_MAX_TOKENS]"
)
@click.option("--seed", type=int, help="Same seed, same answer.  [env: MESHNODE_CHAT_SEED]")
@node_options
@json_option
def chat(
    *,
    prompt: str | None,
    model: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    data_dir: Path | None,
    port: int | None,
    api_key: str | None,
    as_json: bool | None,
) -> None:
    """Talk to a model of the running node.

    With a PROMPT, or with text on standard input, answers once. On a terminal
    without a PROMPT it is a conversation: Ctrl-C stops an answer, Ctrl-D ends.

    \b
    Examples:
      meshnode chat "Why is the sky blue?"
      meshnode chat --system "Answer in French." --temperature 0 "Good morning"
      git diff | meshnode chat --system "Write a commit message for this diff."
      meshnode chat --json --seed 1 "Roll a die" | jq -r .text
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    prompt = _prompt(prompt)
    given = {"model": model, "system": system, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    loaded = settings(
        data_dir, port, as_json, api_key=api_key, **{f"chat_{name}": value for name, value in given.items()}
    )
    if prompt is None and loaded.config.cli.json:
        raise click.UsageError("--json needs a PROMPT, or text on standard input")
    client = Client(locate(loaded), find_api_key(loaded))
    asked = loaded.config.chat
    sampling = {"temperature": asked.temperature, "max_tokens": asked.max_tokens, "seed": asked.seed}
    fixed: dict[str, object] = {name: value for name, value in sampling.items() if value is not None}
    silence = loaded.config.inference.request_timeout + _SILENCE_BEYOND_TIMEOUT
    conversation = _Conversation(client, asked.model or _first_model(client), fixed, silence)
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    if prompt is None:
        _converse(conversation, messages)
    else:
        messages.append({"role": "user", "content": prompt})
        _answer_once(conversation, messages, as_json=loaded.config.cli.json)


def _prompt(argument: str | None) -> str | None:
    """Return the question: the argument, or what is piped in; None on a terminal, where a conversation begins."""
    if argument is None and sys.stdin.isatty():
        return None
    try:
        prompt = argument if argument is not None else sys.stdin.read()
        prompt.encode()  # an argument that is not UTF-8 only fails here
    except UnicodeError as error:
        raise click.UsageError("the prompt is not UTF-8 text") from error
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def _first_model(client: Client) -> str:
    listed = client.get("/v1/models").get("data") or []
    if not listed:
        raise CommandFailed("the node has no model; add one with `meshnode models add starter`")
    loaded = [entry for entry in listed if entry.get("loaded", True)]
    chosen = str((loaded or listed)[0]["id"])
    if not loaded:
        click.echo(f"{printable(chosen)} is being loaded", err=True)  # the node answers once it is
    return chosen


def _answer_once(conversation: _Conversation, messages: list[dict[str, str]], *, as_json: bool) -> None:
    try:
        answer = conversation.ask(messages, show=not as_json)
    except (CommandFailed, KeyboardInterrupt):
        if not as_json:
            click.echo()
        raise
    if as_json:
        print_json(attrs.asdict(answer))
    else:
        click.echo()


def _converse(conversation: _Conversation, messages: list[dict[str, str]]) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing
    click.echo(f"{conversation.model}: Ctrl-C stops an answer, Ctrl-D ends.", err=True)
    while True:
        try:
            line = input("> ")
            line.encode()  # some terminals hide what is not UTF-8 until here
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        except UnicodeError:
            click.echo("meshnode: that is not UTF-8 text", err=True)
            continue
        if not line.strip():
            continue
        asked = [*messages, {"role": "user", "content": line}]
        try:
            answer = conversation.ask(asked, show=True)
        except KeyboardInterrupt:
            click.echo("\n(stopped; the question is forgotten)", err=True)
            continue
        except NodeDown:
            raise
        except CommandFailed as error:
            click.echo(f"\nmeshnode: {error} (the question is forgotten)", err=True)
            continue
        click.echo()
        messages = [*asked, {"role": "assistant", "content": answer.text}]
