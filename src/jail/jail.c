/* SPDX-License-Identifier: Apache-2.0 */
#include "jail/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "jail/stages.h"

static void __attribute__((format(printf, 2, 3)))
note(struct jail_report *report, const char *fmt, ...)
{
    va_list args;

    if (report->note_count == JAIL_NOTES_MAX)
        return;
    va_start(args, fmt);
    vsnprintf(report->notes[report->note_count++], sizeof(report->notes[0]), fmt, args);
    va_end(args);
}

/* --- what is kept --- */

/* The directory of path, without the final slash; "" for the root. */
static void directory_of(const char *path, char *dir)
{
    memcpy(dir, path, strlen(path) + 1);
    *strrchr(dir, '/') = '\0';
}

static bool is_below(const char *path, const char *dir)
{
    size_t len = strlen(dir);

    return strncmp(path, dir, len) == 0 && path[len] == '/';
}

static unsigned resolve_kept(const struct jail_options *options, struct jail_kept *kept)
{
    unsigned count = 0;

    for (unsigned i = 0; i < options->keep_count && count < JAIL_KEEP_MAX; i++) {
        struct jail_kept *k = &kept[count];

        if (options->keep[i][0] != '/' || !realpath(options->keep[i], k->real))
            continue;
        snprintf(k->asked, sizeof(k->asked), "%s", options->keep[i]);
        directory_of(k->real, k->shown);
        /* A directory that holds the link as well (/etc) would show far too much. */
        k->directory = strcmp(k->asked, k->real) != 0 && !is_below(k->asked, k->shown);
        if (!k->directory)
            memcpy(k->shown, k->real, sizeof(k->shown));
        count++;
    }
    return count;
}

/* --- stage 2 --- */

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return -errno;
    n = write(fd, text, strlen(text));
    int ret = n < 0 ? -errno : 0;
    close(fd);
    return ret;
}

/* We stay who we are: files keep their owners, and the socket its credentials. */
static int map_ids(uid_t uid, gid_t gid)
{
    char line[64];
    int ret;

    snprintf(line, sizeof(line), "%u %u 1\n", uid, uid);
    ret = write_file("/proc/self/uid_map", line);
    if (ret == 0)
        ret = write_file("/proc/self/setgroups", "deny");
    snprintf(line, sizeof(line), "%u %u 1\n", gid, gid);
    if (ret == 0)
        ret = write_file("/proc/self/gid_map", line);
    return ret;
}

static void enter_namespaces(struct jail_report *report)
{
    const int all = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID;
    uid_t uid = geteuid();
    gid_t gid = getegid();
    int ret;

    if (unshare(CLONE_NEWUSER | all) == 0) {
        report->namespaces = true;
        ret = map_ids(uid, gid);
        if (ret < 0) /* Harmless: unmapped, we own nothing at all. The mounts will tell. */
            note(report, "no user may be mapped in the new user namespace: %s", strerror(-ret));
    } else {
        ret = -errno;
        /* Root in a container may have the right without a user namespace. */
        report->namespaces = unshare(all) == 0;
        if (!report->namespaces)
            note(report, "no namespaces on this host: %s", strerror(-ret));
    }
    report->pid_namespace = report->namespaces;
}

/*
 * A new PID namespace begins with the next child. CLONE_PARENT makes it our sibling: the parent
 * has one process to watch, as before. The C library is not told of this fork; with one thread
 * there is no lock that could be held, and nothing here depends on a cached thread id.
 */
static int fork_into_pid_namespace(void)
{
    long child = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

    if (child > 0)
        _exit(0);
    return child < 0 ? -errno : 0;
}

/* --- stages 4 and 5 --- */

static int set_limits(const struct jail_options *options, struct err *err)
{
    const struct {
        int resource;
        rlim_t max;
        const char *name;
    } limits[] = {
        {RLIMIT_CORE,   0,                        "RLIMIT_CORE"  }, /* guest data stays off disks */
        {RLIMIT_NPROC,  0,                        "RLIMIT_NPROC" },
        {RLIMIT_NOFILE, options->descriptors_max, "RLIMIT_NOFILE"},
    };

    for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct rlimit now;

        if (getrlimit((__rlimit_resource_t)limits[i].resource, &now) < 0)
            return err_errno(err, errno, "cannot read %s", limits[i].name);
        if (now.rlim_max > limits[i].max)
            now.rlim_max = limits[i].max;
        now.rlim_cur = now.rlim_max;
        if (setrlimit((__rlimit_resource_t)limits[i].resource, &now) < 0)
            return err_errno(err, errno, "cannot set %s", limits[i].name);
    }
    return 0;
}

static int drop_capabilities(struct err *err)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

    /* Needs CAP_SETPCAP; without it there is no capability to be got back either, since
     * no_new_privs is set. */
    for (int cap = 0; cap < 64; cap++) {
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            break;
    }
    /* EINVAL: a kernel without ambient capabilities. */
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return err_errno(err, errno, "cannot clear the ambient capabilities");
    if (syscall(SYS_capset, &header, none) < 0)
        return err_errno(err, errno, "cannot drop the capabilities");
    return 0;
}

/* --- all of it --- */

static int confine_files(const struct jail_options *options, const struct jail_kept *kept,
                         unsigned kept_count, struct jail_report *report, struct err *err)
{
    int version = jail_landlock(options, kept, kept_count);

    if (version > 0)
        report->landlock = (unsigned)version;
    else if (version < 0)
        note(report, "Landlock refuses: %s", strerror(-version));
    else
        note(report, "this kernel has no Landlock");

    if (!report->empty_root && !report->landlock)
        return err_set(err, EPERM,
                       "this host allows neither user namespaces nor Landlock, and one of them is "
                       "needed to keep files out of reach (sysctl user.max_user_namespaces, "
                       "kernel.unprivileged_userns_clone, "
                       "kernel.apparmor_restrict_unprivileged_userns; kernel parameter lsm=)");
    return 0;
}

int jail_enter(const struct jail_options *options, struct jail_report *report, struct err *err)
{
    /* Too large for a stack, and needed once a process. */
    struct jail_kept *kept = calloc(JAIL_KEEP_MAX, sizeof(*kept));
    unsigned kept_count;
    int ret;

    *report = (struct jail_report){0};
    if (!kept)
        return err_set(err, ENOMEM, "no memory to enter the jail");
    kept_count = resolve_kept(options, kept);

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        ret = err_errno(err, errno, "cannot set no_new_privs");
        goto out;
    }
    enter_namespaces(report);
    if (report->namespaces) {
        ret = jail_empty_root(kept, kept_count);
        report->empty_root = ret == 0;
        if (ret < 0)
            note(report, "no empty root, the host forbids mounts in a namespace: %s",
                 strerror(-ret));
    }
    if (report->pid_namespace) {
        ret = fork_into_pid_namespace();
        report->pid_namespace = ret == 0;
        if (ret < 0)
            note(report, "no PID namespace: %s", strerror(-ret));
    }
    ret = set_limits(options, err);
    if (ret == 0)
        ret = drop_capabilities(err);
    if (ret == 0)
        ret = confine_files(options, kept, kept_count, report, err);
    if (ret == 0)
        ret = jail_seccomp(options, err);
out:
    free(kept);
    return ret;
}
