"""Pages of a server that asks people to sign in.

Dash knows one set of pages in a process: the server that is started here takes those of the others, so this file comes last.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from page_server import start
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_signing_in(tab: Page, tmp_path: Path) -> None:
    guarded = start(tmp_path, auth=True)
    try:
        tab.goto(guarded.url)
        expect(tab.locator("input[name=password]")).to_have_attribute("type", "password")
        tab.fill("input[name=email]", "someone@example.org")
        tab.fill("input[name=password]", "short")
        tab.click("text=Create an account")
        expect(tab.locator(".form-note")).to_contain_text("at least 10 characters")
        tab.fill("input[name=password]", "a long enough password")
        tab.click("text=Create an account")
        expect(tab.locator(".steps")).to_be_visible()
        tab.goto(f"{guarded.url}/account")
        tab.fill("#account-name", "a program")
        tab.click("#account-create")
        expect(tab.locator(".link-field")).to_contain_text("cipm_")
        tab.click("text=Sign out")
        tab.wait_for_url("**/login")
        tab.goto(f"{guarded.url}/account")
        expect(tab.locator(".sign-in")).to_be_visible()
    finally:
        guarded.stop()
