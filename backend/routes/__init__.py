"""The routes, one file per family of addresses; `routers` lists them all."""

from backend.routes import (
    analyses,
    auth,
    events,
    exports,
    health,
    matrices,
    results,
    samples,
    shares,
    symmetry,
    tokens,
    uploads,
    whatif,
)

routers = tuple(module.router for module in (health, auth, tokens, uploads, samples, analyses, events, results, symmetry,
                                             matrices, whatif, exports, shares))

__all__ = ["routers"]
