"""``python -m graft.scripts.screenshots``: makes the pictures of Flower's pages that the documents show.

Starts a private stack with a small shop's work in it, and takes its pages with the system's Chromium, which playwright
drives (``pip install celery-graft[dev]``). With ``--all`` every page in both themes and at a phone's width, to look at.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from graft.scripts.stack.local_stack import LocalStack, own_environ

IMAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "images"
RUNS_FOR: Final = 45.0  # Seconds of work before the pictures are taken.
SHOWN: Final = {"flower-overview": "", "flower-queues": "/queues", "flower-letters": "/dead-letters"}
EVERY: Final = {
    re.sub(r"\W+", "-", path).strip("-") or "overview": path
    for path in (
        "", "/queues", "/queue/low", "/batches", "/batch/prices-tonight", "/dead-letters", "/calls",
        "/calls?state=queued", "/health", "/workers", "/schedule", "/acts",
    )
}  # fmt: skip
# Pages of one thing: the page that leads there, and its link or button.
LED: Final = {
    "letter": ("/dead-letters", "form td a code"), "call": ("/calls?state=failed", "td a code"),
    "batch": ("/batches", "tr:has-text('shop:resize') td a"), "process": ("/health", "a[href*='/process/']"),
    "confirm": ("/dead-letters", "form.graft-act button"),
}  # fmt: skip
LOOKS: Final = tuple((width, theme) for width in (1400, 390) for theme in ("light", "dark"))
SHOP: Final = """
import random, time

def price(article):
    time.sleep(0.05)
    if article % 23 == 0:
        raise TimeoutError(f"the supplier of article {article} did not answer within 5 s")
    return article * 100

def resize(picture):
    time.sleep(random.uniform(0.05, 0.2))
    return picture

def upload(archive):
    time.sleep(600)

def invoice(order):
    time.sleep(0.02)
    if order % 40 == 7:
        raise ValueError(f"order {order} has no address")
    return order
"""
WORK: Final = """
import time, threading, graft, shop
graft.submit(shop.price, range(4000), name="prices-tonight", batch_size=5)
again = graft.RetryPolicy(runs=2, base=0.1, on=Exception)
graft.submit(shop.invoice, range(120), name="invoices-november", batch_size=10, retry=again)
pictures = graft.submit(shop.resize, range(5000), batch_size=4)
graft.submit(shop.resize, range(200), batch_size=4, queue="low").detach()
graft.submit(shop.upload, ["2026-11"]).detach()
for _ in pictures.as_completed():
    pass
"""


def chromium() -> str:
    """The system's Chromium; the program ends where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise SystemExit("there is no Chromium on PATH; on Debian: apt install chromium")


@contextmanager
def shop() -> Iterator[LocalStack]:
    """A stack that has worked for a while, and goes on."""
    with tempfile.TemporaryDirectory(prefix="celery-graft-shop-") as folder:
        Path(folder, "shop.py").write_text(SHOP)
        environ = {**own_environ(), "GRAFT_HEALTH_EVERY": "2", "GRAFT_LEAKS_EVERY": "2", "FLOWER_READ_ONLY": "false"}
        environ |= {"GRAFT_SIGNING_KEY": "of no other deployment, only of these pictures"}
        with LocalStack({"cpu": 3}, pythonpath=[folder], environ=environ, beat=True, flower=True) as stack:
            pause = [sys.executable, "-m", "celery", "-A", "graft", "queue", "pause", "low"]
            subprocess.run(pause, env=stack.env, check=True, capture_output=True)
            with subprocess.Popen([sys.executable, "-c", WORK], env=stack.env) as program:
                try:
                    time.sleep(RUNS_FOR)
                    yield stack
                finally:
                    program.kill()


def take(stack: LocalStack, folder: Path, *, everything: bool) -> None:
    """Take the pictures into *folder*."""
    from playwright.sync_api import sync_playwright

    login, _, address = stack.flower_url.removeprefix("http://").rpartition("@")
    name, _, password = login.partition(":")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page: Any = browser.new_context(http_credentials={"username": name, "password": password}).new_page()
        for shot, path in (EVERY if everything else SHOWN).items():
            for _ in range(2):  # Rates are known from the second look on.
                page.goto(f"http://{address}/graft{path}")
                page.wait_for_timeout(1200)
            picture(page, folder, shot, everything=everything)
        for shot, (path, link) in LED.items() if everything else ():
            page.set_viewport_size({"width": 1400, "height": 860})
            page.goto(f"http://{address}/graft{path}")
            page.locator(link).first.click()
            page.wait_for_load_state()
            picture(page, folder, shot, everything=True)
        browser.close()


def picture(page: Any, folder: Path, shot: str, *, everything: bool) -> None:
    """Take the page that is open: in every look, or in the first alone."""
    for width, theme in LOOKS if everything else LOOKS[:1]:
        page.set_viewport_size({"width": width, "height": 860})
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        file = folder / (f"{shot}-{width}-{theme}.png" if everything else f"{shot}.png")
        page.screenshot(path=file, full_page=everything)
        print(file)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m graft.scripts.screenshots", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder; docs/images unless given")
    parser.add_argument("--all", action="store_true", dest="everything", help="every page, in both themes and widths")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    os.environ.pop("GRAFT_SIGNING_KEY", None)
    with shop() as stack:
        take(stack, asked.out, everything=asked.everything)


if __name__ == "__main__":
    main(sys.argv[1:])
