"""Does what a button says: first a page that says what will happen, to how many; then the act, noted in the audit list.

POST /graft/do/pause         queue=default              the confirmation
POST /graft/do/pause         queue=default confirmed=yes  the act
POST /api/graft/do/pause     the same as JSON: {"queue": "default", "confirmed": true}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar, Final

from flower.views.auth import is_safe_redirect
from tornado import web
from tornado.web import RequestHandler

from graft.config.redis_client import shared
from graft.scripts.flower_pages import wording
from graft.scripts.flower_pages.frame import Page, addresses, readings, remember_result
from graft.scripts.flower_pages.moments import moments
from graft.scripts.flower_pages.plans import Action, Plan
from graft.scripts.flower_pages.reading import UNREACHABLE, explain
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import audit
from graft.tasks.monitoring.audit import Act

logger = logging.getLogger(__name__)

ACTING: Final = ("queues", "dead_letters", "batch", "process", "schedule")  # The pages whose ``ACTIONS`` there are.
REFUSALS: Final = (ValueError, LookupError, TaskQueueError)
OUR_FIELDS: Final = ("_xsrf", "confirmed", "back")


def actions() -> dict[str, Action]:
    """Every action, by the name in its address."""
    found: dict[str, Action] = {}
    for name in ACTING:
        found |= import_module(f"graft.scripts.flower_pages.pages.{name}").ACTIONS
    return found


class Do(Page):
    """The confirmation of an action, and the action."""

    template = "graft_confirm.html"
    title = "Confirm"

    async def get(self, *path: str) -> None:
        raise web.HTTPError(405, "an action is sent with POST")

    def check_xsrf_cookie(self) -> None:
        """Flower's check; a form must have our token as well, and JSON must say that it is: other sites cannot."""
        super().check_xsrf_cookie()
        if not self.as_json:
            RequestHandler.check_xsrf_cookie(self)
        elif not self.request.headers.get("Content-Type", "").startswith("application/json"):
            raise web.HTTPError(403, "send Content-Type: application/json")

    @web.authenticated
    async def post(self, name: str) -> None:
        if why_not := await self.why_not_act():
            raise web.HTTPError(403, f"nothing was done: {why_not}")
        action = actions().get(name)
        if action is None:
            raise web.HTTPError(404, f"there is no action {name}; there are {', '.join(sorted(actions()))}")
        fields = self.fields()
        is_confirmed = fields.pop("confirmed", "") == "yes"
        back = fields.pop("back", "")
        back = back if is_safe_redirect(back) else self.address("graft-overview")
        given = {key: text for key, text in fields.items() if key not in OUR_FIELDS}
        try:
            plan = await readings().run(action.plan, given)
            if is_confirmed:
                act, result = await readings().run(self.do, action, given, plan)
                moments().forget()
                readings().forget()
        except REFUSALS as error:
            raise web.HTTPError(
                400, f"nothing was done: {wording.cleaned(str(error.args[0] if error.args else error))}"
            ) from error
        except UNREACHABLE as error:
            raise web.HTTPError(503, f"it may not be done: {explain(error)}") from error
        plan = wording.cleaned(plan)
        if self.as_json:
            told = {"done": is_confirmed, "result": result if is_confirmed else "", "plan": asdict(plan)}
            self.set_header("Content-Type", "application/json; charset=UTF-8")
            self.finish(json.dumps(told))
        elif is_confirmed:
            remember_result(act, wording.cleaned(result))
            path, _, asked = back.partition("?")
            kept = "&".join(part for part in asked.split("&") if part and not part.startswith("act="))
            self.redirect(f"{path}?{kept}{'&' if kept else ''}act={act}", status=303)
        else:
            self.show_template(self.template, plan=plan, fields={**given, "back": back}, action=name)

    def fields(self) -> dict[str, str]:
        """What the form or the JSON says."""
        if not self.as_json:
            return {name: "\n".join(self.get_body_arguments(name)) for name in self.request.body_arguments}
        try:
            sent = json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise web.HTTPError(400, f"the body is not JSON: {error}") from error
        if not isinstance(sent, dict):
            raise web.HTTPError(400, "the body must be a JSON object")
        return {str(name): _text(value) for name, value in sent.items()}

    def do(self, action: Action, given: Mapping[str, str], plan: Plan) -> tuple[str, str]:
        """Act, and note it before and after; the act's id and its result."""
        client = shared()
        act = audit.begin(self.who, self.request.remote_ip or "", plan.title, client)
        logger.warning("%s, from %s: %s", self.who, self.request.remote_ip, plan.title)
        try:
            result = action.do({**given, "act": act})
        except Exception as error:
            audit.end(act, f"failed: {error}", client)
            raise
        audit.end(act, result, client)
        return act, result


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return ("yes" if value else "") if isinstance(value, bool) else "" if value is None else str(value)


class Acts(Page):
    """The audit list."""

    template: ClassVar[str] = "graft_acts.html"
    tab = "graft-more"
    title = "Who did what"
    every = 10.0

    def read(self, question: Any) -> list[Act]:
        return audit.read(shared())


ADDRESSES: Final = [*addresses(r"/acts", Acts, "graft-acts"), *addresses(r"/do/([a-z-]+)", Do, "graft-do")]
