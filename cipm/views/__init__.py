"""Matrices as a dashboard reads them: artefact files, pyramids of means and extremes, float16 tiles. numpy alone."""

from cipm.views.artefact import AxisMeta, MatrixFiles, write_index, write_matrix, write_strip
from cipm.views.pyramid import STATS, build, level_shape, levels, open_level
from cipm.views.tiles import TILE, encode, gather, scale_exponent, tile_bytes

__all__ = ["STATS", "TILE", "AxisMeta", "MatrixFiles", "build", "encode", "gather", "level_shape", "levels",
           "open_level", "scale_exponent", "tile_bytes", "write_index", "write_matrix", "write_strip"]
