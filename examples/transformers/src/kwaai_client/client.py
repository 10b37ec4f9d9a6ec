"""The client: calls single experts and MoE layers through a node of the swarm, over HTTP."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from . import errors, oip
from .oip import Array, Reply

# The node is told the timeout and says which of its hosts was slow; only when it does not answer either, we give up by ourselves.
_GRACE = 1.0

# Connections kept for the next call, for each node; more are opened while more threads call at once.
_IDLE = 16

# A node's reply has a tensor of the input's size; without a length, this bounds what is read.
_MAX_DOCUMENT = 64 << 20


class Experts:
    """Calls experts of the swarm through a node. Safe to use from many threads at once; connections stay open between calls.

    ``url`` is the node's, or a list of several nodes' of the swarm: the first is used while it answers, then the next. ``token`` is
    its api_token if it has one. ``timeout`` is in seconds and covers a call from start to end, with everything that is tried in it.

    Exceptions are subclasses of ``KwaaiError``.
    """

    def __init__(self, url: str | Sequence[str] = "http://127.0.0.1:7575", *, token: str | None = None, timeout: float = 30.0) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("no node to talk to: expected a URL such as http://127.0.0.1:7575")
        if not timeout > 0:
            raise ValueError(f"timeout {timeout}: there would be no time to answer in")
        self.timeout = timeout
        self._nodes = [_Node(u, token) for u in urls]

    def call(self, name: str, x: Array, *, timeout: float | None = None, **parameters: Any) -> Array:
        """The output of one expert, MODEL/LAYER/INDEX or expert-N, for x: [hidden], [rows, hidden] or [a, b, hidden].

        The output has x's shape and its type: float32, float16 or BF16 (others go as float32). Parameters of the protocol may follow:
        ``digest`` pins the weights, ``codec`` is how rows travel between nodes (f32, bf16, f16), ``numerics`` how they are computed.
        """
        reply = self.infer(name, {"x": x}, timeout=timeout, parameters=parameters)
        return _output(reply, "y")

    def layer(
        self,
        name: str,
        hidden_states: Array,
        experts: Array | None = None,
        weights: Array | None = None,
        *,
        outputs: Sequence[str] = ("hidden_states",),
        timeout: float | None = None,
        **parameters: Any,
    ) -> Reply:
        """A whole MoE layer, MODEL/LAYER: its experts' outputs for each row, weighted and added up, as ``reply["hidden_states"]``.

        The node's gate chooses the experts, unless the caller does: ``experts`` (integers [rows, k], -1 for none) and ``weights``
        (floats [rows, k]). Other ``outputs`` are experts, weights and router_logits. Parameters of the protocol may follow: ``policy``
        (fail, or skip: an expert that nobody answers for is left out, and named in ``reply.missing_experts``), ``shared=False``
        (the layer's shared expert is left out, for callers who compute it themselves), ``codec``, ``numerics``, ``combine`` (caller, or
        peer: hosts add up what their experts make of a row).
        """
        inputs = {"hidden_states": hidden_states}
        if experts is not None:
            inputs["experts"] = experts
        if weights is not None:
            inputs["weights"] = weights
        reply = self.infer(name, inputs, outputs=outputs, timeout=timeout, parameters=parameters)
        for output in outputs:
            _output(reply, output)
        return reply

    def infer(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Reply:
        """One request of the Open Inference Protocol as it stands. An overloaded swarm is asked again while there is time."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        given = {key: value for key, value in (parameters or {}).items() if value is not None}
        while True:
            left = deadline - time.monotonic()
            text, behind = oip.encode(inputs, outputs, {"timeout_ms": max(1, int(left * 1000)), **given})
            headers = {
                "Content-Type": "application/octet-stream",
                oip.HEADER_LENGTH: str(len(text)),
                "Content-Length": str(len(text) + sum(len(part) for part in behind)),
            }
            try:
                return self._ask("POST", _path(name, "infer"), headers, [text, *behind], deadline + _GRACE, _read_reply)
            except errors.Overloaded as err:
                if time.monotonic() + err.retry_after >= deadline:
                    raise
                time.sleep(err.retry_after)

    def metadata(self, name: str) -> dict[str, Any]:
        """Inputs and outputs of a model with their shapes and datatypes, as the protocol describes them."""
        return self._document(_path(name))

    def ready(self, name: str | None = None) -> bool:
        """Whether the node is ready, or the model of that name. False also when there is none."""
        path = "/v2/health/ready" if name is None else _path(name, "ready")
        try:
            return bool(self._document(path).get("ready"))
        except (errors.NotFound, errors.NotReady, errors.Unreachable):
            return False

    def close(self) -> None:
        """Closes the idle connections. Later calls open others."""
        for node in self._nodes:
            node.close()

    def __enter__(self) -> Experts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _document(self, path: str) -> dict[str, Any]:
        document = self._ask("GET", path, {}, [], time.monotonic() + self.timeout, _read_document)
        if not isinstance(document, dict):
            raise errors.BadReply(f"{path} is no JSON object")
        return document

    def _ask(self, method: str, path: str, headers: dict[str, str], body: list, deadline: float, read) -> Any:
        """One exchange with the first node that can be reached. A forward pass changes nothing, so asking twice is harmless."""
        unreachable = []
        for node in self._nodes:
            try:
                return node.exchange(method, path, headers, body, deadline, read)
            except errors.Unreachable as err:
                unreachable.append(err)
        if len(unreachable) == 1:
            raise unreachable[0]
        raise errors.Unreachable("; ".join(err.message for err in unreachable)) from unreachable[0]


class _Node:
    """One node's address with its open connections."""

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url if "://" in url else "http://" + url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a node: expected one such as http://127.0.0.1:7575")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._url = url
        self._base = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []  # guarded by _lock; the last one was used last

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def exchange(self, method: str, path: str, headers: dict[str, str], body: list, deadline: float, read) -> Any:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._on(connection, method, path, headers, body, deadline, read)
            except errors.Unreachable:
                self.close()  # the node closed it while it was idle, or restarted: the others are no better
        return self._on(self._connection(self._host, self._port), method, path, headers, body, deadline, read)

    def _on(self, connection, method: str, path: str, headers: dict[str, str], body: list, deadline: float, read) -> Any:
        """One exchange on a connection, which is kept if it went well and closed if not."""
        keep = False
        try:
            connection.timeout = _left(deadline)
            if connection.sock is None:
                connection.connect()
            sock = connection.sock  # the connection forgets it when the node announces that it will close
            sock.settimeout(_left(deadline))
            sent = True
            try:
                connection.request(method, self._base + path, body=iter(body) if body else None, headers={**self._headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                sent = False  # a node refuses what is too large before it has read it: its reason may have arrived
            with connection.getresponse() as response:
                stream = _Body(response, sock, deadline)
                failure, answer = None, None
                if response.status == 200:
                    answer = read(response, stream)
                else:
                    failure = _failure(response, stream)
                keep = sent and response.isclosed() and not response.will_close
            if failure is not None:
                raise failure
            return answer
        except errors.KwaaiError:
            raise
        except TimeoutError as err:
            raise errors.DeadlineExceeded(f"{self._url} did not answer in time") from err
        except http.client.HTTPException as err:
            if isinstance(err, (ConnectionError, http.client.IncompleteRead)):
                raise self._unreachable(err) from err
            raise errors.BadReply(f"{self._url} does not speak HTTP: {err!r}") from err
        except OSError as err:
            raise self._unreachable(err) from err
        finally:
            if keep:
                with self._lock:
                    keep = len(self._idle) < _IDLE
                    if keep:
                        self._idle.append(connection)
            if not keep:
                connection.close()

    def _unreachable(self, err: Exception) -> errors.Unreachable:
        reason = getattr(err, "strerror", None) or str(err) or type(err).__name__
        return errors.Unreachable(f"no node at {self._url} ({reason}); start one with `kwaaid run`")


class _Body:
    """A response's body, read within a deadline."""

    def __init__(self, response: http.client.HTTPResponse, sock, deadline: float) -> None:
        self._response, self._sock, self._deadline = response, sock, deadline

    def fill(self, buffer: memoryview) -> None:
        """Reads exactly as many bytes as the buffer has."""
        at = 0
        while at < len(buffer):
            self._sock.settimeout(_left(self._deadline))
            n = self._response.readinto(buffer[at:])
            if not n:
                raise http.client.IncompleteRead(b"", len(buffer) - at)
            at += n

    def all(self) -> bytes:
        """Reads the rest, which is a document."""
        chunks: list[bytes] = []
        size = 0
        while True:
            self._sock.settimeout(_left(self._deadline))
            chunk = self._response.read(1 << 16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_DOCUMENT:
                raise errors.BadReply(f"a document of more than {_MAX_DOCUMENT} bytes")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise errors.DeadlineExceeded("no time is left")
    return left


def _path(name: str, verb: str = "") -> str:
    return f"/v2/models/{quote(name, safe='/@')}" + (f"/{verb}" if verb else "")


def _output(reply: Reply, name: str) -> Array:
    try:
        return reply[name]
    except KeyError:
        raise errors.BadReply(f"the reply has no output {name!r}, only {', '.join(reply.outputs) or 'none'}") from None


def _read_document(_: http.client.HTTPResponse, body: _Body) -> Any:
    try:
        return json.loads(body.all())
    except ValueError as err:
        raise errors.BadReply(f"no JSON: {err}") from err


def _read_reply(response: http.client.HTTPResponse, body: _Body) -> Reply:
    said, length = response.getheader(oip.HEADER_LENGTH), response.length
    if said is None:
        return oip.decode(body.all(), body.fill, 0)
    if not said.isdigit() or length is None or int(said) > length:
        raise errors.BadReply(f"a JSON part of {said} bytes in a body of {length}")
    text = bytearray(int(said))
    body.fill(memoryview(text))
    return oip.decode(text, body.fill, length - len(text))


def _failure(response: http.client.HTTPResponse, body: _Body) -> errors.KwaaiError:
    """The exception for an answer that is an error: the protocol's document, or a proxy's text."""
    raw = body.all()
    code, message = None, ""
    try:
        document = json.loads(raw)
        message, code = str(document["error"]), document.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = raw[:200].decode("utf-8", "replace").strip() or response.reason
    return errors.from_reply(response.status, code, message, response.getheader("Retry-After"))
