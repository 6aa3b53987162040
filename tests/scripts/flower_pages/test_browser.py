"""The pages in a real Chromium: what a person sees, presses and confirms, and what hostile text does there: nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from graft.config.keys import QUEUES
from graft.tasks.dead_letters.store import INDEX, LETTERS
from graft.tasks.messages.message_format import SENT_AT
from tests.scripts.flower_pages.flower import Flower
from tests.scripts.flower_pages.test_pages import PAGES, send, sending
from tests.stack import wait_until

pytestmark = pytest.mark.worker

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.exe\x1b[31m \ud800\"'`</pre>"
LOOK = Path(__file__).with_name("look.js").read_text()


def plant_hostile(flower: Flower) -> str:
    """A letter as hostile as a task can make it, past everything that checks it on the way; its id."""
    name = f"hostile-{HOSTILE[:25]}"
    letter = {
        "id": name, "task": HOSTILE, "queue": "default", "reason": "retries_exhausted", "function": HOSTILE,
        "error": f"{HOSTILE}{'x' * (1 << 20)}", "traceback": HOSTILE * 10, "runs": 1, "items": 1,
        "envelope": json.dumps({"args": [HOSTILE], "kwargs": {"password": "hunter2"}}), "buried_at": 1e9,
        "fingerprint": "0" * 12,
    }  # fmt: skip
    with flower.stack.connect() as client:
        client.hset(LETTERS, name, json.dumps(letter))
        client.zadd(INDEX, {name: 1e9})
    return name


def plant_hostile_message(flower: Flower, queue: str) -> None:
    """A message as hostile as a sender can make it, on a queue that nobody reads."""
    headers = {
        "task": HOSTILE, "id": "hostile/../?#%00", "argsrepr": HOSTILE, "group": HOSTILE, "eta": "soon",
        SENT_AT: 9e99, "lang": HOSTILE,
    }  # fmt: skip
    with flower.stack.connect() as client:
        client.zadd(QUEUES, {queue: time.time()})
        for sent in (9e99, "1.2.3", -1e12, 3e11):
            client.lpush(queue, json.dumps({"body": HOSTILE, "headers": {**headers, SENT_AT: sent}}))
        client.lpush(queue, b"\xff\xfe not JSON")


def test_a_planted_failure_is_seen_replayed_and_watched_to_succeed(acting, visit, tmp_path):
    path = tmp_path / "mended"
    send(acting, "read_text", f"[{str(path)!r}]")
    page = visit("/")
    page.get_by_role("link", name="Dead letters", exact=True).first.click()
    page.get_by_label("Callable").fill("tests.samples:read_text")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_selector("text=No such file")
    path.write_text("now it is there")
    page.get_by_role("button", name="Replay …").first.click()
    page.wait_for_selector("h1:has-text('Replay 1 dead letter')")
    page.get_by_role("button", name="Replay them").click()
    page.wait_for_selector("text=Done: sending 1 dead letter again")
    page.wait_for_selector("text=1 of 1 done", timeout=60_000)  # Without a click: the page is live.
    page.get_by_role("link", name="Calls", exact=True).first.click()
    page.get_by_label("Callable").fill("*read_text")
    page.get_by_role("button", name="Filter").click()
    wait_until(lambda: page.locator("#graft-live .graft-succeeded").count() > 0, 60, "the run that succeeds")
    page.locator("#graft-live a code").first.click()
    page.wait_for_selector(".graft-facts .graft-succeeded")
    acts = visit("/graft/acts").inner_text("#graft-live")
    assert "Replay 1 dead letter" in acts
    assert "1 of 1 done" in acts


def test_a_paused_queue_holds_its_messages_until_it_is_resumed(acting, visit):
    page = visit("/graft/queue/heavy")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Pause it").press("Enter")
    page.wait_for_selector("text=Done: heavy is paused")
    batch = send(acting, "square", "range(3)", 1, "import time; time.sleep(0.5)", 'queue="heavy", name="held"')
    page.wait_for_selector("text=tests.samples:square", timeout=60_000)
    page.wait_for_selector(".graft-badge:has-text('paused')")
    assert acting.data(f"/batch/{batch}")["row"]["done"] == 0
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Resume it").click()
    page.wait_for_selector("text=Nothing waits in heavy", timeout=60_000)
    wait_until(lambda: acting.data(f"/batch/{batch}")["row"]["done"] == 3, 60, "the held items")


def test_a_batch_is_cancelled_after_a_look_at_what_that_means(acting, visit):
    batch = send(acting, "sleep", "[0.3] * 400", 2, "", 'name="to-cancel"')
    page = visit("/graft")
    page.get_by_role("link", name="Batches", exact=True).first.click()
    page.get_by_role("link", name="to-cancel").click()
    page.get_by_role("button", name="Cancel …").click()
    page.wait_for_selector("h1:has-text('Cancel the batch to-cancel?')")
    assert re.search(r"\d+ items will not run", page.inner_text("#main-content"))
    page.get_by_role("link", name="Leave it").click()
    assert acting.data(f"/batch/{batch}")["row"]["state"] == "running"
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("button", name="Cancel it").click()
    page.wait_for_selector("text=Done: cancelled batch to-cancel", timeout=60_000)
    assert acting.data(f"/batch/{batch}")["row"]["state"] in ("cancelled", "failed")


def test_a_batch_that_lives_with_its_caller_is_paused_and_resumed_and_what_a_dead_caller_left_is_seen(acting, visit):
    with sending(acting, "sleep", "[0.2] * 1000") as (caller, batch):
        wait_until(lambda: batch in acting.page("/graft/batches"), 60, "its caller to report it")
        page = visit(f"/graft/batch/{batch}")
        page.get_by_role("button", name="Pause", exact=True).click()
        page.wait_for_selector("h1:has-text('Pause the batch')")
        page.get_by_role("button", name="Pause it").click()
        page.wait_for_selector(f"text=Done: paused batch {batch}")
        page.wait_for_selector(".graft-badge:has-text('paused')")
        wait_until(lambda: not acting.data(f"/batch/{batch}")["row"]["under_way"], 60, "what was sent to be finished")
        held = acting.data(f"/batch/{batch}")["row"]
        assert (held["state"], held["left"], held["done"] < 1000) == ("paused", None, True)
        page.get_by_role("button", name="Resume", exact=True).click()
        page.get_by_role("button", name="Resume it").click()
        page.wait_for_selector("text=goes on")
        wait_until(lambda: acting.data(f"/batch/{batch}")["row"]["done"] > held["done"], 60, "it to go on")
        caller.kill()
        page.wait_for_selector(".graft-badge:has-text('caller silent')", timeout=60_000)
        assert page.get_by_role("button", name="Pause", exact=True).count() == 0
        assert acting.do("cancel-batch", batch=batch, confirmed=True).status == 200


def test_hostile_text_is_shown_as_text_and_every_page_can_be_read_in_both_themes_and_on_a_phone(acting, visit):
    name = plant_hostile(acting)
    letter = f"/dead-letter/{quote(name, safe='')}"
    page = visit("/healthcheck")
    faults: dict[str, list[str]] = {}
    wait_until(lambda: acting.data("/health")["processes"], 60, "a process that is measured")
    process = f"/process/{quote(acting.data('/health')['processes'][0]['key'])}"
    plant_hostile_message(acting, "nobody-reads-it")
    assert len(acting.data("/calls?state=queued&queue=nobody-reads-it")["under_way"]["found"]) == 5
    for path in (*PAGES, process, "/queue/nobody-reads-it", letter):
        assert page.goto(f"{acting.address}/graft{path}?still").status == 200, path
        for width, theme in ((1400, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.wait_for_selector(f'html[data-bs-theme="{theme}"]')
            faults[f"{path} at {width}, {theme}"] = page.evaluate(LOOK)
    assert not {where: found for where, found in faults.items() if found}
    shown = page.inner_text("#main-content")
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\ufffdgnp.exe\ufffd[31m \ufffd" in shown
    assert "characters)" in shown  # Of the line of a megabyte the beginning is shown.
    assert "hunter2" not in shown
    assert page.locator("#main-content script, #main-content img").count() == 0
    told = acting.data("/dead-letters?queue=default")
    assert "alert(1)" in json.dumps(told)
    assert acting.ask("/graft/dead-letters.jsonl?queue=default").status == 200
    with acting.stack.connect() as client:
        client.hdel(LETTERS, name)
        client.zrem(INDEX, name)
        client.zrem(QUEUES, "nobody-reads-it")
        client.delete("nobody-reads-it")


def test_each_question_is_answered_within_two_clicks_of_the_start_page(acting, visit, tmp_path):
    path = tmp_path / "absent"
    send(acting, "read_text", f"[{str(path)!r}]")
    send(acting, "sleep", "[0.4] * 300", 2, "", 'name="my-batch"')
    acting.do("pause", queue="low", confirmed=True)
    send(acting, "square", "range(3)", 1, "", 'queue="low", name="waits"')
    wait_until(lambda: acting.data("/queue/low")["groups"], 60, "what waits in the paused queue")

    page = visit("/")
    clicks = 0

    def click(role: str, name: str, within: str = "body") -> None:
        nonlocal clicks
        clicks += 1
        page.locator(within).get_by_role(role, name=name, exact=True).first.click()
        page.wait_for_load_state()

    # Is it well, what waits, how far is my batch, what failed and why: without a click.
    assert re.search(r"ok|degraded|failing", page.inner_text(".graft-verdict .graft-badge >> nth=0"))
    page.wait_for_selector("section:has-text('What waits, by queue') tr:has-text('low'):has-text('paused')")
    page.wait_for_selector("section:has-text('Batches that run') tr:has-text('my-batch') progress")
    page.wait_for_selector("section:has-text('What failed in the last day') tr:has-text('No such file')")
    click("link", "low", "section:has-text('What waits, by queue')")
    page.wait_for_selector("section:has-text('by callable') :text('tests.samples:square')")
    page.goto(f"{acting.address}/")
    click("link", "my-batch")
    page.wait_for_selector(".graft-facts >> text=durable")
    page.goto(f"{acting.address}/")
    clicks = 0
    click("button", "More")
    click("link", "Workers now")
    page.wait_for_selector("tr:has-text('tests.samples:sleep')", timeout=60_000)
    assert clicks == 2
    # Run it again: one click to see what that means, one to confirm.
    path.write_text("now it is there")
    page.goto(f"{acting.address}/")
    clicks = 0
    click("button", "Replay …", "section:has-text('What failed in the last day') tr:has-text('No such file')")
    click("button", "Replay them")
    page.wait_for_selector("text=Done: sending")
    assert clicks == 2
    for name in ("my-batch", "waits"):
        acting.do("forget-batch", batch=name, confirmed=True)
    acting.do("resume", queue="low", confirmed=True)


def test_everything_can_be_reached_and_done_with_the_keyboard_alone(acting, visit):
    page = visit("/graft/queues")

    def tab_to(words: str, most: int = 80) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            told = page.evaluate(
                "(e => (e.innerText || e.getAttribute('aria-label') || '').trim())(document.activeElement)"
            )
            outline = page.evaluate("(s => s.outlineStyle + s.boxShadow)(getComputedStyle(document.activeElement))")
            assert outline != "nonenone", f"{told}: focus cannot be seen"
            if told == words:
                return
        raise AssertionError(f"{words} is not reached")

    tab_to("high")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('high')")
    tab_to("Pause")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Pause the queue high?')")
    tab_to("Pause it")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Done: high is paused")
    tab_to("Resume")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Resume the queue high?')")
    tab_to("Resume it")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Done: high is resumed")
