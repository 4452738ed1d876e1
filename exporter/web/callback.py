"""The endpoint of the provider's callback: `/callback/{account}/{token}`."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from aiohttp import web

from exporter.app import App
from exporter.calls import CallbackOutcome
from exporter.errors import CapacityError, LedgerError
from exporter.secrets import Secret
from exporter.sources.callback import CallbackSource
from exporter.web.access import retry_after
from exporter.web.api import LEDGER_RETRY, STARTING_RETRY

PATH: Final = "/callback"


def callback_url(base: str, account: str, token: Secret) -> str:
    """Return the callback URL of an account.

    Args:
        base: the URL of the exporter, such as `https://exporter.example.com`.
        account: the name of the account.
        token: its `callback_token`.
    """
    return f"{base.rstrip('/')}{PATH}/{quote(account, safe='')}/{quote(token.reveal(), safe='')}"


class Callback:
    """Handler of callbacks."""

    def __init__(self, app: App) -> None:
        self._app = app

    def routes(self) -> list[web.RouteDef]:
        """Return the route of callbacks."""
        # Explicit patterns: by default, aiohttp's do not match braces.
        path = f"{PATH}/{{account:[^/]+}}/{{token:[^/]+}}"
        return [web.get(path, self._answer, allow_head=False)]

    async def _answer(self, request: web.Request) -> web.Response:
        app, name = self._app, request.match_info["account"]
        if app.config is None:
            return _retry_later(503, STARTING_RETRY)
        account = next((one for one in app.config.accounts if one.name == name), None)
        # Compare even for an unknown account, so that the response time does not reveal accounts.
        token = (account and account.callback_token) or Secret("")
        authorized = token == Secret(request.match_info["token"])
        if account is None:
            raise web.HTTPNotFound(text="not found\n")
        # Also count callbacks for an account that another exporter polls.
        numbers = app.callbacks.setdefault(name, dict.fromkeys(CallbackOutcome, 0))
        if not authorized:
            numbers[CallbackOutcome.FORBIDDEN] += 1
            raise web.HTTPNotFound(text="not found\n")
        try:
            outcome = await app.sources[CallbackSource].accept(name, request.query)
        except (LedgerError, CapacityError) as error:
            numbers[CallbackOutcome.ERROR] += 1
            if isinstance(error, CapacityError):
                return _retry_later(429, error.retry_after)
            return _retry_later(503, LEDGER_RETRY)
        numbers[outcome] += 1
        if outcome is CallbackOutcome.MALFORMED:
            return web.Response(status=400, text="expected a ReferenceId\n")
        return web.Response(text="ok\n")


def _retry_later(status: int, seconds: int) -> web.Response:
    return web.Response(status=status, text="try again later\n", headers=retry_after(seconds))
