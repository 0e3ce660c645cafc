"""Hand-made blocks traced, and their groups discovered and proved."""

from __future__ import annotations

import torch
from torch import nn

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import TOLERANCE, discover_groups, prove
from cipm.trace import from_exported


def trace(module: nn.Module, *args: torch.Tensor) -> Checkpoint:
    """Return a module as a checkpoint with a dynamic batch, its one-dimensional parameters made distinct."""
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, dynamic_shapes=[{0: batch}] * len(args), strict=False)
    return Checkpoint("pt2", *from_exported(program.run_decompositions({})))


def proved(module: nn.Module, *args: torch.Tensor):
    checkpoint = trace(module, *args)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert symmetry.certificate.passed and not [n for n in symmetry.notes if "failed" in n], symmetry.notes
    assert symmetry.certificate.negative_control > TOLERANCE
    return symmetry


def sizes(symmetry) -> list[tuple[str, int, int]]:
    return sorted((g.kind, g.size, g.blocks) for g in symmetry.groups)
