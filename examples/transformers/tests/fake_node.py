"""A node for tests: speaks the Open Inference Protocol from its description alone, and shares no code with the client."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

FORMATS = {"FP32": "<f4", "FP16": "<f2", "BF16": "<u2", "INT64": "<i8"}


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    inputs: dict[str, np.ndarray]
    datatypes: dict[str, str]
    parameters: dict[str, Any]
    outputs: list[str]
    headers: dict[str, str]
    connection: int  # the client's port


@dataclass
class Refusal:
    """What to answer instead of tensors."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class FakeNode:
    """Answers by a function from Asked to {output: (datatype, array)}, to a Refusal, or to None: the connection is cut."""

    def __init__(self, answer: Callable[[Asked], Any]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.metadata: dict[str, dict] = {}
        self.reply_parameters: dict[str, Any] = {}
        self.close_after_reply = False
        self.url = ""


@contextlib.contextmanager
def serve(answer: Callable[[Asked], Any], port: int = 0) -> Iterator[FakeNode]:
    node = FakeNode(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)
            if node.close_after_reply:  # without saying so, as a node does that closes idle connections
                self.close_connection = True

        def do_GET(self) -> None:
            if self.path == "/v2/health/ready":
                return self.send(200, b'{"ready":true}', {})
            name = self.path.removeprefix("/v2/models/")
            if name.endswith("/ready"):
                known = name.removesuffix("/ready") in node.metadata
                return self.send(200 if known else 404, json.dumps({"ready": known, "error": "no"}).encode(), {})
            if name not in node.metadata:
                return self.send(404, b'{"error":"nobody hosts it","code":"NOT_FOUND"}', {})
            return self.send(200, json.dumps(node.metadata[name]).encode(), {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            document, at = json.loads(body[:length]), length
            asked = Asked(self.path, {}, {}, document.get("parameters", {}), [], dict(self.headers), self.client_address[1])
            for tensor in document["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                array = np.frombuffer(body[at : at + size], FORMATS[tensor["datatype"]]).reshape(tensor["shape"])
                asked.inputs[tensor["name"]], asked.datatypes[tensor["name"]] = array, tensor["datatype"]
                at += size
            assert at == len(body)
            asked.outputs = [output["name"] for output in document.get("outputs", [])]
            node.asked.append(asked)
            answer = node.answer(asked)
            if answer is None:
                # A reset, as of a process that was killed.
                self.connection.setsockopt(1, 13, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            if isinstance(answer, Refusal):
                return self.send(answer.status, answer.body, answer.headers)
            described, behind = [], b""
            for name, (datatype, array) in answer.items():
                raw = np.ascontiguousarray(array, FORMATS[datatype]).tobytes()
                described.append(
                    {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(raw)}}
                )
                behind += raw
            text = json.dumps({"model_name": "m", "parameters": node.reply_parameters, "outputs": described}).encode()
            self.send(200, text + behind, {"Inference-Header-Content-Length": str(len(text))})

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass  # clients that went away

    server = Server(("127.0.0.1", port), Handler)
    node.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
