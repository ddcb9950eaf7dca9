"""Ask a node through LiteLLM: by OpenAI's interface and by Ollama's, streamed, with a tool, and for a model that is not there.

MESHNODE_API_KEY=$(meshnode token) python examples/litellm_client.py [PROMPT]
"""

import os
import sys

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list of prices when it is imported

import litellm

NODE = os.environ.get("MESHNODE_URL", "http://127.0.0.1:8800")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say what the weather is like.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "What is the capital of France?"
    asked = {
        "api_key": os.environ["MESHNODE_API_KEY"],
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 100,
    }
    for model, base in (("openai/auto", f"{NODE}/v1"), ("ollama_chat/auto", NODE)):
        answer = litellm.completion(model, api_base=base, **asked)
        print(f"{model}: {answer.choices[0].message.content}")
    chunks = litellm.completion("openai/auto", api_base=f"{NODE}/v1", stream=True, **asked)
    print("streamed:", "".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    called = litellm.completion(
        "openai/auto",
        api_base=f"{NODE}/v1",
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        **asked,
    )
    for call in called.choices[0].message.tool_calls:
        print(f"{call.function.name}({call.function.arguments})")
    try:
        litellm.completion("openai/nobody", api_base=f"{NODE}/v1", **asked)
    except litellm.NotFoundError as error:
        print(error)


if __name__ == "__main__":
    main()
