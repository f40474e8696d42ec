/* SPDX-License-Identifier: Apache-2.0 */
/*
 * filters COUNT: makes the kernel compile COUNT programs of BPF and run each some thousand times.
 * Processes, two at a time, install a seccomp filter that gives a system call an error of their own
 * choice, and look whether that is the one they get. Prints how many did.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLS = 2000, TOGETHER = 2, PADDING = 40 };

/* Steps that change with the number, so that no two programs are of the same code. */
static unsigned filter_of(unsigned number, struct sock_filter *f)
{
    unsigned n = 0;
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, number);
    for (unsigned i = 0; i < number % PADDING; i++)
        f[n++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, i);
    f[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (1 + number % 100));
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    return n;
}

static int child(unsigned number)
{
    struct sock_filter code[PADDING + 8];
    struct sock_fprog program = {(unsigned short)filter_of(number, code), code};
    pid_t me = getpid();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return 1;
    for (int i = 0; i < CALLS; i++) {
        errno = 0;
        if (syscall(SYS_getppid) != -1 || errno != (int)(1 + number % 100) ||
            syscall(SYS_getpid) != me)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    unsigned count = argc > 1 ? (unsigned)atoi(argv[1]) : 1, good = 0;
    for (unsigned started = 0, ended = 0; ended < count;) {
        while (started < count && started - ended < TOGETHER) {
            if (fork() == 0)
                _exit(child(started));
            started++;
        }
        int status;
        if (wait(&status) > 0)
            good += status == 0;
        ended++;
    }
    printf("good=%u\n", good);
    return good != count;
}
