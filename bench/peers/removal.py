"""Judge what Torch-Pruning removes from a model, as its README shows it: one step of BasePruner, 25 % of every group.

The layers that write the model's outputs (a linear layer or convolution as wide as the last axis, or axis 1, of an output) are
ignored, as the README ignores the classifier. The verdict is one of

* right: the smaller model runs, its outputs have the shapes they had, and either it computes what the full model computes
  with every removed entry set to zero, or (a norm over the removed units changes that) its groups are true groups: in the
  full model, permuting the units of every group it removed from, at the very places it lists, changes nothing;
* wrong: the smaller model runs and gives outputs of the right shapes, and neither holds. Nobody is told;
* unchanged: no tensor became smaller;  * error: it raised, or the smaller model does not run or gives other shapes.

All comparisons are on one random input, in float64 and relative 1e-6 (in float32 and 1e-4 where a model has no float64). That
two ways lead to "right" is generous to the peer.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

RATIO = 0.25
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
Run = Callable[[nn.Module], list[Tensor]]
Places = dict[tuple[str, int], list[int]]
"""Positions by (tensor, axis)."""


@dataclass(frozen=True)
class Removal:
    """One group that was pruned: its root layer, whether outputs or inputs, the removed units, and units per equal run."""

    root: str
    outputs: bool
    removed: tuple[int, ...]
    runs: int


def judge(model: nn.Module, example: dict[str, Tensor] | tuple[Tensor, ...], run: Run, dtype: torch.dtype) -> tuple[str, str]:
    """Return (verdict, detail). `run` gives the outputs of a model on the example, as tensors; `dtype` is compared in."""
    original = copy.deepcopy(model).to(dtype)
    shapes = [tuple(t.shape) for t in run(original)]
    sizes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    try:
        removals = _prune(model, example, run, shapes)
    except Exception as error:  # noqa: BLE001 - whatever the peer raises is its verdict
        return "error", f"pruning: {type(error).__name__}: {error}"
    if {name: tuple(t.shape) for name, t in model.state_dict().items()} == sizes:
        return "unchanged", ""
    try:
        smaller = run(model.to(dtype))
    except Exception as error:  # noqa: BLE001
        return "error", f"running: {type(error).__name__}: {error}"
    if [tuple(t.shape) for t in smaller] != shapes:
        return "error", f"outputs {[tuple(t.shape) for t in smaller]} instead of {shapes}"
    claims = [_claim(original, example, run, removal) for removal in removals]
    zeroed = _difference(run(_zeroed(original, [removed for removed, _ in claims])), smaller)
    if zeroed <= TOLERANCE[dtype]:
        return "right", f"equal to the zeroed model, {zeroed:.0e}"
    permuted = _permuted_difference(original, [units for _, units in claims], run)
    return ("right" if permuted <= TOLERANCE[dtype] else "wrong"), f"zeroed {zeroed:.0e}, permuted {permuted:.0e}"


def _prune(model: nn.Module, example: Any, run: Run, shapes: Sequence[tuple[int, ...]]) -> list[Removal]:
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=_writers_of_outputs(model, shapes), forward_fn=_forward(run), output_transform=_one_number,
        in_channel_groups={}, out_channel_groups={}, num_heads={})  # its defaults are shared between calls
    names = {module: name for name, module in model.named_modules()}
    found = []
    for group in pruner.step(interactive=True):
        dep, removed = group[0]
        module, outputs = dep.target.module, pruner.DG.is_out_channel_pruning_fn(dep.handler)
        found.append(Removal(names[module], outputs, tuple(int(i) for i in removed), pruner._get_channel_groups(group)))
        group.prune()
    return found


def _writers_of_outputs(model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> list[nn.Module]:
    last, second = {s[-1] for s in shapes if s}, {s[1] for s in shapes if len(s) > 2}
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in last
            or isinstance(m, nn.modules.conv._ConvNd) and m.out_channels in second | last]


def _forward(run: Run) -> Callable[[nn.Module, Any], list[Tensor]]:
    return lambda model, example: run(model)


def _one_number(outputs: Sequence[Tensor]) -> Tensor:
    return sum(t.sum() for t in outputs if t.is_floating_point())


def _claim(original: nn.Module, example: Any, run: Run, removal: Removal) -> tuple[Places, list[Places]]:
    """Return what was removed and what each unit of the whole group is, at the places that Torch-Pruning lists."""
    graph = tp.DependencyGraph().build_dependency(original, example, forward_fn=_forward(run), output_transform=_one_number)
    root = original.get_submodule(removal.root)
    pruner = graph.get_pruner_of_module(root)
    fn = pruner.prune_out_channels if removal.outputs else pruner.prune_in_channels
    size = (pruner.get_out_channels if removal.outputs else pruner.get_in_channels)(root)
    group = graph.get_pruning_group(root, fn, list(range(size)))
    names = {module: name for name, module in original.named_modules()}
    names |= {parameter: name for name, parameter in original.named_parameters()}
    run_length = size // removal.runs
    units: list[Places] = [defaultdict(list) for _ in range(run_length)]
    for item in group:
        rows: dict[int, list[int]] = defaultdict(list)
        for index, unit in zip(item.idxs, item.root_idxs, strict=True):
            rows[int(unit) % run_length].append(int(index))
        for unit, indices in rows.items():
            for place, positions in _lost(item.dep, indices, names).items():
                units[unit][place] = sorted({*units[unit][place], *positions})
    removed: Places = defaultdict(list)
    for unit in {i % run_length for i in removal.removed}:
        for place, positions in units[unit].items():
            removed[place] += positions
    return removed, units


def _lost(dep: Any, indices: list[int], names: dict[Any, str]) -> Places:
    """Return the positions that a pruning function takes from its layer's tensors, seen on a copy with numbered entries."""
    target = dep.target.module
    if target not in names:
        return {}  # an operation without tensors
    single = isinstance(target, nn.Parameter)
    layer = nn.Parameter(_numbered(target)) if single else copy.deepcopy(target)
    if not single:
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.data = _numbered(tensor)
    dep.handler.__self__.pruning_dim = dep.target.pruning_dim
    with torch.no_grad():
        after = dep.handler(layer, indices)
    state = {"": after} if single else after.state_dict()
    found: Places = {}
    for name, tensor in ({"": target} if single else target.state_dict()).items():
        if tensor.shape != state[name].shape:
            axis, = (a for a, (n, m) in enumerate(zip(tensor.shape, state[name].shape, strict=True)) if n != m)
            kept = torch.unique(torch.unravel_index(state[name].long().flatten(), tensor.shape)[axis]).tolist()
            path = ".".join(part for part in (names[target], name) if part)
            found[path, axis] = sorted(set(range(tensor.shape[axis])) - set(kept))
    return found


def _numbered(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)


def _zeroed(original: nn.Module, removed: Sequence[Places]) -> nn.Module:
    model = copy.deepcopy(original)
    state = model.state_dict()
    for places in removed:
        for (name, axis), positions in places.items():
            state[name].index_fill_(axis, torch.tensor(positions, dtype=torch.long), 0)
    return model


def _permuted_difference(original: nn.Module, groups: Sequence[list[Places]], run: Run) -> float:
    """Return the change when the units of every group are permuted; infinite where they stand in different places."""
    generator, model = torch.Generator().manual_seed(0), copy.deepcopy(original)
    state, moves = model.state_dict(), {}
    for units in groups:
        if any({p: len(i) for p, i in unit.items()} != {p: len(i) for p, i in units[0].items()} for unit in units):
            return float("inf")
        order = torch.randperm(len(units), generator=generator).tolist()
        for name, axis in units[0]:
            key = state[name].data_ptr(), axis  # a tied tensor is listed under each of its names and moves once
            moves.setdefault(key, (state[name], axis, list(range(state[name].shape[axis]))))
            for unit, source in enumerate(order):
                for position, taken in zip(units[unit][name, axis], units[source][name, axis], strict=True):
                    moves[key][2][position] = taken
    for tensor, axis, index in moves.values():
        tensor.copy_(tensor.index_select(axis, torch.tensor(index)))
    return _difference(run(original), run(model))


def _difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        if a.is_floating_point() and a.numel():
            scale = float(a.abs().max()) or 1.0
            change = float((a - b).abs().max()) / scale
            worst = max(worst, change if change == change else float("inf"))  # not a number: no agreement
    return worst
