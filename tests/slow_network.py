"""A network between browser and server: a proxy that holds back everything, in both directions, for some time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from urllib.parse import urlsplit


@contextlib.contextmanager
def delayed(address: str, seconds: float) -> Generator[str, None, None]:
    """Give an address that leads to `address`, each way `seconds` late; order and bandwidth are as they were."""
    target = urlsplit(address)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    opened: list[asyncio.Server] = []

    async def serve() -> None:
        opened.append(await asyncio.start_server(lambda r, w: _joined(r, w, target, seconds), "127.0.0.1", 0))
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        pieces = asyncio.all_tasks(loop)
        for piece in pieces:
            piece.cancel()
        loop.run_until_complete(asyncio.gather(*pieces, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{opened[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _joined(reader, writer, target, seconds: float) -> None:
    try:
        there_reader, there_writer = await asyncio.open_connection(target.hostname, target.port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_carried(reader, there_writer, seconds), _carried(there_reader, writer, seconds))


async def _carried(reader, writer, seconds: float) -> None:
    """Hand on what comes, each piece `seconds` after it came, until either end closes."""
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue()

    async def read() -> None:
        piece = b"begin"
        while piece:
            try:
                piece = await reader.read(65536)
            except OSError:
                piece = b""
            waiting.put_nowait((loop.time() + seconds, piece))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, piece = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
    except OSError:
        reading.cancel()
    finally:
        writer.close()
