"""Recurrent layers: a hidden unit is one row of every gate, one column of the recurrent weights, one element of the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cipm.rules.labels import FREE, Axis, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, rule
from cipm.rules.select import concatenated, take

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class Cell:
    """One direction of one layer: W_ih [gates × units, in], W_hh [gates × units, out], biases, and W_hr [out, units]."""

    input: Value
    hidden: Value
    biases: tuple[Value, ...]
    projection: Value | None


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def layers(call: Call) -> list[list[Axis]]:
    """Per layer and direction …i, (gh)i, (gh)p, (gh), (gh), ph → …p: the g gates of a unit h are tied; without ph, h is p."""
    kind = call.node.op.split(".")[1]
    packed = call["data"] is not None
    x = call["data"] if packed else call["input"]
    states = [state for state in (call["hx"] if isinstance(call["hx"], tuple) else (call["hx"],))]
    directions = 2 if call["bidirectional"] else 1
    cells = _cells(call, directions * call["num_layers"], call["has_biases"], projected=_projects(call))
    if not packed:
        call.hold(x, _time(call, x), "a recurrent layer goes along it step by step")
    hidden: list[np.ndarray] = []
    carried: list[np.ndarray] = []
    for layer in range(call["num_layers"]):
        made = [_cell(call, x, cells[layer * directions + d], GATES[kind], record=layer == 0) for d in range(directions)]
        for out, units in made:
            _tie_states(call, states, len(hidden), (out, units))
            hidden.append(out)
            carried.append(units)
        x = _joined(call, x, [out for out, _ in made])
    lead = [call.fixed("layers and directions have places of their own"), *_rows(call, x, packed)]
    last = [np.stack(own).reshape(len(own), *[1] * (len(lead) - 1), -1) for own in (hidden, carried)]
    return [_over_time(call, x, packed), *([*lead, units] for units in last[:len(call.shapes) - 1])]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> list[list[Axis]] | list[Axis]:
    """…i, (gh)i, (gh)h, (gh), (gh), …h → …h: one step, the g gates of a unit h tied."""
    x, states = call["input"], call["hx"] if isinstance(call["hx"], tuple) else (call["hx"],)
    biases = tuple(value for value in (call["b_ih"], call["b_hh"]) if isinstance(value, Value))
    gates = GATES[call.node.op.split(".")[1].removesuffix("_cell")]
    out, _ = _cell(call, x, Cell(call["w_ih"], call["w_hh"], biases, None), gates, record=True)
    letters = LETTERS[:len(x.shape)]
    units = Value(x.name, (out.size,), (out,))
    axes = call.equation([(x, letters[:-1] + "y"), *((state, letters) for state in states), (units, letters[-1])], letters)
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


def _cells(call: Call, count: int, biased: bool, *, projected: bool) -> list[Cell]:
    width = 2 + 2 * bool(biased) + projected
    params = call["params"]
    assert len(params) == count * width
    chunks = [params[i * width:(i + 1) * width] for i in range(count)]
    return [Cell(c[0], c[1], tuple(c[2:4]) if biased else (), c[-1] if projected else None) for c in chunks]


def _projects(call: Call) -> bool:
    """An LSTM projects where its recurrent weights read fewer numbers than it has units."""
    rows, columns = call["params"][1].shape
    return call.node.op.startswith("aten.lstm") and rows != 4 * columns


def _time(call: Call, x: Value) -> int:
    return 1 if call["batch_first"] and len(x.shape) == 3 else 0


def _cell(call: Call, x: Value, own: Cell, gates: int, *, record: bool) -> tuple[np.ndarray, np.ndarray]:
    """State what one cell ties; return the labels of its output and of its units."""
    lead = LETTERS[:len(x.shape) - 1]
    reads = "y" if record else ""
    call.equation([(x, lead + "y"), (own.input, "zy")], lead + "z", contracted=reads)
    rows, = call.equation([(own.input, "zy"), (own.hidden, "zx"), *((bias, "z") for bias in own.biases)], "z")
    blocks = _line(rows).reshape(gates, -1)
    for block in blocks[1:]:
        call.book.tie(blocks[0], block)
    units = blocks[0]
    out = units
    if own.projection is not None:
        out, = call.equation([(own.projection, "ph"), (Value("", (units.size,), (units,)), "h")], "p")
    call.equation([(own.hidden, "zx"), (Value("", (out.size,), (_line(out),)), "x")], "x")
    return _line(out), units


def _line(axis: Axis) -> np.ndarray:
    assert isinstance(axis, np.ndarray), "the gates of a recurrent layer are fixed"
    return axis.ravel()


def _tie_states(call: Call, states: Sequence[Value], number: int, labels: tuple[np.ndarray, np.ndarray]) -> None:
    """Tie the first states of one layer and direction: the output's, and for an LSTM the cell's."""
    for state, own in zip(states, labels, strict=False):
        call.hold(state, 0, "layers and directions have places of their own")
        call.book.offer(state.axes[-1], 0, state.shape[0])
        rest = take(call, state, 0, np.array([number]), drop=True)
        letters = LETTERS[:len(rest)]
        call.equation([(Value(state.name, state.shape[1:], tuple(rest)), letters),
                       (Value("", (own.size,), (own,)), letters[-1])], letters)


def _joined(call: Call, x: Value, outs: Sequence[np.ndarray]) -> Value:
    """Return the sequence that a layer makes: the outputs of its directions side by side."""
    ndim = len(x.shape)
    parts = [Value(call.node.name, (1,) * (ndim - 1) + (out.size,), (FREE,) * (ndim - 1) + (
        out.reshape((1,) * (ndim - 1) + (-1,)),)) for out in outs]
    width = sum(out.size for out in outs)
    return Value(call.node.name, (*x.shape[:-1], width), (*x.axes[:-1], concatenated(call, parts, ndim - 1)))


def _rows(call: Call, x: Value, packed: bool) -> list[Axis]:
    """Return the axes of the samples, which the states share with the sequence."""
    if packed:
        return [call.fixed("samples were packed")]
    kept = [i for i in range(len(x.shape) - 1) if i != _time(call, x)]
    return [call.hold(x, i, "states are kept for it") if isinstance(x.axes[i], np.ndarray) else x.axes[i] for i in kept]


def _over_time(call: Call, x: Value, packed: bool) -> list[Axis]:
    axes: list[Axis] = list(x.axes)
    if not packed:
        axes[_time(call, x)] = call.fixed("a recurrent layer went along it step by step")
    return axes
