/* SPDX-License-Identifier: Apache-2.0 */
/* What the host tells about a file or block device: size, block sizes, discard, direct I/O. */
#ifndef HULL_BLOCK_PROBE_H
#define HULL_BLOCK_PROBE_H

#include <sys/stat.h>

#include "block/block.h"

/* Fill info (but direct) of the file or block device fd, whose fstat(2) result is st. */
int block_probe_info(int fd, const char *path, const struct stat *st, bool read_only,
                     struct block_info *info, struct err *err);

/*
 * Switch fd to O_DIRECT and see with a read that it works. 0: mem_align is what addresses, and
 * offset_align what offsets and lengths must be multiples of. -errno: fd is buffered as before.
 */
int block_probe_direct(int fd, const struct block_info *info, uint32_t *mem_align,
                       uint32_t *offset_align);

#endif
