"""Ask a node through LiteLLM, by OpenAI's interface and by Ollama's: python examples/litellm_client.py KEY [PROMPT]."""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list of prices when it is imported

import litellm

NODE = "http://127.0.0.1:8800"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/litellm_client.py KEY [PROMPT]   (the key: meshnode token)")
    messages = [{"role": "user", "content": " ".join(sys.argv[2:]) or "What is the capital of France?"}]
    for model, base in (("openai/auto", f"{NODE}/v1"), ("ollama_chat/auto", NODE)):
        answer = litellm.completion(model=model, api_base=base, api_key=sys.argv[1], messages=messages, temperature=0)
        print(f"{model}: {answer.choices[0].message.content}")


if __name__ == "__main__":
    main()
