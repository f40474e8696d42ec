/* SPDX-License-Identifier: Apache-2.0 */
/* The block device, driven through its rings by vtest; below it a disk in memory that can hold
 * requests back, fail them, and counts them. Names cite virtio 1.2. */
#include "dev/virtio/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/vtest.h"

#define DISK_BYTES MIB
#define SECTOR     VIRTIO_BLK_SECTOR_BYTES
#define HELD_MAX   600

/* Registers of the common configuration (4.1.4.3). */
#define QUEUE_SELECT 0x16
#define QUEUE_RESET  0x3a
#define STATUS       0x14

/* --- the disk --- */

struct test_disk {
    struct block_dev dev;
    uint8_t *data;
    bool hold;
    struct block_request *held[HELD_MAX];
    unsigned held_count;
    int fail_with;
    unsigned counts[BLOCK_WRITE_ZEROES + 1];
    unsigned fua_count, unmap_count;
    enum block_op last_op;
    bool closed;
};

static int disk_attach(struct block_dev *dev, struct loop *loop, struct err *err)
{
    (void)dev, (void)loop, (void)err;
    return 0;
}

static void disk_serve(struct test_disk *disk, struct block_request *req)
{
    uint8_t *at = disk->data + req->offset_bytes;
    if (req->op == BLOCK_READ || req->op == BLOCK_WRITE) {
        for (unsigned i = 0; i < req->iov_count; i++) {
            void *buf = req->iov[i].iov_base;
            size_t len = req->iov[i].iov_len;
            memcpy(req->op == BLOCK_READ ? buf : at, req->op == BLOCK_READ ? at : buf, len);
            at += len;
        }
    } else if (req->op == BLOCK_WRITE_ZEROES) {
        memset(at, 0, req->len_bytes);
    } else if (req->op == BLOCK_DISCARD) {
        memset(at, 0xdd, req->len_bytes);
    }
    block_complete_later(&disk->dev, req, 0);
}

static void disk_submit(struct block_dev *dev, struct block_request *req)
{
    struct test_disk *disk = CONTAINER_OF(dev, struct test_disk, dev);
    disk->counts[req->op]++;
    disk->fua_count += req->op == BLOCK_WRITE && req->fua;
    disk->unmap_count += req->op == BLOCK_WRITE_ZEROES && req->may_unmap;
    disk->last_op = req->op;
    if (disk->fail_with)
        block_complete_later(dev, req, disk->fail_with);
    else if (disk->hold)
        disk->held[disk->held_count++] = req;
    else
        disk_serve(disk, req);
}

/* Serve what is held, the last first. */
static void disk_release(struct test_disk *disk)
{
    disk->hold = false;
    while (disk->held_count > 0)
        disk_serve(disk, disk->held[--disk->held_count]);
}

static void disk_close(struct block_dev *dev)
{
    CONTAINER_OF(dev, struct test_disk, dev)->closed = true;
}

static const struct block_driver disk_driver = {
    .name = "test", .attach = disk_attach, .submit = disk_submit, .close = disk_close};

/* --- the machine --- */

struct fixture {
    struct vtest t;
    struct vtest_driver d;
    struct virtio_device *dev;
    struct test_disk disk;
    struct vtest_queue *q;
};

static void setup(struct fixture *f, uint32_t block_bytes, bool read_only, unsigned queues)
{
    struct err err = ERR_INIT;
    memset(f, 0, sizeof(*f));
    vtest_init(&f->t);
    f->disk.dev.driver = &disk_driver;
    f->disk.dev.info = (struct block_info){.size_bytes = DISK_BYTES,
                                           .logical_block_bytes = block_bytes,
                                           .physical_block_bytes = 4096,
                                           .discard_granularity_bytes = read_only ? 0 : 4096,
                                           .max_discard_bytes = read_only ? 0 : UINT64_MAX,
                                           .write_zeroes = true,
                                           .read_only = read_only};
    f->disk.data = malloc(DISK_BYTES);
    for (size_t i = 0; i < DISK_BYTES; i++)
        f->disk.data[i] = (uint8_t)(i / SECTOR * 7 + i);
    struct virtio_blk_options options = {.serial = "HULL0123456789abcdefghij", .queues = queues};
    if (virtio_blk_new(&f->dev, &f->t.env, "disk0", &f->disk.dev, &options, &err) < 0 ||
        virtio_pci_plug(f->dev, -1, &err) < 0) {
        ok(false, err.text);
        exit(tap_done());
    }
    vtest_attach(&f->d, &f->t, f->dev);
    f->q = &f->d.queues[0];
}

static void teardown(struct fixture *f)
{
    device_fini(&f->dev->fn.dev);
    ok(f->disk.closed, "the end of the device closes the disk");
    vtest_fini(&f->t);
    free(f->disk.data);
}

#define FEATURES                                                                                   \
    (VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) |                           \
     VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) |                 \
     VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC))

/* --- requests --- */

static uint64_t put_header(struct vtest *t, uint32_t type, uint64_t sector)
{
    uint64_t gpa = vtest_alloc(t, 16, 16);
    uint8_t *p = vtest_ram(t, gpa, 16);
    store_le32(p, type);
    store_le32(p + 4, 0);
    store_le64(p + 8, sector);
    return gpa;
}

static uint64_t put_status(struct vtest *t)
{
    uint64_t gpa = vtest_alloc(t, 1, 1);
    *(uint8_t *)vtest_ram(t, gpa, 1) = 0xee;
    return gpa;
}

/* Header, out, in, status in a descriptor each. Returns the status; used: the used length. */
static int request(struct fixture *f, uint32_t type, uint64_t sector, const void *out,
                   uint32_t out_len, void *in, uint32_t in_len, long *used_len)
{
    struct vtest *t = &f->t;
    uint64_t mark = t->next_gpa;
    struct vtest_seg segs[4];
    unsigned count = 0;
    uint64_t in_gpa = 0;
    segs[count++] = (struct vtest_seg){.gpa = put_header(t, type, sector), .len = 16};
    if (out_len > 0) {
        segs[count] = (struct vtest_seg){.gpa = vtest_alloc(t, out_len, 512), .len = out_len};
        memcpy(vtest_ram(t, segs[count++].gpa, out_len), out, out_len);
    }
    if (in_len > 0) {
        in_gpa = vtest_alloc(t, in_len, 512);
        segs[count++] = (struct vtest_seg){.gpa = in_gpa, .len = in_len, .write = true};
    }
    uint64_t status = put_status(t);
    segs[count++] = (struct vtest_seg){.gpa = status, .len = 1, .write = true};
    vtest_add(f->q, segs, count);
    vtest_kick(f->q);
    struct vtest_used used;
    if (!vtest_wait(f->q, &used))
        return -1;
    if (used_len)
        *used_len = used.len;
    if (in_len > 0)
        memcpy(in, vtest_ram(t, in_gpa, in_len), in_len);
    int result = *(uint8_t *)vtest_ram(t, status, 1);
    t->next_gpa = mark;
    return result;
}

static int flush(struct fixture *f)
{
    return request(f, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL, 0, NULL);
}

static uint8_t buffer[64 * KIB], expected[64 * KIB];

static void fill(uint8_t *buf, size_t len, uint8_t seed)
{
    for (size_t i = 0; i < len; i++)
        buf[i] = (uint8_t)(seed + i * 13 + (i >> 8));
}

/* --- 5.2.3, 5.2.4 --- */

static void test_config(void)
{
    struct fixture f;
    char why[256];
    is_int(state_table_check(&virtio_blk_state_table, why, sizeof(why)), 0, "state table");
    is_int(sizeof(struct virtio_blk_config), 60, "configuration structure as in 5.2.4");
    setup(&f, 512, false, 2);
    uint64_t features = vtest_features(&f.d);
    ok(features & VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) && features & VIRTIO_BIT(VIRTIO_BLK_F_MQ) &&
           features & VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) &&
           features & VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES) &&
           !(features & VIRTIO_BIT(VIRTIO_BLK_F_RO)),
       "features of a disk that has all");
    is_int(vtest_config(&f.d, 0, 4), DISK_BYTES / SECTOR, "capacity");
    is_int(vtest_config(&f.d, 12, 4), 254, "seg_max");
    is_int(vtest_config(&f.d, 20, 4), 512, "blk_size");
    is_int(vtest_config(&f.d, 24, 1), 3, "physical_block_exp");
    is_int(vtest_config(&f.d, 26, 2), 8, "min_io_size");
    is_int(vtest_config(&f.d, 32, 1), 1, "writeback");
    is_int(vtest_config(&f.d, 34, 2), 2, "num_queues");
    is_int(vtest_config(&f.d, 40, 4), 16, "max_discard_seg");
    is_int(vtest_config(&f.d, 44, 4), 8, "discard_sector_alignment");
    is_int(vtest_config(&f.d, 56, 1), 1, "write_zeroes_may_unmap");
    teardown(&f);
}

/* --- data, in all framings (2.7.4) --- */

static void check_framing(struct fixture *f, const char *what, const uint32_t *out_lens,
                          unsigned out_count, const uint32_t *in_lens, unsigned in_count,
                          uint32_t type, uint64_t sector, uint32_t data_len)
{
    struct vtest *t = &f->t;
    uint64_t mark = t->next_gpa;
    struct vtest_seg segs[64];
    unsigned count = 0;
    uint8_t image[16 + 8192];
    uint64_t pos = 0;
    char text[128];
    memset(image, 0, sizeof(image));
    store_le32(image, type);
    store_le64(image + 8, sector);
    fill(image + 16, sizeof(image) - 16, (uint8_t)sector);
    for (unsigned i = 0; i < out_count; i++) {
        segs[count] = (struct vtest_seg){.gpa = vtest_alloc(t, out_lens[i], 1), .len = out_lens[i]};
        memcpy(vtest_ram(t, segs[count++].gpa, out_lens[i]), image + pos, out_lens[i]);
        pos += out_lens[i];
    }
    for (unsigned i = 0; i < in_count; i++)
        segs[count++] = (struct vtest_seg){
            .gpa = vtest_alloc(t, in_lens[i], 1), .len = in_lens[i], .write = true};
    vtest_add(f->q, segs, count);
    vtest_kick(f->q);
    struct vtest_used used = {0};
    bool served = vtest_wait(f->q, &used);
    uint8_t in[8193];
    pos = 0;
    for (unsigned i = out_count; i < count; i++) {
        memcpy(in + pos, vtest_ram(t, segs[i].gpa, segs[i].len), segs[i].len);
        pos += segs[i].len;
    }
    bool is_read = type == VIRTIO_BLK_T_IN;
    snprintf(text, sizeof(text), "%s: served", what);
    ok(served && in[pos - 1] == VIRTIO_BLK_S_OK && used.len == pos, text);
    snprintf(text, sizeof(text), "%s: data", what);
    ok(memcmp(f->disk.data + sector * SECTOR, is_read ? in : image + 16, data_len) == 0, text);
    t->next_gpa = mark;
}

static void test_framings(struct fixture *f)
{
    uint32_t bytes[20];
    for (unsigned i = 0; i < ARRAY_LEN(bytes); i++)
        bytes[i] = 1;
    check_framing(f, "write, header and data together", (uint32_t[]){16 + 1024}, 1, (uint32_t[]){1},
                  1, VIRTIO_BLK_T_OUT, 3, 1024);
    check_framing(f, "write, cut inside the header and the data", (uint32_t[]){5, 100, 935}, 3,
                  (uint32_t[]){1}, 1, VIRTIO_BLK_T_OUT, 5, 1024);
    bytes[16] = 512;
    check_framing(f, "write, header in 16 descriptors", bytes, 17, (uint32_t[]){1}, 1,
                  VIRTIO_BLK_T_OUT, 9, 512);
    check_framing(f, "read, status behind the data", (uint32_t[]){16}, 1, (uint32_t[]){2049}, 1,
                  VIRTIO_BLK_T_IN, 11, 2048);
    check_framing(f, "read, cut anywhere", (uint32_t[]){7, 9}, 2, (uint32_t[]){1, 500, 1030, 6}, 4,
                  VIRTIO_BLK_T_IN, 20, 1536);
    check_framing(f, "read, status alone", (uint32_t[]){16}, 1, (uint32_t[]){512, 1}, 2,
                  VIRTIO_BLK_T_IN, 0, 512);
    check_framing(f, "read of nothing", (uint32_t[]){16}, 1, (uint32_t[]){1}, 1, VIRTIO_BLK_T_IN, 0,
                  0);
    check_framing(f, "write of nothing", (uint32_t[]){16}, 1, (uint32_t[]){1}, 1, VIRTIO_BLK_T_OUT,
                  0, 0);
}

static void test_data(struct fixture *f)
{
    long used = 0;
    fill(buffer, sizeof(buffer), 77);
    is_int(request(f, VIRTIO_BLK_T_OUT, 100, buffer, sizeof(buffer), NULL, 0, &used), 0, "write");
    is_int(used, 1, "the device wrote the status");
    ok(memcmp(f->disk.data + 100 * SECTOR, buffer, sizeof(buffer)) == 0, "it is on the disk");
    memset(buffer, 0, sizeof(buffer));
    is_int(request(f, VIRTIO_BLK_T_IN, 100, NULL, 0, buffer, sizeof(buffer), &used), 0, "read");
    is_int(used, sizeof(buffer) + 1, "the device wrote data and status");
    ok(memcmp(f->disk.data + 100 * SECTOR, buffer, sizeof(buffer)) == 0, "it is what was written");
    is_int(flush(f), 0, "flush");
    is_int(f->disk.counts[BLOCK_FLUSH], 1, "it came to the disk");

    is_int(request(f, VIRTIO_BLK_T_GET_ID, 0, NULL, 0, buffer, 20, &used), 0, "get id");
    ok(memcmp(buffer, "HULL0123456789abcdef", 20) == 0 && used == 21, "20 bytes of the serial");
    buffer[8] = 0xaa;
    is_int(request(f, VIRTIO_BLK_T_GET_ID, 0, NULL, 0, buffer, 8, &used), 0, "short get id");
    ok(memcmp(buffer, "HULL0123", 8) == 0 && used == 9, "as much as fits");
    is_int(request(f, VIRTIO_BLK_T_GET_ID, 0, NULL, 0, buffer, 64, &used), 0, "long get id");
    is_int(used, 20, "the length counts the serial, and not the status after a gap (2.7.8.2)");
}

static void test_errors(struct fixture *f)
{
    long used = 0;
    const uint64_t end = DISK_BYTES / SECTOR;
    is_int(request(f, 99, 0, NULL, 0, buffer, 512, NULL), VIRTIO_BLK_S_UNSUPP, "unknown type");
    is_int(request(f, VIRTIO_BLK_T_IN, end, NULL, 0, buffer, 512, &used), VIRTIO_BLK_S_IOERR,
           "read at the end");
    is_int(used, 0, "no data, and the status is behind a gap");
    is_int(request(f, VIRTIO_BLK_T_IN, end - 1, NULL, 0, buffer, 1024, NULL), VIRTIO_BLK_S_IOERR,
           "read across the end");
    is_int(request(f, VIRTIO_BLK_T_IN, UINT64_MAX, NULL, 0, buffer, 512, NULL), VIRTIO_BLK_S_IOERR,
           "sector that overflows in bytes");
    is_int(request(f, VIRTIO_BLK_T_IN, 1ull << 55, NULL, 0, buffer, 512, NULL), VIRTIO_BLK_S_IOERR,
           "sector that overflows to 0");
    is_int(request(f, VIRTIO_BLK_T_OUT, 0, buffer, 100, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "length that is no multiple of 512");
    f->disk.fail_with = -EIO;
    is_int(request(f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "write that the disk fails");
    is_int(flush(f), VIRTIO_BLK_S_IOERR, "flush that the disk fails");
    f->disk.fail_with = 0;
    is_int(flush(f), VIRTIO_BLK_S_OK, "the device goes on");

    /* A header that is too short still has a status. */
    uint64_t status = put_status(&f->t);
    struct vtest_seg segs[2] = {
        {.gpa = put_header(&f->t, 0, 0),                  .len = 15},
        {.gpa = status,                       .len = 1,            .write = true}
    };
    struct vtest_used done;
    vtest_add(f->q, segs, 2);
    vtest_kick(f->q);
    ok(vtest_wait(f->q, &done), "a short header is served");
    is_int(*(uint8_t *)vtest_ram(&f->t, status, 1), VIRTIO_BLK_S_IOERR, "as an error");
}

static bool is_broken(void *arg)
{
    return vtest_status(arg) & VTEST_STATUS_RESET;
}

static void test_no_status(struct fixture *f, uint64_t ring)
{
    struct vtest_seg seg = {.gpa = put_header(&f->t, VIRTIO_BLK_T_FLUSH, 0), .len = 16};
    vtest_add(f->q, &seg, 1);
    vtest_kick(f->q);
    ok(vtest_run(&f->t, is_broken, &f->d), "no place for a status: the device needs a reset");
    ok(vtest_start(&f->d, FEATURES | ring, 1), "a reset mends it");
    is_int(flush(f), 0, "and it serves");
}

/* --- discard and write zeroes (5.2.6) --- */

struct range {
    uint64_t sector;
    uint32_t num_sectors;
    uint32_t flags;
};

static void test_ranges(struct fixture *f)
{
    struct range r[17] = {
        {8,   8,  0},
        {100, 0,  0},
        {32,  16, 0}
    };
    uint32_t one = sizeof(r[0]);
    unsigned before = f->disk.counts[BLOCK_DISCARD];
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, 3 * one, NULL, 0, NULL), 0, "discard of three");
    is_int(f->disk.counts[BLOCK_DISCARD] - before, 2, "the empty range is none");
    memset(expected, 0xdd, 16 * SECTOR);
    ok(memcmp(f->disk.data + 8 * SECTOR, expected, 8 * SECTOR) == 0 &&
           memcmp(f->disk.data + 32 * SECTOR, expected, 16 * SECTOR) == 0 &&
           f->disk.data[16 * SECTOR] != 0xdd,
       "these are discarded");

    before = f->disk.counts[BLOCK_DISCARD];
    r[2].flags = 1;
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, 3 * one, NULL, 0, NULL), VIRTIO_BLK_S_UNSUPP,
           "discard with the unmap flag");
    r[2].flags = 2;
    is_int(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, r, 3 * one, NULL, 0, NULL), VIRTIO_BLK_S_UNSUPP,
           "zeroes with an unknown flag");
    r[2] = (struct range){DISK_BYTES / SECTOR - 1, 2, 0};
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, 3 * one, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "a range across the end");
    r[2] = (struct range){0, UINT32_MAX, 0};
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, 3 * one, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "a range above the limit");
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, 17 * one, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "17 ranges");
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, r, one + 1, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "a piece of a range");
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, NULL, 0, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "no range");
    is_int(f->disk.counts[BLOCK_DISCARD], before, "none of these touched the disk");

    unsigned flushes = f->disk.counts[BLOCK_FLUSH];
    r[0] = (struct range){64, 8, 1};
    r[1] = (struct range){72, 1, 0};
    is_int(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, r, 2 * one, NULL, 0, NULL), 0, "zeroes");
    memset(expected, 0, 9 * SECTOR);
    ok(memcmp(f->disk.data + 64 * SECTOR, expected, 9 * SECTOR) == 0, "these are zero");
    is_int(f->disk.unmap_count, 1, "one of them might be unmapped");
    is_int(f->disk.counts[BLOCK_FLUSH], flushes, "no flush while the write cache is on");
}

/* --- the write cache (5.2.5.2, 5.2.6.2) --- */

static void test_write_cache(struct fixture *f, uint64_t ring)
{
    struct range r = {64, 8, 0};
    unsigned fua = f->disk.fua_count;
    request(f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL);
    is_int(f->disk.fua_count, fua, "writeback: a write is not durable");
    vtest_write(&f->d, &f->d.config, 32, 0, 1);
    is_int(vtest_config(&f->d, 32, 1), 0, "the driver turns writeback off");
    request(f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL);
    is_int(f->disk.fua_count, ++fua, "a write is durable");
    is_int(request(f, VIRTIO_BLK_T_WRITE_ZEROES, 0, &r, sizeof(r), NULL, 0, NULL), 0, "zeroes");
    is_int(f->disk.last_op, BLOCK_FLUSH, "are followed by a flush");
    vtest_write(&f->d, &f->d.config, 0, 0, 4);
    is_int(vtest_config(&f->d, 0, 4), DISK_BYTES / SECTOR, "other fields are read-only");

    ok(vtest_start(&f->d, ring, 1), "a driver without FLUSH");
    is_int(vtest_config(&f->d, 32, 1), 1, "a reset turns writeback on");
    request(f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL);
    is_int(f->disk.fua_count, ++fua, "has durable writes");
    is_int(request(f, VIRTIO_BLK_T_DISCARD, 0, &r, sizeof(r), NULL, 0, NULL), VIRTIO_BLK_S_UNSUPP,
           "and no discard that it did not accept");
    ok(vtest_start(&f->d, VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) | ring, 1),
       "a driver with CONFIG_WCE, without FLUSH");
    is_int(vtest_config(&f->d, 32, 1), 0, "is not told of a write cache");
    ok(vtest_start(&f->d, FEATURES | ring, 1), "back to the first driver");
}

/* --- many at once --- */

struct batch {
    struct fixture *f;
    unsigned count, back;
    uint64_t data[256], status[256];
    int id[256];
};

static void batch_add(struct batch *b, struct fixture *f, unsigned count)
{
    *b = (struct batch){.f = f, .count = count};
    f->q->indirect = true;
    for (unsigned i = 0; i < count; i++) {
        b->data[i] = vtest_alloc(&f->t, SECTOR, 512);
        b->status[i] = put_status(&f->t);
        struct vtest_seg segs[3] = {
            {.gpa = put_header(&f->t, VIRTIO_BLK_T_IN, i),             .len = 16},
            {.gpa = b->data[i],                       .len = SECTOR,                      .write = true},
            {.gpa = b->status[i],                       .len = 1,                    .write = true   }
        };
        b->id[i] = vtest_add(f->q, segs, 3);
    }
    f->q->indirect = false;
}

static bool batch_is_back(void *arg)
{
    struct batch *b = arg;
    struct vtest_used used;
    while (vtest_used(b->f->q, &used))
        b->back++;
    return b->back >= b->count;
}

static bool batch_is_held(void *arg)
{
    struct batch *b = arg;
    return b->f->disk.held_count == b->count;
}

static bool batch_is_right(struct batch *b)
{
    struct vtest *t = &b->f->t;
    bool right = true;
    for (unsigned i = 0; i < b->count; i++)
        right &=
            b->id[i] >= 0 && *(uint8_t *)vtest_ram(t, b->status[i], 1) == 0 &&
            memcmp(vtest_ram(t, b->data[i], SECTOR), b->f->disk.data + i * SECTOR, SECTOR) == 0;
    return right;
}

static void test_batch(struct fixture *f)
{
    struct batch b;
    uint64_t mark = f->t.next_gpa;
    f->disk.hold = true;
    batch_add(&b, f, 256);
    unsigned interrupts = vtest_interrupts(f->q);
    vtest_kick(f->q);
    ok(vtest_run(&f->t, batch_is_held, &b), "a full ring of 256 is submitted by one kick");
    is_int(vtest_interrupts(f->q), interrupts, "no interrupt while they are in flight");
    disk_release(&f->disk);
    ok(vtest_run(&f->t, batch_is_back, &b), "all come back, in another order");
    ok(batch_is_right(&b), "each with its own data");
    is_int(vtest_interrupts(f->q) - interrupts, 1, "with one interrupt");
    f->t.next_gpa = mark;
}

/* The dirty log has what the device wrote, and when it wrote it. */
static void test_dirty(struct fixture *f)
{
    struct err err;
    struct batch b;
    uint64_t map[VTEST_RAM_BYTES / PAGE_SIZE_BYTES / 64] = {0};
    f->disk.hold = true;
    batch_add(&b, f, 1);
    vtest_kick(f->q);
    vtest_run(&f->t, batch_is_held, &b);
    mem_dirty_start(f->t.mem, &err);
    mem_dirty_collect(f->t.mem, 0, map);
    uint64_t page = b.data[0] / PAGE_SIZE_BYTES, status_page = b.status[0] / PAGE_SIZE_BYTES;
    disk_release(&f->disk);
    ok(vtest_run(&f->t, batch_is_back, &b), "a read");
    memset(map, 0, sizeof(map));
    mem_dirty_collect(f->t.mem, 0, map);
    ok((map[page / 64] >> (page % 64)) & 1, "marks its data dirty when it is done");
    ok((map[status_page / 64] >> (status_page % 64)) & 1, "and its status");
    mem_dirty_stop(f->t.mem);
}

/* --- reset with requests in flight (2.4, 2.6.1) --- */

static void test_reset(struct fixture *f, uint64_t ring)
{
    struct batch b;
    f->disk.hold = true;
    batch_add(&b, f, 10);
    vtest_kick(f->q);
    vtest_run(&f->t, batch_is_held, &b);
    vtest_write(&f->d, &f->d.common, STATUS, 0, 1);
    vtest_settle(&f->t);
    ok(vtest_status(&f->d) != 0, "reset waits for requests in flight");
    disk_release(&f->disk);
    ok(vtest_reset(&f->d), "and ends with the last of them");
    ok(vtest_start(&f->d, FEATURES | ring, 1), "the driver starts again");
    is_int(flush(f), 0, "and is served");

    f->disk.hold = true;
    batch_add(&b, f, 10);
    vtest_kick(f->q);
    vtest_run(&f->t, batch_is_held, &b);
    vtest_write(&f->d, &f->d.common, QUEUE_SELECT, 0, 2);
    vtest_write(&f->d, &f->d.common, QUEUE_RESET, 1, 2);
    vtest_settle(&f->t);
    is_int(vtest_read(&f->d, &f->d.common, QUEUE_RESET, 2), 1, "so does the reset of a queue");
    disk_release(&f->disk);
    vtest_settle(&f->t);
    is_int(vtest_read(&f->d, &f->d.common, QUEUE_RESET, 2), 0, "and ends");
    ok(vtest_queue_start(&f->d, 0, 0), "the queue is enabled again");
    is_int(flush(f), 0, "and served");
}

/* --- the whole --- */

static void test_ring(const char *name, uint64_t ring)
{
    struct fixture f;
    printf("# %s\n", name);
    setup(&f, 512, false, 1);
    ring |= VIRTIO_BIT(VIRTIO_F_RING_RESET);
    ok(vtest_start(&f.d, FEATURES | ring, 1), "start");
    test_data(&f);
    test_framings(&f);
    f.q->indirect = true;
    test_framings(&f);
    f.q->indirect = false;
    test_errors(&f);
    test_ranges(&f);
    test_write_cache(&f, ring);
    test_batch(&f);
    test_dirty(&f);
    test_reset(&f, ring);
    test_no_status(&f, ring);
    teardown(&f);
}

static void test_read_only(void)
{
    struct fixture f;
    setup(&f, 512, true, 1);
    uint64_t features = vtest_features(&f.d);
    ok(features & VIRTIO_BIT(VIRTIO_BLK_F_RO), "a read-only disk says so");
    ok(!(features & (VIRTIO_BIT(VIRTIO_BLK_F_DISCARD) | VIRTIO_BIT(VIRTIO_BLK_F_WRITE_ZEROES))),
       "and offers nothing that changes it");
    vtest_start(&f.d, VIRTIO_BIT(VIRTIO_BLK_F_RO) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH), 1);
    is_int(request(&f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "a write fails (5.2.6.2)");
    vtest_start(&f.d, 0, 1);
    is_int(request(&f, VIRTIO_BLK_T_OUT, 0, buffer, 512, NULL, 0, NULL), VIRTIO_BLK_S_IOERR,
           "also for a driver that did not look");
    is_int(f.disk.counts[BLOCK_WRITE], 0, "neither came to the disk");
    is_int(request(&f, VIRTIO_BLK_T_IN, 0, NULL, 0, buffer, 512, NULL), 0, "a read is served");
    teardown(&f);
}

static void test_blocks_of_4096(void)
{
    struct fixture f;
    struct range r = {4, 8, 0};
    setup(&f, 4096, false, 1);
    vtest_start(&f.d, FEATURES, 1);
    is_int(vtest_config(&f.d, 20, 4), 4096, "blk_size of 4096");
    is_int(request(&f, VIRTIO_BLK_T_IN, 8, NULL, 0, buffer, 4096, NULL), 0, "a whole block");
    is_int(request(&f, VIRTIO_BLK_T_IN, 4, NULL, 0, buffer, 4096, NULL), VIRTIO_BLK_S_IOERR,
           "a block that is not aligned");
    is_int(request(&f, VIRTIO_BLK_T_IN, 8, NULL, 0, buffer, 512, NULL), VIRTIO_BLK_S_IOERR,
           "a piece of a block");
    is_int(request(&f, VIRTIO_BLK_T_WRITE_ZEROES, 0, &r, sizeof(r), NULL, 0, NULL),
           VIRTIO_BLK_S_IOERR, "zeroes that are not aligned");
    teardown(&f);
}

static void test_queues(void)
{
    struct fixture f;
    setup(&f, 512, false, 3);
    vtest_start(&f.d, FEATURES | VIRTIO_BIT(VIRTIO_BLK_F_MQ), 3);
    for (unsigned i = 0; i < 3; i++) {
        f.q = &f.d.queues[i];
        is_int(request(&f, VIRTIO_BLK_T_IN, i, NULL, 0, buffer, 512, NULL), 0, "each queue serves");
        ok(memcmp(buffer, f.disk.data + i * SECTOR, SECTOR) == 0, "its own request");
        is_int(vtest_interrupts(f.q), 1, "and has its own interrupt");
    }
    teardown(&f);
}

/* --- the end with requests in flight --- */

struct releaser {
    struct loop_timer timer;
    struct fixture *f;
};

static void release_now(struct loop_timer *timer)
{
    disk_release(&CONTAINER_OF(timer, struct releaser, timer)->f->disk);
}

static void test_end_in_flight(void)
{
    struct fixture f;
    struct batch b;
    struct releaser releaser = {.f = &f};
    setup(&f, 512, false, 1);
    vtest_start(&f.d, FEATURES, 1);
    f.disk.hold = true;
    batch_add(&b, &f, 5);
    vtest_kick(f.q);
    vtest_run(&f.t, batch_is_held, &b);
    loop_timer_init(&releaser.timer, release_now);
    loop_timer_arm(f.t.loop, &releaser.timer, clock_now_ns() + 20 * NS_PER_MS);
    teardown(&f);
    is_int(f.disk.held_count, 0, "after its last request was done");
}

int main(void)
{
    test_config();
    test_ring("split", 0);
    test_ring("split, event index", VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    test_ring("packed", VIRTIO_BIT(VIRTIO_F_RING_PACKED));
    test_ring("packed, event index",
              VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    test_read_only();
    test_blocks_of_4096();
    test_queues();
    test_end_in_flight();
    return tap_done();
}
