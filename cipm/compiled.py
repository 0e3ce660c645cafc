"""Compile a numeric loop so that it also works where no cache can be read or written (a jailed process)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property, wraps
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

Part, Result = TypeVar("Part"), TypeVar("Result")


class _Compiled:
    """A function that numba compiles at its first call, with its on-disk cache where there is one."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    @cached_property
    def _cached(self) -> Callable[..., Any]:
        from numba import njit  # noqa: PLC0415  (heavy: only a process that computes pays for it)

        try:
            return njit(cache=True, fastmath=True, nogil=True)(self._function)
        except RuntimeError:  # numba finds no folder for its cache
            return self._plain

    @cached_property
    def _plain(self) -> Callable[..., Any]:
        from numba import njit  # noqa: PLC0415

        return njit(fastmath=True, nogil=True)(self._function)

    def __call__(self, *args: Any) -> Any:
        try:
            return self._cached(*args)
        except OSError:  # compiled, but the cache folder cannot be read or written any more
            self.__dict__["_cached"] = self._plain
            return self._plain(*args)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled by numba at its first call (fast floating point: no NaN, no infinity inside)."""
    call = _Compiled(function)
    return wraps(function)(lambda *args: call(*args))


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return what `work` makes of each part, worked on in as many threads as torch may use.

    Worth it where compiled loops or matrix products do the work: they do not hold Python's lock. A product has one thread
    meanwhile: narrow ones gain little by more.
    """
    threads = min(len(parts), torch.get_num_threads())
    if threads < 2:
        return [work(part) for part in parts]
    with _pools().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


@contextmanager
def one_thread() -> Iterator[None]:
    """Have products and torch use one thread: for work so small that threads would wait for each other more than they work,
    above all where other processes are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
