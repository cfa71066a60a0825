"""A headless browser: reads everything a viewer sends until it stops, and prints the amount.

python scripts/viewer_client.py http://127.0.0.1:8080
"""

from __future__ import annotations

import sys

import msgspec
import viser
import zstandard
from viser import _messages
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


def join(address: str, size: tuple[int, int] = (640, 480)) -> ClientConnection:
    """Connects to a viewer as a browser whose camera stands in front of the object. size: width, height.

    Unread messages stay on the server, except for one or two.
    """
    connection = connect(
        address.replace("http", "ws", 1),
        subprotocols=[f"viser-v{viser.__version__}"],  # type: ignore[list-item]
        compression=None,
        max_size=None,
        max_queue=1,
    )
    # +x forward to the origin: right is +y, down is -z.
    camera = _messages.ViewerCameraMessage(
        wxyz=(0.5, -0.5, -0.5, 0.5),
        position=(3.2, 0.0, 0.0),
        fov=0.8,
        near=0.01,
        far=1000.0,
        image_height=size[1],
        image_width=size[0],
        look_at=(0.0, 0.0, 0.0),
        up_direction=(0.0, 0.0, 1.0),
    )
    connection.send(msgspec.msgpack.encode(camera.as_serializable_dict()))
    return connection


def messages(frame: bytes) -> bytes:
    """Returns the messages of a frame as viser encodes them, uncompressed and without their arrays."""
    size = int.from_bytes(frame[8:16], "little")
    return zstandard.ZstdDecompressor().decompress(frame[16 : 16 + size])


def main() -> None:
    received = count = 0
    with join(sys.argv[1]) as connection:
        try:
            for message in connection:
                received, count = received + len(message), count + 1
        except (ConnectionClosed, KeyboardInterrupt):
            pass
    print(f"{received / 1e6:.1f} MB in {count} messages")


if __name__ == "__main__":
    main()
