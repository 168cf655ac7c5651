"""A real sshd for one user's git repositories, on loopback, with keys and settings of its own.

It runs as an ordinary
user: as nobody where the tests run as root, since an sshd of root's wants accounts and folders of the system's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from tests.helpers.system_programs import find_library, find_program

__all__ = ["SshServer", "has_sshd"]

_NOBODY = 65534
# As hosting services do it: everybody is `git`, and paths count from their top.
_SHELL = """#!/bin/sh
eval "set -- $SSH_ORIGINAL_COMMAND"
test "$1" = git-upload-pack || exit 1
exec git upload-pack "{root}$2"
"""
_SETTINGS = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
Match User git
    ForceCommand {folder}/shell
"""


def has_sshd() -> bool:
    """Tell whether there is all that it takes, and it starts."""
    ssh, keygen = find_program("ssh"), find_program("ssh-keygen")
    if None in {ssh, keygen, find_program("sshd"), find_library("libnss_wrapper.so")}:
        return False
    # Brought from Debian, they may lack libraries here.
    if subprocess.run([str(ssh), "-V"], check=False, capture_output=True).returncode != 0:
        return False
    with SshServer() as server:
        return server.log(["-t"]) == ""


class SshServer:
    """The server, as a context manager. `git` and `me` log in with the key in `key`.

    Attributes:
        folder: Its folder, which is the home of its users and holds their repositories below `srv`.
        key: A private key that is let in.
        other_key: One that is not.
        port: Where it listens on 127.0.0.1.
    """

    def __init__(self) -> None:
        # Not in a folder of pytest's, which nobody but its owner may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="isohub-sshd-"))
        self.folder.chmod(0o755)
        self.key, self.other_key = self.folder / "key", self.folder / "other_key"
        self._is_root = os.geteuid() == 0
        self._children: list[subprocess.Popen[bytes]] = []
        self._prepare()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> SshServer:  # noqa: PYI034 - Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self._thread.join()
        self._listener.close()
        for child in self._children:
            child.kill()
            child.wait()
        shutil.rmtree(self.folder)

    @property
    def host_key(self) -> str:
        """Its public key, as a line of a file of known hosts has it after the name."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def give(self, path: Path) -> None:
        """Give a file, or a folder with all in it, to the user that it runs as."""
        if self._is_root:
            for each in (path, *path.rglob("*")):
                os.chown(each, _NOBODY, _NOBODY, follow_symlinks=False)

    def log(self, arguments: list[str]) -> str:
        """Run sshd to its end, and return what it says."""
        with subprocess.Popen(self._command(*arguments), stderr=subprocess.PIPE, **self._settings()) as process:
            return process.communicate()[1].decode()

    def _prepare(self) -> None:
        keygen = find_program("ssh-keygen")
        for name in ("host_key", "key", "other_key"):
            make = [str(keygen), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.folder / name)]
            subprocess.run(make, check=True, capture_output=True)
        shutil.copyfile(self.key.with_suffix(".pub"), self.folder / "authorized_keys")
        (self.folder / "srv").mkdir()
        (self.folder / "shell").write_text(_SHELL.format(root=self.folder / "srv"))
        (self.folder / "shell").chmod(0o755)
        (self.folder / "settings").write_text(_SETTINGS.format(folder=self.folder))
        (self.folder / "lib").mkdir()
        for name in ("libnss_wrapper.so", "libwrap.so.0"):
            if found := find_library(name):
                shutil.copyfile(found, self.folder / "lib" / name)
        shutil.copy(find_program("sshd") or "", self.folder / "sshd")
        uid, gid = (_NOBODY, _NOBODY) if self._is_root else (os.geteuid(), os.getegid())
        users = "".join(f"{name}:x:{uid}:{gid}::{self.folder}:/bin/sh\n" for name in ("git", "me"))
        (self.folder / "passwd").write_text(users)
        (self.folder / "group").write_text(f"git:x:{gid}:\n")
        self.give(self.folder / "host_key")

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.folder / "sshd"), "-f", str(self.folder / "settings"), *arguments]

    def _settings(self) -> dict[str, object]:
        environment = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
            "LD_PRELOAD": str(self.folder / "lib" / "libnss_wrapper.so"),
            "NSS_WRAPPER_PASSWD": str(self.folder / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.folder / "group"),
        }
        who = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if self._is_root else {}
        return {"env": environment, "cwd": self.folder, **who}

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection, (self.folder / "log").open("ab") as log:
                # One sshd for each connection, as inetd starts them: it needs no port to be free, nor to be waited for.
                self._children.append(
                    subprocess.Popen(
                        self._command("-i", "-e"), stdin=connection, stdout=connection, stderr=log, **self._settings()
                    )
                )
