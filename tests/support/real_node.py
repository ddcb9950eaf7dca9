"""A node as a process of its own, on a free port, with its log."""

import json
import os
import subprocess
import sys
import threading
import time

import httpx
import psutil


def _line(text):
    try:
        return json.loads(text)
    except ValueError:  # a traceback
        return {"event": text.rstrip()}


class Node:
    def __init__(self, folder, *arguments, until_ready=True, program=("-m", "meshnode"), **extra):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
        command = [sys.executable, *program, "run", "--no-browser", "--port", "0", "--data-dir", str(folder)]
        self.folder, self.not_ready, self.path = folder, [], "/health/ready" if until_ready else "/health"
        self.process = subprocess.Popen(
            [*command, *arguments],
            env={"MESHNODE_HUB_WATCH": "false", **kept, **extra},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self._reader = threading.Thread(target=lambda: self.log.extend(map(_line, self.process.stderr)))
        self._reader.start()

    def __enter__(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                said = json.loads((self.folder / "runtime.json").read_text())
                self.url = f"http://{said['host']}:{said['port']}"
                answer = httpx.get(f"{self.url}{self.path}", timeout=10)
            except (OSError, ValueError, httpx.TransportError):
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                key = (self.folder / "api_key").read_text().strip()
                self.http = httpx.Client(
                    base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
                )
                return self
            self.not_ready += answer.json()["not_ready"]
            time.sleep(0.05)
        raise AssertionError(self.log)

    def __exit__(self, *_):
        if hasattr(self, "http"):
            self.http.close()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()

    def end(self):
        self.process.wait(timeout=30)
        self._reader.join()
        return self.process.returncode

    def workers(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self):
        (worker,) = self.workers()
        return worker
