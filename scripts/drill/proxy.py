"""A network that can fall silent: forwards connections to a server, and on SIGUSR1 nothing any more, until SIGUSR2.

``python -m graft.scripts.drill.proxy PORT TARGET_PORT``. While it is silent no connection is closed or refused, as
behind a switch that has lost its way: what is sent is taken and does not arrive. Then it goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import signal
import sys

HOST = "127.0.0.1"


class Proxy:
    """Forwards both ways while ``is_open`` is set."""

    def __init__(self, target: int) -> None:
        self.target = target
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
        await self.is_open.wait()
        try:
            there, back = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._forward(reader, back), self._forward(there, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self.is_open.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[2])).serve(int(sys.argv[1])))
