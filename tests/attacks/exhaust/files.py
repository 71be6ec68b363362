# story: Fills both of its folders with one file, with many, with folders in folders, with links, and keeps open what it
#   opened and deleted.
# says: at most \d MB and \d{1,4} files
# %%
import os

size = made = 0
for place in ("/student", "/dev/shm"):
    os.chdir(place)
    try:
        with open("big", "wb", 0) as big:
            while True:
                size += big.write(bytes(1 << 16))
    except OSError:
        pass
    os.remove("big")
    try:
        while True:
            open(f"file-{made}", "w").close()
            made += 1
    except OSError:
        pass
    for name in os.listdir("."):
        os.remove(name)
    depth = 0
    try:
        while True:
            os.mkdir("folder")
            os.chdir("folder")
            depth += 1
    except OSError:
        made += depth
print(f"at most {size >> 20} MB and {made} files" if size < 16 << 20 and made < 9000 else f"GOT THROUGH: {size} bytes, {made} files")
