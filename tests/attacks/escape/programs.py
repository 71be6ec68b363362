# story: Starts another program, in which no limit of ours would be known: by exec, spawn, system, the loader, a program in
#   memory, an interpreter, a script.
# says: no program started
# %%
import ctypes
import os
import subprocess
import sys

started, libc = [], ctypes.CDLL(None, use_errno=True)
open("script", "w").write("#!/bin/sh\necho hello")
os.chmod("script", 0o755)
for attempt in (
    lambda: os.execv("/bin/sh", ["sh", "-c", "true"]), lambda: os.execve(os.open("/bin/sh", os.O_RDONLY), ["sh"], {}),
    lambda: subprocess.run(["/bin/true"]), lambda: subprocess.run("true", shell=True), lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: os.popen("id").read() or 1 / 0, lambda: os.system("id") and 1 / 0, lambda: subprocess.run([sys.executable, "-c", "1"]),
    lambda: subprocess.run(["./script"]), lambda: os.memfd_create("program"), lambda: subprocess.run(["/lib64/ld-linux-x86-64.so.2", "/bin/true"]),
):
    try:
        started.append(attempt())
    except (OSError, ZeroDivisionError):
        pass
if libc.system(b"id > /student/id") == 0 or os.path.exists("/student/id"):
    started.append("system")
print("no program started" if not started else f"GOT THROUGH: {started}")
