"""A model's tokenizer and chat template, built from its tokenizer shard, and prompts made with them."""

from pathlib import Path

import attrs

from meshnode.errors import ContextOverflow, RequestError, UnsupportedModel
from meshnode.files.tokenizer_shard import decode_tokenizer
from meshnode.text.templates import ChatTemplate
from meshnode.text.vocabulary import Tokenizer, build_tokenizer
from meshnode.types.generation import GenerationRequest, SamplingAdvice, SamplingParameters

__all__ = ["ModelAssets"]


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

    def sampling(self, request: GenerationRequest) -> SamplingParameters:
        """Return how to sample: as the request says, or as the model's makers advise if it says nothing."""
        return self.advice.applied(request.sampling) if request.as_advised else request.sampling

    def encode(self, request: GenerationRequest, context_length: int) -> tuple[int, ...]:
        """Return the prompt's tokens.

        Raises ContextOverflow when no room for a single token is left, RequestError when the template refuses.
        """
        if request.prompt is not None:
            text = request.prompt
            self._refuse_hopeless(len(text.encode()), context_length)
            tokens = self.tokenizer.encode(text, add_bos=True)
        else:
            if self.template is None:
                raise RequestError(self.without_template, param="messages")
            self._refuse_hopeless(sum(len(message.content.encode()) for message in request.messages), context_length)
            tokens = self.template.render(request.messages).encode(self.tokenizer)
        if not tokens:
            raise RequestError("the prompt is empty", param="messages")
        if len(tokens) >= context_length:
            raise ContextOverflow(
                f"the prompt has {len(tokens)} tokens, and the model's context has {context_length}; shorten it",
                param="messages",
            )
        return tuple(tokens)

    def _refuse_hopeless(self, nbytes: int, context_length: int) -> None:
        """Spare the work of tokenising what cannot fit: no token has more bytes than the longest."""
        at_least = nbytes // self.tokenizer.longest
        if at_least >= context_length:
            raise ContextOverflow(
                f"the prompt has at least {at_least} tokens, and the model's context has {context_length}; shorten it",
                param="messages",
            )
