/* SPDX-License-Identifier: Apache-2.0 */
/* The stages of jail.h that have a file of their own. Private to this folder. */
#ifndef HULL_JAIL_STAGES_H
#define HULL_JAIL_STAGES_H

#include <limits.h>

#include "jail/jail.h"

#define JAIL_KEEP_MAX 8

/* A path to keep, resolved while the whole file system was still in sight. */
struct jail_kept {
    char asked[PATH_MAX]; /* as in jail_options.keep */
    char real[PATH_MAX];  /* where it leads */
    char shown[PATH_MAX]; /* what becomes visible: real, or the directory of real */
    bool directory;       /* shown is one */
};

/* Stage 3: make the kept paths all there is. 0 or -errno, with nothing changed for good. */
int jail_empty_root(const struct jail_kept *kept, unsigned count);

/* Stage 6. The version that is in force; 0: the kernel has none; -errno: it refused. */
int jail_landlock(const struct jail_options *options, const struct jail_kept *kept,
                  unsigned kept_count);

/* Stage 7. */
int jail_seccomp(const struct jail_options *options, struct err *err);

#endif
