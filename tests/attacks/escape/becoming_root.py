# story: Becomes root, or somebody else: by the set calls, capabilities, keyrings, a file of its own with a setuid bit, and
#   the setuid programs of the system.
# says: I am who I was
# %%
import ctypes
import os
import pyseccomp
import subprocess

libc = ctypes.CDLL(None, use_errno=True)
before = os.getresuid(), os.getresgid(), [line for line in open("/proc/self/status") if line.startswith(("Cap", "Groups", "NoNewPrivs", "Seccomp:"))]
for name in ("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capset", "personality", "keyctl", "add_key"):
    if libc.syscall(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name), 0, 0, 0, 0, 0) != -1:
        print("GOT THROUGH:", name)
for option in (8, 24, 28, 38, 47):
    libc.prctl(option, 1, 0, 0, 0)
libc.prctl(47, 2, 21, 0, 0)
open("shell", "wb").write(open("/bin/sh", "rb").read())
os.chmod("shell", 0o6755)
for program in ("./shell", "/usr/bin/su", "/usr/bin/sudo", "/bin/mount", "/usr/bin/newuidmap"):
    try:
        print("GOT THROUGH:", subprocess.run([program], capture_output=True))
    except OSError:
        pass
after = os.getresuid(), os.getresgid(), [line for line in open("/proc/self/status") if line.startswith(("Cap", "Groups", "NoNewPrivs", "Seccomp:"))]
print("I am who I was" if before == after else f"GOT THROUGH: {before} {after}")
