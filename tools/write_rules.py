"""Write docs/rules.md from the rules themselves: `make docs`. A test keeps the file so."""

from __future__ import annotations

from pathlib import Path

from cipm.rules import FAMILIES, known_ops

DOCUMENT = Path(__file__).parent.parent / "docs" / "rules.md"
HEAD = """# Rules of symmetry discovery

Made from the code by `make docs`; a test keeps it so.

Every axis of every stored tensor starts with a label for each position. A rule says, for one op, which labels must move
together. In the equations below a letter that two operands share ties their axes, `…` stands for leading axes, and a letter
that is missing on the right is summed over. Ops with torch's own `pointwise` tag need no line. Any other op without a line
here, or in a form that its line does not cover, is **tried**: run alone in float64 on random operands of two shapes, with and
without units permuted. Axes whose order makes no difference, or moves the result alike, may move; the others are **pinned**,
and so is everything where the op is too large to be tried. The report names the ops and the axes.

What is pinned whatever the op: axes of the model's inputs and outputs; axes that meet a constant which is not part of the
checkpoint (rotary frequencies of a Hugging Face model, for instance, pin the places of query and key units within a head);
the axis along which a convolution or pooling slides; rows of an embedding, since the values of an index choose them. An
index that was made by ranking units (the experts with the best scores) names these units: its numbers move with them, and so
does the axis that it chooses from.

Where every tensor of a group holds its units once for each slice of a stack (experts, heads, groups of a convolution, layers),
the graph is walked again with labels of their own for each slice, by the same rules: each slice then has an order of its
own wherever nothing ties it to the others. What an index chooses are the units of the chosen slice.

Known to be movable but pinned today: see the end of the page.
"""
TAIL = """
## Known to be movable but pinned today

- A packed cross-attention projection (nn.MultiheadAttention) makes one stream of what its queries and its keys read: both
  stand on one axis of its weight.
- Units of a stack's slices (experts, heads, layers) that the slices hold on an axis of their own are told apart for at most
  2²² positions in all (`cipm/symmetry/refine.py`); beyond that they move alike in all slices, and a note says so. Where two
  axes of a stack could each be told apart by the other, the earlier one gives the slices.
- Experts that are held in tensors of their own stay where they are: units move within tensors, never between them.
- Pairs of rotary units whose frequencies are computed by the model and not stored (Hugging Face) stay where they are.
- Experts that are sorted by number before they are computed (grouped matrix products) stay where they are.
- Cyclic shifts and reflections, where these alone are free (an axis that is added to its own shift).
"""


def document() -> str:
    """Return the whole page."""
    return HEAD + "".join(_family(module) for module in FAMILIES) + TAIL


def _family(module) -> str:
    rules: dict[object, list[str]] = {}
    for op, function in known_ops().items():
        if function.__module__ == module.__name__:
            rules.setdefault(function, []).append(op)
    title, rows = (module.__doc__ or "").strip().splitlines()[0], []
    for function, ops in rules.items():
        words = " ".join((function.__doc__ or "").split())
        rows.append(f"| {', '.join(f'`{op}`' for op in ops)} | {words} |\n")
    return f"\n## {title}\n\n| ops (aten) | what ties |\n|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
