"""Recurrent layers: the gates of ONNX put into torch's order, one torch layer for each node."""

from __future__ import annotations

import torch

from cipm.load.onnx.values import Call, Const, Result, contents, operator

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's order among ONNX's: iofc, zrh
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> Result:
    """Y [time, directions, batch, hidden], its last step, and for an LSTM the last cell."""
    kind = call.node.op
    activation = _check(call, kind)
    x = call[0].transpose(0, 1) if call.int("layout", 0) else call[0]
    backwards = call.text("direction", "forward") == "reverse"
    x = x.flip(0) if backwards else x
    directions, hidden = call[1].shape[0], call[2].shape[2]
    weights = _weights(call, kind, directions, hidden)
    zero = torch.zeros([directions, x.shape[1], hidden], dtype=x.dtype)
    states = [_state(call, 5, zero)] + ([_state(call, 6, zero)] if kind == "LSTM" else [])
    common = (weights, call.has(3), 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        y, *last = torch.lstm(x, states, *common)
    else:
        run = {"GRU": torch.gru, "Tanh": torch.rnn_tanh, "Relu": torch.rnn_relu}["GRU" if kind == "GRU" else activation]
        y, *last = run(x, states[0], *common)
    y = y.flip(0) if backwards else y
    y = y.reshape([*y.shape[:2], directions, hidden]).permute(0, 2, 1, 3)
    if call.int("layout", 0):
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return [y, *last]


def _check(call: Call, kind: str) -> str:
    """Return the activation of a plain recurrent layer; raise UnsupportedModel for what torch's layers do not do."""
    call.refuse("clip", "input_forget")
    call.one_of("direction", "forward", ("forward", "reverse", "bidirectional"))
    call.refuse_inputs(*((7,) if kind == "LSTM" else ()))
    given = list(call.list("activations", ())) or None
    wanted = [*_ACTIVATIONS[kind]]
    if kind == "RNN" and given and set(given) == {"Relu"}:
        wanted = ["Relu"]
    if given and given != wanted * (len(given) // len(wanted)) or call.list("activation_alpha") or call.list("activation_beta"):
        raise call.unsupported(f"has the activations {', '.join(map(str, given or []))}")
    if kind == "GRU" and not call.int("linear_before_reset", 0):
        raise call.unsupported("resets before its linear map (linear_before_reset = 0)")
    if call.has(4):
        lengths, time = call.operands[4], call[0].shape[1 if call.int("layout", 0) else 0]
        if not isinstance(lengths, Const) or not isinstance(time, int) or set(contents(lengths.tensor)) - {time}:
            raise call.unsupported("takes sequences of different lengths")
    return wanted[0]


def _weights(call: Call, kind: str, directions: int, hidden: int) -> list[torch.Tensor]:
    """Return torch's flat list: for each direction both weights, and both biases."""
    found = []
    for d in range(directions):
        weights = [_ordered(call[i].select(0, d), kind, hidden) for i in (1, 2)]
        biases = [_ordered(part, kind, hidden) for part in call[3].select(0, d).chunk(2)] if call.has(3) else []
        found += [*weights, *biases]
    return found


def _ordered(tensor: torch.Tensor, kind: str, hidden: int) -> torch.Tensor:
    gates = tensor.split(hidden)
    return torch.cat([gates[i] for i in _GATES[kind]]) if len(gates) > 1 else tensor


def _state(call: Call, index: int, zero: torch.Tensor) -> torch.Tensor:
    if not call.has(index):
        return zero
    state = call[index].transpose(0, 1) if call.int("layout", 0) else call[index]
    return state.expand(zero.shape).contiguous()
