"""Has the MoE layers of a loaded transformers model computed by the swarm.

transformers (5 and later) keeps the experts of a layer in one module, which its MoE block calls with the rows and with what the
router chose. ``patch`` puts another module in its place, which sends the three to the layer of the same number in the swarm. Router,
shared experts, attention and everything else stay as they are.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from . import errors
from .client import Experts
from .oip import BF16, Array

# Rows in one request. A host takes some thousands for one expert; this keeps a long prompt well below, at no cost worth measuring.
_ROWS = 1024

# How far the swarm's outputs may be from the model's own when the two are compared, by the largest value: 16-bit arithmetic comes
# within 1e-2, other weights miss by about 1.
_TOLERANCE = 0.05


class MissingExpertsWarning(UserWarning):
    """An expert that nobody answered for was left out of a layer (policy ``skip``)."""


# What a layer is asked: rows [n, hidden], experts [n, k] (-1 for none), weights [n, k].
_Ask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _TopK:
    """The experts of nearly all families: called with rows, the chosen experts and their weights, each [rows, k]."""

    def __init__(self, experts: Any) -> None:
        self.count: int = experts.num_experts

    def ask(self, ask: _Ask, *inputs: torch.Tensor) -> torch.Tensor:
        hidden, index, weights = inputs
        rows = hidden.reshape(-1, hidden.shape[-1])
        index, weights = index.reshape(-1, index.shape[-1]), weights.reshape(-1, weights.shape[-1])
        nobody = (index < 0) | (index >= self.count)  # a choice past the last expert is transformers' "none"
        return ask(rows, index.masked_fill(nobody, -1), weights.masked_fill(nobody, 0)).reshape(hidden.shape)

    def example(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        index = torch.arange(2 * len(rows), device=rows.device).reshape(-1, 2) % self.count
        return rows, index, torch.full(index.shape, 0.5, dtype=rows.dtype, device=rows.device)


class _OneHot(_TopK):
    """switch_transformers: the choice is a mask [rows, 1, experts], all zero where the row was dropped."""

    def ask(self, ask: _Ask, *inputs: torch.Tensor) -> torch.Tensor:
        hidden, mask, weights = inputs
        index = mask.argmax(-1).masked_fill(mask.sum(-1) == 0, -1)
        return super().ask(ask, hidden, index, weights)

    def example(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        index = torch.arange(len(rows), device=rows.device) % self.count
        mask = nn.functional.one_hot(index, self.count)[:, None, :]
        return rows, mask, torch.full((len(rows), 1), 0.5, dtype=rows.dtype, device=rows.device)


class _Every(_TopK):
    """llama4: each expert is given a copy of all rows, times their weights for it. Where a weight is zero, so is the output."""

    def ask(self, ask: _Ask, *inputs: torch.Tensor) -> torch.Tensor:
        (hidden,) = inputs
        rows = hidden.reshape(-1, hidden.shape[-1])
        used = rows.ne(0).any(-1).nonzero().squeeze(-1)
        index = (used // (len(rows) // self.count))[:, None]
        out = torch.zeros_like(rows)
        out[used] = ask(rows[used], index, torch.ones(index.shape, dtype=rows.dtype, device=rows.device))
        return out.reshape(hidden.shape)

    def example(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (rows.repeat(self.count, 1),)


_KINDS = {
    ("hidden_states", "top_k_index", "top_k_weights"): _TopK,
    ("hidden_states", "router_indices", "routing_weights"): _TopK,
    ("hidden_states", "selected_experts", "routing_weights"): _OneHot,
    ("hidden_states",): _Every,
}


def _kind(module: nn.Module) -> type[_TopK] | None:
    """How a module of experts is called; None if it is no such module."""
    if not type(module).__name__.endswith("Experts") or not isinstance(getattr(module, "num_experts", None), int):
        return None
    parameters = inspect.signature(type(module).forward).parameters
    return _KINDS.get(tuple(parameters)[1:])


class _Forward(torch.autograd.Function):
    """Runs a forward pass outside of autograd and says so when a gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, layer: _RemoteExperts, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.name = layer.name
        return layer.compute(*inputs)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> None:
        raise errors.GradientsUnsupported(
            f"a gradient was asked for through {ctx.name}, whose experts are in the swarm: they are for forward passes; "
            "use torch.no_grad(), or restore() the model's own experts to train it"
        )


class _RemoteExperts(nn.Module):
    """Stands where a layer's experts stood."""

    def __init__(self, name: str, original: nn.Module, kind: _TopK, patched: Patched) -> None:
        super().__init__()
        self.name = name
        self.num_experts = kind.count
        self._signature = inspect.signature(type(original).forward)
        self._kind = kind
        self._patched = patched

    def extra_repr(self) -> str:
        return f"{self.name}, experts={self.num_experts}"

    @torch.compiler.disable
    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        inputs = self._signature.bind(self, *args, **kwargs).args[1:]
        return _Forward.apply(self, *inputs)

    def compute(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._kind.ask(self._ask, *inputs)

    def _ask(self, rows: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(rows) == 0:
            return torch.empty_like(rows)
        states = rows.detach().to("cpu")
        index = experts.detach().to("cpu", torch.int64).numpy()
        scales = weights.detach().to("cpu", torch.float32).numpy()
        parts = [
            self._patched._call(self.name, _array(states[at : at + _ROWS]), index[at : at + _ROWS], scales[at : at + _ROWS])
            for at in range(0, len(states), _ROWS)
        ]
        return torch.cat([_tensor(part, rows.dtype) for part in parts]).to(rows.device)


def _array(states: torch.Tensor) -> Array:
    """The same bits for the wire, where the protocol has the type; else float32."""
    if states.dtype == torch.bfloat16:
        return BF16(states.contiguous().view(torch.int16).numpy().view(np.uint16))
    return states.to(torch.float16 if states.dtype == torch.float16 else torch.float32).numpy()


def _tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(array, BF16):
        return torch.from_numpy(array.bits.view(np.int16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(array).to(dtype)


class Patched:
    """What ``patch`` did to a model.

    ``layers`` are the swarm's names of its layers; ``answered_by`` counts calls by the peer that computed some of their experts;
    ``missing`` counts calls by the expert that was left out of them, with policy ``skip``.
    """

    def __init__(self, model: nn.Module, client: Experts, parameters: dict[str, Any]) -> None:
        self.layers: list[str] = []
        self.answered_by: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self._model, self._client, self._parameters = model, client, parameters
        self._originals: dict[str, nn.Module] = {}
        self._lock = threading.Lock()  # guards the counters

    def restore(self) -> None:
        """Puts the model's own experts back; only after ``patch(..., keep=True)``."""
        if len(self._originals) < len(self.layers):
            raise RuntimeError("the model's own experts were freed: patch it with keep=True to be able to restore them")
        for path, original in self._originals.items():
            self._model.set_submodule(path, original)

    def _call(self, name: str, states: Array, experts: np.ndarray, weights: np.ndarray) -> Array:
        reply = self._client.layer(name, states, experts, weights, shared=False, **self._parameters)
        with self._lock:
            self.answered_by.update(reply.answered_by)
            self.missing.update(reply.missing_experts)
        for expert in reply.missing_experts:
            warnings.warn(f"{name}: {expert} was left out, nobody answered for it", MissingExpertsWarning, stacklevel=2)
        return reply["hidden_states"]


def patch(
    model: nn.Module,
    url: str | Sequence[str] | Experts = "http://127.0.0.1:7575",
    *,
    name: str | None = None,
    keep: bool = False,
    verify: bool = True,
    timeout: float = 30.0,
    token: str | None = None,
    policy: str | None = None,
    codec: str | None = None,
    combine: str | None = None,
) -> Patched:
    """Has the swarm compute the experts of a transformers model's MoE layers, from now on.

    ``url`` is a node's, a list of several, or an ``Experts`` client. The node must have the routers of the model's layers: it hosts
    experts of the checkpoint, or has it under ``layers`` in its configuration.

    ``name`` is the model's in the swarm, MODEL or MODEL@REVISION; without it, the last part of the path or name it was loaded by, as
    nodes call it too. The model's own experts are freed unless ``keep``, which makes ``restore()`` possible. Before anything is
    changed, ``verify`` compares each layer's answer to a few random rows with that of the model's own experts, and raises
    ``WeightsDiffer`` where they are not the same. ``timeout`` is for one layer, in seconds; ``policy``, ``codec`` and ``combine`` are
    as in ``Experts.layer``.

    For forward passes: a gradient through the layers raises ``GradientsUnsupported``.
    """
    client = url if isinstance(url, Experts) else Experts(url, token=token)
    found = {path: (module, kind) for path, module in model.named_modules() if (kind := _kind(module)) is not None}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no experts that could be replaced: expected a Mixture-of-Experts model of transformers 5 or later"
        )
    base = name or _model_name(model)
    patched = Patched(model, client, {"timeout": timeout, "policy": policy, "codec": codec, "combine": combine})
    remote: dict[str, _RemoteExperts] = {}
    for path, (module, kind) in found.items():
        layer = f"{base}/{_layer(path)}"
        if layer in patched.layers:
            raise ValueError(f"two modules are layer {layer}, one of them {path}: patch the parts of the model one by one")
        patched.layers.append(layer)
        remote[path] = _RemoteExperts(layer, module, kind(module), patched)
        _check(client, remote[path], module, verify)
    for path, stand_in in remote.items():
        stand_in.train(found[path][0].training)
        model.set_submodule(path, stand_in)
        if keep:
            patched._originals[path] = found[path][0]
    patched.answered_by.clear()
    patched.missing.clear()
    return patched


def _model_name(model: nn.Module) -> str:
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "")).rstrip("/").rsplit("/", 1)[-1]
    if not name:
        raise ValueError("the model does not say where it was loaded from: give its name in the swarm, patch(model, url, name=...)")
    return name


def _layer(path: str) -> str:
    """The layer that a module of experts belongs to: the checkpoint's number, or the path where one number does not tell."""
    parts = path.split(".")
    numbers = [part for part in parts if part.isdigit()]
    if len(numbers) == 1:
        return numbers[0]
    while parts and not parts[-1].isdigit():
        parts.pop()
    if not parts:
        raise ValueError(f"{path} is in no numbered layer")
    return ".".join(parts)


def _check(client: Experts, remote: _RemoteExperts, module: nn.Module, verify: bool) -> None:
    """Raises if the swarm has no such layer, or another one under its name."""
    described = client.metadata(remote.name)
    sizes = {output["name"]: int(output["shape"][-1]) for output in described.get("outputs", [])}
    if sizes.get("router_logits", remote.num_experts) != remote.num_experts:
        raise errors.WeightsDiffer(f"{remote.name} has {sizes['router_logits']} experts in the swarm, {remote.num_experts} in the model")
    weight = next(module.parameters(), None)
    if not verify or weight is None or weight.is_meta:
        return
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.bfloat16
    rows = torch.randn(4, sizes["hidden_states"], generator=torch.Generator().manual_seed(0)).to(weight.device, dtype)
    example = remote._kind.example(rows)
    with torch.no_grad():
        own = module(*example).float()
        swarm = remote(*example).float().reshape(own.shape)
    off, largest = (own - swarm).abs().max().item(), own.abs().max().item()
    if not off <= _TOLERANCE * largest:
        raise errors.WeightsDiffer(
            f"{remote.name} is another layer in the swarm than in the model: outputs of up to {largest:.3g} differ by {off:.3g}; "
            "name= says what the model is called in the swarm"
        )
