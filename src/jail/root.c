/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stage 3: an empty root. Runs in a mount namespace of our own, so that nothing done here is seen
 * outside. What is to be kept is cloned as a detached mount before the tmpfs covers anything, and
 * moved to its place below the tmpfs; pivot_root() then swaps the roots and the old one is let go.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jail/stages.h"

/* Of linux/mount.h, which does not go together with sys/mount.h everywhere. */
#define TREE_CLONE      1u
#define TREE_CLOEXEC    O_CLOEXEC
#define MOVE_FROM_EMPTY 0x4u
#define ATTR_RDONLY     0x1u
#define ATTR_NOSUID     0x2u
#define ATTR_NODEV      0x4u
#define ATTR_NOEXEC     0x8u

struct attr_args {
    uint64_t set, clear, propagation, userns_fd;
};

/* mkdir -p of everything before the last '/' of path, which is absolute, below the directory we
 * are in. */
static int make_parents(const char *path)
{
    char dir[PATH_MAX];

    snprintf(dir, sizeof(dir), "%s", path + 1);
    for (char *slash = strchr(dir, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            return -errno;
        *slash = '/';
    }
    return 0;
}

static int place(const struct jail_kept *kept, int tree)
{
    const char *point = kept->shown + 1;
    int ret = make_parents(kept->shown);

    if (ret < 0)
        return ret;
    if (kept->directory) {
        if (mkdir(point, 0755) < 0 && errno != EEXIST)
            return -errno;
    } else {
        int fd = open(point, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
        if (fd < 0)
            return -errno;
        close(fd);
    }
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, point, MOVE_FROM_EMPTY) < 0)
        return -errno;

    /* Before Linux 5.12 there is no way to add flags without knowing those that are locked; what
     * is kept is then guarded by its permissions, Landlock and the system call filter alone. */
    struct attr_args attr = {.set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC};
    if (syscall(SYS_mount_setattr, AT_FDCWD, point, 0, &attr, sizeof(attr)) < 0 && errno != ENOSYS)
        return -errno;

    if (strcmp(kept->asked, kept->real) != 0) {
        ret = make_parents(kept->asked);
        if (ret < 0)
            return ret;
        if (symlink(kept->real, kept->asked + 1) < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

static int build(const struct jail_kept *kept, const int *trees, unsigned count)
{
    const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    const char *point = "/tmp";

    /* Any directory will do as mount point; these two exist on every host. */
    if (mount("tmpfs", point, "tmpfs", flags, "size=64k,nr_inodes=64,mode=0755") < 0) {
        point = "/proc";
        if (mount("tmpfs", point, "tmpfs", flags, "size=64k,nr_inodes=64,mode=0755") < 0)
            return -errno;
    }
    if (chdir(point) < 0)
        return -errno;
    for (unsigned i = 0; i < count; i++) {
        int ret = trees[i] < 0 ? 0 : place(&kept[i], trees[i]);
        if (ret < 0)
            return ret;
    }
    /* With both arguments the same directory, the old root ends up on top of the new one, where
     * it can be unmounted without a directory to put it in. A host that runs from its initramfs
     * has a root that cannot be moved (EINVAL): there a chroot does, which no one gets out of
     * without a descriptor outside of it or capabilities. */
    if (syscall(SYS_pivot_root, ".", ".") == 0) {
        if (umount2(".", MNT_DETACH) < 0)
            return -errno;
    } else if (errno != EINVAL || chroot(".") < 0) {
        return -errno;
    }
    if (chdir("/") < 0)
        return -errno;
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL) < 0)
        return -errno;
    return 0;
}

int jail_empty_root(const struct jail_kept *kept, unsigned count)
{
    int trees[JAIL_KEEP_MAX];
    int ret = 0;

    /* Nothing of ours goes out, nothing mounted later outside comes in. */
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return -errno;
    for (unsigned i = 0; i < count; i++) {
        trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, kept[i].shown, TREE_CLONE | TREE_CLOEXEC);
        if (trees[i] < 0 && errno != ENOENT && ret == 0)
            ret = -errno;
    }
    if (ret == 0)
        ret = build(kept, trees, count);
    for (unsigned i = 0; i < count; i++) {
        if (trees[i] >= 0)
            close(trees[i]);
    }
    return ret;
}
