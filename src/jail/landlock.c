/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stage 6: Landlock (Documentation/userspace-api/landlock.rst of the kernel). The ruleset handles
 * every access right that the running kernel knows, and grants reading what is kept: all else is
 * denied. The rights of newer kernels than the build's headers are numbered here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jail/stages.h"

#define FS_TRUNCATE         (1ULL << 14) /* version 3 */
#define FS_IOCTL_DEV        (1ULL << 15) /* version 5 */
#define NET_BIND_TCP        (1ULL << 0)  /* version 4 */
#define NET_CONNECT_TCP     (1ULL << 1)
#define SCOPE_ABSTRACT_UNIX (1ULL << 0) /* version 6 */
#define SCOPE_SIGNAL        (1ULL << 1)

/* struct landlock_ruleset_attr of version 6; a kernel that knows less takes fewer bytes. */
struct ruleset {
    uint64_t handled_fs;
    uint64_t handled_net;
    uint64_t scoped;
};

static size_t ruleset_fill(struct ruleset *set, const struct jail_options *options, int version)
{
    *set = (struct ruleset){.handled_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};
    if (version >= 2)
        set->handled_fs |= LANDLOCK_ACCESS_FS_REFER;
    if (version >= 3)
        set->handled_fs |= FS_TRUNCATE;
    if (version >= 5)
        set->handled_fs |= FS_IOCTL_DEV;
    if (version >= 4) {
        if (options->no_tcp_listen)
            set->handled_net |= NET_BIND_TCP;
        if (options->no_tcp_connect)
            set->handled_net |= NET_CONNECT_TCP;
    }
    if (version >= 6)
        set->scoped = SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL;
    return version >= 6 ? 24 : version >= 4 ? 16 : 8;
}

static int allow_path(int ruleset, const struct jail_kept *kept)
{
    struct landlock_path_beneath_attr rule = {
        .allowed_access = LANDLOCK_ACCESS_FS_READ_FILE,
        .parent_fd = open(kept->shown, O_PATH | O_CLOEXEC),
    };
    int ret = 0;

    if (rule.parent_fd < 0)
        return errno == ENOENT ? 0 : -errno;
    if (kept->directory)
        rule.allowed_access |= LANDLOCK_ACCESS_FS_READ_DIR;
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        ret = -errno;
    close(rule.parent_fd);
    return ret;
}

int jail_landlock(const struct jail_options *options, const struct jail_kept *kept,
                  unsigned kept_count)
{
    struct ruleset set;
    int version =
        (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    int ruleset, ret = 0;

    if (version < 1)
        return 0;
    size_t size = ruleset_fill(&set, options, version);
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &set, size, 0);
    if (ruleset < 0)
        return -errno;
    for (unsigned i = 0; ret == 0 && i < kept_count; i++)
        ret = allow_path(ruleset, &kept[i]);
    if (ret == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        ret = -errno;
    close(ruleset);
    return ret < 0 ? ret : version;
}
