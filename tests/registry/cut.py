#!/usr/bin/env python3
"""A wire that breaks: forwards TCP from one loopback port to another, and cuts the first connections in the middle of a large answer.

    cut.py LISTEN_PORT TARGET_PORT CUTS AFTER_BYTES
"""

import socket
import sys
import threading

listen_port, target_port, cuts, after = map(int, sys.argv[1:5])
lock = threading.Lock()


def take_cut():
    """Whether this connection is one of those to be cut."""
    global cuts
    with lock:
        cuts -= 1
        return cuts >= 0


def up(client, server):
    try:
        while data := client.recv(65536):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    with client, socket.create_connection(("127.0.0.1", target_port)) as server:
        threading.Thread(target=up, args=(client, server), daemon=True).start()
        passed = 0
        try:
            while data := server.recv(65536):
                passed += len(data)
                client.sendall(data)
                if passed > after and take_cut():
                    return
        except OSError:
            pass
        finally:
            # The other direction's thread still holds the socket.
            for end in (client, server):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


with socket.create_server(("127.0.0.1", listen_port)) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
