"""The options of an analysis: each field carries its range, unit and help.

From these fields come validation, the API schema, the page's controls, the table in docs/options.md and the tests of
invalid values.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cipm.errors import OptionError

ORDERS = ("original", "random", "canonical", "nodesort", "lexicographic", "spectral", "portfolio", "modules", "coordinated",
          "importance", "selectivity", "compression", "interpretability", "transfer")


def option(default: Any, help: str, unit: str, **bounds: Any) -> Any:
    """Declare one option: its default, one sentence of help, its unit, and pydantic bounds (ge, le, …)."""
    return Field(default, description=help, json_schema_extra={"unit": unit}, **bounds)


class AnalysisOptions(BaseModel):
    """What a person may choose about an analysis; every default is sensible for a first look."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rows: int = option(10_000, "Probe rows used; further rows are left out, and the report says how many.",
                           "rows", ge=2, le=10_000_000)
    batch_rows: int = option(256, "Probe rows in one forward pass.", "rows", ge=1, le=65_536)
    positions: int = option(64, "Positions kept per row and unit of a convolution or sequence, evenly spaced; "
                            "0 keeps all. Fewer positions are faster and noisier.", "positions", ge=0, le=1_000_000)
    statistics_memory: int = option(2048, "Memory for the statistics that one forward pass gathers; groups that do not fit "
                                    "together are gathered in further passes, one that does not fit alone is left out.",
                                    "MiB", ge=1, le=1_048_576)
    class_correlations: int = option(8, "Memory for the correlations class by class of one group, where the probe has labels "
                                     "(classes × units² × 8 bytes); groups that need more have none, 0 is for none at all.",
                                     "MiB", ge=0, le=1_048_576)
    shards: int = option(1, "Parts that the probe set is cut into, each collected by a worker of its own where there are "
                         "several; a part has 2,048 rows at least.", "parts", ge=1, le=64)
    resolution: float = option(0.0, "Module resolution: the correlation that two units must exceed to attract each "
                               "other; 0 chooses it by stability over the two probe halves.", "correlation",
                               ge=0.0, lt=1.0)
    module_method: Literal["potts", "agglomerative", "spectral"] = option(
        "potts", "How modules are sought: communities of the correlation, average linkage, or spectral clustering.", "method")
    module_pairs: Literal["signed", "absolute"] = option(
        "signed", "What anti-correlated units do: repel each other, or belong together.", "pairs")
    module_count: int = option(0, "Number of modules, for agglomerative and spectral; 0 takes the most reproducible one.",
                               "modules", ge=0, le=10_000)
    max_width: int = option(8192, "Widest group for which the correlation matrix is computed; wider groups are "
                            "listed without it.", "units", ge=2, le=65_536)
    measured_points: int = option(3, "Keep fractions at which a pruning what-if is measured for every group, beside "
                                  "the predicted curve.", "points", ge=0, le=20)
    measured_rows: int = option(1000, "Probe rows on which a what-if is measured.", "rows", ge=1, le=1_000_000)
    fisher: Literal["predictions", "labels"] = option(
        "predictions", "What says how much a change matters when the cost of pruning is computed: what the model itself holds "
        "to be likely, or the probe's classes (give rows that it was not trained on: on those nothing seems to matter).",
        "source")
    proof_draws: int = option(2, "Random members of all groups together on which the function is compared.",
                              "draws", ge=1, le=100)
    seed: int = option(0, "Seed of every random choice.", "seed", ge=0, le=2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where the forward passes run; auto takes a GPU where "
                                                    "the worker has one.", "device")


def parse_options(values: dict[str, Any] | None) -> AnalysisOptions:
    """Return validated options, or raise OptionError naming the field, its value and its range."""
    try:
        return AnalysisOptions(**(values or {}))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(AnalysisOptions.model_fields)
            raise OptionError(f"There is no option {name!r}; the options are {known}.", where=name) from None
        raise OptionError(f"Option {name} cannot be {first['input']!r}: {first['msg'].lower()}.", where=name) from None
