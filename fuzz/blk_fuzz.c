/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to the virtio block device, mostly valid: the input chooses types, sectors, lengths and
 * how header, data and status are cut into descriptors; now and then it corrupts a descriptor, and
 * it interleaves kicks, resets and a disk that is slow or fails. Whatever the driver does, each
 * chain must come back once with a valid status, unless the device asks for a reset.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/vtest.h"

#define DISK_BYTES (64 * KIB)
#define OPS_MAX    128
#define HELD_MAX   512
#define SEGS_MAX   24
#define DATA_MAX   (8 * KIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- input --- */

static const uint8_t *input;
static size_t input_left;

static uint8_t next_byte(void)
{
    if (input_left == 0)
        return 0;
    input_left--;
    return *input++;
}

static uint32_t next_word(void)
{
    uint32_t word = 0;
    for (unsigned i = 0; i < 4; i++)
        word = word << 8 | next_byte();
    return word;
}

/* --- the disk --- */

static struct block_dev disk;
static uint8_t disk_data[DISK_BYTES];
static struct block_request *held[HELD_MAX];
static unsigned held_count;
static bool hold;

static int disk_attach(struct block_dev *dev, struct loop *loop, struct err *err)
{
    (void)dev, (void)loop, (void)err;
    return 0;
}

static void disk_serve(struct block_request *req)
{
    uint8_t *at = disk_data + req->offset_bytes;
    bool is_read = req->op == BLOCK_READ;
    if (is_read || req->op == BLOCK_WRITE) {
        for (unsigned i = 0; i < req->iov_count; i++) {
            void *buf = req->iov[i].iov_base;
            memcpy(is_read ? buf : at, is_read ? at : buf, req->iov[i].iov_len);
            at += req->iov[i].iov_len;
        }
    } else if (req->op != BLOCK_FLUSH) {
        memset(at, 0, req->len_bytes);
    }
    block_complete_later(&disk, req, 0);
}

static void disk_submit(struct block_dev *dev, struct block_request *req)
{
    if (hold && held_count < HELD_MAX)
        held[held_count++] = req;
    else if (next_byte() == 0xff)
        block_complete_later(dev, req, -EIO);
    else
        disk_serve(req);
}

static void disk_release(void)
{
    hold = false;
    while (held_count > 0)
        disk_serve(held[--held_count]);
}

static void disk_close(struct block_dev *dev)
{
    (void)dev;
}

static const struct block_driver disk_driver = {
    .name = "fuzz", .attach = disk_attach, .submit = disk_submit, .close = disk_close};

/* --- the machine --- */

static struct vtest t;
static struct vtest_driver d;
static struct vtest_queue *q = &d.queues[0];

static void setup(void)
{
    struct err err = ERR_INIT;
    struct virtio_device *dev;
    struct virtio_blk_options options = {.serial = "fuzz", .queue_size = 64};
    if (disk.driver)
        return;
    disk.driver = &disk_driver;
    disk.info = (struct block_info){.size_bytes = DISK_BYTES,
                                    .logical_block_bytes = 512,
                                    .physical_block_bytes = 4096,
                                    .discard_granularity_bytes = 4096,
                                    .max_discard_bytes = UINT64_MAX};
    vtest_init(&t);
    if (virtio_blk_new(&dev, &t.env, "disk0", &disk, &options, &err) < 0 ||
        virtio_pci_plug(dev, -1, &err) < 0)
        abort();
    vtest_attach(&d, &t, dev);
}

static void stop_loop(struct loop_task *task)
{
    (void)task;
    loop_stop(t.loop);
}

/* Some turns of the loop: kicks are heard, and what is not held completes; a request of many ranges
 * takes a few turns for each of them. */
static void run_loop(void)
{
    struct loop_task task = {.fn = stop_loop};
    for (unsigned i = 0; i < 4 || (i < 100 && d.dev->queues[0].in_flight > held_count); i++) {
        loop_post(t.loop, &task);
        loop_run(t.loop);
    }
}

/* --- requests --- */

struct pending {
    bool used;
    uint64_t status_gpa; /* 0: the chain was corrupted */
};

static struct pending pending[VIRTQ_SIZE_MAX];

/* Cut [gpa, gpa + len) into segments, as the input says: mostly in one piece. */
static unsigned cut(struct vtest_seg *segs, unsigned count, uint64_t gpa, uint32_t len, bool write)
{
    while (len > 0 && count < SEGS_MAX) {
        uint8_t how = next_byte();
        uint32_t piece = how < 0xc0 || count + 1 == SEGS_MAX ? len : 1 + next_word() % len;
        segs[count++] = (struct vtest_seg){.gpa = gpa, .len = piece, .write = write};
        gpa += piece;
        len -= piece;
    }
    return count;
}

static uint32_t put_ranges(uint64_t gpa)
{
    uint32_t count = 1 + next_byte() % 18;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *p = vtest_ram(&t, gpa + 16 * i, 16);
        store_le64(p, next_byte() % 144);
        store_le32(p + 8, next_byte() % 16);
        store_le32(p + 12, next_byte() % 4);
    }
    return 16 * count - (next_byte() == 0xff);
}

static void add_request(void)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
                                     VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
                                     VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
    uint8_t choice = next_byte();
    uint32_t type = choice < 0xf0 ? types[choice % ARRAY_LEN(types)] : next_word();
    uint64_t sector = next_byte() % 140; /* the disk has 128 */
    if (next_byte() == 0xff)
        sector = (uint64_t)next_word() << 32 | next_word();
    uint32_t len = next_byte() % (DATA_MAX / 512 + 1) * 512;
    if (next_byte() == 0xff)
        len = next_word() % DATA_MAX;

    uint64_t out = vtest_alloc(&t, 16 + DATA_MAX, 512), in = vtest_alloc(&t, DATA_MAX + 1, 512);
    store_le32(vtest_ram(&t, out, 4), type);
    store_le64(vtest_ram(&t, out + 8, 8), sector);
    uint32_t out_len = 16, in_len = 1;
    if (type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID)
        in_len += len;
    else if (type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES)
        out_len += put_ranges(out + 16);
    else
        out_len += len;
    if (next_byte() == 0xff)
        out_len = next_byte() % 16;

    struct vtest_seg segs[2 * SEGS_MAX];
    unsigned count = cut(segs, 0, out, out_len, false);
    unsigned out_count = count;
    count += cut(segs + count, 0, in, in_len, true);
    uint64_t status = in + in_len - 1;
    *(uint8_t *)vtest_ram(&t, status, 1) = 0xee;
    if (count > 0 && next_byte() == 0xff) { /* corrupt: an address, a length, or no writable part */
        struct vtest_seg *seg = &segs[next_byte() % count];
        uint8_t how = next_byte();
        if (how % 3 == 0)
            seg->gpa = (uint64_t)next_word() << (next_byte() % 33);
        else if (how % 3 == 1)
            seg->len = next_word();
        else if (out_count > 0)
            count = out_count;
        status = 0;
    }
    q->indirect = next_byte() & 1;
    int id = vtest_add(q, segs, count);
    if (id >= 0)
        pending[id] = (struct pending){.used = true, .status_gpa = status};
}

static void take_used(void)
{
    struct vtest_used used;
    while (vtest_used(q, &used)) {
        struct pending *p = &pending[used.id];
        if (!p->used)
            abort();
        p->used = false;
        if (p->status_gpa && *(uint8_t *)vtest_ram(&t, p->status_gpa, 1) > VIRTIO_BLK_S_UNSUPP)
            abort();
    }
}

static void restart(uint64_t features)
{
    disk_release();
    run_loop();
    memset(pending, 0, sizeof(pending));
    t.next_gpa = MIB;
    if (!vtest_start(&d, features, 1))
        abort();
}

static void run_op(uint64_t features)
{
    uint8_t op = next_byte();
    if (op < 0xa0) {
        add_request();
    } else if (op < 0xd0) {
        vtest_kick(q);
        run_loop();
        take_used();
    } else if (op < 0xe0) {
        hold = true;
    } else if (op < 0xf0) {
        disk_release();
        run_loop();
        take_used();
    } else if (op < 0xf8) {
        vtest_write(&d, &d.config, 32, op & 1, 1);
    } else {
        vtest_write(&d, &d.common, 0x14, 0, 1); /* a reset, maybe with requests in flight */
        run_loop();
        restart(features);
    }
    if (vtest_status(&d) & VTEST_STATUS_RESET)
        restart(features);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    input_left = size;
    setup();
    uint8_t choice = next_byte();
    uint64_t features = VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    features |= choice & 1 ? VIRTIO_BIT(VIRTIO_F_RING_PACKED) : 0;
    features |= choice & 2 ? VIRTIO_BIT(VIRTIO_F_EVENT_IDX) : 0;
    features |= choice & 4 ? VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) : 0;
    features |= choice & 8 ? VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) : 0;
    features |= choice & 16 ? 0 : VIRTIO_BIT(VIRTIO_BLK_F_DISCARD);
    features |= choice & 32 ? 0 : VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    restart(features);
    for (unsigned i = 0; i < OPS_MAX && input_left > 0; i++)
        run_op(features);

    input_left = 0; /* no failures from here on */
    disk_release();
    vtest_kick(q);
    run_loop();
    take_used();
    if (!(vtest_status(&d) & VTEST_STATUS_RESET)) {
        for (unsigned i = 0; i < ARRAY_LEN(pending); i++)
            if (pending[i].used)
                abort();
    }
    return 0;
}
