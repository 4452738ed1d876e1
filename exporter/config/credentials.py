"""Credentials: what a configuration says of them, and the files that hold them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from exporter.config.canaries import CanaryConfig
from exporter.config.document import BROKEN, Value, YamlMapping
from exporter.config.files import FileProblemError, NamedFiles
from exporter.config.home_assistant import HomeAssistantConfig
from exporter.config.models import AccountConfig, LedgerConfig, SqlConfig, TokenConfig
from exporter.config.notify import NotifyConfig
from exporter.config.problems import Problems
from exporter.secrets import Secret

MAX_SECRET_FILE: Final = 64 << 10

CREDENTIALS: Final[dict[type[BaseModel], tuple[str, ...]]] = {
    AccountConfig: ("api_key", "secret_key", "callback_token", "proxy_url"),
    TokenConfig: ("token",),
    SqlConfig: ("url",),
    LedgerConfig: ("url",),
    NotifyConfig: ("url", "secret"),
    CanaryConfig: ("phone",),
    HomeAssistantConfig: ("password",),
}
"""The keys of models whose values are secrets, each of which a file may hold instead."""

NO_SECRET: Final = Secret("?")
"""Stands in for a credential that is wrong, so that it is told once; no Config is made of it."""

_CREDENTIAL: Final = re.compile("[!-~]{1,1024}")
# Of databases, receivers and brokers: blanks and letters of any language may stand there.
_URL: Final = re.compile("[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}")
_PASSWORD: Final = re.compile("[^\ud800-\udfff]{1,4096}")
_FORMS: Final[dict[type[BaseModel], re.Pattern[str]]] = {
    SqlConfig: _URL,
    LedgerConfig: _URL,
    NotifyConfig: _URL,
    HomeAssistantConfig: _PASSWORD,
}


def file_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a model that name files of credentials."""
    return tuple(f"{key}_file" for key in CREDENTIALS[model])


class Credentials:
    """Reads the credentials of a configuration.

    Args:
        folder: what files are relative to.
        problems: takes what is wrong, without any value.
        files: reads the files.
    """

    def __init__(self, folder: Path, problems: Problems, files: NamedFiles) -> None:
        self._folder = folder
        self._problems = problems
        self._files = files

    def read(
        self,
        item: YamlMapping,
        model: type[BaseModel],
        data: dict[str, object],
        parts: tuple[str | int, ...],
        line: int,
    ) -> None:
        """Put the credentials of an item into `data`, in place of what it says of them.

        Args:
            item: as the file has it.
            model: what it is to become.
            data: what the model is going to be made of.
            parts: the keys that lead to it.
            line: where it stands.
        """
        form = _FORMS.get(model, _CREDENTIAL)
        for key in CREDENTIALS[model]:
            file_key = f"{key}_file"
            data.pop(file_key, None)
            if key in item or file_key in item or model.model_fields[key].is_required():
                data[key] = NO_SECRET
            if key in item and file_key in item:
                message = f"expected either `{key}` or `{file_key}`, not both"
                self._problems.add(item.line_of(file_key), (*parts, file_key), message)
            elif key in item:
                data[key] = self._credential(item[key], item.line_of(key), (*parts, key), form)
            elif file_key in item:
                where = item.line_of(file_key), (*parts, file_key)
                data[key] = self._credential(self._of_file(item[file_key], *where), *where, form)
            elif key in data:
                self._problems.add(line, (*parts, key), f"missing; expected it or `{file_key}`")
            if data.get(key) is NO_SECRET and not model.model_fields[key].is_required():
                del data[key]

    def _credential(
        self, value: Value, line: int, parts: tuple[str | int, ...], form: re.Pattern[str]
    ) -> Secret:
        if value is BROKEN:
            return NO_SECRET
        text = value if isinstance(value, str) else ""
        # Somebody else's password may begin or end with blanks; of a file, its last line break does
        # not belong to it.
        text = re.sub(r"\r?\n\Z", "", text) if form is _PASSWORD else text.strip()
        if form.fullmatch(text):
            return Secret(text)
        if isinstance(value, bool | int | float):
            message = "expected text; a key that looks like a number needs quotes"
        elif not text:
            message = "expected a key, and it is empty"
        elif form is _CREDENTIAL:
            message = "expected a key: printable ASCII characters without blanks"
        else:
            message = "expected at most 4096 characters, and none that no text has"
        self._problems.add(line, parts, message)
        return NO_SECRET

    def _of_file(self, value: Value, line: int, parts: tuple[str | int, ...]) -> Value:
        if isinstance(value, str) and value:
            try:
                return self._files.read(self._folder / value, MAX_SECRET_FILE, secret=True)
            except FileProblemError as error:
                self._problems.add(line, parts, str(error))
        elif value is not BROKEN:
            self._problems.add(line, parts, "expected the path of a file")
        return BROKEN
