/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Isolation that a process puts itself into, for good. jail_enter() is called once, by a process
 * with a single thread, after it has opened what only an unconfined process can open (listening
 * ports, devices), and before it touches the first byte from outside.
 *
 * Theory of operation. The stages come in this order because each needs what the next takes away:
 *
 *   1 no_new_privs      a setuid program gains nothing; Landlock and seccomp ask for it.
 *   2 namespaces        user, mount, IPC, UTS, cgroup and PID: no view of other processes, of the
 *                       host's mounts and names. Never the network: the caller needs its sockets.
 *                       PID takes a fork: the caller goes on in the child (see jail_enter).
 *   3 empty root        a read-only tmpfs with nothing in it but the paths to keep.
 *   4 limits            no core file, no new process, a bounded number of descriptors.
 *   5 capabilities      none, in any set, the bounding set included. They came back with the user
 *                       namespace, which is why they go after the mounts are made.
 *   6 Landlock          the file system once more, by the kernel's other mechanism: holds where 2
 *                       and 3 are forbidden; and TCP ports, where the kernel knows that.
 *   7 seccomp           an allow-list of system calls; anything else ends the process.
 *
 * 1, 4, 5 and 7 must succeed. Of 2 + 3 and 6 one is enough to confine the file system, and either
 * may be missing (distributions that forbid unprivileged user namespaces; kernels without
 * Landlock): then the report says so. With neither, jail_enter() fails.
 */
#ifndef HULL_JAIL_JAIL_H
#define HULL_JAIL_JAIL_H

#include <stdbool.h>
#include <stdint.h>

struct err;

/*
 * One line of the allow-list: a system call; where mask is not 0, only with
 * (argument & mask) == value. Several lines for one call: any of them.
 */
struct jail_syscall {
    int number;    /* __NR_... */
    int refuse;    /* 0: allowed; an errno: fails with it, instead of ending the process */
    uint8_t arg;   /* index of the argument, from 0 */
    uint64_t mask; /* 0: any arguments */
    uint64_t value;
};

struct jail_options {
    /*
     * Absolute paths of files that stay readable. One that is a symbolic link keeps the directory
     * of its target readable, so that a file that is replaced there is seen. Missing: skipped.
     */
    const char *const *keep;
    unsigned keep_count;

    unsigned descriptors_max; /* RLIMIT_NOFILE */
    bool no_tcp_listen;       /* no new listening TCP ports (Landlock 4) */
    bool no_tcp_connect;      /* no new outgoing TCP connections (Landlock 4) */

    const struct jail_syscall *syscalls;
    unsigned syscall_count;
};

#define JAIL_NOTES_MAX 4

struct jail_report {
    bool namespaces; /* stage 2, all of it */
    bool pid_namespace;
    bool empty_root;     /* stage 3 */
    unsigned landlock;   /* stage 6: the version in force, 0: none */
    unsigned note_count; /* what this host does not allow, for people */
    char notes[JAIL_NOTES_MAX][160];
};

/*
 * Enter all stages. 0, or -errno with err filled: then the process is half confined, and ends.
 *
 * Where a PID namespace is made, the call returns in a child whose parent is the caller's parent,
 * and the process that called ends with status 0. What belongs to a process and is not inherited
 * (a parent-death signal) is therefore set afterwards, and prctl is then among the allowed calls.
 */
int jail_enter(const struct jail_options *options, struct jail_report *report, struct err *err);

#endif
