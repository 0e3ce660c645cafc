"""Fixtures that every test may use."""

import pytest

pytest_plugins = ["services", "samples_fixture"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run browser tests last: playwright leaves an event loop running in the main thread, and other tests start their own."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
