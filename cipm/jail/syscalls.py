"""seccomp: which system calls the process may still make. An allowlist; anything else does not exist (ENOSYS).

The calls that people try first fail with EPERM, which reads better. Changes of mode, owner and times are answered
with success and not made: Landlock does not govern them, and copying a file may ask for them.
"""

from __future__ import annotations

import errno
import os

import pyseccomp

from cipm.errors import JailError

ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3
pipe pipe2 eventfd eventfd2 sendfile copy_file_range fsync fdatasync ftruncate fallocate flock fadvise64 sync_file_range
creat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs fstatfs getcwd chdir
getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 umask
mmap munmap mremap mprotect madvise brk msync mincore mlock munlock membarrier
futex futex_waitv get_robust_list set_robust_list set_tid_address rseq gettid getpid getppid getpgrp getpgid getsid
getuid geteuid getgid getegid getgroups getresuid getresgid
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall pause
exit exit_group wait4 waitid arch_prctl
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times alarm getitimer setitimer
timerfd_create timerfd_settime timerfd_gettime
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
getpriority getcpu getrandom getrusage getrlimit sysinfo uname get_mempolicy
""".split()

PRETENDED = "chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat".split()

REFUSED = """
socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise pidfd_open pidfd_getfd
pidfd_send_signal tkill rt_sigqueueinfo rt_tgsigqueueinfo kcmp mount umount2 move_mount open_tree fsopen fsconfig
fsmount fspick pivot_root chroot unshare setns bpf perf_event_open userfaultfd io_uring_setup io_uring_enter
io_uring_register keyctl add_key request_key kexec_load kexec_file_load init_module finit_module delete_module
personality modify_ldt symlink symlinkat link linkat mknod mknodat truncate chown lchown fchown fchownat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setuid setgid setreuid setregid setresuid setresgid
setgroups setfsuid setfsgid capset setsid setpgid setpriority ioprio_set sched_setaffinity sched_setscheduler
sched_setparam sched_setattr setrlimit memfd_create memfd_secret shmget shmat shmctl msgget semget mq_open
name_to_handle_at open_by_handle_at fanotify_init quotactl swapon swapoff reboot sethostname setdomainname acct syslog
seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
""".split()

NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag, the time namespace's too
THREAD = 0x10000 | 0x800 | 0x100  # CLONE_THREAD | CLONE_SIGHAND | CLONE_VM: a thread, never a process
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # duplicate, flags, locks, pipe size; never F_SETOWN
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, its size, bytes waiting, blocking, cloexec
PRCTL = (15, 16, 3, 23, 39, 0x53564D41)  # thread name, dumpable?, capability?, no_new_privs?, name a mapping
OPEN_MODES = (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)  # reading with O_TRUNC would empty what may only be read


def restrict(*, cuda: bool) -> None:
    """Install the filter on every thread of this process, for good; raises JailError.

    `cuda` adds memfd_create and every ioctl but the terminal's, which the driver needs.
    """
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
        rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
        _add_rules(rules, cuda)
        rules.load()
    except (OSError, RuntimeError, ValueError) as error:
        raise JailError(f"The sandbox needs seccomp filters, which this kernel refuses ({error}); nothing was run.",
                        fix="Use a kernel with CONFIG_SECCOMP_FILTER, and a container that allows seccomp().") from None


def _add_rules(rules: pyseccomp.SyscallFilter, cuda: bool) -> None:
    refused = [name for name in REFUSED if not (cuda and name == "memfd_create")]
    for action, names in ((pyseccomp.ALLOW, ALLOWED + ["memfd_create"] * cuda),
                          (pyseccomp.ERRNO(0), PRETENDED), (pyseccomp.ERRNO(errno.EPERM), refused)):
        for name in names:
            if _known(name):
                rules.add_rule(action, name)
    _allow_where(rules, "fcntl", [pyseccomp.Arg(1, pyseccomp.EQ, command) for command in FCNTL])
    _allow_where(rules, "prctl", [pyseccomp.Arg(0, pyseccomp.EQ, option) for option in PRCTL])
    _allow_where(rules, "prlimit64", [pyseccomp.Arg(2, pyseccomp.EQ, 0)], pyseccomp.Arg(0, pyseccomp.EQ, 0))
    _allow_where(rules, "kill", [pyseccomp.Arg(0, pyseccomp.EQ, os.getpid())])
    _allow_where(rules, "tgkill", [pyseccomp.Arg(0, pyseccomp.EQ, os.getpid())])
    _allow_where(rules, "clone", [pyseccomp.Arg(0, pyseccomp.MASKED_EQ, THREAD | NEW_NAMESPACES, THREAD)])
    for name, flags in (("open", 1), ("openat", 2)):
        _allow_where(rules, name, [pyseccomp.Arg(flags, pyseccomp.MASKED_EQ, os.O_ACCMODE | os.O_TRUNC, mode)
                                   for mode in OPEN_MODES])
    if cuda:
        rules.add_rule(pyseccomp.ALLOW, "ioctl")
    else:
        _allow_where(rules, "ioctl", [pyseccomp.Arg(1, pyseccomp.EQ, request) for request in IOCTL])


def _allow_where(rules: pyseccomp.SyscallFilter, name: str, either: list[pyseccomp.Arg],
                 *always: pyseccomp.Arg) -> None:
    if _known(name):
        for condition in either:
            rules.add_rule(pyseccomp.ALLOW, name, condition, *always)


def _known(name: str) -> bool:
    """Tell whether this machine's libseccomp knows the call; one it does not know stays ENOSYS."""
    try:
        return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) != -1
    except (OSError, ValueError):
        return False
