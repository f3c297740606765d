#!/usr/bin/env python3
"""Attaches the Linux kernel's NBD client to an export and keeps it attached.

The stock nbd-client 3.24 does not pass a dead-connection timeout to the kernel, so that a lost connection becomes an I/O
error at once and its -persist comes too late. This one talks the same generic netlink interface
(include/uapi/linux/nbd-netlink.h): it sets NBD_ATTR_DEAD_CONN_TIMEOUT at NBD_CMD_CONNECT, so that the kernel holds the
requests, and answers each NBD_CMD_LINK_DEAD with a fresh connection and NBD_CMD_RECONNECT.

usage: nbd_attach.py HOST PORT EXPORT INDEX DEAD_SECONDS STATUS_FILE
"""
import os
import socket
import struct
import sys
import time

GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS = 3, 1, 2, 7
CTRL_ATTR_MCAST_GRP_ID = 2
NBD_CMD_CONNECT, NBD_CMD_RECONNECT, NBD_CMD_LINK_DEAD = 1, 3, 4
A_INDEX, A_SIZE, A_BLOCK, A_TIMEOUT, A_SERVER_FLAGS, A_CLIENT_FLAGS, A_SOCKETS, A_DEAD_CONN = range(1, 9)
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NETLINK_GENERIC, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 16, 270, 1
IHAVEOPT, REP_MAGIC = 0x49484156454F5054, 0x3E889045565A9


def attr(kind, payload):
    raw = struct.pack("=HH", 4 + len(payload), kind) + payload
    return raw + b"\0" * (-len(raw) % 4)


def attrs(data):
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4:at + size]
        at += (size + 3) & ~3
    return found


class Netlink:
    def __init__(self):
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.sock.bind((0, 0))

    def request(self, family, command, body):
        message = struct.pack("=BBH", command, 1, 0) + body
        self.sock.send(struct.pack("=IHHII", 16 + len(message), family, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + message)
        reply = b""
        while True:
            data, at = self.sock.recv(65536), 0
            while at + 16 <= len(data):
                size, kind = struct.unpack_from("=IH", data, at)
                if kind == 2:
                    error = struct.unpack_from("=i", data, at + 16)[0]
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return reply
                reply = data[at + 20:at + size]
                at += (size + 3) & ~3


def take(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more
    return data


def negotiate(host, port, export):
    """Fixed newstyle handshake with NBD_OPT_GO (NBD protocol, "Option types"). Gives the socket, size and flags."""
    sock = socket.create_connection((host, port), timeout=3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    take(sock, 18)
    name = export.encode()
    sock.sendall(struct.pack(">I", 3))
    sock.sendall(struct.pack(">QII", IHAVEOPT, 7, 6 + len(name)) + struct.pack(">I", len(name)) + name + b"\0\0")
    size = flags = None
    while True:
        magic, _, kind, length = struct.unpack(">QIII", take(sock, 20))
        payload = take(sock, length)
        if magic != REP_MAGIC or kind & 0x80000000:
            raise ConnectionError(f"export refused ({kind & 0x7fffffff}): {payload.decode(errors='replace')}")
        if kind == 1:
            break
        if kind == 3 and struct.unpack_from(">H", payload)[0] == 0:
            size, flags = struct.unpack_from(">QH", payload, 2)
    sock.settimeout(None)
    return sock, size, flags


def main():
    host, port, export, index, dead_seconds, status = sys.argv[1:7]
    port, index, dead_seconds = int(port), int(index), int(dead_seconds)

    def report(text):
        with open(status, "a") as out:
            out.write(text + "\n")

    control, events = Netlink(), Netlink()
    reply = attrs(control.request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, attr(CTRL_ATTR_FAMILY_NAME, b"nbd\0")))
    family = struct.unpack("=H", reply[CTRL_ATTR_FAMILY_ID])[0]
    for group in attrs(reply[CTRL_ATTR_MCAST_GROUPS]).values():
        group_id = struct.unpack("=I", attrs(group)[CTRL_ATTR_MCAST_GRP_ID])[0]
        events.sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group_id)

    def sockets(sock):
        return attr(A_SOCKETS | 0x8000, attr(1 | 0x8000, attr(1, struct.pack("=I", sock.fileno()))))

    sock, size, flags = negotiate(host, port, export)
    u64 = lambda value: struct.pack("=Q", value)
    control.request(family, NBD_CMD_CONNECT,
                    attr(A_INDEX, struct.pack("=I", index)) + attr(A_SIZE, u64(size)) + attr(A_BLOCK, u64(4096))
                    + attr(A_TIMEOUT, u64(5)) + attr(A_SERVER_FLAGS, u64(flags)) + attr(A_DEAD_CONN, u64(dead_seconds))
                    + sockets(sock))
    report("attached")
    if os.fork():
        return
    os.setsid()
    while True:
        data = events.sock.recv(65536)
        if len(data) < 20 or data[16] != NBD_CMD_LINK_DEAD:
            continue
        report("link dead")
        while True:
            try:
                sock, again, _ = negotiate(host, port, export)
                if again != size:
                    raise ConnectionError(f"size changed from {size} to {again}")
                control.request(family, NBD_CMD_RECONNECT, attr(A_INDEX, struct.pack("=I", index)) + sockets(sock))
                report("reconnected")
                break
            except OSError as error:
                report(f"retry: {error}")
                time.sleep(0.2)


main()
