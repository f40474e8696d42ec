/* SPDX-License-Identifier: Apache-2.0 */
#include "block/block.h"

#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "base/units.h"

#define BLOCK_IOV_MAX 1024

/* What a request keeps in its backend words while it waits for block_complete_later()'s task. */
struct block_later {
    struct block_request *next;
    int res;
};

_Static_assert(sizeof(struct block_later) <= sizeof(((struct block_request *)0)->backend),
               "backend words are too few");

const struct block_info *block_get_info(const struct block_dev *dev)
{
    return &dev->info;
}

int block_attach(struct block_dev *dev, struct loop *loop, struct err *err)
{
    if (dev->loop)
        return err_set(err, EBUSY, "the disk is attached to a loop already");
    int rc = dev->driver->attach(dev, loop, err);
    if (rc == 0)
        dev->loop = loop;
    return rc;
}

void block_close(struct block_dev *dev)
{
    if (!dev)
        return;
    assert(!dev->later_head);
    dev->driver->close(dev);
}

/* The task takes the whole list at once: a done() may submit again, or close the device with the
 * last request, after which dev is not looked at any more. */
static void block_run_later(struct loop_task *task)
{
    struct block_dev *dev = CONTAINER_OF(task, struct block_dev, later_task);
    struct block_request *req = dev->later_head;
    dev->later_head = NULL;
    dev->later_tail = NULL;
    while (req) {
        struct block_later *later = (struct block_later *)req->backend;
        struct block_request *next = later->next;
        req->done(req, later->res);
        req = next;
    }
}

void block_complete_later(struct block_dev *dev, struct block_request *req, int res)
{
    struct block_later *later = (struct block_later *)req->backend;
    later->next = NULL;
    later->res = res;
    if (dev->later_tail) {
        ((struct block_later *)dev->later_tail->backend)->next = req;
        dev->later_tail = req;
        return;
    }
    dev->later_head = req;
    dev->later_tail = req;
    dev->later_task.fn = block_run_later;
    loop_post(dev->loop, &dev->later_task);
}

static bool block_iov_matches(const struct block_request *req)
{
    if (req->iov_count > BLOCK_IOV_MAX)
        return false;
    uint64_t sum = 0;
    for (unsigned i = 0; i < req->iov_count; i++) {
        if (req->iov[i].iov_len > req->len_bytes - sum)
            return false;
        sum += req->iov[i].iov_len;
    }
    return sum == req->len_bytes;
}

/* 0: the driver's; 1: nothing to do; else -errno. */
static int block_check(const struct block_dev *dev, const struct block_request *req)
{
    const struct block_info *info = &dev->info;
    bool has_data = req->op == BLOCK_READ || req->op == BLOCK_WRITE;
    if (req->op == BLOCK_FLUSH)
        return info->read_only ? 1 : 0;
    if (req->op > BLOCK_WRITE_ZEROES)
        return -EINVAL;
    if (req->op != BLOCK_READ && info->read_only)
        return -EROFS;
    if (!range_fits(req->offset_bytes, req->len_bytes, info->size_bytes))
        return -EINVAL;
    if ((req->offset_bytes | req->len_bytes) & (info->logical_block_bytes - 1))
        return -EINVAL;
    if (has_data && !block_iov_matches(req))
        return -EINVAL;
    if (req->op == BLOCK_DISCARD && info->discard_granularity_bytes == 0)
        return -ENOTSUP;
    return req->len_bytes == 0 ? 1 : 0;
}

void block_submit(struct block_dev *dev, struct block_request *req)
{
    int rc = block_check(dev, req);
    if (rc == 0)
        dev->driver->submit(dev, req);
    else
        block_complete_later(dev, req, rc < 0 ? rc : 0);
}
