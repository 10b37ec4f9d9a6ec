"""Real nodes for tests: `kwaaid run` as child processes, each with ports and a data directory of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kwaai_client import Experts

REPOSITORY = Path(__file__).resolve().parents[3]
FIXTURES = REPOSITORY / "testdata" / "fixtures"

# For a node to be ready: some seconds where the machine is busy.
_PATIENCE = 60


def binary() -> str:
    """The binary to test: KWAAID_BINARY, else bin/kwaaid, which is built if it is not there."""
    if named := os.environ.get("KWAAID_BINARY"):
        return named
    path = REPOSITORY / "bin" / "kwaaid"
    if not path.exists():
        subprocess.run(["make", "build"], cwd=REPOSITORY, check=True)
    return str(path)


class Node:
    """A running node; `addr` is where others join and `url` its HTTP face."""

    def __init__(self, data: Path, args: Sequence[str], bootstrap: Sequence[str] = ()) -> None:
        command = [binary(), "run", "--data", str(data), "--listen", "/ip4/127.0.0.1/tcp/0"]
        command += ["--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *args]
        for addr in bootstrap:
            command += ["--bootstrap", addr]
        env = {key: value for key, value in os.environ.items() if not key.startswith("KWAAI")}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env)
        self._lines: list[str] = []
        up: queue.Queue[dict] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(up,))
        self._reader.start()
        try:
            said = up.get(timeout=_PATIENCE)
            if not said:
                raise RuntimeError("the node did not start:\n" + "".join(self._lines))
            self.addr, self.url = said["addrs"][0], "http://" + said["api"]
        except BaseException:
            self.kill()
            raise

    def _read(self, up: queue.Queue[dict]) -> None:
        for raw in self._process.stderr:
            line = raw.decode("utf-8", "replace")
            self._lines.append(line)
            if '"node is up"' in line:
                up.put(json.loads(line))
        up.put({})

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        with Experts(self.url) as experts:
            while not experts.ready():
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError("the node is not ready:\n" + "".join(self._lines))
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a machine that is gone. Twice is fine."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stderr.close()
