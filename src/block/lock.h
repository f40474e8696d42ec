/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks on disk images that QEMU's tools and Hull both respect: open-file-description read locks
 * on single bytes of the file. A process that uses a permission holds byte 100 + n, one that does
 * not share it holds byte 200 + n; each looks whether another holds the opposite. The locks go with
 * block_unlock(), or when the file is closed: not only its descriptor, since io_uring may have it
 * open a little longer.
 */
#ifndef HULL_BLOCK_LOCK_H
#define HULL_BLOCK_LOCK_H

#include <stdbool.h>

struct err;

/*
 * Lock the file behind fd for reading, or for reading and writing; share: let others write too.
 * -EAGAIN with err when someone's use excludes ours; err names the process where it can be found,
 * and where it cannot, this takes a second, in which a lock that has outlived its process may go.
 * A file system that knows no locks is used without, with a warning.
 */
int block_lock(int fd, const char *path, bool writable, bool share, struct err *err);
void block_unlock(int fd);

#endif
