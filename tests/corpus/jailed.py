"""Open a file where every upload is opened: in the jail, by a child of a server that has opened a good one."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cipm.errors import CipmError
from cipm.jail import Limits, run
from cipm.load import load
from cipm.testing.models import save_huggingface

ENTRY = "jailed:open_model"


def prepare() -> None:
    """Import what opening a Hugging Face folder imports."""
    importlib.import_module("transformers")
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface("gpt2", Path(folder))
        load(Path(folder))


def open_model(request: dict[str, Any], scratch: Path, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Open the file or folder that is named."""
    return {"tensors": len(load(Path(request["path"])).tensors)}


def refusal(path: Path, scratch: Path) -> CipmError:
    """Return the error that opening the file ends with; `scratch` is where the job may write."""
    with pytest.raises(CipmError) as caught:
        run(ENTRY, {"path": str(path.resolve())}, readable=[path], scratch=scratch, limits=Limits(threads=1),
            also={ENTRY: Path(__file__).parent})
    return caught.value
