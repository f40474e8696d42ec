/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and block devices of the host.
 *
 * Theory of operation: a request is a series of steps, each one system call: an io_uring operation
 * of the loop, or where there is none for it (or no io_uring) a call on a thread of the pool. A
 * read or write is one step on the caller's buffers as a rule. It becomes several, through an
 * aligned buffer of our own, where O_DIRECT does not take the caller's buffers, or after a short
 * transfer. Zeroing is one fallocate(2), or steps that write zeroes where the host cannot do that.
 */
#include "block/block.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "block/lock.h"
#include "block/pool.h"
#include "block/probe.h"

/* Requests that need a bounce buffer while all are taken wait for one. */
#define BOUNCE_COUNT 4
#define BOUNCE_BYTES (128 * KIB)

#define ZERO_BYTES   (64 * KIB)
#define ZERO_IOVS    16

#define RETRIES_MAX  16
/* What one system call moves at most is just below 2 GiB; longer requests are cut here. */
#define STEP_BYTES_MAX GIB
#define POOL_THREADS   4

struct file_bounce {
    struct file_bounce *next;
    uint8_t *data;
};

struct file_disk {
    struct block_dev dev;
    int fd;
    int claim_fd; /* the kernel's exclusive claim on a block device, or -1 */
    bool is_device;
    bool uring;
    bool can_punch, can_zero_range; /* until the host says otherwise */
    /* fdatasync(2) failed while pages were in the page cache: the kernel has dropped them, and will
     * say that all is well from then on. */
    bool cache_lost;
    uint32_t mem_align, offset_align; /* 1: any */
    struct block_pool *pool;          /* NULL where io_uring does it all */
    struct file_bounce bounces[BOUNCE_COUNT], *bounce_free;
    struct block_request *waiting_head, **waiting_tail; /* for a bounce buffer */
    uint8_t *buffers; /* the bounce buffers, then zeroes that are never written */
    struct iovec zero_iov[ZERO_IOVS];
};

#define BUFFERS_BYTES (BOUNCE_COUNT * BOUNCE_BYTES + ZERO_BYTES)

enum file_step {
    STEP_READ,
    STEP_WRITE,
    STEP_SYNC,
    STEP_PUNCH,
    STEP_ZERO_RANGE,
    STEP_DISCARD,
};

/* The state of a request, in its backend words. */
struct file_request {
    union {
        struct block_pool_item item;
        struct block_request *next_waiting;
    };
    struct file_disk *disk;
    uint64_t done_bytes;
    uint64_t step_bytes;
    void *data; /* of this step: an iovec array, or the bytes themselves when iov_count is 0 */
    struct file_bounce *bounce;
    uint32_t iov_count;
    uint8_t step; /* enum file_step */
    uint8_t retries;
    bool bounced;
};

_Static_assert(sizeof(struct file_request) <= sizeof(((struct block_request *)0)->backend),
               "backend words are too few");

static void file_transfer(struct block_request *req);
static void file_step_done(struct block_request *req, int res);

static struct file_request *file_state(struct block_request *req)
{
    return (struct file_request *)req->backend;
}

/* --- one step --- */

/* A write with FUA that goes through the page cache gets a step of its own for that, see
 * file_sync(). */
static int file_rw_flags(const struct block_request *req, const struct file_request *st)
{
    return req->op == BLOCK_WRITE && req->fua && st->disk->dev.info.direct ? RWF_DSYNC : 0;
}

static int file_fallocate_mode(enum file_step step)
{
    return FALLOC_FL_KEEP_SIZE | (step == STEP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

/* The step as a blocking call, on a thread of the pool. */
static int file_step_run(struct block_pool_item *item)
{
    struct file_request *st = CONTAINER_OF(item, struct file_request, item);
    struct block_request *req = CONTAINER_OF(st, struct block_request, backend);
    int fd = st->disk->fd;
    uint64_t range[2] = {req->offset_bytes, req->len_bytes};
    off_t offset = (off_t)(req->offset_bytes + st->done_bytes);
    struct iovec single = {st->data, st->step_bytes};
    const struct iovec *iov = st->iov_count ? st->data : &single;
    int count = st->iov_count ? (int)st->iov_count : 1;
    ssize_t n = -1;

    switch ((enum file_step)st->step) {
    case STEP_READ:
        n = preadv2(fd, iov, count, offset, 0);
        break;
    case STEP_WRITE:
        n = pwritev2(fd, iov, count, offset, file_rw_flags(req, st));
        break;
    case STEP_SYNC:
        n = fdatasync(fd);
        break;
    case STEP_PUNCH:
    case STEP_ZERO_RANGE:
        n = fallocate(fd, file_fallocate_mode(st->step), (off_t)req->offset_bytes,
                      (off_t)req->len_bytes);
        break;
    case STEP_DISCARD:
        n = ioctl(fd, BLKDISCARD, range);
        break;
    }
    return n < 0 ? -errno : (int)n;
}

static void file_pool_done(struct block_pool_item *item)
{
    struct file_request *st = CONTAINER_OF(item, struct file_request, item);
    file_step_done(CONTAINER_OF(st, struct block_request, backend), item->res);
}

static void file_uring_done(struct loop_op *op, int res)
{
    file_step_done(CONTAINER_OF(op, struct block_request, uring_op), res);
}

static void file_prepare_sqe(struct io_uring_sqe *sqe, const struct block_request *req,
                             const struct file_request *st)
{
    int fd = st->disk->fd;
    uint64_t offset = req->offset_bytes + st->done_bytes;
    switch ((enum file_step)st->step) {
    case STEP_READ:
        if (st->iov_count)
            io_uring_prep_readv(sqe, fd, st->data, st->iov_count, offset);
        else
            io_uring_prep_read(sqe, fd, st->data, (unsigned)st->step_bytes, offset);
        break;
    case STEP_WRITE:
        if (st->iov_count)
            io_uring_prep_writev(sqe, fd, st->data, st->iov_count, offset);
        else
            io_uring_prep_write(sqe, fd, st->data, (unsigned)st->step_bytes, offset);
        sqe->rw_flags = file_rw_flags(req, st);
        break;
    case STEP_SYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    default:
        io_uring_prep_fallocate(sqe, fd, file_fallocate_mode(st->step), (off_t)req->offset_bytes,
                                (off_t)req->len_bytes);
        break;
    }
}

static void file_issue(struct block_request *req)
{
    struct file_request *st = file_state(req);
    struct file_disk *disk = st->disk;
    if (!disk->uring || st->step == STEP_DISCARD) {
        block_pool_add(disk->pool, &st->item);
        return;
    }
    req->uring_op.done = file_uring_done;
    struct io_uring_sqe *sqe = loop_sqe(disk->dev.loop, &req->uring_op);
    assert(sqe); /* loop_has_uring() said so, for good */
    file_prepare_sqe(sqe, req, st);
}

/* --- bounce buffers --- */

/* Copy between bytes [skip, skip + len) of iov and buf. */
static void iov_copy(const struct iovec *iov, uint64_t skip, uint8_t *buf, size_t len, bool to_iov)
{
    for (; len > 0; iov++) {
        if (skip >= iov->iov_len) {
            skip -= iov->iov_len;
            continue;
        }
        size_t n = iov->iov_len - skip < len ? iov->iov_len - skip : len;
        uint8_t *at = (uint8_t *)iov->iov_base + skip;
        memcpy(to_iov ? at : buf, to_iov ? buf : at, n);
        buf += n;
        len -= n;
        skip = 0;
    }
}

/* False: all are taken, and req waits in the queue. */
static bool file_bounce_get(struct block_request *req)
{
    struct file_request *st = file_state(req);
    struct file_disk *disk = st->disk;
    if (st->bounce)
        return true;
    if (!disk->bounce_free) {
        st->next_waiting = NULL;
        *disk->waiting_tail = req;
        disk->waiting_tail = &st->next_waiting;
        return false;
    }
    st->bounce = disk->bounce_free;
    disk->bounce_free = st->bounce->next;
    return true;
}

static void file_bounce_put(struct file_disk *disk, struct file_bounce *bounce)
{
    struct block_request *waiting = disk->waiting_head;
    if (!waiting) {
        bounce->next = disk->bounce_free;
        disk->bounce_free = bounce;
        return;
    }
    disk->waiting_head = file_state(waiting)->next_waiting;
    if (!disk->waiting_head)
        disk->waiting_tail = &disk->waiting_head;
    file_state(waiting)->bounce = bounce;
    file_transfer(waiting);
}

/* --- requests --- */

static void file_finish(struct block_request *req, int res)
{
    struct file_request *st = file_state(req);
    if (st->bounce)
        file_bounce_put(st->disk, st->bounce);
    req->done(req, res); /* may close the disk */
}

/* Does O_DIRECT take these buffers as they are? */
static bool file_is_aligned(const struct file_disk *disk, const struct iovec *iov, unsigned count)
{
    uintptr_t addresses = 0;
    uint64_t lens = 0;
    if (!disk->dev.info.direct)
        return true;
    for (unsigned i = 0; i < count; i++) {
        addresses |= (uintptr_t)iov[i].iov_base;
        lens |= iov[i].iov_len;
    }
    return (addresses & (disk->mem_align - 1)) == 0 && (lens & (disk->offset_align - 1)) == 0;
}

/* The next step on the caller's own buffers; false: they do not serve. */
static bool file_prepare_in_place(const struct block_request *req, struct file_request *st)
{
    uint64_t left = req->len_bytes - st->done_bytes;
    if (req->iov_count == 1) {
        st->data = (uint8_t *)req->iov[0].iov_base + st->done_bytes;
        st->iov_count = 0;
        st->step_bytes = left < STEP_BYTES_MAX ? left : STEP_BYTES_MAX;
        struct iovec single = {st->data, st->step_bytes};
        return file_is_aligned(st->disk, &single, 1);
    }
    if (st->done_bytes > 0)
        return false;
    st->data = (void *)(uintptr_t)req->iov;
    st->iov_count = req->iov_count;
    st->step_bytes = left;
    return file_is_aligned(st->disk, req->iov, req->iov_count);
}

/* The next step of a read or write. */
static void file_transfer(struct block_request *req)
{
    struct file_request *st = file_state(req);
    if (!st->bounced)
        st->bounced = !file_prepare_in_place(req, st);
    if (st->bounced) {
        if (!file_bounce_get(req))
            return;
        uint64_t left = req->len_bytes - st->done_bytes;
        st->step_bytes = left < BOUNCE_BYTES ? left : BOUNCE_BYTES;
        st->data = st->bounce->data;
        st->iov_count = 0;
        if (req->op == BLOCK_WRITE)
            iov_copy(req->iov, st->done_bytes, st->data, st->step_bytes, false);
    }
    file_issue(req);
}

/* The next step of writing zeroes: by fallocate, or if the host cannot, by writing. */
static void file_zero(struct block_request *req)
{
    struct file_request *st = file_state(req);
    struct file_disk *disk = st->disk;
    if (req->may_unmap && disk->can_punch) {
        st->step = STEP_PUNCH;
    } else if (disk->can_zero_range) {
        st->step = STEP_ZERO_RANGE;
    } else {
        uint64_t left = req->len_bytes - st->done_bytes;
        uint64_t full = left / ZERO_BYTES;
        st->step = STEP_WRITE;
        if (full > 0) {
            st->data = disk->zero_iov;
            st->iov_count = (uint32_t)(full < ZERO_IOVS ? full : ZERO_IOVS);
            st->step_bytes = st->iov_count * ZERO_BYTES;
        } else {
            st->data = disk->zero_iov[0].iov_base;
            st->iov_count = 0;
            st->step_bytes = left;
        }
    }
    file_issue(req);
}

static bool is_unsupported(int res)
{
    return res == -EOPNOTSUPP || res == -ENOSYS || res == -ENOTTY || res == -ENODEV;
}

/* The host refused a fallocate or discard. */
static void file_range_failed(struct block_request *req, int res)
{
    struct file_request *st = file_state(req);
    if (!is_unsupported(res)) {
        file_finish(req, res);
    } else if (req->op == BLOCK_DISCARD) {
        file_finish(req, -ENOTSUP);
    } else {
        if (st->step == STEP_PUNCH)
            st->disk->can_punch = false;
        else
            st->disk->can_zero_range = false;
        file_zero(req);
    }
}

/* A flush, or the end of a write with FUA: a sync that is told apart from the write, since only its
 * failure means that the page cache lost data, of other requests too. */
static void file_sync(struct block_request *req)
{
    struct file_request *st = file_state(req);
    st->step = STEP_SYNC;
    file_issue(req);
}

/* res bytes of a read or write were moved. */
static void file_transferred(struct block_request *req, int res)
{
    struct file_request *st = file_state(req);
    uint64_t moved = (uint64_t)res;
    if (moved > st->step_bytes)
        moved = st->step_bytes;
    /* After a short transfer O_DIRECT can go on only from a whole block. */
    if (moved < st->step_bytes)
        moved = align_down(moved, st->disk->offset_align);
    if (moved == 0) {
        file_finish(req, -EIO); /* the file was cut behind our back */
        return;
    }
    if (st->bounced && req->op == BLOCK_READ)
        iov_copy(req->iov, st->done_bytes, st->data, moved, true);
    st->done_bytes += moved;
    bool done = st->done_bytes == req->len_bytes;
    if (done && req->op == BLOCK_WRITE && req->fua && !st->disk->dev.info.direct)
        file_sync(req);
    else if (done)
        file_finish(req, 0);
    else if (req->op == BLOCK_WRITE_ZEROES)
        file_zero(req);
    else
        file_transfer(req);
}

static void file_step_done(struct block_request *req, int res)
{
    struct file_request *st = file_state(req);
    if ((res == -EINTR || res == -EAGAIN) && st->retries < RETRIES_MAX) {
        st->retries++;
        file_issue(req);
    } else if (st->step == STEP_SYNC) {
        if (res < 0 && !st->disk->dev.info.direct)
            st->disk->cache_lost = true;
        file_finish(req, st->disk->cache_lost ? -EIO : res);
    } else if (st->step == STEP_READ || st->step == STEP_WRITE) {
        if (res < 0)
            file_finish(req, res);
        else
            file_transferred(req, res);
    } else if (res < 0) {
        file_range_failed(req, res);
    } else {
        file_finish(req, 0);
    }
}

static void file_submit(struct block_dev *dev, struct block_request *req)
{
    struct file_disk *disk = CONTAINER_OF(dev, struct file_disk, dev);
    struct file_request *st = file_state(req);
    *st = (struct file_request){.disk = disk};
    switch (req->op) {
    case BLOCK_READ:
        st->step = STEP_READ;
        file_transfer(req);
        break;
    case BLOCK_WRITE:
        st->step = STEP_WRITE;
        file_transfer(req);
        break;
    case BLOCK_FLUSH:
        if (disk->cache_lost)
            block_complete_later(dev, req, -EIO);
        else
            file_sync(req);
        break;
    case BLOCK_DISCARD:
        st->step = disk->is_device ? STEP_DISCARD : STEP_PUNCH;
        file_issue(req);
        break;
    case BLOCK_WRITE_ZEROES:
        file_zero(req);
        break;
    }
}

/* --- open and close --- */

static int file_attach(struct block_dev *dev, struct loop *loop, struct err *err)
{
    struct file_disk *disk = CONTAINER_OF(dev, struct file_disk, dev);
    disk->uring = loop_has_uring(loop);
    bool ioctls = disk->is_device && dev->info.discard_granularity_bytes > 0;
    if (disk->uring && !ioctls)
        return 0;
    return block_pool_new(&disk->pool, loop, disk->uring ? 1 : POOL_THREADS, file_step_run,
                          file_pool_done, err);
}

static void file_close(struct block_dev *dev)
{
    struct file_disk *disk = CONTAINER_OF(dev, struct file_disk, dev);
    block_pool_free(disk->pool);
    if (disk->buffers)
        munmap(disk->buffers, BUFFERS_BYTES);
    if (disk->claim_fd >= 0)
        close(disk->claim_fd);
    if (disk->fd >= 0) {
        block_unlock(disk->fd);
        close(disk->fd);
    }
    free(disk);
}

static const struct block_driver file_driver = {
    .name = "file",
    .attach = file_attach,
    .submit = file_submit,
    .close = file_close,
};

/* The buffers take no memory until they are used: untouched, they are the kernel's zero page. */
static int file_make_buffers(struct file_disk *disk, struct err *err)
{
    void *map =
        mmap(NULL, BUFFERS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return err_errno(err, errno, "disk buffers");
    disk->buffers = map;
    for (unsigned i = 0; i < BOUNCE_COUNT; i++) {
        disk->bounces[i].data = disk->buffers + i * BOUNCE_BYTES;
        disk->bounces[i].next = disk->bounce_free;
        disk->bounce_free = &disk->bounces[i];
    }
    for (unsigned i = 0; i < ZERO_IOVS; i++)
        disk->zero_iov[i] = (struct iovec){disk->buffers + BOUNCE_COUNT * BOUNCE_BYTES, ZERO_BYTES};
    return 0;
}

static int file_check_kind(const char *path, const struct stat *st, struct err *err)
{
    if (S_ISDIR(st->st_mode))
        return err_set(err, EISDIR, "%s is a folder, not a disk image", path);
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        return err_set(err, EINVAL, "%s is neither a file nor a block device", path);
    return 0;
}

static int file_open_fd(struct file_disk *disk, const struct block_options *options,
                        struct stat *st, struct err *err)
{
    /* Looked at before as well: open(2) of a FIFO would block. */
    if (stat(options->path, st) < 0)
        return err_errno(err, errno, "cannot open %s", options->path);
    int rc = file_check_kind(options->path, st, err);
    if (rc < 0)
        return rc;
    disk->fd = open(options->path, (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (disk->fd < 0) {
        bool may_read = !options->read_only && access(options->path, R_OK) == 0;
        return err_errno(err, errno, "cannot open %s%s", options->path,
                         may_read ? " for writing (it can be used read-only)" : "");
    }
    if (fstat(disk->fd, st) < 0)
        return err_errno(err, errno, "cannot open %s", options->path);
    disk->is_device = S_ISBLK(st->st_mode);
    return file_check_kind(options->path, st, err);
}

/* Locks keep other programs away; a claim keeps the kernel's own users away: mounts, md, dm. */
static int file_lock(struct file_disk *disk, const struct block_options *options, struct err *err)
{
    int rc = block_lock(disk->fd, options->path, !options->read_only, options->share, err);
    if (rc < 0 || !disk->is_device || options->read_only || options->share)
        return rc;
    disk->claim_fd = open(options->path, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (disk->claim_fd < 0 && errno == EBUSY)
        return err_set(err, EAGAIN, "%s is mounted, or in use by the kernel or another program",
                       options->path);
    return disk->claim_fd < 0 ? err_errno(err, errno, "cannot claim %s", options->path) : 0;
}

/* A warning, no refusal: a guest may write these bytes to its disk's first block. */
static void file_warn_format(const struct file_disk *disk, const char *path)
{
    static const struct {
        const char *magic, *name;
    } formats[] = {
        {"QFI\xfb",  "qcow2"},
        {"KDMV",     "VMDK" },
        {"conectix", "VHD"  },
        {"vhdxfile", "VHDX" },
    };
    char head[8] = {0};
    if (pread(disk->fd, head, sizeof(head), 0) < 0)
        return;
    for (unsigned i = 0; i < ARRAY_LEN(formats); i++)
        if (memcmp(head, formats[i].magic, strlen(formats[i].magic)) == 0)
            log_warn("block",
                     "%s looks like a %s image, and is used as a raw disk (`qemu-img convert -O "
                     "raw` makes one of it)",
                     path, formats[i].name);
}

static int file_set_cache(struct file_disk *disk, const struct block_options *options,
                          struct err *err)
{
    disk->mem_align = 1;
    disk->offset_align = 1;
    if (options->cache == BLOCK_CACHE_WRITEBACK)
        return 0;
    uint32_t mem_align, offset_align;
    int rc = block_probe_direct(disk->fd, &disk->dev.info, &mem_align, &offset_align);
    if (rc == 0) {
        disk->mem_align = mem_align;
        disk->offset_align = offset_align;
        disk->dev.info.direct = true;
    } else if (options->cache == BLOCK_CACHE_DIRECT) {
        return err_errno(err, rc, "%s cannot be used with O_DIRECT; try cache=writeback",
                         options->path);
    }
    return 0;
}

int block_open(struct block_dev **dev, const struct block_options *options, struct err *err)
{
    struct stat st;
    struct file_disk *disk = calloc(1, sizeof(*disk));
    if (!disk)
        return err_errno(err, ENOMEM, "cannot open %s", options->path);
    disk->dev.driver = &file_driver;
    disk->fd = -1;
    disk->claim_fd = -1;
    disk->can_punch = true;
    disk->can_zero_range = true;
    disk->waiting_tail = &disk->waiting_head;

    int rc = file_open_fd(disk, options, &st, err);
    if (rc == 0)
        rc = file_lock(disk, options, err);
    if (rc == 0)
        rc = block_probe_info(disk->fd, options->path, &st, options->read_only, &disk->dev.info,
                              err);
    if (rc == 0) {
        file_warn_format(disk, options->path);
        rc = file_set_cache(disk, options, err);
    }
    if (rc == 0)
        rc = file_make_buffers(disk, err);
    if (rc < 0) {
        file_close(&disk->dev);
        return rc;
    }
    *dev = &disk->dev;
    return 0;
}
