"""Checks the order of a conversation: what no conversation can have been is refused by its place, as Anthropic's servers do.

Two things they refuse are taken: a turn of the assistant without words, since a node's own answers may be empty and clients
send them back, and a message of the system between any two others, since agents send such.
"""

from collections.abc import Iterable, Sequence

import attrs

from meshnode.api.anthropic.blocks import Block, Document, SearchResult, Text, ToolResult, ToolUse, Turn
from meshnode.api.anthropic.wrong import wrong_at
from meshnode.errors import RequestError

__all__ = ["check_history", "check_words"]


def check_history(turns: Sequence[Turn]) -> None:
    """Raise RequestError naming the first message, block or field that cannot stand where it stands."""
    if not turns:
        raise RequestError("messages: at least one message is required", param="messages")
    history = _History()
    for index, turn in enumerate(turns):
        history.take(f"messages.{index}", turn)
    if turns[-1].role == "assistant":
        raise RequestError(
            "messages: the last one is the assistant's; to go on from the beginning of an answer is not supported by this node",
            param="messages",
        )
    history.settle()


@attrs.define
class _History:
    """What the turns so far leave open."""

    role: str | None = None  # of the last turn
    calls: set[str] = attrs.field(factory=set)  # ids of all calls
    due: dict[str, None] = attrs.field(
        factory=dict
    )  # ids of the assistant's calls whose results have not come, in order
    answered: set[str] = attrs.field(factory=set)  # ids of results since the assistant spoke
    caller: str = ""  # where the assistant spoke last

    def take(self, at: str, turn: Turn) -> None:
        """Take a turn; raise RequestError if it cannot follow."""
        match turn.role:
            case "system":
                self._system(at, turn)
            case "user":
                self._user(at, turn)
            case "assistant":
                self._assistant(at, turn)
            case other:
                raise wrong_at(f"{at}.role", f"{other[:40]!r} is not user, assistant or system")
        self.role = turn.role

    def settle(self) -> None:
        """Raise RequestError if results are due: the turns of the user have ended."""
        if self.due:
            ids = ", ".join(name[:64] for name in list(self.due)[:8])
            raise wrong_at(self.caller, f"the results of these tool_use ids do not follow right after it: {ids}")

    def _system(self, at: str, turn: Turn) -> None:
        if self.role is None:
            raise wrong_at(f"{at}.role", "instructions from the very beginning stand in 'system', not in messages")
        if self.role == "system":
            raise wrong_at(f"{at}.role", "two messages of the system follow each other; make them one")
        self.settle()
        _said(at, turn)
        for index, block in enumerate(_blocks(turn)):
            if not isinstance(block, Text):
                raise wrong_at(f"{at}.content.{index}", "a message of the system has blocks of type 'text' only")

    def _user(self, at: str, turn: Turn) -> None:
        _said(at, turn)
        if isinstance(turn.content, str):
            self.settle()
            return
        others = False  # whether this turn has more than results
        for index, block in enumerate(turn.content):
            where = f"{at}.content.{index}"
            if isinstance(block, ToolResult):
                if others and block.tool_use_id in self.due:
                    raise wrong_at(where, "the results of calls stand before everything else")
                self._result(where, block)
            elif isinstance(block, Text | Document | SearchResult):
                others = True
                if isinstance(block, Text) and block.citations:
                    raise wrong_at(f"{where}.citations", "only the assistant's text has citations")
            else:
                raise wrong_at(where, "blocks of this type stand in the assistant's turns")
        if others:
            self.settle()

    def _result(self, at: str, block: ToolResult) -> None:
        name = block.tool_use_id
        if name in self.answered:
            raise wrong_at(f"{at}.tool_use_id", f"{name[:64]!r} has a result already")
        if name not in self.due:
            raise wrong_at(f"{at}.tool_use_id", f"{name[:64]!r} names no tool_use in the turn before")
        del self.due[name]
        self.answered.add(name)

    def _assistant(self, at: str, turn: Turn) -> None:
        if self.role is None:
            raise wrong_at(f"{at}.role", "the first message is the user's")
        if self.role != "assistant":
            self.settle()
            self.answered.clear()
        self.caller = at
        for index, block in enumerate(_blocks(turn)):
            where = f"{at}.content.{index}"
            if isinstance(block, ToolUse):
                if block.id in self.calls:
                    raise wrong_at(f"{where}.id", f"{block.id[:64]!r} is the id of an earlier tool_use")
                self.calls.add(block.id)
                self.due[block.id] = None
            elif isinstance(block, ToolResult | Document | SearchResult):
                raise wrong_at(where, "blocks of this type stand in the user's turns")


def _blocks(turn: Turn) -> Sequence[Block]:
    return () if isinstance(turn.content, str) else turn.content


def _said(at: str, turn: Turn) -> None:
    """Refuse a turn without content, and text without words."""
    if not turn.content:
        raise wrong_at(f"{at}.content", "must not be empty")
    check_words(f"{at}.content", turn.content)


def check_words(at: str, content: str | Iterable[Block]) -> None:
    """Raise RequestError for text that is nothing but white space."""
    if isinstance(content, str):
        if not content.strip():
            raise wrong_at(at, "is nothing but white space")
        return
    for index, block in enumerate(content):
        if isinstance(block, Text) and not block.text.strip():
            raise wrong_at(f"{at}.{index}.text", "must not be empty, nor nothing but white space")
