"""A model's text side, built from its tokenizer shard: what turns a request into tokens, and says how to read the answer."""

from pathlib import Path

import attrs

from meshnode.errors import ContextOverflow, RequestError, UnsupportedModel
from meshnode.files.tokenizer_shard import decode_tokenizer
from meshnode.inference.answer import AnswerForm
from meshnode.text.grammars import AnswerGrammar
from meshnode.text.reasoning import CLOSING, OPENING, ReasoningSplitter
from meshnode.text.templates import ChatTemplate
from meshnode.text.tool_calls import ToolScanner
from meshnode.text.tool_calls.hermes import HERMES
from meshnode.text.vocabulary import Tokenizer, build_tokenizer
from meshnode.types.conversation import ToolMode
from meshnode.types.generation import GenerationRequest, SamplingAdvice, SamplingParameters

__all__ = ["ModelAssets", "Prompt"]


@attrs.frozen(eq=False)
class Prompt:
    """A request as a model takes it, and how its answer is to be sampled and read."""

    tokens: tuple[int, ...]
    sampling: SamplingParameters
    form: AnswerForm


@attrs.frozen(eq=False)
class ModelAssets:
    """What turns a request into tokens. Blocking: run it in the template lane."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    without_template: str = ""  # why there is none
    advice: SamplingAdvice = attrs.field(factory=SamplingAdvice)

    @classmethod
    def load(cls, path: Path) -> "ModelAssets":
        """Read the tokenizer shard. Raises FileError leafs."""
        data = decode_tokenizer(path.read_bytes())
        tokenizer, advice = build_tokenizer(data), data.sampling or SamplingAdvice()
        try:
            return cls(tokenizer, ChatTemplate.compile(tokenizer), advice=advice)
        except UnsupportedModel as error:
            return cls(tokenizer, None, str(error), advice)

    def prompt(self, request: GenerationRequest, context_length: int) -> Prompt:
        """Return the prompt.

        Raises ContextOverflow when no room for a single token is left, UnsupportedModel for a conversation with a model that has
        no template, RequestError when the template refuses, when there is no such token, or when the form that is asked for
        cannot be enforced.
        """
        is_thinking = False
        if request.messages:
            tokens, is_thinking = self._rendered(request, context_length)
        elif request.prompt_tokens:
            tokens = self._checked(request.prompt_tokens)
        else:
            if not request.truncates:
                self._refuse_hopeless(request, len((request.prompt or "").encode()), context_length)
            tokens = self.tokenizer.encode(request.prompt or "", parse_special=request.parse_special, add_bos=True)
        if request.embeds and not request.prompt_tokens:
            ending = self.tokenizer.ending
            tokens = (tokens[: context_length - len(ending)] if request.truncates else tokens) + ending
        if not tokens:
            raise RequestError("the prompt is empty", param=_field(request))
        if len(tokens) + (not request.embeds) > context_length:  # room for a token of the answer, if it has tokens
            raise ContextOverflow(
                f"the prompt has {len(tokens)} tokens, and the model's context has {context_length}; shorten it",
                param=_field(request),
            )
        return Prompt(tuple(tokens), self._sampling(request, is_thinking), self._form(request, is_thinking))

    def _rendered(self, request: GenerationRequest, context_length: int) -> tuple[list[int], bool]:
        if self.template is None:
            raise UnsupportedModel(self.without_template)
        nbytes = sum(len(message.content.encode()) for message in request.messages)
        self._refuse_hopeless(request, nbytes, context_length)
        rendered = self.template.render(request.messages, request.tools, thinking=request.thinking)
        return rendered.encode(self.tokenizer), rendered.is_thinking

    def _checked(self, tokens: tuple[int, ...]) -> list[int]:
        if (stranger := next((token for token in tokens if not 0 <= token < self.tokenizer.size), None)) is not None:
            raise RequestError(f"{stranger} is not a token; the model has {self.tokenizer.size}", param="prompt")
        return list(tokens)

    def _sampling(self, request: GenerationRequest, is_thinking: bool) -> SamplingParameters:
        sampling = self.advice.applied(request.sampling) if request.as_advised else request.sampling
        made = HERMES if self.template is None else self.template.tool_format
        writer = AnswerGrammar(self.tokenizer, made, self._may_think)
        return attrs.evolve(sampling, grammar=writer.write(request.tools, request.output, is_thinking=is_thinking))

    def _form(self, request: GenerationRequest, is_thinking: bool) -> AnswerForm:
        use, template = request.tools, self.template
        scanner, markers = None, ""
        if template is not None and use.tools and use.mode is not ToolMode.NONE:
            scanner = ToolScanner(template.tool_format, frozenset(tool.name for tool in use.tools))
            markers = template.tool_format.markers
        thinks = bool(request.messages) and (is_thinking or self._may_think)
        if thinks:
            markers = f"{markers} {OPENING} {CLOSING}"
        return AnswerForm(
            request=request.id,
            stops=request.stop,
            wants_logprobs=request.sampling.top_logprobs is not None,
            reasoning=ReasoningSplitter(is_thinking) if thinks else None,
            tools=scanner,
            spelled=self._spelled(markers),
        )

    def _spelled(self, markers: str) -> dict[int, bytes]:
        """Return the control tokens among markers, with the texts that are looked for."""
        controls = {control for _, control in self.tokenizer.split_control(markers) if control is not None}
        return {control: self.tokenizer.data.tokens[control].encode() for control in controls}

    @property
    def _may_think(self) -> bool:
        return self.template is not None and self.template.may_think

    def _refuse_hopeless(self, request: GenerationRequest, nbytes: int, context_length: int) -> None:
        """Spare the work of tokenising what cannot fit: no token has more bytes than the longest."""
        at_least = nbytes // self.tokenizer.longest
        if at_least >= context_length:
            raise ContextOverflow(
                f"the prompt has at least {at_least} tokens, and the model's context has {context_length}; shorten it",
                param=_field(request),
            )


def _field(request: GenerationRequest) -> str:
    """Return what the interfaces call that which is read."""
    if request.embeds:
        return "input"
    return "messages" if request.prompt is None and not request.prompt_tokens else "prompt"
