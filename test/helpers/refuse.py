"""Runs a command in which a system call is refused by a seccomp filter, as a container or a security policy may do it.

    refuse.py CALL[:ARGUMENT=VALUE...]=ERRNO[@THREAD*TIMES]... -- COMMAND ...

    refuse.py splice=EPERM -- node proxy.js
    refuse.py socket:0=16:2=12=EPROTONOSUPPORT -- node proxy.js     # AF_NETLINK, NETLINK_NETFILTER: a kernel without nf_tables
    refuse.py accept4=ENOMEM@tproxy-relay*3 -- node proxy.js        # the first three calls of threads of that name
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys

ARCH, CALLS = {
    "x86_64": (0xC000003E, {"mmap": 9, "socket": 41, "splice": 275, "accept4": 288, "pipe2": 293, "seccomp": 317, "io_uring_setup": 425}),
    "aarch64": (0xC00000B7, {"mmap": 222, "socket": 198, "splice": 76, "accept4": 242, "pipe2": 59, "seccomp": 277, "io_uring_setup": 425}),
}[platform.machine()]
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL, ASK = 0x7FFF0000, 0x00050000, 0x7FC00000
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data


def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)


def refusal(rule):
    """All comparisons must hold, or the next refusal is tried."""
    rule, _, some = rule.partition("@")
    call, *arguments, code = rule.replace("=", ":").split(":")
    compared = [(NUMBER_AT, CALLS[call])]
    for index, value in zip(arguments[::2], arguments[1::2]):
        compared.append((ARGUMENTS_AT + 8 * int(index), int(value)))
    steps = []
    for position, (offset, value) in enumerate(compared):
        rest = 2 * (len(compared) - position - 1) + 1
        steps += [instruction(LOAD, 0, 0, offset), instruction(JUMP_EQUAL, 0, rest, value)]
    return b"".join(steps) + instruction(RETURN, 0, 0, ASK if some else FAIL | getattr(errno, code))


end = sys.argv.index("--")
rules, command = sys.argv[1:end], sys.argv[end + 1 :]
allow = instruction(RETURN, 0, 0, ALLOW)
native_only = instruction(LOAD, 0, 0, ARCH_AT) + instruction(JUMP_EQUAL, 1, 0, ARCH) + allow
PROGRAM = native_only + b"".join(map(refusal, rules)) + allow


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 38, 1, 8
NOTIF_RECV, NOTIF_SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
program = Filter(len(PROGRAM) // 8, PROGRAM)
to_judge = [rule for rule in rules if "@" in rule]


def judge(listener):
    """Refuses the calls that the filter asks about as often as it is meant to, and lets all others be made."""
    left = {}
    for rule in to_judge:
        call, some = rule.split("@")
        thread, times = some.split("*")
        left[CALLS[call.replace(":", "=").split("=")[0]]] = [thread, int(times), getattr(errno, call.split("=")[-1])]
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not poll.poll()[0][1] & select.POLLHUP:  # nobody is left to be judged
        try:
            identity, thread, _, number = struct.unpack_from("QIIi", fcntl.ioctl(listener, NOTIF_RECV, bytes(80)))
            with open(f"/proc/{thread}/comm") as name:
                refused = name.read().strip() == left[number][0] and left[number][1] > 0
            left[number][1] -= refused
            answer = (0, -left[number][2], 0) if refused else (0, 0, CONTINUE)
            fcntl.ioctl(listener, NOTIF_SEND, struct.pack("QqiI", identity, *answer))
        except OSError:  # it has ended meanwhile
            pass


here, there = socket.socketpair()
if to_judge and os.fork() == 0:
    there.close()
    listener = socket.recv_fds(here, 1, 1)[1]
    os.closerange(0, 2)
    judge(*listener)
    os._exit(0)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
flags = NEW_LISTENER if to_judge else 0
listener = libc.syscall(CALLS["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
if listener < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
if to_judge:
    socket.send_fds(there, [b"!"], [listener])
os.execvp(command[0], command)
