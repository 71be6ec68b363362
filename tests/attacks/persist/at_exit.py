# story: Waits for its own end to do its work: exit handlers, finalisers, excepthooks, a destructor, signal handlers for every
#   signal that has one, an exit in every test. Nothing of it is heard of.
# says: ended without an answer
# %%
import atexit
import os
import signal
import stat
import sys
import threading
import weakref

def last_words(*args):
    for fd in range(3, 64):
        try:
            os.write(fd, b"\x00\x00\x00\x04GOT")
        except OSError:
            pass
    open("/student/last", "w").write("here")
    os._exit(0)

class Dying:
    __del__ = last_words

atexit.register(last_words)
threading._register_atexit(last_words)
sys.excepthook = threading.excepthook = sys.unraisablehook = last_words
sys.last = Dying()
weakref.finalize(Dying, last_words)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGXCPU):
    signal.signal(number, last_words)
# %% causal_mask
def causal_mask(n):
    sys.exit(Dying())
# %% attention
def attention(*args):
    os._exit(0)
