"""Ask a node through LiteLLM, by OpenAI's interface and by Ollama's.

MESHNODE_API_KEY=$(meshnode token) python examples/litellm_client.py [PROMPT]
"""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list of prices when it is imported

import litellm

NODE = os.environ.get("MESHNODE_URL", "http://127.0.0.1:8800")
KEY = os.environ["MESHNODE_API_KEY"]


def main() -> None:
    messages = [{"role": "user", "content": " ".join(sys.argv[1:]) or "What is the capital of France?"}]
    for model, base in (("openai/auto", f"{NODE}/v1"), ("ollama_chat/auto", NODE)):
        answer = litellm.completion(model=model, api_base=base, api_key=KEY, messages=messages, temperature=0)
        print(f"{model}: {answer.choices[0].message.content}")


if __name__ == "__main__":
    main()
