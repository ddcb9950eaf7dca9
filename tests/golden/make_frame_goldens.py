"""Adds to frames.json the frames of messages that have none yet. A frame that is there is never changed: nodes out there
speak it. Where a value inside a message has grown a field, with a default, the old frame stays under its name with @ and a number,
and has to be understood for ever.

PYTHONPATH=tests python tests/golden/make_frame_goldens.py
"""

import json
from pathlib import Path

from support.messages import EXAMPLES

PATH = Path(__file__).with_name("frames.json")
frames = json.loads(PATH.read_text()) if PATH.exists() else {}
for name, (messages, message, body) in EXAMPLES.items():
    frames.setdefault(name, messages.to_frame(message, body, 41).hex())
PATH.write_text(json.dumps(frames, indent=0) + "\n")
