/* SPDX-License-Identifier: Apache-2.0 */
#include "block/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"

#define PROBE_ALIGN_MAX 4096u

/* --- sysfs --- */

/*
 * An attribute of the queue of block device dev. A partition has none of its own: its disk's is one
 * directory up. -ENOENT where there is none, as for a file system without a block device.
 */
static int probe_queue(dev_t dev, const char *attribute, uint64_t *value)
{
    static const char *const places[] = {"", "/.."};
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        char path[128];
        unsigned long long number;
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u%s/queue/%s", major(dev), minor(dev),
                 places[i], attribute);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        int fields = fscanf(file, "%llu", &number);
        fclose(file);
        if (fields == 1) {
            *value = number;
            return 0;
        }
    }
    return -ENOENT;
}

static uint64_t probe_queue_or_zero(dev_t dev, const char *attribute)
{
    uint64_t value;
    return probe_queue(dev, attribute, &value) == 0 ? value : 0;
}

/* --- size, blocks, discard --- */

static int probe_block_device(int fd, const char *path, const struct stat *st,
                              struct block_info *info, struct err *err)
{
    int logical = 0;
    unsigned physical = 0;
    if (ioctl(fd, BLKGETSIZE64, &info->size_bytes) < 0 || ioctl(fd, BLKSSZGET, &logical) < 0)
        return err_errno(err, errno, "%s: cannot get the size of the block device", path);
    if (logical != 512 && logical != 4096)
        return err_set(err, EINVAL, "%s has blocks of %d bytes; 512 and 4096 are supported", path,
                       logical);
    info->logical_block_bytes = (uint32_t)logical;
    if (ioctl(fd, BLKPBSZGET, &physical) < 0 || physical < (unsigned)logical ||
        !is_power_of_two(physical))
        physical = (unsigned)logical;
    info->physical_block_bytes = physical;

    uint64_t max = probe_queue_or_zero(st->st_rdev, "discard_max_bytes");
    uint64_t granularity = probe_queue_or_zero(st->st_rdev, "discard_granularity");
    if (max > 0 && granularity <= UINT32_MAX) {
        info->max_discard_bytes = max;
        info->discard_granularity_bytes =
            granularity < (unsigned)logical ? (uint32_t)logical : (uint32_t)granularity;
    }
    info->write_zeroes = probe_queue_or_zero(st->st_rdev, "write_zeroes_max_bytes") > 0;
    return 0;
}

static int probe_file(int fd, const char *path, const struct stat *st, struct block_info *info,
                      struct err *err)
{
    if (st->st_size % 512 != 0)
        return err_set(err, EINVAL,
                       "%s has %lld bytes, which is no multiple of 512: not a raw disk image "
                       "(extend it with `truncate --size=%%512 FILE`)",
                       path, (long long)st->st_size);
    info->size_bytes = (uint64_t)st->st_size;
    info->logical_block_bytes = 512;
    info->physical_block_bytes = 4096;

    /* A hole beyond the end of the file changes nothing, and tells whether holes can be made. */
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    off_t beyond = (off_t)align_up(info->size_bytes, PROBE_ALIGN_MAX);
    if (!info->read_only && fallocate(fd, mode, beyond, PROBE_ALIGN_MAX) == 0) {
        uint64_t unit = (uint64_t)st->st_blksize;
        if (unit < 512 || unit > MIB || !is_power_of_two(unit))
            unit = PROBE_ALIGN_MAX;
        info->discard_granularity_bytes = (uint32_t)unit;
        info->max_discard_bytes = UINT64_MAX;
        info->write_zeroes = true;
    }
    return 0;
}

int block_probe_info(int fd, const char *path, const struct stat *st, bool read_only,
                     struct block_info *info, struct err *err)
{
    bool is_device = S_ISBLK(st->st_mode);
    *info = (struct block_info){.read_only = read_only};
    info->rotational = probe_queue_or_zero(is_device ? st->st_rdev : st->st_dev, "rotational") == 1;
    int rc = is_device ? probe_block_device(fd, path, st, info, err)
                       : probe_file(fd, path, st, info, err);
    if (rc == 0 && read_only) {
        info->discard_granularity_bytes = 0;
        info->max_discard_bytes = 0;
        info->write_zeroes = false;
    }
    return rc;
}

/* --- direct I/O --- */

/* Can `align` bytes be read to an address and from an offset that are multiples of just that? */
static bool probe_read(int fd, uint8_t *page, uint32_t mem_align, uint32_t offset_align)
{
    ssize_t n;
    do
        n = pread(fd, page + mem_align, offset_align, 0);
    while (n < 0 && errno == EINTR);
    return n >= 0;
}

static bool probe_statx(int fd, uint32_t *mem_align, uint32_t *offset_align)
{
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN) &&
        is_power_of_two(sx.stx_dio_mem_align) && is_power_of_two(sx.stx_dio_offset_align)) {
        *mem_align = sx.stx_dio_mem_align;
        *offset_align = sx.stx_dio_offset_align;
        return true;
    }
#endif
    (void)fd, (void)mem_align, (void)offset_align;
    return false;
}

/* fd has O_DIRECT. An offset alignment above the disk's own blocks would need read-modify-write:
 * then the page cache, which does just that, is the better way. */
static bool probe_alignment(int fd, const struct block_info *info, uint8_t *page,
                            uint32_t *mem_align, uint32_t *offset_align)
{
    uint32_t logical = info->logical_block_bytes;
    if (probe_statx(fd, mem_align, offset_align))
        return *mem_align <= PROBE_ALIGN_MAX && *offset_align <= logical &&
               probe_read(fd, page, *mem_align, *offset_align);
    *offset_align = logical;
    /* A file that is empty checks nothing; one page of memory is enough for all that is known. */
    static const uint32_t aligns[] = {512, PROBE_ALIGN_MAX};
    for (unsigned i = info->size_bytes ? 0 : 1; i < ARRAY_LEN(aligns); i++) {
        *mem_align = aligns[i];
        if (probe_read(fd, page, *mem_align, *offset_align))
            return true;
    }
    return false;
}

int block_probe_direct(int fd, const struct block_info *info, uint32_t *mem_align,
                       uint32_t *offset_align)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
        return -errno;
    void *page;
    int rc = posix_memalign(&page, 2 * PROBE_ALIGN_MAX, 3 * PROBE_ALIGN_MAX) ? -ENOMEM : 0;
    if (rc == 0) {
        if (!probe_alignment(fd, info, page, mem_align, offset_align))
            rc = -EINVAL;
        free(page);
    }
    if (rc < 0)
        fcntl(fd, F_SETFL, flags);
    return rc;
}
