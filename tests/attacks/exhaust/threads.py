# story: Starts threads without end, each of which computes: together they would take every core for as long as they like.
# says: can't start new thread|timed out
# %%
import threading

def compute():
    while True:
        sum(range(10**6))

while True:
    threading.Thread(target=compute, daemon=True).start()
