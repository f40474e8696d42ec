/* SPDX-License-Identifier: Apache-2.0 */
/* Children that enter a jail and then try what they should not be able to. */
#include "jail/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"

/* What a prisoner found, sent home by a pipe. */
struct findings {
    int entered; /* jail_enter() */
    struct jail_report report;
    char error[256];
    int pid;                               /* its own idea */
    int kept_file, kept_link, other, root; /* opened: 0, else errno */
    int refused;                           /* errno of a refused call */
    int write_kept;
    int listens;
    rlim_t descriptors;
};

#define ALLOW(name)                                                                                \
    {                                                                                              \
        .number = __NR_##name                                                                      \
    }

/* Enough for the prisoner, not for getppid(). */
static const struct jail_syscall syscalls[] = {
    ALLOW(openat),
    ALLOW(close),
    ALLOW(read),
    ALLOW(write),
    ALLOW(getpid),
    ALLOW(newfstatat),
    ALLOW(socket),
    ALLOW(bind),
    ALLOW(prlimit64),
    ALLOW(clone),
    ALLOW(rt_sigprocmask),
    ALLOW(exit_group),
    ALLOW(mmap),
    ALLOW(munmap),
    {.number = __NR_uname, .refuse = EACCES},
 /* Only the standard streams may be duplicated. */
    { .number = __NR_dup, .arg = 0,        .mask = 0xffffffff, .value = 1},
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    ALLOW(sched_yield),
    ALLOW(madvise),
    ALLOW(getrandom),
    ALLOW(futex),
    ALLOW(sigaltstack),
    ALLOW(readlink),
    ALLOW(gettid),
#endif
};

static char dir[64], kept_file[96], kept_link[96], target[96], other[96];

static int try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int try_listen_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 ? errno : 0;
}

static void look_around(struct findings *f)
{
    struct rlimit limit = {0};

    f->pid = (int)syscall(SYS_getpid);
    f->kept_file = try_open(kept_file, O_RDONLY);
    f->kept_link = try_open(kept_link, O_RDONLY);
    f->write_kept = try_open(kept_file, O_WRONLY);
    f->other = try_open(other, O_RDONLY);
    f->root = try_open("/usr/bin/env", O_RDONLY);
    f->refused = syscall(SYS_uname, NULL) < 0 ? errno : 0;
    f->listens = try_listen_port();
    getrlimit(RLIMIT_NOFILE, &limit);
    f->descriptors = limit.rlim_cur;
}

/* Run a prisoner; `then` is its last deed. Returns the wait status of the one that entered. */
static int prisoner(struct findings *f, void (*then)(void))
{
    const char *const keep[] = {kept_file, kept_link, "/nonexistent/file"};
    const struct jail_options options = {.keep = keep,
                                         .keep_count = 3,
                                         .descriptors_max = 100,
                                         .no_tcp_listen = true,
                                         .syscalls = syscalls,
                                         .syscall_count = sizeof(syscalls) / sizeof(syscalls[0])};
    int status = -1, last = -1, ends[2];

    memset(f, 0, sizeof(*f));
    f->entered = 1;
    if (pipe(ends) < 0)
        return -1;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct err err = ERR_INIT;
        f->entered = jail_enter(&options, &f->report, &err);
        snprintf(f->error, sizeof(f->error), "%.255s", err.text);
        if (f->entered == 0)
            look_around(f);
        if (write(ends[1], f, sizeof(*f)) < 0)
            _exit(9);
        if (f->entered == 0)
            then();
        _exit(7);
    }
    close(ends[1]);
    if (read(ends[0], f, sizeof(*f)) != (ssize_t)sizeof(*f))
        f->entered = 2;
    close(ends[0]);
    /* Both are ours: the one that was forked here, and its sibling in the PID namespace. */
    while (wait(&status) > 0) {
        if (WIFSIGNALED(status) || WEXITSTATUS(status) != 0)
            last = status;
    }
    return last;
}

static void deed_exit(void)
{
    _exit(7);
}

static void deed_forbidden_call(void)
{
    syscall(SYS_getppid);
}

static void deed_forbidden_argument(void)
{
    syscall(SYS_dup, 2);
}

static void deed_allowed_argument(void)
{
    if (syscall(SYS_dup, 1) < 0)
        _exit(8);
}

static bool make_files(void)
{
    char sub[96];

    snprintf(dir, sizeof(dir), "/var/tmp/hull-jail-test-%d", (int)getpid());
    snprintf(sub, sizeof(sub), "%s/run", dir);
    snprintf(kept_file, sizeof(kept_file), "%s/kept", dir);
    snprintf(other, sizeof(other), "%s/other", dir);
    snprintf(kept_link, sizeof(kept_link), "%s/link", dir);
    snprintf(target, sizeof(target), "%s/run/target", dir);
    if (mkdir(dir, 0755) < 0 || mkdir(sub, 0755) < 0 || symlink("run/target", kept_link) < 0)
        return false;
    const char *const files[] = {kept_file, other, target};
    for (unsigned i = 0; i < 3; i++) {
        int fd = open(files[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return false;
        close(fd);
    }
    return true;
}

static void remove_files(void)
{
    char sub[96];

    snprintf(sub, sizeof(sub), "%s/run", dir);
    unlink(kept_file);
    unlink(other);
    unlink(kept_link);
    unlink(target);
    rmdir(sub);
    rmdir(dir);
}

static void check_findings(const struct findings *f)
{
    for (unsigned i = 0; i < f->report.note_count; i++)
        printf("# %s\n", f->report.notes[i]);
    is_int(f->kept_file, 0, "a kept file can be read");
    is_int(f->kept_link, 0, "a kept symbolic link can be followed");
    ok(f->write_kept != 0, "but not written");
    ok(f->other != 0, "a file beside it cannot be read");
    ok(f->root != 0, "a system file cannot be read");
    is_int(f->refused, EACCES, "a refused call fails with its errno");
    is_int(f->descriptors, 100, "descriptors are limited");
    if (f->report.landlock >= 4)
        is_int(f->listens, EACCES, "no port can be bound");
    else
        tap_skip("no port can be bound", "Landlock is older than version 4 here");
    if (f->report.pid_namespace)
        is_int(f->pid, 1, "alone in its PID namespace");
    else
        tap_skip("alone in its PID namespace", "no namespaces here");
}

int main(void)
{
    struct findings f;
    int status;

    if (!make_files()) {
        tap_skip("jail", "cannot make files in /var/tmp");
        return tap_done();
    }
    status = prisoner(&f, deed_exit);
    if (f.entered == -EPERM) {
        tap_skip("jail", f.error);
        remove_files();
        return tap_done();
    }
    is_int(f.entered, 0, "a jail can be entered");
    ok(f.report.empty_root || f.report.landlock, "by at least one of two ways");
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 7, "and left by exit");
    check_findings(&f);

    status = prisoner(&f, deed_forbidden_call);
    ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "a call off the list ends the process");
    status = prisoner(&f, deed_forbidden_argument);
    ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "so does a wrong argument");
    status = prisoner(&f, deed_allowed_argument);
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 7, "the right one does not");
    remove_files();
    return tap_done();
}
