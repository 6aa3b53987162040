"""What the web application has done elsewhere: the workers import this, and nothing of the web."""

from __future__ import annotations

import asyncio
import os


async def price(article: int) -> dict[str, int]:
    """Ask a shop for its price. This one thinks for half a second, as shops do."""
    await asyncio.sleep(float(os.environ.get("SHOP_SECONDS", "0.5")))
    return {"article": article, "cents": 100 + 7 * article}
