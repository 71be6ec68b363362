# story: Makes links, pipes and devices in its own folder that lead out of it, and leaves by open directories and by "..".
# says: all ways lead back in
# %%
import os
import stat

open("own", "w").write("mine")
outside = ["/etc/shadow", "/root", "/home", "/tmp", "/var", "/proc/1/root/root", "/proc/self/root/home", "../../../../../root", "/srv"]
seen = []
for number, target in enumerate(outside):
    os.symlink(target, f"link-{number}")
    try:
        seen.append((target, os.listdir(f"link-{number}") if os.path.isdir(f"link-{number}") else open(f"link-{number}").read()))
    except OSError:
        pass
for source in ("/sandbox/wire.py", "/bin/sh", "/proc/1/environ"):
    try:
        os.link(source, "hard")
        seen.append(source)
    except OSError:
        pass
for kind, device in ((stat.S_IFCHR, os.makedev(1, 1)), (stat.S_IFBLK, os.makedev(8, 0)), (stat.S_IFCHR, os.makedev(1, 11))):
    try:
        os.mknod("device", kind | 0o666, device)
        seen.append(device)
    except OSError:
        pass
root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
os.mkdir("below")
os.chdir("below")
for _ in range(50):
    os.chdir("..")
above = os.stat(".").st_ino == os.stat("/").st_ino
names = set(os.listdir(os.open("..", os.O_RDONLY, dir_fd=root)))
prefixes = {part for path in (os.sys.prefix, os.sys.base_prefix) for part in (*path.split("/"), *os.path.realpath(path).split("/"))}
known = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev", "proc", "sandbox", "student", *prefixes}
seen = [item for item in seen if not (type(item) is tuple and set(item[1]) <= known)]
print("all ways lead back in" if above and not seen and names <= known else f"GOT THROUGH: {seen} {names - known}")
