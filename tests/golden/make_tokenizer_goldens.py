"""Writes tokenizer_starter.json: nasty strings and the ids llama.cpp gives them.

python tests/golden/make_tokenizer_goldens.py STARTER.gguf
"""

import json
import random
import sys
import urllib.request
from pathlib import Path

import xllamacpp

FIXED = [
    "", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n \n", "a", " a", "a ", "  a  b  ", "Hello, world!", "Hello\tworld\n\n\n",
    "it's we're I'll they'd you've I'm isn't", "IT'S WE'RE", "'s 't 're", "0", "12", "1234567890", "3.14159", "1,000,000", "٣٤٥ १२३",
    "x=1;y=2", "def f(x):\n    return x**2  # square\n", "<div class=\"a\">&amp;</div>", "{\"a\": [1, 2, {\"b\": null}]}",
    "https://example.org/a?b=c&d=%20#e", "a_b-c.d/e\\f|g", "!!!???...", "—–-‐", "“quotes” ‘single’", "… ellipsis",
    "naïve café résumé", "e\u0301 a\u0308 o\u0302", "ﬁ ligature", "ẞ ß", "İstanbul ı", "你好，世界", "日本語のテキスト", "한국어 문장입니다.",
    "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "ሰላም", "🙂", "👩‍👩‍👧‍👦 family", "🏳️‍🌈", "🇩🇪🇫🇷",
    "👍🏽", "a\u200bb", "a\u00a0b", "a\u3000b", "\ufeffbom", "\u2028line\u2029para", "\x00\x01\x02", "\x7f", "tab\there", "\u202eright",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "a<|im_end|>b", "<|im_start|>user\nhi<|im_end|>\n", "<|im_", "im_end|>", "<s></s>",
    "<repo_name>", "<file_sep>x", "a" * 300, "ab" * 200, " " * 100, "\n" * 50, "supercalifragilisticexpialidocious" * 5, "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "½ ¾ ²", "ⅣⅤ",
    "$100 €50 £20 ¥9", "a+b=c", "if(a&&b||!c){}", "SELECT * FROM t WHERE a='b';", "# Title\n\n- item\n- item\n", "\\frac{a}{b}", "ÀÁÂÃÄÅ", "z̷̧̛",
]  # fmt: skip
ALPHABETS = [
    "abc XYZ 019 .,!",
    "\n\t '\"-_",
    "äöüéß 你好 мир",
    "🙂👍🏽\u200d\u0301a ",
    "<|im_startend>/ ",
    "(){}[]=+*&%$#@",
]


def strings() -> list[str]:
    source = random.Random(20)
    made = ["".join(source.choices(source.choice(ALPHABETS), k=source.randint(1, 40))) for _ in range(80)]
    mixed = ["".join(source.choices("".join(ALPHABETS), k=source.randint(5, 120))) for _ in range(40)]
    return FIXED + made + mixed


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.warmup, parameters.verbosity = sys.argv[1], 256, False, -1
    server = xllamacpp.Server(parameters)

    def ids(text: str, special: bool) -> list[int]:
        body = json.dumps({"content": text, "parse_special": special, "add_special": False}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["tokens"]

    rows = [[text, ids(text, False), ids(text, True)] for text in strings()]
    path = Path(__file__).with_name("tokenizer_starter.json")
    path.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
