"""The endpoint of the provider's callback: `/callback/{account}/{token}`."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from aiohttp import web

from exporter.app import App
from exporter.calls import CallbackOutcome
from exporter.secrets import Secret
from exporter.web.access import configuration

PATH: Final = "/callback"


def callback_url(base: str, account: str, token: Secret) -> str:
    """Return the callback URL of an account, below the URL of the exporter."""
    return f"{base.rstrip('/')}{PATH}/{quote(account, safe='')}/{quote(token.reveal(), safe='')}"


def callback_route(app: App) -> web.RouteDef:
    async def answer(request: web.Request) -> web.Response:
        accounts, name = configuration(app).accounts, request.match_info["account"]
        account = next((one for one in accounts if one.name == name), None)
        # Compare even for an unknown account, so that the response time does not reveal accounts.
        token = (account and account.callback_token) or Secret("")
        authorized = token == Secret(request.match_info["token"])
        if account is None:
            raise web.HTTPNotFound(text="not found\n")
        # Also count callbacks for an account that another exporter polls.
        numbers = app.callbacks.setdefault(name, dict.fromkeys(CallbackOutcome, 0))
        outcome = CallbackOutcome.ERROR
        try:
            if authorized:
                outcome = await app.sources.callback.accept(name, request.query)
            else:
                outcome = CallbackOutcome.FORBIDDEN
        finally:
            numbers[outcome] += 1
        if outcome is CallbackOutcome.FORBIDDEN:
            raise web.HTTPNotFound(text="not found\n")
        if outcome is CallbackOutcome.MALFORMED:
            raise web.HTTPBadRequest(text="expected a ReferenceId\n")
        return web.Response(text="ok\n")

    # Explicit patterns: by default, aiohttp's do not match braces.
    return web.get(f"{PATH}/{{account:[^/]+}}/{{token:[^/]+}}", answer, allow_head=False)
