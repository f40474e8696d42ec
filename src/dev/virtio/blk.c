/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: a chain that is popped takes one of the queue's preallocated requests and
 * keeps it until it is pushed. A kick submits all that is available; the backend's operations go
 * out with the loop's next system call. What completes in one iteration of the loop is collected,
 * and pushed together by one task, with one lock and one interrupt decision a queue.
 *
 * A request may take several operations of the disk: a discard has up to BLK_RANGES_MAX ranges, and
 * zeroes are followed by a flush while the write cache is off.
 *
 * Framing (2.7.4, 5.2.6.4): a driver may cut header, data and status into descriptors at will. The
 * header is the first 16 readable bytes, the status the last writable one.
 */
#include "dev/virtio/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"

#define BLK_QUEUE_SIZE   256
#define BLK_SEG_MAX      254
#define BLK_HEADER_BYTES 16
#define BLK_STATUS_BYTES 1
/* The longest chain: each byte of the header and the status in a descriptor of its own. */
#define BLK_IOV_CAP     (BLK_SEG_MAX + BLK_HEADER_BYTES + BLK_STATUS_BYTES)

#define BLK_RANGES_MAX  16
#define BLK_RANGE_UNMAP 1u /* flags of struct blk_range */
/* 2 GiB a range; where zeroes have to be written, so much that a request does not take minutes. */
#define BLK_RANGE_SECTORS_MAX 0x3fffffu
#define BLK_ZERO_SECTORS_SLOW 0x10000u

struct blk_header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

struct blk_range {
    uint64_t sector;
    uint32_t num_sectors;
    uint32_t flags;
};

struct blk_queue;

struct blk_request {
    struct block_request block;
    struct virtio_blk *blk;
    struct blk_queue *queue;
    struct blk_request *next; /* in the list of those that the disk has done */
    struct virtq_chain chain;
    struct blk_header header;
    int res;         /* of the disk's last operation */
    bool status_cut; /* the last writable segment was shortened by the status byte */
    bool flushing;   /* the flush behind the last range is under way */
    uint8_t *status;
    unsigned range_count, range_next;
    struct blk_range ranges[BLK_RANGES_MAX];
};

struct blk_queue {
    struct virtio_blk *blk;
    struct virtq *vq;
    struct blk_request
        *requests;      /* one more than the queue has entries: pop says when it is full */
    struct iovec *iovs; /* BLK_IOV_CAP for each of them */
    uint16_t *free;     /* stack: the last one used is warm */
    unsigned free_count;
    unsigned in_flight;
    bool pushed;    /* since the last interrupt decision */
    bool resetting; /* the driver resets this queue, and requests are in flight */
};

struct virtio_blk {
    struct virtio_device dev; /* first */
    struct block_dev *disk;
    struct virtio_blk_config config; /* but writeback, which is state */
    struct virtio_blk_state state;
    char serial[VIRTIO_BLK_ID_BYTES];
    struct loop *loop;

    /* The loop's thread only. */
    struct blk_request *done_head, **done_tail;
    struct loop_task done_task;

    unsigned in_flight;
    bool held;      /* device_hold(): requests are in flight */
    bool resetting; /* the driver resets the device, and requests are in flight */
    bool ending;    /* fini waits for in_flight to become 0 */
    struct loop_task end_task;
    struct blk_queue queues[];
};

static const struct state_field blk_fields[] = {
    STATE_U8(struct virtio_blk_state, writeback, 1, 1, "Write cache on, as the driver set it"),
};
const struct state_table virtio_blk_state_table =
    STATE_TABLE("virtio-blk", struct virtio_blk_state, 1, blk_fields);

/* A reset or the end waits for what is in flight: nothing new is begun. */
static bool blk_is_stopping(const struct blk_queue *q)
{
    return q->resetting || q->blk->resetting || q->blk->ending;
}

/*
 * On a virtual clock one request at a time: the order in which the host's disk completes several is
 * the guest's to see, and different in each run.
 */
static bool blk_must_wait(const struct virtio_blk *blk)
{
    return blk->dev.fn.dev.clock && blk->in_flight > 0;
}

/* Requests have come or gone. */
static void blk_update_hold(struct virtio_blk *blk)
{
    device_hold(&blk->dev.fn.dev, &blk->held, blk->in_flight > 0);
}

static struct virtio_blk *to_blk(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_blk, dev);
}

/* --- requests come and go --- */

static struct blk_request *blk_take(struct blk_queue *q)
{
    struct blk_request *req = &q->requests[q->free[--q->free_count]];
    req->blk = q->blk;
    req->queue = q;
    req->status = NULL;
    req->status_cut = false;
    req->flushing = false;
    req->range_count = 0;
    req->range_next = 0;
    return req;
}

static void blk_give_back(struct blk_request *req)
{
    struct blk_queue *q = req->queue;
    q->free[q->free_count++] = (uint16_t)(req - q->requests);
}

/*
 * Return the chain. data_written: bytes at the start of its writable part that hold what they
 * should; the length that the driver is told counts only a gapless beginning (2.7.8.2).
 */
static void blk_return(struct blk_request *req, uint8_t status, uint64_t data_written)
{
    struct blk_queue *q = req->queue;
    struct virtq_chain *chain = &req->chain;
    uint64_t written = data_written;
    *req->status = status;
    if (req->status_cut)
        chain->iov[chain->out_num + chain->in_num - 1].iov_len += BLK_STATUS_BYTES;
    if (data_written == chain->in_len - BLK_STATUS_BYTES) {
        written += BLK_STATUS_BYTES;
    } else {
        /* A read that failed may have written all the same. */
        for (uint32_t i = chain->out_num; i < chain->out_num + chain->in_num; i++)
            mem_mark_dirty_host(q->vq->mem, chain->iov[i].iov_base, chain->iov[i].iov_len);
    }
    virtq_push(q->vq, chain, (uint32_t)written);
    q->pushed = true;
    q->in_flight--;
    q->blk->in_flight--;
    blk_give_back(req);
}

static uint8_t blk_status_of(int res)
{
    if (res == 0)
        return VIRTIO_BLK_S_OK;
    return res == -ENOTSUP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

/* --- to the disk --- */

/* On the loop's thread, without the device's lock. */
static void blk_disk_done(struct block_request *block, int res)
{
    struct blk_request *req = CONTAINER_OF(block, struct blk_request, block);
    struct virtio_blk *blk = req->blk;
    req->res = res;
    req->next = NULL;
    if (!blk->done_head)
        loop_post(blk->loop, &blk->done_task);
    *blk->done_tail = req;
    blk->done_tail = &req->next;
}

static void blk_submit(struct blk_request *req, enum block_op op, uint64_t sector,
                       uint64_t len_bytes)
{
    req->block.op = op;
    req->block.offset_bytes = sector * VIRTIO_BLK_SECTOR_BYTES;
    req->block.len_bytes = len_bytes;
    req->block.done = blk_disk_done;
    block_submit(req->blk->disk, &req->block);
}

/* 5.2.6.2: without FLUSH the driver cannot ask for durability, so that each write has to be. */
static bool blk_is_write_through(const struct virtio_blk *blk)
{
    if (!virtio_has_feature(&blk->dev, VIRTIO_BLK_F_FLUSH))
        return true;
    return virtio_has_feature(&blk->dev, VIRTIO_BLK_F_CONFIG_WCE) && !blk->state.writeback;
}

/* --- what requests mean (5.2.6) --- */

static void blk_start_transfer(struct blk_request *req, bool is_write)
{
    struct virtq_chain *chain = &req->chain;
    struct iovec *iov = chain->iov + (is_write ? 0 : chain->out_num);
    unsigned count = is_write ? chain->out_num : chain->in_num;
    uint64_t len = is_write ? chain->out_len - BLK_HEADER_BYTES : chain->in_len - BLK_STATUS_BYTES;

    if (is_write) {
        size_t skip = BLK_HEADER_BYTES;
        while (count > 0 && skip >= iov->iov_len) {
            skip -= iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + skip;
            iov->iov_len -= skip;
        }
    } else {
        iov[count - 1].iov_len -= BLK_STATUS_BYTES;
        req->status_cut = true;
        if (iov[count - 1].iov_len == 0)
            count--;
    }
    if (len % VIRTIO_BLK_SECTOR_BYTES != 0 ||
        req->header.sector > UINT64_MAX / VIRTIO_BLK_SECTOR_BYTES ||
        (is_write && virtio_has_feature(&req->blk->dev, VIRTIO_BLK_F_RO))) {
        blk_return(req, VIRTIO_BLK_S_IOERR, 0);
        return;
    }
    req->block.iov = iov;
    req->block.iov_count = count;
    req->block.fua = is_write && blk_is_write_through(req->blk);
    blk_submit(req, is_write ? BLOCK_WRITE : BLOCK_READ, req->header.sector, len);
}

static void blk_get_id(struct blk_request *req)
{
    size_t room = req->chain.in_len - BLK_STATUS_BYTES;
    size_t len = room < VIRTIO_BLK_ID_BYTES ? room : VIRTIO_BLK_ID_BYTES;
    blk_return(req, VIRTIO_BLK_S_OK, virtq_chain_write(&req->chain, 0, req->blk->serial, len));
}

/* 5.2.6.2: unknown flags, and unmap in a discard, are not supported; the rest that can be wrong is
 * an error. */
static uint8_t blk_check_range(const struct virtio_blk *blk, const struct blk_range *range,
                               bool is_discard)
{
    const struct virtio_blk_config *config = &blk->config;
    uint32_t max = is_discard ? config->max_discard_sectors : config->max_write_zeroes_sectors;
    if (range->flags & ~(is_discard ? 0 : BLK_RANGE_UNMAP))
        return VIRTIO_BLK_S_UNSUPP;
    if (range->num_sectors > max ||
        !range_fits(range->sector, range->num_sectors, config->capacity))
        return VIRTIO_BLK_S_IOERR;
    uint64_t block_sectors = config->blk_size / VIRTIO_BLK_SECTOR_BYTES;
    if ((range->sector | range->num_sectors) & (block_sectors - 1))
        return VIRTIO_BLK_S_IOERR;
    return VIRTIO_BLK_S_OK;
}

/* Submit the next range, then the flush that may have to follow; then the request is done. */
static void blk_next_range(struct blk_request *req)
{
    bool is_discard = req->header.type == VIRTIO_BLK_T_DISCARD;
    while (req->range_next < req->range_count) {
        const struct blk_range *range = &req->ranges[req->range_next++];
        if (range->num_sectors == 0)
            continue;
        req->block.may_unmap = range->flags & BLK_RANGE_UNMAP;
        blk_submit(req, is_discard ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES, range->sector,
                   (uint64_t)range->num_sectors * VIRTIO_BLK_SECTOR_BYTES);
        return;
    }
    if (!is_discard && !req->flushing && blk_is_write_through(req->blk)) {
        req->flushing = true;
        blk_submit(req, BLOCK_FLUSH, 0, 0);
        return;
    }
    blk_return(req, VIRTIO_BLK_S_OK, 0);
}

/* Nothing is discarded or zeroed unless all ranges are right. */
static void blk_start_ranges(struct blk_request *req, bool is_discard)
{
    const struct virtio_blk *blk = req->blk;
    unsigned feature = is_discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES;
    uint64_t len = req->chain.out_len - BLK_HEADER_BYTES;
    uint8_t status = VIRTIO_BLK_S_OK;
    if (!virtio_has_feature(&blk->dev, feature))
        status = VIRTIO_BLK_S_UNSUPP;
    else if (len == 0 || len % sizeof(struct blk_range) != 0 || len > sizeof(req->ranges))
        status = VIRTIO_BLK_S_IOERR;
    if (status == VIRTIO_BLK_S_OK) {
        req->range_count = (unsigned)(len / sizeof(struct blk_range));
        virtq_chain_read(&req->chain, BLK_HEADER_BYTES, req->ranges, len);
    }
    for (unsigned i = 0; i < req->range_count && status == VIRTIO_BLK_S_OK; i++)
        status = blk_check_range(blk, &req->ranges[i], is_discard);
    if (status == VIRTIO_BLK_S_OK)
        blk_next_range(req);
    else
        blk_return(req, status, 0);
}

/* A chain was popped. False: it has no place for a status, which only a reset can mend. */
static bool blk_start(struct blk_request *req)
{
    struct virtq_chain *chain = &req->chain;
    if (chain->in_len < BLK_STATUS_BYTES)
        return false;
    const struct iovec *last = &chain->iov[chain->out_num + chain->in_num - 1];
    req->status = (uint8_t *)last->iov_base + last->iov_len - BLK_STATUS_BYTES;
    req->queue->in_flight++;
    req->blk->in_flight++;
    if (virtq_chain_read(chain, 0, &req->header, BLK_HEADER_BYTES) != BLK_HEADER_BYTES) {
        blk_return(req, VIRTIO_BLK_S_IOERR, 0);
        return true;
    }
    switch (req->header.type) {
    case VIRTIO_BLK_T_IN:
        blk_start_transfer(req, false);
        break;
    case VIRTIO_BLK_T_OUT:
        blk_start_transfer(req, true);
        break;
    case VIRTIO_BLK_T_FLUSH:
        blk_submit(req, BLOCK_FLUSH, 0, 0);
        break;
    case VIRTIO_BLK_T_GET_ID:
        blk_get_id(req);
        break;
    case VIRTIO_BLK_T_DISCARD:
        blk_start_ranges(req, true);
        break;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        blk_start_ranges(req, false);
        break;
    default:
        blk_return(req, VIRTIO_BLK_S_UNSUPP, 0);
        break;
    }
    return true;
}

/* --- from the queue --- */

static void blk_notify(struct blk_queue *q)
{
    if (q->pushed) {
        q->pushed = false;
        virtio_queue_notify(&q->blk->dev, q->vq);
    }
}

/* Pop and start up to *budget chains. False: the guest broke the rules. */
static bool blk_pop_all(struct blk_queue *q, unsigned *budget)
{
    while (*budget > 0 && q->free_count > 0 && !blk_must_wait(q->blk)) {
        struct blk_request *req = blk_take(q);
        int rc =
            virtq_pop(q->vq, &req->chain, &q->iovs[(req - q->requests) * BLK_IOV_CAP], BLK_IOV_CAP);
        if (rc <= 0) {
            blk_give_back(req);
            return rc == 0;
        }
        (*budget)--;
        if (!blk_start(req)) {
            virtq_push(q->vq, &req->chain, 0);
            blk_give_back(req);
            return false;
        }
    }
    return true;
}

/* At most one queue full a turn: others have work as well. */
static void blk_queue_kick(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_blk *blk = to_blk(dev);
    struct blk_queue *q = &blk->queues[vq->index];
    unsigned budget = vq->size_max;
    if (blk_is_stopping(q) || !virtio_is_live(dev))
        return;
    do {
        virtq_disable_kick(vq);
        if (!blk_pop_all(q, &budget)) {
            virtio_needs_reset(dev, "a request is malformed");
            break;
        }
        if (blk_must_wait(blk))
            break; /* goes on when it is back */
        if (budget == 0) {
            virtio_queue_kick_later(dev, vq);
            break;
        }
        budget--; /* a driver that takes back what it made available must not keep us here */
    } while (virtq_enable_kick(vq));
    blk_notify(q);
    blk_update_hold(blk);
}

/* --- back from the disk --- */

static void blk_finish(struct blk_request *req)
{
    uint8_t status = blk_status_of(req->res);
    /* The last three are the guest's own doing. */
    if (req->res != 0 && req->res != -EINVAL && req->res != -EROFS && req->res != -ENOTSUP)
        log_guest(&req->blk->dev.fn.dev.log_budget, req->blk->dev.fn.dev.name,
                  "request %u at sector %llu failed: %s", (unsigned)req->header.type,
                  (unsigned long long)req->header.sector, strerror(-req->res));
    if (status == VIRTIO_BLK_S_OK && req->range_count > 0 && !blk_is_stopping(req->queue))
        blk_next_range(req);
    else if (status == VIRTIO_BLK_S_OK && req->header.type == VIRTIO_BLK_T_IN)
        blk_return(req, status, req->chain.in_len - BLK_STATUS_BYTES);
    else
        blk_return(req, status, 0);
}

/* Have resets that waited for requests come to their end? */
static void blk_check_reset(struct virtio_blk *blk)
{
    for (unsigned i = 0; i < blk->dev.queue_count; i++) {
        struct blk_queue *q = &blk->queues[i];
        if (q->resetting && q->in_flight == 0) {
            q->resetting = false;
            virtio_reset_done(&blk->dev, q->vq);
        }
    }
    if (blk->resetting && blk->in_flight == 0) {
        blk->resetting = false;
        virtio_reset_done(&blk->dev, NULL);
    }
}

/* Virtual clock: the request that others waited for is back. */
static void blk_go_on(struct blk_queue *q)
{
    if (q->vq->s->enabled && !blk_must_wait(q->blk))
        blk_queue_kick(&q->blk->dev, q->vq);
}

/* All that the disk completed in this iteration of the loop. */
static void blk_disk_done_all(struct loop_task *task)
{
    struct virtio_blk *blk = CONTAINER_OF(task, struct virtio_blk, done_task);
    struct blk_request *req = blk->done_head;
    blk->done_head = NULL;
    blk->done_tail = &blk->done_head;

    device_lock(&blk->dev.fn.dev);
    while (req) {
        struct blk_request *next = req->next;
        blk_finish(req);
        req = next;
    }
    for (unsigned i = 0; i < blk->dev.queue_count; i++)
        blk_notify(&blk->queues[i]);
    blk_check_reset(blk);
    for (unsigned i = 0; blk->dev.fn.dev.clock && i < blk->dev.queue_count; i++)
        blk_go_on(&blk->queues[i]);
    blk_update_hold(blk);
    bool ended = blk->ending && blk->in_flight == 0;
    device_unlock(&blk->dev.fn.dev);
    if (ended)
        loop_stop(blk->loop);
}

static bool blk_reset(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_blk *blk = to_blk(dev);
    if (vq) {
        struct blk_queue *q = &blk->queues[vq->index];
        q->resetting = q->in_flight > 0;
        return !q->resetting;
    }
    state_reset(&virtio_blk_state_table, &blk->state);
    for (unsigned i = 0; i < dev->queue_count; i++)
        blk->queues[i].resetting = false;
    blk->resetting = blk->in_flight > 0;
    return !blk->resetting;
}

/* --- configuration --- */

static void blk_config_read(struct virtio_device *dev, unsigned offset, void *buf, unsigned size)
{
    struct virtio_blk *blk = to_blk(dev);
    struct virtio_blk_config config = blk->config;
    /* 5.2.5.2: a driver that cannot flush is not told of a write cache. */
    bool flushless = virtio_has_feature(dev, VIRTIO_BLK_F_CONFIG_WCE) &&
                     !virtio_has_feature(dev, VIRTIO_BLK_F_FLUSH);
    config.writeback = blk->state.writeback && !flushless;
    memcpy(buf, (const uint8_t *)&config + offset, size);
}

static void blk_config_write(struct virtio_device *dev, unsigned offset, const void *buf,
                             unsigned size)
{
    struct virtio_blk *blk = to_blk(dev);
    if (offset == offsetof(struct virtio_blk_config, writeback) && size == 1 &&
        virtio_has_feature(dev, VIRTIO_BLK_F_CONFIG_WCE))
        blk->state.writeback = *(const uint8_t *)buf & 1;
}

static unsigned log2_of(uint32_t power_of_two)
{
    return (unsigned)__builtin_ctz(power_of_two);
}

static uint32_t min_u32(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

static void blk_fill_config(struct virtio_blk *blk, unsigned queue_size)
{
    const struct block_info *info = block_get_info(blk->disk);
    uint32_t block = info->logical_block_bytes;
    uint32_t block_sectors = block / VIRTIO_BLK_SECTOR_BYTES;
    blk->config = (struct virtio_blk_config){
        .capacity = info->size_bytes / VIRTIO_BLK_SECTOR_BYTES,
        .seg_max = min_u32(queue_size - 2, BLK_SEG_MAX),
        .blk_size = block,
        .physical_block_exp = (uint8_t)log2_of(info->physical_block_bytes / block),
        .min_io_size = (uint16_t)min_u32(info->physical_block_bytes / block, UINT16_MAX),
        .num_queues = (uint16_t)blk->dev.queue_count,
    };
    if (info->discard_granularity_bytes > 0) {
        uint64_t max = info->max_discard_bytes / VIRTIO_BLK_SECTOR_BYTES;
        blk->config.max_discard_sectors =
            (uint32_t)align_down(min_u32(max, BLK_RANGE_SECTORS_MAX), block_sectors);
        blk->config.max_discard_seg = BLK_RANGES_MAX;
        blk->config.discard_sector_alignment =
            info->discard_granularity_bytes / VIRTIO_BLK_SECTOR_BYTES;
    }
    if (!info->read_only) {
        blk->config.max_write_zeroes_sectors = (uint32_t)align_down(
            info->write_zeroes ? BLK_RANGE_SECTORS_MAX : BLK_ZERO_SECTORS_SLOW, block_sectors);
        blk->config.max_write_zeroes_seg = BLK_RANGES_MAX;
        blk->config.write_zeroes_may_unmap = info->discard_granularity_bytes > 0;
    }
}

static uint64_t blk_features(const struct virtio_blk *blk)
{
    const struct block_info *info = block_get_info(blk->disk);
    uint64_t features = VIRTIO_BIT(VIRTIO_BLK_F_SEG_MAX) | VIRTIO_BIT(VIRTIO_BLK_F_BLK_SIZE) |
                        VIRTIO_BIT(VIRTIO_BLK_F_TOPOLOGY) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) |
                        VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    if (blk->dev.queue_count > 1)
        features |= VIRTIO_BIT(VIRTIO_BLK_F_MQ);
    if (info->read_only)
        features |= VIRTIO_BIT(VIRTIO_BLK_F_RO);
    else
        features |= VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    if (blk->config.max_discard_sectors > 0)
        features |= VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
    return features;
}

/* --- life --- */

static void blk_free(struct virtio_blk *blk, unsigned queue_count)
{
    for (unsigned i = 0; i < queue_count; i++) {
        free(blk->queues[i].requests);
        free(blk->queues[i].iovs);
        free(blk->queues[i].free);
    }
    free(blk);
}

static void blk_end(struct loop_task *task)
{
    loop_stop(CONTAINER_OF(task, struct virtio_blk, end_task)->loop);
}

/* The disk writes into guest memory until its last request is done: run the loop up to there, and
 * until no task of ours is left with it. */
static void blk_fini(struct virtio_device *dev)
{
    struct virtio_blk *blk = to_blk(dev);
    blk->ending = true;
    while (blk->in_flight > 0 || blk->done_task.queued || blk->end_task.queued) {
        if (blk->in_flight == 0)
            loop_post(blk->loop, &blk->end_task);
        loop_run(blk->loop);
    }
    block_close(blk->disk);
    blk_free(blk, dev->queue_count);
}

static const struct virtio_ops blk_ops = {
    .device_id = 2,
    .class_code = 0x010000, /* mass storage, SCSI: what drivers know virtio disks by */
    .queue_kick = blk_queue_kick,
    .reset = blk_reset,
    .config_read = blk_config_read,
    .config_write = blk_config_write,
    .fini = blk_fini,
};

/* Requests are mapped and not touched: a queue takes memory for the depth that its driver uses. */
static int blk_init_queue(struct blk_queue *q, struct virtio_blk *blk, unsigned queue_size)
{
    unsigned count = queue_size + 1;
    q->requests = calloc(count, sizeof(*q->requests));
    q->iovs = calloc((size_t)count * BLK_IOV_CAP, sizeof(*q->iovs));
    q->free = calloc(count, sizeof(*q->free));
    if (!q->requests || !q->iovs || !q->free)
        return -ENOMEM;
    q->blk = blk;
    for (unsigned i = 0; i < count; i++)
        q->free[q->free_count++] = (uint16_t)(count - 1 - i);
    return 0;
}

static int blk_init(struct virtio_blk *blk, const struct virtio_env *env, const char *name,
                    const struct virtio_blk_options *options, unsigned queues, struct err *err)
{
    unsigned size = options->queue_size ? options->queue_size : BLK_QUEUE_SIZE;
    if (size < 4)
        return err_set(err, EINVAL, "%s: a queue needs 4 entries at least", name);
    for (unsigned i = 0; i < queues; i++)
        if (blk_init_queue(&blk->queues[i], blk, size) < 0)
            return err_errno(err, ENOMEM, "%s: queues", name);
    int rc =
        virtio_init(&blk->dev, &blk_ops, env, name, queues, size, sizeof(struct virtio_blk_config),
                    &virtio_blk_state_table, &blk->state, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < queues; i++)
        blk->queues[i].vq = &blk->dev.queues[i];
    blk_fill_config(blk, size);
    blk->dev.features_offered = blk_features(blk);
    rc = block_attach(blk->disk, env->loop, err);
    if (rc < 0)
        virtio_fini(&blk->dev);
    return rc;
}

int virtio_blk_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct block_dev *disk, const struct virtio_blk_options *options,
                   struct err *err)
{
    unsigned queues = options->queues ? options->queues : 1;
    if (queues > VIRTIO_QUEUES_MAX)
        return err_set(err, EINVAL, "%s: %u queues; %u are possible", name, queues,
                       VIRTIO_QUEUES_MAX);
    struct virtio_blk *blk = calloc(1, sizeof(*blk) + queues * sizeof(blk->queues[0]));
    if (!blk)
        return err_errno(err, ENOMEM, "%s", name);
    blk->disk = disk;
    blk->loop = env->loop;
    blk->done_tail = &blk->done_head;
    blk->done_task.fn = blk_disk_done_all;
    blk->end_task.fn = blk_end;
    if (options->serial)
        memcpy(blk->serial, options->serial, strnlen(options->serial, sizeof(blk->serial)));
    int rc = blk_init(blk, env, name, options, queues, err);
    if (rc < 0) {
        blk_free(blk, queues);
        return rc;
    }
    *dev = &blk->dev;
    return 0;
}
