"""Free ports of this machine."""

import itertools
import os
import socket
from pathlib import Path

CLUSTER_BUS = 10000
"""How far above its port a node of a Redis Cluster listens for the other nodes (cluster.h of Redis 6.2)."""

LOWEST = 10000

asked = itertools.count()


def free_port() -> int:
    """A port nobody listens on now, nor on the one where a cluster's node would have its bus. No two calls
    have the same, as a server listens only some time later; another run of ours began elsewhere.

    Both are below those that the system gives to outgoing connections: one of these could take the port
    before the server does, or while it is stopped.
    """
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = LOWEST + (os.getpid() * 211 + next(asked)) % (outgoing - CLUSTER_BUS - LOWEST)
        if free(port) and free(port + CLUSTER_BUS):
            return port


def free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as s:
        # As servers do: a connection that has ended does not keep its port from them.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
