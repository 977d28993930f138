"""Runs a command in which a system call is refused by a seccomp filter, as a container or a security policy may do it.

    refuse.py CALL[:ARGUMENT=VALUE...]=ERRNO... -- COMMAND ...

    refuse.py splice=EPERM -- node proxy.js
    refuse.py socket:0=16:2=12=EPROTONOSUPPORT -- node proxy.js     # AF_NETLINK, NETLINK_NETFILTER: a kernel without nf_tables
"""

import ctypes
import errno
import os
import platform
import struct
import sys

ARCH, CALLS = {
    "x86_64": (0xC000003E, {"socket": 41, "splice": 275, "io_uring_setup": 425}),
    "aarch64": (0xC00000B7, {"socket": 198, "splice": 76, "io_uring_setup": 425}),
}[platform.machine()]
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data


def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)


def refusal(rule):
    """All comparisons must hold, or the next refusal is tried."""
    call, *arguments, code = rule.replace("=", ":").split(":")
    compared = [(NUMBER_AT, CALLS[call])]
    for index, value in zip(arguments[::2], arguments[1::2]):
        compared.append((ARGUMENTS_AT + 8 * int(index), int(value)))
    steps = []
    for position, (offset, value) in enumerate(compared):
        rest = 2 * (len(compared) - position - 1) + 1
        steps += [instruction(LOAD, 0, 0, offset), instruction(JUMP_EQUAL, 0, rest, value)]
    return b"".join(steps) + instruction(RETURN, 0, 0, FAIL | getattr(errno, code))


end = sys.argv.index("--")
rules, command = sys.argv[1:end], sys.argv[end + 1 :]
allow = instruction(RETURN, 0, 0, ALLOW)
native_only = instruction(LOAD, 0, 0, ARCH_AT) + instruction(JUMP_EQUAL, 1, 0, ARCH) + allow
PROGRAM = native_only + b"".join(map(refusal, rules)) + allow


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
program = Filter(len(PROGRAM) // 8, PROGRAM)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(command[0], command)
