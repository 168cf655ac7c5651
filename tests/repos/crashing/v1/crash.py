# The file that $CRASH names says where and how; it is taken away first, so that the next try goes well.
import faulthandler
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading


class Unsayable(RuntimeError):
    def __str__(self):
        raise LookupError("no words")


def fail():
    raise ValueError("no such size", 3)


def fail_unsayably():
    raise Unsayable("x")


def out_of_memory():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), resource.RLIM_INFINITY))
    bytearray(1 << 30)


def hang():
    threading.Event().wait()


def hang_deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def flood():
    for i in range(10_000):
        print(f"line {i}".ljust(99))


def grandchild():
    child = subprocess.Popen(["sleep", "1000"])
    pathlib.Path(os.environ["CRASH"] + ".pid").write_text(str(child.pid))


HOW = {
    "raise": fail,
    "raise-unsayable": fail_unsayably,
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(3),
    "SIGSEGV": faulthandler._sigsegv,
    "SIGABRT": os.abort,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "out-of-memory": out_of_memory,
    "hang": hang,
    "hang-deaf": hang_deaf,
    "close-all": lambda: os.closerange(0, 1 << 16),
    "flood": flood,
    "grandchild": grandchild,
}


def crash_at(where):
    order = pathlib.Path(os.environ["CRASH"])
    if order.exists() and order.read_text().split()[0] == where:
        how = order.read_text().split()[1]
        order.unlink()
        HOW[how]()
