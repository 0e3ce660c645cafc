"""Mount the dashboard on the server's FastAPI app: shell, pages, callbacks, assets."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Dash, dcc, html
from dash.development.base_component import Component
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.ids import Shell
from frontend.pages import account, analysis, home, sharing, symmetry, whatif_session
from frontend.session import ClientFactory, Site
from frontend.widgets import empty

INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<meta name="viewport" content="width=device-width, initial-scale=1"><title>{%title%}</title>
<script>(() => { // before anything is painted: the scheme that was chosen here, else the system's
  let chosen = null; try { chosen = localStorage.getItem("mantine-color-scheme-value"); } catch (error) { /* blocked */ }
  const dark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.setAttribute("data-mantine-color-scheme", dark ? "dark" : "light"); })();</script>
<link rel="icon" type="image/svg+xml" href="/assets/logo.svg">{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""
# Mantine's ten shades of dark, from text to the deepest ground, in the cool grey of assets/app.css.
DARK = ["#e6e9ed", "#b8bfc8", "#8b95a1", "#5c6570", "#3a414b", "#2a2f37", "#1f2329", "#14161a", "#101216", "#0c0e11"]
THEME = {"fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "primaryColor": "indigo",
         "fontFamilyMonospace": "ui-monospace, 'SF Mono', Menlo, Consolas, monospace", "defaultRadius": "sm",
         "colors": {"dark": DARK}, "primaryShade": {"light": 7, "dark": 7}, "cursorType": "pointer"}


ASSETS = Path(__file__).parent / "assets"


def mount(app: FastAPI, make_client: ClientFactory) -> Dash:
    """Return the Dash app that now answers every page of `app`; routes under /api must be registered before.

    `make_client(cookie header, share token)` gives the client that a callback uses on the visitor's behalf.
    """
    site = Site(make_client)
    pages = Dash(__name__, server=app, use_pages=True, pages_folder="", title="CIPM", update_title=None,
                 assets_folder=str(ASSETS), include_assets_files=False, external_scripts=_addresses("*.js"),
                 external_stylesheets=_addresses("*.css"), suppress_callback_exceptions=True, index_string=INDEX,
                 include_pages_meta=False, serve_locally=True, use_async=True)
    _register_pages(site)
    pages.layout = shell()
    for part in (home, analysis, symmetry, whatif_session, sharing, account):
        part.register(pages, site)
    app.add_middleware(FirstPageFirst)
    return pages


class FirstPageFirst:
    """Ask Dash for `/` before anything else: only then does it complete itself, and pages served earlier lack parts."""

    def __init__(self, app: ASGIApp):
        self.app, self.lock, self.asked = app, asyncio.Lock(), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.asked and scope["type"] == "http" and not scope["path"].startswith("/api"):
            async with self.lock:
                if not self.asked:
                    first = {**scope, "method": "GET", "path": "/", "raw_path": b"/", "query_string": b""}
                    await self.app(first, receive, _nowhere)
                    self.asked = True
        await self.app(scope, receive, send)


async def _nowhere(_: Message) -> None:
    """Drop an answer."""


def _addresses(pattern: str) -> list[str]:
    """Return the addresses of our scripts or styles, in order of name, each with a mark of its contents.

    Dash would find them itself, but not in time where the first page asked for is not the first page.
    """
    return [f"/assets/{path.name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
            for path in sorted(ASSETS.glob(pattern))]


def _register_pages(site: Site) -> None:
    """Register the pages. Their arguments beyond the path are the address's query, whatever a person typed there."""

    async def home_page(**_: Any) -> Component:
        return await home.layout(site)

    async def analysis_page(analysis_id: str = "", **query: Any) -> Component:
        if "/" in analysis_id:
            return await _not_found()
        return _with_dialogs(await analysis.layout(site, analysis_id, None, query))

    async def share_page(share_token: str = "", **query: Any) -> Component:
        return await (_not_found() if "/" in share_token else analysis.layout(site, None, share_token, query))

    async def symmetry_page(analysis_id: str = "", **query: Any) -> Component:
        return await symmetry.layout(site, analysis_id, None, query)

    async def shared_symmetry_page(share_token: str = "", **query: Any) -> Component:
        return await symmetry.layout(site, None, share_token, query)

    async def whatif_page(analysis_id: str = "", **_: Any) -> Component:
        return await whatif_session.layout(site, analysis_id, None)

    async def shared_whatif_page(share_token: str = "", **_: Any) -> Component:
        return await whatif_session.layout(site, None, share_token)

    async def login_page(**_: Any) -> Component:
        return account.login("/")

    async def account_page(**_: Any) -> Component:
        return await account.layout(site)

    dash.page_registry.clear()
    dash.register_page("home", path="/", title="CIPM", layout=home_page)
    # Dash takes the first page that fits, and a part in <> fits slashes as well: the longer addresses have an order, the
    # others go by name, which is after every number.
    dash.register_page("symmetry", path_template="/a/<analysis_id>/symmetry", title="Symmetry · CIPM", layout=symmetry_page,
                       order=0)
    dash.register_page("shared symmetry", path_template="/s/<share_token>/symmetry", title="Shared symmetry · CIPM",
                       layout=shared_symmetry_page, order=1)
    dash.register_page("what-ifs", path_template="/a/<analysis_id>/whatif", title="What-ifs · CIPM", layout=whatif_page,
                       order=2)
    dash.register_page("shared what-ifs", path_template="/s/<share_token>/whatif", title="Shared what-ifs · CIPM",
                       layout=shared_whatif_page, order=3)
    dash.register_page("analysis", path_template="/a/<analysis_id>", title="Analysis · CIPM", layout=analysis_page)
    dash.register_page("share", path_template="/s/<share_token>", title="Shared analysis · CIPM", layout=share_page)
    dash.register_page("login", path="/login", title="Sign in · CIPM", layout=login_page)
    dash.register_page("account", path="/account", title="Account · CIPM", layout=account_page)
    dash.register_page("not_found_404", path="/404", title="Not found · CIPM", layout=_not_found)


def _with_dialogs(page: Component) -> Component:
    page.children = [*(page.children if isinstance(page.children, list) else [page.children]), *sharing.dialogs()]
    return page


async def _not_found(**_: Any) -> Component:
    return html.Main(empty("There is no such page", "The address may be mistyped, or what it showed was removed.",
                           dcc.Link("To the first page", href="/")), className="page narrow")


def shell() -> Component:
    """Return what stands on every page: the bar at the top, and the place of the page."""
    bar = html.Header([
        dcc.Link([html.Img(src="/assets/logo.svg", alt="", width=22, height=22), html.Span("CIPM")], href="/",
                 className="brand", title="To the first page"),
        html.Nav([dcc.Link("Account", href="/account"), html.A("API", href="/api/docs"),
                  dmc.ColorSchemeToggle(lightIcon=html.Span("☀", **{"aria-hidden": "true"}),
                                        darkIcon=html.Span("☾", **{"aria-hidden": "true"}), variant="subtle", color="gray",
                                        size="md", id=Shell.PLACE, attributes={"root": {"aria-label": "Light or dark"}})],
                 className="bar-links", **{"aria-label": "Site"})], className="bar")
    return dmc.MantineProvider([bar, dash.page_container], theme=THEME, defaultColorScheme="auto")
