"""Asks a real node whatever its OpenAPI document allows, and what it does not, with schemathesis: `nox -s fuzz`.

No request may be the node's own failure (5xx), and answers have the types and shapes that the document says. Names are taken
from few, so that requests get as far as the model; the context is short, so that its answers are.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.real_node import Node

_CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
_LEFT_OUT = "/api/admin/shutdown"  # it works
_NOTHING = (
    "audio",
    "function_call",
    "functions",
    "prediction",
    "web_search_options",
    "conversation",
    "suffix",
    "best_of",
)
_LIKELY = {
    "model": {"enum": ["auto", "starter", "nobody"]},
    "role": {"enum": ["system", "user", "assistant", "tool", "wizard"]},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2.1},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0, "maximum": 1 << 31},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "n": {"enum": [None, 1, 2]},
    "max_tokens": {"enum": [1, 2, 1 << 40]},
    "max_output_tokens": {"enum": [1, 2]},
    "num_predict": {"enum": [1, 2]},
    "max_completion_tokens": {"enum": [None, 3]},
    "top_logprobs": {"enum": [None, 0, 2]},
    "logit_bias": {"enum": [None, {}, {"5": -100}, {"x": 1}]},
    "stop": {"enum": [None, "e", ["a", "b"], []]},
    "modalities": {"enum": [None, ["text"]]},
    "service_tier": {"enum": [None, "auto"]},
    "store": {"enum": [None, False]},
    "verbosity": {"type": "null"},
    "stream_options": {"enum": [None, {"include_usage": True}]},
    "tool_choice": {"enum": [None, "auto", "none", "required", {"type": "function", "function": {"name": "f"}}]},
    "response_format": {"enum": [None, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}]},
    "format": {"enum": [None, "", "json", {"type": "object"}, {"type": "nonsense"}]},
    "reasoning_effort": {"enum": [None, "low", "none"]},
    **{name: {"type": "null"} for name in _NOTHING},
}
"""What many requests should say of a field; what is beyond, the schemas' own types make up."""

_SHORT = {"max_tokens", "max_output_tokens", "num_predict", "options"}  # said always: answers take time
_SETTINGS = {
    "MESHNODE_ENGINE_CONTEXT_LENGTH": "64",  # tokens
    "MESHNODE_API_REQUESTS_PER_MINUTE": "1000000",
}


def aimed(document):
    """Return the document with less to choose from."""
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        for name in fields.keys() & _LIKELY.keys():
            fields[name] = _LIKELY[name]
        schema["required"] = sorted({*schema.get("required", ()), *(fields.keys() & _SHORT)})
    return document


def main() -> int:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "node"
        add = [sys.executable, "-m", "meshnode", "models", "add", "starter", "--data-dir", str(folder)]
        subprocess.run(add, check=True, env=dict(os.environ))
        with Node(folder, "--offline", **_SETTINGS) as node:
            document = Path(home) / "openapi.json"
            document.write_text(json.dumps(aimed(node.http.get("/openapi.json").json())))
            command = [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", str(document), "--url", node.url),
                *("--header", f"Authorization: {node.http.headers['Authorization']}"),
                *("--checks", _CHECKS, "--exclude-path", _LEFT_OUT, "--request-timeout", "120"),
                *(sys.argv[1:] or ["--max-examples", "25"]),
            ]
            ended = subprocess.run(command, check=False).returncode
            alive = node.process.poll() is None and node.http.get("/health/ready").status_code == 200
            for line in node.log:
                if line["level"] in ("error", "critical"):
                    sys.stdout.write(f"{json.dumps(line)}\n")
            return ended or int(not alive)


if __name__ == "__main__":
    sys.exit(main())
