"""Chat templates: from a conversation to a prompt, kept from minting control tokens.

User text is kept apart from the template's: control-token texts in it travel through the template as single private-use
characters and come back as plain text after tokenising, so `<|im_end|>` in a message is ten ordinary characters.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from meshnode.errors import RequestError, UnsupportedModel
from meshnode.text.conversations import (
    folded,
    template_messages,
    template_tools,
    unescaped,
    without_system,
    without_tools,
)
from meshnode.text.depth import check_depth
from meshnode.text.reasoning import OPENING, may_think
from meshnode.text.sandbox import SandboxedTemplate
from meshnode.text.tool_calls import ToolFormat, tool_format
from meshnode.text.tool_calls.hermes import HERMES
from meshnode.text.vocabulary import Tokenizer
from meshnode.types.conversation import ChatMessage, Tool, ToolMode, ToolUse

__all__ = ["ChatTemplate", "RenderedPrompt"]

_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NO_TOOLS = ToolUse()
_PATIENCE = 1.0  # seconds after which a template that refuses is not tried in another way
_PRIVATE = (0xF0000, 0x100000)  # where stand-ins are taken from: the two private-use planes


@attrs.frozen
class RenderedPrompt:
    """A prompt whose stand-ins are still in place."""

    text: str
    standins: dict[str, str]  # private-use character -> what the user wrote
    border: str | None  # a private-use character between the template's text and the user's, when it matters

    @property
    def is_thinking(self) -> bool:
        """Whether the template has opened the model's reasoning."""
        return self.text.rstrip().endswith(OPENING)

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Tokenise: control tokens are recognised in the template's text alone."""
        tokens: list[int] = []
        if tokenizer.data.add_bos and tokenizer.bos_token is not None:
            tokens.append(tokenizer.bos_token)
        pieces = self.text.split(self.border) if self.border else [self.text]
        for piece in pieces:
            for text, control in tokenizer.split_control(piece):
                if control is not None:
                    if not (len(tokens) == 1 and tokens == [control] == [tokenizer.bos_token]):
                        tokens.append(control)  # a template that writes BOS itself does not get it twice
                elif text:
                    plain = "".join(self.standins.get(letter, letter) for letter in text) if self.standins else text
                    after = not tokens or not tokenizer.token_bytes(tokens[-1])
                    tokens += tokenizer.encode_fragment(plain, parse_special=False, after_special=after)
        return tokens


@attrs.frozen(eq=False)
class ChatTemplate:
    """A compiled template. `render` may run in any thread and takes at most some seconds."""

    template: SandboxedTemplate
    tokenizer: Tokenizer
    controls: tuple[str, ...]  # longest first
    tool_format: ToolFormat  # how the model writes calls
    knows_tools: bool  # the template itself says what tools there are
    may_think: bool

    @classmethod
    def compile(cls, tokenizer: Tokenizer) -> "ChatTemplate":
        """Compile the vocabulary's template, or ChatML where its tokens are there and no template is.

        Raises UnsupportedModel for a model without one, and for one that does not compile.
        """
        source = tokenizer.data.chat_template
        controls = tuple(sorted(tokenizer.control_texts, key=len, reverse=True))
        if source is None:
            if "<|im_start|>" not in controls:
                raise UnsupportedModel(
                    "this model has no chat template; use /v1/completions, or a model tuned for chat"
                )
            source = _CHATML
        template = SandboxedTemplate.compile(source)
        made = tool_format(source) if "tools" in template.variables else None
        return cls(template, tokenizer, controls, made or HERMES, made is not None, may_think(source))

    def render(
        self,
        messages: Sequence[ChatMessage],
        use: ToolUse = _NO_TOOLS,
        *,
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """Render a conversation. Blocking, some milliseconds.

        A template that refuses is tried again with the system's words where more templates take them. Raises RequestError
        when it still refuses, fails, takes too long, or loses the last user message, and for tools that are nested too deeply.
        """
        tools = () if use.mode is ToolMode.NONE else use.tools
        _check_depths(messages, tools)
        has_calls = any(message.calls or message.role == "tool" for message in messages)
        if not self.knows_tools and (tools or has_calls):
            messages, tools = without_tools(messages, tools, self.tool_format), ()
        options = {"add_generation_prompt": add_generation_prompt}
        if thinking is not None:
            options |= {"enable_thinking": thinking, "thinking": thinking}
        refusal: RequestError | None = None
        began = time.monotonic()
        for attempt in _attempts(tuple(messages)):
            for objects in (True, False) if has_calls else (True,):
                try:
                    return _Rendering(self, attempt, tools, options, objects).prompt()
                except RequestError as error:
                    refusal = refusal or error
                    if time.monotonic() - began > _PATIENCE:
                        raise refusal from None
        assert refusal is not None
        raise refusal


def _check_depths(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> None:
    for tool in tools:
        check_depth(tool.parameters, f"the parameters of tool {tool.name!r}", "tools")
    for call in (call for message in messages for call in message.calls):
        check_depth(call.arguments, f"the arguments of a call of {call.name[:80]!r}")


def _attempts(messages: tuple[ChatMessage, ...]) -> Iterator[tuple[ChatMessage, ...]]:
    """Return the conversation, and then, where it has a system, in the shapes that stricter templates take."""
    yield messages
    if any(message.role == "system" for message in messages):
        for other in (folded(messages), without_system(folded(messages))):
            if other != messages:
                yield other


@attrs.frozen(eq=False)
class _Rendering:
    """One conversation through one template."""

    owner: ChatTemplate
    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...]
    options: dict[str, bool]
    objects: bool

    def prompt(self) -> RenderedPrompt:
        """Render twice, the second time with borders around what users wrote. Raises RequestError."""
        controls = self.owner.controls
        base = _free_block(self.messages, self.tools, len(controls) + 1)
        border = chr(base)
        standins = {chr(base + 1 + i): text for i, text in enumerate(controls)}
        hidden = {text: letter for letter, text in standins.items()}

        def shield(text: str) -> str:
            for control in controls:
                text = text.replace(control, hidden[control])
            return text

        def fence(text: str) -> str:
            text = shield(text)
            core = text.strip()
            return text.replace(core, border + core + border, 1) if core else text

        text = self._run(shield, shield)
        last = next((shield(message.content) for message in reversed(self.messages) if message.role == "user"), "")
        if last.strip() and last.strip() not in text:
            raise RequestError(
                "the model's chat template lost the last user message; it does not fit this conversation"
            )
        walled = self._run(shield, fence)
        used = {letter: original for letter, original in standins.items() if letter in text}
        if self._controls_in(text) == self._controls_in(walled):
            return RenderedPrompt(text, used, None)
        return RenderedPrompt(walled, used, border)  # a border had completed a control token: keep the pieces apart

    def _run(self, shield: Callable[[str], str], fence: Callable[[str], str]) -> str:
        tokenizer = self.owner.tokenizer

        def token_text(token: int | None) -> str:
            return "" if token is None else tokenizer.data.tokens[token]

        made = self.owner.tool_format
        variables: dict[str, object] = {
            "messages": template_messages(self.messages, shield, fence, made, objects=self.objects),
            "bos_token": token_text(tokenizer.bos_token),
            "eos_token": token_text(tokenizer.eos_token),
            **self.options,
        }
        if self.tools:
            variables["tools"] = template_tools(self.tools, shield)
        return self.owner.template.render(variables)

    def _controls_in(self, text: str) -> list[int]:
        return [control for _, control in self.owner.tokenizer.split_control(text) if control is not None]


def _free_block(messages: Sequence[ChatMessage], tools: Sequence[Tool], size: int) -> int:
    """Return the first of `size` private-use characters that nothing in the conversation contains."""
    texts = [text for message in messages for text in (message.content, message.reasoning, message.name or "")]
    texts += [text for message in messages for call in message.calls for text in (call.name, unescaped(call.arguments))]
    texts += [text for tool in tools for text in (tool.name, tool.description, unescaped(tool.parameters))]
    used = {ord(letter) for text in texts for letter in text if ord(letter) >= _PRIVATE[0]}
    for plane in _PRIVATE:
        for base in range(plane, plane + 0xFFFE - size, size):
            if not used or not any(base <= letter < base + size for letter in used):
                return base
    raise RequestError("the messages use every private-use character there is")
