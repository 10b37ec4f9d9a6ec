"""The client against a node of this test's own."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

import kwaai_client as kwaai
from fake_node import Asked, Refusal, serve
from kwaai_client import BF16, Experts


def double(asked: Asked):
    return {"y": (asked.datatypes["x"], 2 * asked.inputs["x"])}


def test_call_returns_the_output_in_shape_and_type_of_the_input():
    with serve(double) as node, Experts(node.url) as experts:
        for shape in [(4,), (3, 4), (2, 3, 4)]:
            for dtype in (np.float32, np.float16):
                x = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
                y = experts.call("mixtral/0/3", x)
                assert y.dtype == dtype
                np.testing.assert_array_equal(y, 2 * x)
        assert node.asked[0].path == "/v2/models/mixtral/0/3/infer"


def test_call_takes_float64_and_strided_arrays_as_float32():
    with serve(double) as node, Experts(node.url) as experts:
        x = np.arange(24, dtype=np.float64).reshape(4, 6)[::2, 1::2]
        y = experts.call("7", x)
        assert node.asked[0].datatypes == {"x": "FP32"}
        np.testing.assert_array_equal(y, 2 * x)
        with pytest.raises(TypeError, match="complex"):
            experts.call("7", x.astype(complex))


def test_call_sends_and_returns_bfloat16_bits():
    with serve(lambda asked: {"y": ("BF16", asked.inputs["x"])}) as node, Experts(node.url) as experts:
        y = experts.call("7", BF16(np.array([[0x3F80, 0xC000]], np.uint16)))
        assert node.asked[0].datatypes == {"x": "BF16"}
        np.testing.assert_array_equal(y.float32(), np.array([[1, -2]], np.float32))


def test_layer_sends_the_callers_choice_and_returns_what_is_asked_for():
    def answer(asked: Asked):
        x = asked.inputs["hidden_states"]
        return {"hidden_states": ("FP32", x + 1), "experts": ("INT64", asked.inputs["experts"])}

    with serve(answer) as node, Experts(node.url) as experts:
        node.reply_parameters = {"answered_by": "peer-a,peer-b", "missing_experts": "expert-7"}
        x = np.zeros((2, 4), np.float32)
        index, weights = np.array([[0, -1], [2, 1]], np.int32), np.array([[1, 0], [0.5, 0.5]])
        reply = experts.layer(
            "m@v2/3", x, index, weights, outputs=("hidden_states", "experts"), policy="skip", shared=False, codec=None, timeout=2
        )
        np.testing.assert_array_equal(reply["hidden_states"], x + 1)
        np.testing.assert_array_equal(reply["experts"], index)
        assert reply.answered_by == ["peer-a", "peer-b"]
        assert reply.missing_experts == ["expert-7"]
        asked = node.asked[0]
        assert asked.path == "/v2/models/m@v2/3/infer"
        assert asked.datatypes == {"hidden_states": "FP32", "experts": "INT64", "weights": "FP32"}
        assert asked.outputs == ["hidden_states", "experts"]
        assert 1000 < asked.parameters.pop("timeout_ms") <= 2000
        assert asked.parameters == {"binary_data_output": True, "policy": "skip", "shared": False}


def test_empty_tensors_travel():
    with serve(double) as node, Experts(node.url) as experts:
        assert experts.call("7", np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_connections_are_used_again():
    with serve(double) as node, Experts(node.url) as experts:
        for _ in range(5):
            experts.call("7", np.ones(4))
        assert len({asked.connection for asked in node.asked}) == 1


def test_a_refusal_keeps_the_connection():
    with serve(lambda _: Refusal(404, b'{"error":"nobody hosts it","code":"NOT_FOUND"}')) as node, Experts(node.url) as experts:
        for _ in range(3):
            with pytest.raises(kwaai.NotFound):
                experts.call("7", np.ones(4))
        assert len({asked.connection for asked in node.asked}) == 1


def test_a_connection_that_the_node_closed_while_idle_costs_nothing():
    with serve(double) as node, Experts(node.url) as experts:
        node.close_after_reply = True
        for _ in range(5):
            np.testing.assert_array_equal(experts.call("7", np.ones(4)), 2 * np.ones(4))
        assert len(node.asked) == 5


def test_many_threads_share_a_client():
    with serve(double) as node, Experts(node.url) as experts:
        failures = []

        def work(seed: int) -> None:
            try:
                for i in range(20):
                    x = np.full((2, 8), seed * 100 + i, np.float32)
                    np.testing.assert_array_equal(experts.call("7", x), 2 * x)
            except Exception as err:
                failures.append(err)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(node.asked) == 400
        assert len({asked.connection for asked in node.asked}) < 100


@pytest.mark.parametrize(
    ("status", "code", "kind", "builtin"),
    [
        (404, "NOT_FOUND", kwaai.NotFound, LookupError),
        (400, "INVALID_ARGUMENT", kwaai.InvalidArgument, ValueError),
        (413, "RESOURCE_EXHAUSTED", kwaai.ResourceExhausted, Exception),
        (504, "DEADLINE_EXCEEDED", kwaai.DeadlineExceeded, TimeoutError),
        (504, "TIMEOUT", kwaai.DeadlineExceeded, TimeoutError),
        (503, "NOT_READY", kwaai.NotReady, Exception),
        (503, "DIAL_FAILED", kwaai.NotReady, Exception),
        (409, "DIGEST_MISMATCH", kwaai.DigestMismatch, Exception),
        (501, "UNIMPLEMENTED", kwaai.Unimplemented, Exception),
        (500, "INTERNAL", kwaai.Internal, Exception),
        (500, "BAD_REPLY", kwaai.Internal, Exception),
        (401, "UNAUTHENTICATED", kwaai.Unauthenticated, Exception),
        (403, "PERMISSION_DENIED", kwaai.PermissionDenied, Exception),
    ],
)
def test_errors_have_a_type_a_code_and_a_status(status, code, kind, builtin):
    body = f'{{"error":"in the node\'s words","code":"{code}"}}'.encode()
    with serve(lambda _: Refusal(status, body)) as node, Experts(node.url) as experts:
        with pytest.raises(kind) as caught:
            experts.call("7", np.ones(4))
        assert isinstance(caught.value, builtin) and isinstance(caught.value, kwaai.KwaaiError)
        assert (caught.value.code, caught.value.status) == (code, status)
        assert caught.value.message == "in the node's words"
        assert str(caught.value) == f"{code}: in the node's words"


def test_an_answer_of_a_proxy_is_an_error_by_its_status():
    page = Refusal(503, b"<html>no backend</html>")
    with serve(lambda _: page) as node, Experts(node.url) as experts, pytest.raises(kwaai.NotReady, match="no backend"):
        experts.call("7", np.ones(4))


def test_an_overloaded_swarm_is_asked_again_while_there_is_time():
    def answer(asked: Asked):
        if len(node.asked) < 3:
            return Refusal(429, b'{"error":"full","code":"OVERLOADED"}', {"Retry-After": "0"})
        return double(asked)

    with serve(answer) as node, Experts(node.url) as experts:
        experts.call("7", np.ones(4))
        assert len(node.asked) == 3

    with serve(lambda _: Refusal(429, b'{"error":"full","code":"OVERLOADED"}', {"Retry-After": "5"})) as node, Experts(node.url) as experts:
        with pytest.raises(kwaai.Overloaded) as caught:
            experts.call("7", np.ones(4), timeout=1)
        assert caught.value.retry_after == 5
        assert len(node.asked) == 1


def test_a_silent_node_is_given_up_on(monkeypatch):
    monkeypatch.setattr("kwaai_client.client._GRACE", 0.05)
    release = threading.Event()

    def answer(asked: Asked):
        release.wait(10)
        return double(asked)

    with serve(answer) as node, Experts(node.url) as experts:
        started = time.monotonic()
        with pytest.raises(kwaai.DeadlineExceeded):
            experts.call("7", np.ones(4), timeout=0.1)
        assert time.monotonic() - started < 5
        release.set()


def test_a_node_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    experts = Experts(f"http://127.0.0.1:{port}")
    with pytest.raises(kwaai.Unreachable, match=rf"no node at http://127.0.0.1:{port}.*kwaaid run") as caught:
        experts.call("7", np.ones(4))
    assert isinstance(caught.value, ConnectionError)
    assert not experts.ready()


def test_another_node_is_asked_when_the_first_is_gone():
    with serve(lambda _: None) as dying, serve(double) as well, Experts([dying.url, well.url]) as experts:
        np.testing.assert_array_equal(experts.call("7", np.ones(4)), 2 * np.ones(4))
        assert len(dying.asked) == 1
    with pytest.raises(kwaai.Unreachable) as caught:
        experts.call("7", np.ones(4))
    assert dying.url in caught.value.message and well.url in caught.value.message


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"hello", None),
        (b"[]", None),
        (b'{"outputs":[{"name":"z","datatype":"FP32","shape":[1],"data":[1]}]}', None),
        (b'{"outputs":[{"name":"y","datatype":"FP99","shape":[1],"data":[1]}]}', None),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[-1],"data":[1]}]}', None),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[3],"data":[1]}]}', None),
        (b'{"outputs":[]}', "99"),
        (b'{"outputs":[]}', "x"),
        (b'{"outputs":[]}tail', "14"),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":4}}]}1234', "88"),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1000000000000],"parameters":{"binary_data_size":4000000000000}}]}', "111"),
    ],
)
def test_a_reply_that_is_none_is_a_bad_reply(body, length):
    headers = {"Inference-Header-Content-Length": length} if length else {}
    with serve(lambda _: Refusal(200, body, headers)) as node, Experts(node.url) as experts, pytest.raises(kwaai.BadReply):
        experts.call("7", np.ones(4))


def test_outputs_as_json_are_read_too():
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1,2.5]}]}'
    with serve(lambda _: Refusal(200, body)) as node, Experts(node.url) as experts:
        np.testing.assert_array_equal(experts.call("7", np.ones((1, 2))), np.array([[1, 2.5]], np.float32))


def test_token_ready_and_metadata():
    with serve(double) as node, Experts(node.url + "/", token="secret") as experts:
        node.metadata["m/0"] = {"name": "m/0"}
        assert experts.ready() and experts.ready("m/0") and not experts.ready("m/1")
        assert experts.metadata("m/0") == {"name": "m/0"}
        with pytest.raises(kwaai.NotFound):
            experts.metadata("m/1")
        experts.call("7", np.ones(4))
        assert node.asked[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("url", ["ftp://host", "http://", []])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError):
        Experts(url)
