/* SPDX-License-Identifier: Apache-2.0 */
#include "block/lock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"

/* The bytes and permissions as QEMU's block/file-posix.c and include/block/block-common.h number
 * them. */
#define LOCK_USED_BASE     100
#define LOCK_UNSHARED_BASE 200
#define LOCK_BYTES         10

/*
 * The kernel closes a file that io_uring was used on a little after the last request, or the
 * process, has ended. A lock that no process holds may be of such a one: so long we wait for it.
 */
#define LINGER_MS      1000
#define LINGER_STEP_MS 10

enum {
    PERM_CONSISTENT_READ = 1u << 0,
    PERM_WRITE = 1u << 1,
    PERM_WRITE_UNCHANGED = 1u << 2,
    PERM_RESIZE = 1u << 3,
    PERM_COUNT = 4,
};

static int lock_byte(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int rc;
    do
        rc = fcntl(fd, F_OFD_SETLK, &lock);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

void block_unlock(int fd)
{
    struct flock lock = {.l_type = F_UNLCK,
                         .l_whence = SEEK_SET,
                         .l_start = LOCK_USED_BASE,
                         .l_len = LOCK_UNSHARED_BASE + LOCK_BYTES - LOCK_USED_BASE};
    fcntl(fd, F_OFD_SETLK, &lock);
}

/* -EAGAIN when another open file holds a lock on byte; pid as fcntl(2) gives it, -1: unknown. */
static int lock_test(int fd, off_t byte, pid_t *pid)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    if (lock.l_type == F_UNLCK)
        return 0;
    *pid = lock.l_pid;
    return -EAGAIN;
}

/* --- who is it? --- */

/* Does /proc/<pid>/fdinfo/<fd> list a lock that covers byte? Lines look like
 * "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101". */
static bool fdinfo_has_lock(const char *pid, const char *fd, off_t byte)
{
    char path[64 + 2 * sizeof(((struct dirent *)0)->d_name)];
    snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, fd);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        long long start, end;
        char last[32];
        if (strncmp(line, "lock:", 5) != 0 ||
            sscanf(line, "lock: %*s %*s %*s %*s %*s %*s %lld %31s", &start, last) != 2)
            continue;
        end = strcmp(last, "EOF") == 0 ? INT64_MAX : strtoll(last, NULL, 10);
        found = start <= byte && byte <= end;
    }
    fclose(file);
    return found;
}

static bool process_holds_lock(const char *pid, const struct stat *file, off_t byte)
{
    char path[32 + sizeof(((struct dirent *)0)->d_name)];
    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return false; /* another user's, or gone */
    bool found = false;
    struct dirent *entry;
    while (!found && (entry = readdir(dir)) != NULL) {
        struct stat st;
        if (isdigit((unsigned char)entry->d_name[0]) &&
            fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && st.st_dev == file->st_dev &&
            st.st_ino == file->st_ino)
            found = fdinfo_has_lock(pid, entry->d_name, byte);
    }
    closedir(dir);
    return found;
}

/*
 * OFD locks have no process: F_OFD_GETLK and /proc/locks say -1. /proc/<pid>/fdinfo shows the locks
 * of each open file, of the processes that we may look into.
 */
static pid_t find_holder(int fd, off_t byte)
{
    struct stat file;
    DIR *proc = opendir("/proc");
    if (!proc)
        return -1;
    pid_t pid = -1;
    struct dirent *entry;
    while (pid < 0 && fstat(fd, &file) == 0 && (entry = readdir(proc)) != NULL)
        if (isdigit((unsigned char)entry->d_name[0]) &&
            process_holds_lock(entry->d_name, &file, byte))
            pid = (pid_t)strtol(entry->d_name, NULL, 10);
    closedir(proc);
    return pid;
}

static void read_comm(pid_t pid, char *comm, size_t len)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    comm[0] = '\0';
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    if (fgets(comm, (int)len, file))
        comm[strcspn(comm, "\n")] = '\0';
    fclose(file);
}

/* Gives up our own locks, which the search would find first. -EAGAIN, or -EBUSY where no process
 * was found. */
static int report_holder(int fd, const char *path, off_t byte, pid_t pid, struct err *err)
{
    char comm[64];
    block_unlock(fd);
    if (pid <= 0)
        pid = find_holder(fd, byte);
    if (pid <= 0)
        return -EBUSY;
    read_comm(pid, comm, sizeof(comm));
    if (pid == getpid())
        return err_set(err, EAGAIN, "%s is in use by this process already", path);
    return err_set(err, EAGAIN, "%s is in use by process %d (%s)", path, (int)pid, comm);
}

/* --- taking the lock --- */

static int take_bytes(int fd, off_t base, unsigned perms)
{
    for (unsigned i = 0; i < PERM_COUNT; i++) {
        int rc = perms & (1u << i) ? lock_byte(fd, base + i) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Nobody may hold the bytes of perms at base. */
static int check_bytes(int fd, const char *path, off_t base, unsigned perms, struct err *err)
{
    for (unsigned i = 0; i < PERM_COUNT; i++) {
        pid_t pid = -1;
        int rc = perms & (1u << i) ? lock_test(fd, base + i, &pid) : 0;
        if (rc == -EAGAIN)
            return report_holder(fd, path, base + i, pid, err);
        if (rc < 0)
            return err_errno(err, rc, "%s: cannot test its locks", path);
    }
    return 0;
}

/* As block_lock(); -EBUSY: there is a lock, and no process that holds it. */
static int lock_once(int fd, const char *path, bool writable, bool share, struct err *err)
{
    unsigned used = PERM_CONSISTENT_READ | (writable ? PERM_WRITE : 0);
    unsigned unshared = share ? 0 : PERM_WRITE | PERM_RESIZE;

    /* First take, then look: of two that start together at least one sees the other. */
    int rc = take_bytes(fd, LOCK_USED_BASE, used);
    if (rc == 0)
        rc = take_bytes(fd, LOCK_UNSHARED_BASE, unshared);
    if (rc == -EAGAIN || rc == -EACCES) {
        /* Someone has a write lock: not this scheme's, yet a lock. */
        rc = report_holder(fd, path, LOCK_USED_BASE, -1, err);
    } else if (rc < 0) {
        log_warn("block", "%s: its file system has no locks (%s): nothing keeps others away", path,
                 strerror(-rc));
        return 0;
    } else {
        rc = check_bytes(fd, path, LOCK_USED_BASE, unshared, err);
        if (rc == 0)
            rc = check_bytes(fd, path, LOCK_UNSHARED_BASE, used, err);
    }
    if (rc < 0)
        block_unlock(fd);
    return rc;
}

int block_lock(int fd, const char *path, bool writable, bool share, struct err *err)
{
    int rc = lock_once(fd, path, writable, share, err);
    for (unsigned ms = 0; rc == -EBUSY && ms < LINGER_MS; ms += LINGER_STEP_MS) {
        usleep(LINGER_STEP_MS * 1000);
        rc = lock_once(fd, path, writable, share, err);
    }
    if (rc == -EBUSY)
        return err_set(err, EAGAIN, "%s is in use by another process", path);
    return rc;
}
