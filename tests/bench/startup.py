"""From the start of the process to ready, with the model already in the data folder."""

import statistics
import subprocess
import sys
import time

from node import running_node
from results import Report, Row, spread
from setting import Setting

GOAL = 6.0  # seconds


def measure(setting: Setting) -> Report:
    """Start and stop real nodes. Every round also times what no node can avoid: a bare `import torch`."""
    ready, bare = [], []
    for _ in range(setting.rounds + 1):
        with running_node(setting.data_folder, setting.threads) as node:
            ready.append(node.seconds_to_ready)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        bare.append(time.perf_counter() - began)
    beside = {"spread": spread(ready[1:]), "first start": ready[0], "bare import torch": statistics.median(bare[1:])}
    row = Row("start to /health/ready", statistics.median(ready[1:]), "s", at_most=GOAL, beside=beside)
    how = "python -m meshnode run, starter imported before, files in the page cache; polled every 20 ms"
    return Report("startup", how, (row,))
