# story: The scheduler shares time between groups of processes, and a group's share is a file in /proc that its members may
#   write: the last of all shares would be everybody's in this jail. Also asks for the worst place by every other call.
# says: nobody waits because of me
# neighbours: 3
# %%
import os
import pyseccomp
import ctypes

slow = []
try:
    with open("/proc/self/autogroup") as file:
        slow += ["left by another"] if "nice 0" not in file.read() else []
    with open("/proc/self/autogroup", "w") as file:
        file.write("19")
    slow.append("autogroup")
except OSError:
    pass
for pid in (1, os.getpid()):
    for name in ("oom_score_adj", "oom_adj", "coredump_filter", "timerslack_ns", "sched", "clear_refs", "comm"):
        try:
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("-1000" if name.startswith("oom") else "0")
            slow += [name] if name.startswith("oom") else []
        except OSError:
            pass
for root, _, names in os.walk("/proc/sys"):
    for name in names:
        if os.access(f"{root}/{name}", os.W_OK):
            try:
                with open(f"{root}/{name}", "r+") as file:
                    file.write(file.read())
                slow.append(f"{root}/{name}")
            except OSError:
                pass
libc = ctypes.CDLL(None, use_errno=True)
for attempt in (lambda: os.nice(-20), lambda: os.setpriority(os.PRIO_PROCESS, 0, -20), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
                lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))):
    try:
        attempt()
        slow.append("priority")
    except OSError:
        pass
for who, whom in ((1, 1), (2, os.getpgrp()), (3, os.getuid())):
    libc.syscall(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "ioprio_set"), who, whom, 1 << 13) == 0 and slow.append("input and output")
print("nobody waits because of me" if not slow else f"GOT THROUGH: {slow}")
