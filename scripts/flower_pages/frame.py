"""What all pages share: Flower's login, HTML and JSON from the same data, who may act, and headers that forbid scripts.

    address ── question ──► readings.ask ── read (in a thread) ──► cleaned ──► template, or JSON under /api

A page is a class with ``template``, ``tab`` and ``title``, the ``filters`` of its form, a ``question`` that it makes of
its address, and ``read``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from typing import Any, ClassVar, Final

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado import web
from tornado.escape import xhtml_escape
from tornado.web import url

from graft.config import harden
from graft.config.redis_client import shared
from graft.scripts.flower_pages import drawing, wording
from graft.scripts.flower_pages.filters import Filter, Filters
from graft.scripts.flower_pages.reading import FRESH, SHARE, USERS, Readings, Told
from graft.tasks.monitoring import audit

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ROWS: Final = 50
RIGHTS_FRESH: Final = 30.0  # Seconds for which it is remembered what the Redis user may do.


@cache
def readings() -> Readings:
    """The readings of this process."""
    return Readings()


@dataclass(frozen=True)
class Paged:
    """One page of rows; ``page`` counts from 1."""

    page: int
    total: int
    rows: int = ROWS

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.rows))

    @property
    def first(self) -> int:
        return (self.page - 1) * self.rows


class Page(BaseApiHandler):
    """One page, and the same as JSON where *as_json*."""

    template: ClassVar[str] = ""
    tab: ClassVar[str] = ""
    title: ClassVar[str] = ""
    every: ClassVar[float] = 2.0  # Seconds between two updates in the viewer's browser.
    fresh: ClassVar[float] = FRESH  # Seconds for which a reading serves all viewers, at least;
    share: ClassVar[float] = SHARE  # and so many times as long as it kept a processor busy.
    filters: ClassVar[tuple[Filter, ...]] = ()

    def initialize(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.why_not = ""  # Why buttons are left out.

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if self.as_json:
            super().prepare()
        if not harden.is_active(self.capp):
            raise web.HTTPError(404, harden.why_inactive(self.capp))

    def write_error(self, status_code: int, **about: Any) -> None:
        if self.as_json:
            error = about.get("exc_info", (None, None))[1]
            told = error.get_message() if isinstance(error, web.HTTPError) else ""
            self.set_header("Content-Type", "application/json; charset=UTF-8")
            if status_code == 401:
                self.set_header("WWW-Authenticate", 'Basic realm="flower"')
            self.finish(json.dumps({"error": wording.cleaned(told or self._reason)}))
        else:
            BaseHandler.write_error(self, status_code, **about)

    # ---- what a page defines ----

    def question(self, *path: str) -> Hashable:
        """What is asked, from the address; equal questions share a reading. Raises ValueError."""
        return path

    def read(self, question: Any) -> Any:
        """The answer, as a frozen value. Runs in a thread.

        Raises:
            LookupError: there is no such thing.
        """
        raise NotImplementedError

    # ---- the rest ----

    def asked(self, name: str, default: str = "") -> str:
        """One argument of the query or form, as it was sent."""
        return str(self.get_argument(name, default, escape=False) or "").strip()

    def filters_asked(self) -> Filters:
        """The filters of the address that say something.

        Raises:
            ValueError: one cannot be understood.
        """
        return tuple((one.name, one.checked(text)) for one in self.filters if (text := self.asked(one.name)))

    def page_asked(self) -> int:
        text = self.asked("page", "1")
        return max(1, int(text)) if text.isdecimal() and len(text) < 8 else 1

    @web.authenticated
    async def get(self, *path: str) -> None:
        try:
            question = self.question(*path)
            what = (type(self), question)
            reading = readings().ask(
                what, lambda: wording.cleaned(self.read(question)), fresh=self.fresh, share=self.share
            )
            # Together: while Redis does not answer, each takes as long as a viewer has patience.
            told, self.why_not = await asyncio.gather(reading, self.why_not_act())
        except LookupError as error:
            raise web.HTTPError(404, _message(error)) from error
        except ValueError as error:
            raise web.HTTPError(400, _message(error)) from error
        if self.as_json:
            self.tell(told)
        else:
            self.show(told)

    def tell(self, told: Told) -> None:
        """Answer with JSON."""
        self.set_status(200 if told.value is not None else 503)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps({"at": told.at or None, "error": told.error, "data": told.value}, default=_plain))

    def show(self, told: Told) -> None:
        """Answer with the page; without its content where nothing is known yet."""
        name = self.template if told.value is not None else "graft_unknown.html"
        self.set_status(200 if told.value is not None else 503)
        self.show_template(name, told=told, data=told.value, result=_results.get(self.asked("act"), ""))

    def show_template(self, name: str, **values: Any) -> None:
        self.render(name, page=self, w=wording, d=drawing, now=time.time(), **{"result": "", **values})

    async def why_not_act(self) -> str:
        """Why this viewer may not act, for people; "" where he may."""
        options = self.application.options
        if options.read_only:
            return "Flower is read-only: start it with FLOWER_READ_ONLY=false"
        if not (options.basic_auth or options.auth):
            return "actions need a login: set FLOWER_BASIC_AUTH"
        told = await readings().ask("rights", lambda: "yes" if audit.may_write(shared()) else "no", fresh=RIGHTS_FRESH)
        if told.value is None:
            return told.error
        return "" if told.value == "yes" else f"the Redis user of CELERY_BROKER_URL may only read; {USERS}"

    @property
    def who(self) -> str:
        """The name of whoever is logged in."""
        if isinstance(self.current_user, str):
            return self.current_user
        header = self.request.headers.get("Authorization", "")
        if header.startswith("Basic "):
            from base64 import b64decode

            return b64decode(header[6:]).decode("utf-8", "replace").partition(":")[0]
        return "unknown"

    def address(self, name: str, *parts: str) -> str:
        """The address of the page *name*."""
        return str(self.reverse_url(name, *parts))

    def button(self, action: str, label: str, fields: Mapping[str, Any], style: str = "outline-secondary") -> str:
        """HTML: a form whose button leads to the confirmation of *action*; nothing where the viewer may not act."""
        if self.why_not:
            return ""
        hidden = "".join(
            f'<input type="hidden" name="{xhtml_escape(name)}" value="{xhtml_escape(str(value))}">'
            for name, value in {"back": self.request.uri, **fields}.items()
        )
        return (
            f'<form class="graft-act" method="post" action="{xhtml_escape(self.address("graft-do", action))}">'
            f"{self.xsrf_form_html()}{hidden}"
            f'<button class="btn btn-sm btn-{style}" type="submit">{xhtml_escape(label)}</button></form>'
        )


def addresses(path: str, page: type[Page], name: str) -> list[Any]:
    """The address of *page* under /graft, and of the same as JSON under /api/graft."""
    return [
        url(rf"/graft{path}", page, name=name),
        url(rf"/api/graft{path}", page, {"as_json": True}, name=f"{name}-json"),
    ]


_results: dict[str, str] = {}


def remember_result(act: str, text: str) -> None:
    """Show *text* on the page to which the browser returns after *act*."""
    _results[act] = text
    while len(_results) > 100:
        _results.pop(next(iter(_results)))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def _message(error: Exception) -> str:
    return str(error.args[0]) if error.args else str(error)
