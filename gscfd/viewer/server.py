"""The viser server, on a free port and without viser's own console output."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import socket
from collections.abc import Iterator

import viser

from gscfd.config import ServerConfig
from gscfd.errors import UserError
from gscfd.viewer.door import Door, behind

PORTS_TRIED = 100
BUSY = {errno.EADDRINUSE, errno.EACCES}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences viser, which prints a table when it starts and a line when it stops."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def free_port(host: str, port: int) -> int:
    """Returns `port`, or the next free port. Raises UserError if `host` is not an address of this machine or has no
    free port."""
    last = min(port + PORTS_TRIED, 2**16)
    for candidate in range(port, last):
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return candidate
        except (socket.gaierror, UnicodeError):
            break
        except OSError as error:
            if error.errno not in BUSY:
                break
    else:
        raise UserError(f"port: expected a free port from {port} to {last - 1}; choose another one")
    raise UserError(
        f"host: expected an address of this machine, got {host!r}; 127.0.0.1 serves this machine only, "
        "0.0.0.0 serves the network"
    )


def serve(config: ServerConfig, door: Door) -> viser.ViserServer:
    """Starts a server with an empty page behind the door. Raises UserError if the address is not available."""
    port = free_port(config.host, config.port)
    # Browsers open connections in advance and close them unused; do not log that.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    with quiet(), behind(door):
        server = viser.ViserServer(host=config.host, port=port, label="gscfd", verbose=False)
    server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
    server.gui.main_panel.dock_right()
    return server


def address(server: viser.ViserServer) -> str:
    """Returns the URL to open in the browser."""
    host = server.get_host()
    return f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"


def stop(server: viser.ViserServer) -> None:
    with quiet():
        server.stop()
