# story: Asks for the parts of the kernel in which ways out were found before: io_uring, bpf, perf, userfaultfd, keyrings,
#   modules, kexec, aio, fanotify, memory files, NUMA, time, swap.
# says: every one of \d\d was refused
# %%
import ctypes
import pyseccomp

libc, refused = ctypes.CDLL(None, use_errno=True), 0
names = """io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd keyctl add_key request_key init_module
finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog quotactl fanotify_init fanotify_mark inotify_init1
vhangup shmget shmat msgget msgsnd semget semop mq_open memfd_create settimeofday clock_settime clock_adjtime adjtimex sethostname
setdomainname io_setup sync syncfs mincore flock mbind migrate_pages move_pages set_mempolicy mlock mlock2 mlockall lookup_dcookie
landlock_create_ruleset socket socketpair bind connect listen accept4 sendmsg recvmsg sendmmsg recvmmsg""".split()
for name in names:
    if libc.syscall(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name), 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        print("GOT THROUGH:", name, ctypes.get_errno())
    refused += 1
print(f"every one of {refused} was refused")
