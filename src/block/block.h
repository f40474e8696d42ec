/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of the host. A block device reads, writes, flushes, discards and zeroes ranges of bytes,
 * asynchronously, on the loop that it was attached to. Knows no guest.
 *
 * Each request completes exactly once, through done(), on the loop's thread, and never inside
 * block_submit(). A flush makes durable every write that completed before the flush was submitted.
 *
 * Threads: open and close anywhere while detached; everything else on the attached loop's thread.
 */
#ifndef HULL_BLOCK_BLOCK_H
#define HULL_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/loop.h"

struct err;
struct block_dev;

enum block_op {
    BLOCK_READ,
    BLOCK_WRITE,
    BLOCK_FLUSH,
    BLOCK_DISCARD,      /* contents undefined afterwards (in fact zero or unchanged) */
    BLOCK_WRITE_ZEROES, /* zero; may_unmap allows deallocation */
};

struct block_request {
    enum block_op op;
    bool may_unmap; /* WRITE_ZEROES */
    bool fua;       /* WRITE: durable when done */
    uint64_t offset_bytes;
    uint64_t len_bytes;      /* READ/WRITE: sum of iov; multiple of the logical block size */
    const struct iovec *iov; /* READ, WRITE; stays until done */
    unsigned iov_count;      /* any number up to 1024 */
    /* res: 0, or -errno (a short transfer is retried or becomes -EIO before this). */
    void (*done)(struct block_request *req, int res);
    struct loop_op uring_op; /* the backend's */
    uint64_t backend[8];     /* the backend's; block_complete_later()'s once that was called */
};

struct block_info {
    uint64_t size_bytes;
    uint32_t logical_block_bytes;       /* 512 or 4096: alignment of every request */
    uint32_t physical_block_bytes;      /* preferred unit */
    uint32_t discard_granularity_bytes; /* 0: no discard */
    uint64_t max_discard_bytes;
    bool read_only;
    bool rotational;
    bool write_zeroes; /* efficient */
    bool direct;       /* O_DIRECT in use */
};

struct block_options {
    const char *path;
    bool read_only;
    /* Page cache of the host: AUTO is O_DIRECT where the file allows it. */
    enum block_cache {
        BLOCK_CACHE_AUTO,
        BLOCK_CACHE_DIRECT,   /* or fail */
        BLOCK_CACHE_WRITEBACK /* the host's page cache; flush is fdatasync all the same */
    } cache;
    bool share; /* take no exclusive lock (shared read-only is always possible with read_only) */
};

/*
 * Open a file or block device. A writable open takes an exclusive lock on it, a read-only one a
 * shared lock, with OFD locks on bytes that qemu-img uses too where that is possible; -EAGAIN: in
 * use, err says by which process where that can be found out. -EISDIR, -ENOENT, -EACCES, -EINVAL
 * (size not a multiple of 512) with err filled.
 */
int block_open(struct block_dev **dev, const struct block_options *options, struct err *err);

/* No request is in flight. Detaches. Drops the lock. */
void block_close(struct block_dev *dev);

const struct block_info *block_get_info(const struct block_dev *dev);

/* Bind to the loop that submits and completes. Before the first request. */
int block_attach(struct block_dev *dev, struct loop *loop, struct err *err);

/* Out-of-range or misaligned requests complete with -EINVAL, writes to a read-only disk with
 * -EROFS. */
void block_submit(struct block_dev *dev, struct block_request *req);

/*
 * Backends implement this; file.c is the one for what open(2) opens. submit gets requests that
 * passed the checks of block_submit(): in range, aligned, not empty (but FLUSH), allowed by info.
 */
struct block_driver {
    const char *name;
    int (*attach)(struct block_dev *dev, struct loop *loop, struct err *err);
    void (*submit)(struct block_dev *dev, struct block_request *req);
    void (*close)(struct block_dev *dev);
};

struct block_dev {
    const struct block_driver *driver;
    struct block_info info;
    struct loop *loop;
    /* Requests that block_complete_later() holds; zero at the start. */
    struct block_request *later_head, *later_tail;
    struct loop_task later_task;
};

/*
 * For backends that know a result inside submit: complete req from the loop, in the order of the
 * calls. Loop's thread.
 */
void block_complete_later(struct block_dev *dev, struct block_request *req, int res);

#endif
