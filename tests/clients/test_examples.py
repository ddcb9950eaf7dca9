"""Every example runs, as a process of its own, against a node elsewhere than its default."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]

FOLDER = Path(__file__).parents[2] / "examples"
PRINTS = {
    "anthropic_sdk": r"\w.*\nweather\({'city': '(Paris|Rome)'}\)\n",
    "langchain_chat": r"\w.*\nmood='(good|bad)' is_certain=(True|False)\n",
    "litellm_client": r"openai/auto: (.*Paris.*)\nollama_chat/auto: \1\nstreamed: \1\n"
    r'weather\({"city": "(Paris|Rome)"}\)\n'
    r".*NotFoundError.*there is no model 'nobody'.*\n",
    "mcp_client": r"tools: chat, .*\n.*Paris.*\n",
    "ollama_client": r"models: smollm2-135m-instruct:latest\n.*Paris.*\n",
    "openai_embeddings": r"(-?[01]\.\d{3}  \w.*\.\n){3}",
    "openai_responses": r"> My name is .*\n\w.*\n> Where do I live\?\n\w.*\n",
    "openai_sdk": r".*Paris.*\n",
    "openai_tools": r'weather\({"city": "(Paris|Rome)"}\) = \d\d degrees.*\n.*\n',
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_an_example_runs(node, key, name):
    there = {"OPENAI_BASE_URL": f"{node.url}/v1", "ANTHROPIC_BASE_URL": node.url, "OLLAMA_HOST": node.url}
    keys = {f"{vendor}_API_KEY": key for vendor in ("OPENAI", "ANTHROPIC", "OLLAMA", "MESHNODE")}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "What is the capital of France?"],
        env=os.environ | there | keys | {"MESHNODE_URL": node.url},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(PRINTS[name], done.stdout, re.DOTALL), done.stdout
