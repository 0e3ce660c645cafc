"""Every error a person can meet, in one tree.

    CipmError
    ├── InputError            what was given cannot be used as it is        exit 2, HTTP 422
    │   ├── ModelError        the model file
    │   │   ├── UnknownFormat     not a model, or a format we do not read
    │   │   ├── RefusedFormat     a known format that could run code or that we will not open
    │   │   ├── CorruptFile       the right format, but damaged or dishonest about its contents
    │   │   └── UnsupportedModel  readable, but uses something we cannot run (custom op, unlisted type)
    │   ├── ProbeError        the probe file, or how it fits the model
    │   ├── OptionError       an option's value, or a name that does not exist
    │   └── LimitExceeded     larger or slower than a stated limit
    ├── NotFound              no such thing, or not yours                   HTTP 404
    ├── Forbidden             read-only, or sign-in needed                  HTTP 401/403
    ├── Conflict              the thing is in another state                 HTTP 409
    │   └── Busy                  someone else is at it right now               HTTP 423
    ├── Cancelled             the user asked to stop                        HTTP 409
    └── JailError             the sandbox cannot be built or was broken out of; nothing was run   HTTP 503

A `raise` is about the user's input; an `assert` is about our bug.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CipmError(Exception):
    """Say what is wrong, where, and what to do, in one line each.

    `message` is one clear sentence (or two: what it is; what to do). `where` names a tensor and axis, a file and
    byte, a column, an option. `fix` says the way out where `message` does not already.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None):
        super().__init__(message)
        self.message, self.where, self.fix = message, where, fix

    def to_json(self) -> dict[str, Any]:
        """Return the one error shape that the API, the command line and the jail all use."""
        return {"error": {"code": self.code, "message": self.message, "where": self.where, "fix": self.fix}}

    def line(self) -> str:
        """Return the error as one line for standard error."""
        place = f" [{self.where}]" if self.where else ""
        return f"{self.message}{place}{' ' + self.fix if self.fix else ''}".replace("\n", " ")


class InputError(CipmError):
    code, status, exit_code = "input", 422, 2


class ModelError(InputError):
    code = "model"


class UnknownFormat(ModelError):
    code = "unknown_format"


class RefusedFormat(ModelError):
    code = "refused_format"


class CorruptFile(ModelError):
    code = "corrupt_file"


class UnsupportedModel(ModelError):
    code = "unsupported_model"


class ProbeError(InputError):
    code = "probe"


class OptionError(InputError):
    code = "option"


class LimitExceeded(InputError):
    code, status = "limit", 413


class NotFound(CipmError):
    code, status, exit_code = "not_found", 404, 2


class Forbidden(CipmError):
    code, status, exit_code = "forbidden", 403, 2


class Conflict(CipmError):
    code, status, exit_code = "conflict", 409, 2


class Busy(Conflict):
    code, status = "busy", 423


class Cancelled(CipmError):
    code, status = "cancelled", 409


class JailError(CipmError):
    code, status = "jail", 503


def error_classes() -> dict[str, type[CipmError]]:
    """Return every error class by its code."""
    found: dict[str, type[CipmError]] = {}
    pending: list[type[CipmError]] = [CipmError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def from_json(payload: dict[str, Any]) -> CipmError:
    """Rebuild an error that crossed a process boundary as `to_json()`."""
    error = payload["error"]
    cls = error_classes().get(error["code"], CipmError)
    return cls(error["message"], where=error.get("where"), fix=error.get("fix"))
