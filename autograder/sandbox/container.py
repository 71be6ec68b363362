"""The jail where a platform's container allows no namespaces: root's grader, and users who own nothing.

Docker's default settings let not even root make a namespace or a mount, so bubblewrap cannot run there. What is left
are user ids, capabilities, limits and the system-call filter: the zygote is one user without rights, each worker is
another one with a folder of its own, and what nobody may see belongs to root alone. docs/security.md says what this
does not stop. Only hosted.py asks for it, because the platform's command line says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autograder.sandbox.jail import ENVIRONMENT, Jail, JailError, JailLost, Limits, Worker, _paths, zygote

FIRST_UID = 60100  # the zygote's; workers have those after it. Debian gives these to nobody
UIDS = 4800
MEMORY_FOLDER = "/dev/shm"  # Docker gives a container 64 MiB there, so that no worker fills the disk


class Container(Jail):
    """A zygote behind a user id. Use as a context manager, as root.

    hidden: folders and files that must be out of sight; the self-test looks for them from inside.
    """

    def __init__(self, limits: Limits | None = None, hidden: Sequence[Path] = ()) -> None:
        if os.geteuid() != 0:
            raise JailError("Only root can give submissions user ids of their own: run this as root in its container.")
        self.hidden = hidden
        self._workers: dict[Path, Worker] = {}
        self._asked = 0
        self._place = Path(tempfile.mkdtemp(prefix="jail-", dir=MEMORY_FOLDER))
        self._place.chmod(0o711)
        umask = os.umask(0o022)
        try:
            for inside, outside in _paths().items():
                target = self._place / inside.lstrip("/")
                if outside.is_dir():
                    shutil.copytree(outside, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(outside, target)
        finally:
            os.umask(umask)
        self._folder(0)
        super().__init__(limits)

    def _folder(self, number: int) -> Path:
        """An empty folder that belongs to one worker; number 0 is the zygote's."""
        folder = self._place / str(number)
        folder.mkdir(mode=0o700)
        os.chown(folder, FIRST_UID + number, FIRST_UID + number)
        return folder

    def _command(self) -> list[str]:
        program = str(self._place / "sandbox" / "zygote.py")
        return zygote(program, self.limits, first_uid=FIRST_UID, folders=str(self._place))

    def _environment(self) -> dict[str, str]:
        own = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), str(self._place / "0"))
        return {**ENVIRONMENT, **own, "PYTHONPATH": str(self._place / "sandbox")}

    def worker(self) -> Worker:
        """A worker with a user id and a folder that no other has had; the folders of those that ended are gone."""
        for folder, ended in list(self._workers.items()):
            if not ended.alive:
                _remove(folder)
                del self._workers[folder]
        self._asked += 1
        if self._asked >= UIDS:
            raise JailLost("This jail has had its number of workers.")
        folder = self._folder(self._asked)  # the zygote counts too
        self._workers[folder] = worker = super().worker()
        return worker

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        super().close()
        _remove(self._place)


def _remove(folder: Path) -> None:
    """However deep somebody nested folders in it: rm is no recursive Python function."""
    subprocess.run(["rm", "-rf", str(folder)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if folder.exists():
        raise JailLost("The folder of a worker that has ended could not be emptied.")
