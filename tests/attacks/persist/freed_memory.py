# story: Fills its memory with a word, so that the next process may be handed it unwiped, and looks for that word in fresh
#   memory of every kind before.
# says: all fresh memory is blank
# neighbours: 3
# %%
import mmap
import os
import numpy as np

word, found = b"left" * 4, 0
fresh = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
found += fresh.find(word) != -1
found += bytes(torch.empty(8 << 20, dtype=torch.uint8).numpy()).find(word) != -1
found += np.empty(8 << 20, np.uint8).tobytes().find(word) != -1
with open("hole", "wb+") as file:
    os.posix_fallocate(file.fileno(), 0, 2 << 20)
    found += file.read().find(word) != -1
for start in range(0, len(fresh), 8 << 20):
    fresh[start : start + (8 << 20)] = word * (1 << 19)
print("all fresh memory is blank" if not found else "GOT THROUGH")
