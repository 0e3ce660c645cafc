"""Signing in, and the personal API tokens, for servers that ask people to sign in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from frontend import words
from frontend.client import ApiError
from frontend.ids import Account
from frontend.session import Site
from frontend.widgets import button, empty, facts, problem

Json = Mapping[str, Any]


# ---------------------------------------------------------------- layout
def instead(error: ApiError, analysis_id: str | None, share: str | None, rest: str = "") -> Component:
    """Return what stands where the page /a/{id}{rest} of an analysis cannot be shown: sign-in where it helps, else why."""
    if error.status == 401 and analysis_id:
        return login(f"/a/{quote(analysis_id, safe='')}{rest}")
    if share:
        why = empty("This link opens nothing", error.problem["message"], "Ask its sender for a new one.")
    else:
        why = empty("This analysis cannot be opened", error.problem["message"], error.problem.get("fix"),
                    dcc.Link("To your analyses", href="/"))
    return html.Main(why, className="page narrow")


def login(then: str) -> Component:
    """Return the form to sign in or register, and go to `then`. The browser sends it: the answer sets its cookie."""
    return html.Main(html.Form([
        html.H1("Sign in"),
        dmc.TextInput(label="E-mail", name="email", required=True, withAsterisk=False, size="sm",
                      inputProps={"type": "email", "autoComplete": "username"}),
        dmc.TextInput(label="Password", name="password", required=True, withAsterisk=False, size="sm",
                      inputProps={"type": "password", "autoComplete": "current-password"}),
        html.Div([html.Button("Sign in", type="submit", value="POST /api/auth/login", className="cipm-button filled"),
                  html.Button("Create an account", type="submit", value="POST /api/auth/register",
                              className="cipm-button subtle")], className="form-actions"),
        html.P(className="form-note", role="alert")],
        className="sign-in", **{"data-api": "POST /api/auth/login", "data-next": then}), className="page narrow")


async def layout(site: Site) -> Component:
    """Return the account's page: who is signed in, and the tokens."""
    client = site.visit()
    try:
        user, tokens = await client.me(), await client.tokens()
    except ApiError as error:
        if error.status == 401:
            return login("/account")
        return html.Main(problem(error.problem), className="page narrow")
    leave = html.Form(html.Button("Sign out", type="submit", className="cipm-button subtle"),
                      **{"data-api": "POST /api/auth/logout", "data-next": "/login"}) if user["auth"] else None
    return html.Main([
        html.H1("Account"), facts([("Name", user["name"]), ("E-mail", user["email"] or words.NONE)]), leave,
        html.H2("API tokens"),
        html.P("A token lets a program act as you over the API, with “Authorization: Bearer …”.", className="quiet"),
        html.Div([dmc.TextInput(id=Account.NAME, placeholder="What is it for?", size="xs", w=260,
                                **{"aria-label": "Name of the token"}),
                  button("Create a token", Account.CREATE, "filled")], className="dialog-row"),
        html.Div(id=Account.NEW), html.Div(token_list(tokens), id=Account.LIST)], className="page narrow account")


def token_list(tokens: list[Json]) -> Component:
    """Return the tokens, newest first."""
    if not tokens:
        return html.P("There is no token yet.", className="quiet")
    newest = sorted(tokens, key=lambda token: token["created"], reverse=True)
    return html.Ul([html.Li([html.Span([html.B(token["name"]), html.Span(
        f" made {words.ago(token['created'])}, "
        + (f"last used {words.ago(token['last_used'])}" if token.get("last_used") else "never used"), className="quiet")]),
        button("Revoke", {"type": Account.REVOKE, "id": token["id"]}, "subtle", color="red")])
        for token in newest], className="rows")


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the page's callbacks."""

    @app.callback(Output(Account.NEW, "children"), Output(Account.LIST, "children"), Input(Account.CREATE, "n_clicks"),
                  State(Account.NAME, "value"), prevent_initial_call=True)
    async def create(clicks: int | None, name: str | None) -> tuple[Any, Any]:
        """Make a token and show it once."""
        if not clicks:
            return no_update, no_update
        client = site.visit()
        try:
            made = await client.create_token((name or "").strip() or "unnamed")
            return new_token(made["token"]), token_list(await client.tokens())
        except ApiError as error:
            return problem(error.problem), no_update

    @app.callback(Output(Account.LIST, "children", allow_duplicate=True),
                  Input({"type": Account.REVOKE, "id": ALL}, "n_clicks"), prevent_initial_call=True)
    async def revoke(clicks: list[int | None]) -> Any:
        """Revoke the token whose button was pressed."""
        if not any(clicks):
            return no_update
        client = site.visit()
        try:
            await client.delete_token(ctx.triggered_id["id"])
            return token_list(await client.tokens())
        except ApiError as error:
            return problem(error.problem)


def new_token(secret: str) -> Component:
    """Return a fresh token with its copy button."""
    return html.Div([html.Code(secret, className="link-field"),
                     html.Button("Copy", type="button", className="cipm-button", **{"data-copy": secret}),
                     html.P("It is shown once: copy it now.", className="quiet")], className="new-link", role="status")
