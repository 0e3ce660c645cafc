"""Inputs to trace an ONNX model with: identifiers for names, and example sizes for what the file leaves open."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cipm.load.onnx.proto import OnnxInput
from cipm.load.retrace import Sample

_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
_SUM = re.compile(r"[\w\s+*]{1,80}\Z", re.ASCII)
USUAL = 12  # what every stage takes for a symbolic size that is no batch
BATCHES, OTHERS = (2, 1), (USUAL, 16, 32, 64, 128, 224, 256, 299, 512, 8, 4, 2, 1)


def identifiers(names: Sequence[str]) -> list[str]:
    """Return a Python identifier of its own for every name, as like it as can be."""
    found: list[str] = []
    for name in names:
        base = re.sub(r"\W", "_", name, flags=re.ASCII)[:80].strip("_").lower() or "input"  # torch.export writes them small
        base = f"x_{base}" if base[0].isdigit() or keyword.iskeyword(base) or base in ("self", "args", "kwargs") else base
        count = 1
        while (word := base if count == 1 else f"{base}_{count}") in found:
            count += 1
        found.append(word)
    return found


def candidates(inputs: Sequence[OnnxInput], names: Sequence[str]) -> Iterator[dict[str, Sample]]:
    """Yield samples to try, likely sizes first. Sizes that the file writes as sums or products of others follow them."""
    leading = {dim for item in inputs for dim in item.shape[:1] if isinstance(dim, str)}
    free = any(dim is None or isinstance(dim, str) and dim not in leading for item in inputs for dim in item.shape)
    started = bool(leading) or any(item.shape[:1] == (None,) for item in inputs)
    for other in OTHERS if free else OTHERS[:1]:
        for batch in BATCHES if started else BATCHES[:1]:
            yield {name: _sample(item, leading, batch, other) for item, name in zip(inputs, names, strict=True)}


def _sample(item: OnnxInput, leading: set[str], batch: int, other: int) -> Sample:
    shape: list[int] = []
    dynamic: dict[int, tuple[str | None, int, int | None]] = {}
    for axis, dim in enumerate(item.shape):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        first = axis == 0 if dim is None else dim in leading
        plain = dim is not None and bool(_NAME.match(dim)) and not keyword.iskeyword(dim)
        derived = None if plain or dim is None else _derived(dim, leading, batch, other)
        shape.append(derived or (batch if first else other))
        low, high = (1, None) if first else (other if other > USUAL else 1, other if other < USUAL else None)
        dynamic[axis] = (dim if plain else None, low, None if derived else high)
    return Sample(tuple(shape), item.dtype, dynamic)


def _derived(text: str, leading: set[str], batch: int, other: int) -> int | None:
    """Return the value of a sum of products of names and integers, or None where the text is none."""
    if not _SUM.match(text):
        return None
    terms = [[part.strip() for part in term.split("*")] for term in text.split("+")]
    if not all(_NAME.match(part) or part.isdecimal() for term in terms for part in term):
        return None
    total = sum(math.prod(int(part) if part.isdecimal() else batch if part in leading else other for part in term)
                for term in terms)
    return total if 0 < total < 2**31 else None


def frozen(samples: Mapping[str, Sample], *, keep_first: bool) -> dict[str, Sample]:
    """Return the samples with all sizes fixed, or all but those of first axes (and of axes that share their names)."""
    names = {s.dynamic[0][0] for s in samples.values() if 0 in s.dynamic} - {None}
    return {item: replace(s, dynamic={axis: bounds for axis, bounds in s.dynamic.items()
                                      if keep_first and (axis == 0 or bounds[0] in names)}) for item, s in samples.items()}
