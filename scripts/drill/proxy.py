"""A network that can fall silent: forwards connections to a server, and on SIGUSR1 nothing any more, until SIGUSR2.

``python -m graft.scripts.drill.proxy PORT TARGET_PORT [DELAY]``. While it is silent no connection is closed or refused,
as behind a switch that has lost its way: what is sent is taken and does not arrive. Then it goes on where it stopped.
With a DELAY it does not fall silent but slow: what clients send arrives so many seconds later.
"""

from __future__ import annotations

import asyncio
import signal
import sys

HOST = "127.0.0.1"


class Proxy:
    """Forwards both ways while ``is_open`` is set, or *delay* seconds late while it is not."""

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def serve(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.is_open.clear)
        loop.add_signal_handler(signal.SIGUSR2, self.is_open.set)
        async with await asyncio.start_server(self._connect, HOST, port) as server:
            print("forwards", flush=True)
            await server.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._pass(self.delay)
        try:
            there, back = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._forward(reader, back, self.delay), self._forward(there, writer))

    async def _pass(self, delay: float) -> None:
        if not self.delay:
            await self.is_open.wait()
        elif not self.is_open.is_set():
            await asyncio.sleep(delay)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float = 0.0) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._pass(delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[2]), *map(float, sys.argv[3:4])).serve(int(sys.argv[1])))
