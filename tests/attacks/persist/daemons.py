# story: Leaves processes behind in each way that daemons are made: fork, double fork, setsid, a detached child, a thread
#   that starts one when the process ends.
# says: nothing stays behind
# %%
import atexit
import multiprocessing
import os
import subprocess
import threading

def daemon():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                pass
        os._exit(0)
    return pid

made = 0
for attempt in (daemon, lambda: subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True), lambda: multiprocessing.Process(target=print, daemon=False).start(),
                lambda: subprocess.Popen("nohup sleep 1000 &", shell=True), lambda: os.posix_spawnp("setsid", ["setsid", "sleep", "99"], {}), os.forkpty):
    try:
        attempt()
        made += 1
    except OSError:
        pass
atexit.register(daemon)
threading.Timer(0.5, daemon).start()
print("nothing stays behind" if not made else f"GOT THROUGH: {made}")
