"""Run a function on untrusted input in a locked-down child process. Fail closed: no lock, no run. Free of torch."""

from cipm.jail.parent import prepare, run, self_test
from cipm.jail.policy import Limits

__all__ = ["Limits", "prepare", "run", "self_test"]
