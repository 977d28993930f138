"""Runs a command in which splice(2) fails with EPERM, as a security policy may make it: without_splice.py CMD ..."""

import ctypes
import os
import platform
import struct
import sys

ARCH, SPLICE = {"x86_64": (0xC000003E, 275), "aarch64": (0xC00000B7, 76)}[platform.machine()]
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_EPERM = 0x7FFF0000, 0x00050000 | 1


def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)


PROGRAM = b"".join(
    [
        instruction(LOAD, 0, 0, 4),  # seccomp_data.arch
        instruction(JUMP_EQUAL, 0, 3, ARCH),
        instruction(LOAD, 0, 0, 0),  # seccomp_data.nr
        instruction(JUMP_EQUAL, 0, 1, SPLICE),
        instruction(RETURN, 0, 0, FAIL_EPERM),
        instruction(RETURN, 0, 0, ALLOW),
    ]
)


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
program = Filter(len(PROGRAM) // 8, PROGRAM)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
