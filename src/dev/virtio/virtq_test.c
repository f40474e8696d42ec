/* SPDX-License-Identifier: Apache-2.0 */
/* The queue alone, on rings that the test builds by hand; named after sections of virtio 1.2. */
#include "dev/virtio/virtq.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "dev/virtio/vtest.h"

#define F_NEXT     1
#define F_WRITE    2
#define F_INDIRECT 4
#define ROM_BASE   0x80000000ULL

/* One queue seen from both sides. */
struct fixture {
    struct vtest t;
    struct vtest_driver d;
    struct vtest_queue *q; /* the driver's */
    struct virtq_state state;
    struct virtq vq; /* the device's */
    struct virtq_chain chain;
    struct iovec iov[VIRTQ_IOV_MAX];
};

static const uint64_t kinds[] = {
    0,
    VIRTIO_BIT(VIRTIO_F_EVENT_IDX),
    VIRTIO_BIT(VIRTIO_F_RING_PACKED),
    VIRTIO_BIT(VIRTIO_F_RING_PACKED) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX),
};

static void rewind_queue(struct fixture *f, uint64_t features, unsigned size)
{
    f->d.t = &f->t;
    f->d.features = features;
    vtest_queue_layout(&f->d, 0, size);
    f->q = &f->d.queues[0];
    state_reset(&virtq_state_table, &f->state);
    f->state.desc_gpa = f->q->desc;
    f->state.driver_gpa = f->q->driver;
    f->state.device_gpa = f->q->device;
    f->state.size = (uint16_t)size;
    f->vq = (struct virtq){
        .s = &f->state,
        .mem = f->t.mem,
        .size_max = VIRTQ_SIZE_MAX,
        .packed = f->q->packed,
        .event_idx = f->q->event_idx,
        .indirect = true,
    };
}

static struct fixture *set_up(uint64_t features, unsigned size)
{
    struct fixture *f = calloc(1, sizeof(*f));
    vtest_init(&f->t);
    rewind_queue(f, features, size);
    if (virtq_enable(&f->vq) != 0)
        printf("Bail out! enable\n");
    return f;
}

static void tear_down(struct fixture *f)
{
    vtest_fini(&f->t);
    free(f);
}

static int pop(struct fixture *f)
{
    return virtq_pop(&f->vq, &f->chain, f->iov, VIRTQ_IOV_MAX);
}

/* --- 2.7, 2.8: chains there and back --- */

static void test_chain(uint64_t kind)
{
    struct fixture *f = set_up(kind, 16);
    uint64_t gpa = vtest_alloc(&f->t, 4096, 4096);
    struct vtest_seg segs[] = {
        {gpa,        10,  false},
        {gpa + 100,  0,   false},
        {gpa + 200,  20,  false},
        {gpa + 1000, 30,  true },
        {gpa + 9999, 0,   true },
        {gpa + 2000, 300, true },
    };
    memset(vtest_ram(&f->t, gpa, 10), 'a', 10);
    memset(vtest_ram(&f->t, gpa + 200, 20), 'b', 20);
    is_int(pop(f), 0, "2.7.13: nothing is available");
    for (unsigned round = 0; round < 2; round++) {
        f->q->indirect = round == 1;
        int id = vtest_add(f->q, segs, 6);
        is_int(pop(f), 1, round ? "indirect: one chain" : "direct: one chain");
        is_int(f->chain.id, id, "its id");
        is_int(f->chain.out_num, 2, "two readable segments, the empty one dropped");
        is_int(f->chain.in_num, 2, "two writable segments");
        is_int(f->chain.out_len, 30, "bytes to read");
        is_int(f->chain.in_len, 330, "bytes to write");
        ok(f->iov[1].iov_base == vtest_ram(&f->t, gpa + 200, 1) && f->iov[1].iov_len == 20,
           "a segment points into guest RAM");
        char buf[64] = {0};
        is_int(virtq_chain_read(&f->chain, 5, buf, 64), 25, "chain_read from an offset");
        ok(memcmp(buf, "aaaaabbbbbbbbbbbbbbbbbbbb", 26) == 0, "across segments");
        is_int(virtq_chain_write(&f->chain, 28, "1234", 4), 4, "chain_write from an offset");
        ok(memcmp(vtest_ram(&f->t, gpa + 1028, 2), "12", 2) == 0 &&
               memcmp(vtest_ram(&f->t, gpa + 2000, 2), "34", 2) == 0,
           "across segments");
        is_int(virtq_chain_write(&f->chain, 329, "1234", 4), 1, "and not beyond the end");
        is_int(f->vq.in_flight, 1, "in flight");
        struct vtest_used used;
        ok(!vtest_used(f->q, &used), "2.7.8: not used before it is pushed");
        virtq_push(&f->vq, &f->chain, 32);
        is_int(f->vq.in_flight, 0, "none in flight");
        ok(vtest_used(f->q, &used) && used.id == id && used.len == 32, "used id and length");
        is_int(pop(f), 0, "no more");
    }
    tear_down(f);
}

/* Laps around the ring in chains of changing length, completed out of order. */
static void test_laps(uint64_t kind, unsigned size)
{
    struct fixture *f = set_up(kind, size);
    struct virtq_chain chains[3];
    struct iovec iov[3][16];
    uint64_t gpa = vtest_alloc(&f->t, 4096, 64);
    unsigned served = 0, wrong = 0;
    for (unsigned i = 0; i < 70000; i++) {
        int ids[3];
        for (unsigned j = 0; j < 3; j++) {
            struct vtest_seg segs[3];
            for (unsigned k = 0; k < 3; k++)
                segs[k] = (struct vtest_seg){gpa + k, 2 + (i + j) % 5, true};
            ids[j] = vtest_add(f->q, segs, 1 + (i + j) % 3);
            wrong += ids[j] < 0;
        }
        for (unsigned j = 0; j < 3; j++) {
            wrong += virtq_pop(&f->vq, &chains[j], iov[j], 16) != 1 || chains[j].id != ids[j];
            wrong += chains[j].in_num != 1 + (i + j) % 3;
        }
        static const unsigned order[][3] = {
            {0, 1, 2},
            {2, 1, 0},
            {1, 2, 0}
        };
        for (unsigned j = 0; j < 3; j++) {
            unsigned n = order[i % 3][j];
            virtq_push(&f->vq, &chains[n], n);
            struct vtest_used used;
            wrong += !vtest_used(f->q, &used) || used.id != ids[n] || used.len != n;
            served++;
        }
        if (wrong)
            break;
    }
    is_int(wrong, 0, "no chain is lost or confused, through the wrap of all indices");
    is_int(served, 210000, "all served");
    tear_down(f);
}

/* 5.1.6.4: several chains become visible together. */
static void test_push_many(uint64_t kind)
{
    struct fixture *f = set_up(kind, 8);
    struct virtq_chain chains[3];
    struct iovec iov[3][4];
    int ids[3];
    for (unsigned lap = 0; lap < 9; lap++) {
        struct vtest_seg segs[2] = {
            {MIB, 4, false},
            {MIB, 8, true }
        };
        for (unsigned i = 0; i < 3; i++)
            ids[i] = vtest_add(f->q, segs, 2);
        for (unsigned i = 0; i < 3; i++)
            virtq_pop(&f->vq, &chains[i], iov[i], 4);
        uint32_t written[3] = {3, 0, 7};
        virtq_push_many(&f->vq, chains, written, 3);
        struct vtest_used used;
        bool right = true;
        for (unsigned i = 0; i < 3; i++)
            right = right && vtest_used(f->q, &used) && used.id == ids[i] && used.len == written[i];
        if (!right || vtest_used(f->q, &used) || lap == 8)
            ok(right && lap == 8, "2.7.8, 2.8: three chains pushed at once, for nine laps");
        if (!right)
            break;
    }
    is_int(f->vq.in_flight, 0, "none in flight");
    tear_down(f);
}

static void test_unpop(uint64_t kind)
{
    struct fixture *f = set_up(kind, 4);
    bool right = true;
    for (unsigned i = 0; i < 11; i++) {
        struct vtest_seg segs[3] = {
            {MIB, 4, false},
            {MIB, 8, true },
            {MIB, 8, true }
        };
        int id = vtest_add(f->q, segs, 1 + i % 3);
        right = right && pop(f) == 1 && f->chain.id == id;
        virtq_unpop(&f->vq, &f->chain);
        right = right && f->vq.in_flight == 0;
        right = right && pop(f) == 1 && f->chain.id == id;
        struct virtq_chain chain = f->chain;
        right = right && pop(f) == 0;
        virtq_push(&f->vq, &chain, 0);
        struct vtest_used used;
        right = right && vtest_used(f->q, &used) && used.id == id;
    }
    ok(right, "what was put back comes again, through the end of the ring");
    tear_down(f);
}

/* --- what a hostile driver writes --- */

struct bad {
    const char *what;
    int split, packed; /* what pop gives; 2: does not apply */
    void (*make)(struct fixture *f);
};

static void raw_desc(struct fixture *f, uint64_t table, unsigned index, uint64_t addr, uint32_t len,
                     uint16_t flags, uint16_t id_or_next)
{
    uint8_t *p = vtest_ram(&f->t, table + 16 * index, 16);
    store_le64(p, addr);
    store_le32(p + 8, len);
    store_le16(p + (f->q->packed ? 12 : 14), id_or_next);
    if (f->q->packed && table == f->q->desc)
        flags |= 1u << 7; /* AVAIL in the first lap */
    store_le16(p + (f->q->packed ? 14 : 12), flags);
}

/* Make descriptor 0 available. */
static void raw_avail(struct fixture *f, uint16_t head)
{
    if (f->q->packed)
        return;
    store_le16(vtest_ram(&f->t, f->q->driver + 4, 2), head);
    store_le16(vtest_ram(&f->t, f->q->driver + 2, 2), 1);
}

static void raw_one(struct fixture *f, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    raw_desc(f, f->q->desc, 0, addr, len, flags, next);
    raw_avail(f, 0);
}

static void bad_head(struct fixture *f)
{
    raw_avail(f, 16);
}

static void bad_jump(struct fixture *f)
{
    store_le16(vtest_ram(&f->t, f->q->driver + 2, 2), 17);
}

static void bad_next(struct fixture *f)
{
    raw_one(f, MIB, 4, F_NEXT, 16);
}

static void bad_loop(struct fixture *f)
{
    for (unsigned i = 0; i < 16; i++)
        raw_desc(f, f->q->desc, i, MIB, 4, F_NEXT, (uint16_t)((i + 1) % 16));
    raw_avail(f, 0);
}

static void bad_address(struct fixture *f)
{
    raw_one(f, VTEST_RAM_BYTES - 1, 2, F_WRITE, 0);
}

static void bad_overflow(struct fixture *f)
{
    raw_one(f, UINT64_MAX - 1, 4, 0, 0);
}

static void bad_order(struct fixture *f)
{
    raw_desc(f, f->q->desc, 0, MIB, 4, F_WRITE | F_NEXT, 1);
    raw_desc(f, f->q->desc, 1, MIB, 4, 0, 0);
    raw_avail(f, 0);
}

static void bad_rom(struct fixture *f)
{
    raw_one(f, ROM_BASE + 16, 16, F_WRITE, 0);
}

static void good_rom(struct fixture *f)
{
    raw_one(f, ROM_BASE + 16, 16, 0, 0);
}

static void good_empty(struct fixture *f)
{
    raw_one(f, UINT64_MAX, 0, 0, 0);
}

static void bad_total(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 16 * 1024, 64);
    for (unsigned i = 0; i < 1024; i++)
        raw_desc(f, table, i, 0, 8 * MIB, i < 1023 ? F_NEXT : 0, (uint16_t)(i + 1));
    raw_one(f, table, 16 * 1024, F_INDIRECT, 0);
}

static void bad_indirect_bytes(struct fixture *f)
{
    raw_one(f, MIB, 24, F_INDIRECT, 0);
}

static void bad_indirect_empty(struct fixture *f)
{
    raw_one(f, MIB, 0, F_INDIRECT, 0);
}

static void bad_indirect_address(struct fixture *f)
{
    raw_one(f, VTEST_RAM_BYTES - 16, 32, F_INDIRECT, 0);
}

static void bad_indirect_next(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 16, 64);
    raw_desc(f, table, 0, MIB, 4, 0, 0);
    raw_desc(f, f->q->desc, 1, MIB, 4, 0, 0);
    raw_one(f, table, 16, F_INDIRECT | F_NEXT, 1);
}

static void bad_nested(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 64, 64);
    raw_desc(f, table, 0, table + 16, 16, F_INDIRECT, 0);
    raw_desc(f, table, 1, MIB, 4, 0, 0);
    raw_one(f, table, 16, F_INDIRECT, 0);
}

static void bad_table_next(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 64, 64);
    raw_desc(f, table, 0, MIB, 4, F_NEXT, 2);
    raw_one(f, table, 32, F_INDIRECT, 0);
}

static void bad_table_loop(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 64, 64);
    raw_desc(f, table, 0, MIB, 4, F_NEXT, 0);
    raw_one(f, table, 16, F_INDIRECT, 0);
}

static void bad_table_long(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 16 * 1025, 64);
    for (unsigned i = 0; i < 1025; i++)
        raw_desc(f, table, i, MIB, i % 2, i < 1024 ? F_NEXT : 0, (uint16_t)(i + 1));
    raw_one(f, table, 16 * 1025, F_INDIRECT, 0);
}

static void direct_then_indirect(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 64, 64);
    raw_desc(f, table, 0, MIB, 5, F_NEXT | F_WRITE, 1);
    raw_desc(f, table, 1, MIB, 6, F_WRITE, 0);
    raw_desc(f, f->q->desc, 0, MIB, 4, F_NEXT, 1);
    raw_desc(f, f->q->desc, 1, table, 32, F_INDIRECT | F_WRITE, 0);
    raw_avail(f, 0);
}

static void indirect_off(struct fixture *f)
{
    uint64_t table = vtest_alloc(&f->t, 64, 64);
    raw_desc(f, table, 0, MIB, 4, 0, 0);
    f->vq.indirect = false;
    raw_one(f, table, 16, F_INDIRECT, 0);
}

static const struct bad bads[] = {
    {"2.7.6: head out of range",                           -EPROTO, 2,       bad_head            },
    {"2.7.6: available index jumps",                       -EPROTO, 2,       bad_jump            },
    {"2.7.5: next out of range",                           -EPROTO, 2,       bad_next            },
    {"2.7.5, 2.8.5: a chain without an end",               -EPROTO, -EPROTO, bad_loop            },
    {"a buffer beyond the end of RAM",                     -EPROTO, -EPROTO, bad_address         },
    {"a buffer that wraps the address space",              -EPROTO, -EPROTO, bad_overflow        },
    {"2.7.4.2: readable after writable",                   -EPROTO, -EPROTO, bad_order           },
    {"a writable buffer in ROM",                           -EPROTO, -EPROTO, bad_rom             },
    {"a readable buffer in ROM is fine",                   1,       1,       good_rom            },
    {"an empty segment's address does not matter",         1,       1,       good_empty          },
    {"2.7.5: 4 GiB and more",                              -EPROTO, -EPROTO, bad_total           },
    {"2.7.5.3: table of 1.5 entries",                      -EPROTO, -EPROTO, bad_indirect_bytes  },
    {"2.7.5.3: empty table",                               -EPROTO, -EPROTO, bad_indirect_empty  },
    {"2.7.5.3: table outside of RAM",                      -EPROTO, -EPROTO, bad_indirect_address},
    {"2.7.5.3.1, 2.8.19: INDIRECT with NEXT",              -EPROTO, -EPROTO, bad_indirect_next   },
    {"2.7.5.3.1: nested (2.8.7: flag ignored)",            -EPROTO, 1,       bad_nested          },
    {"2.7.5.3: next beyond the table",                     -EPROTO, 2,       bad_table_next      },
    {"2.7.5.3: loop in the table",                         -EPROTO, 2,       bad_table_loop      },
    {"2.7.5.3, 2.8.7: table of too many entries",          -EPROTO, -EPROTO, bad_table_long      },
    {"2.7.5.3.2 direct, then indirect; 2.8.19: not mixed", 1,       -EPROTO, direct_then_indirect},
    {"2.7.5.3.1: INDIRECT was not negotiated",             -EPROTO, -EPROTO, indirect_off        },
};

static void test_bad(uint64_t kind, const struct bad *bad)
{
    struct fixture *f = set_up(kind, 16);
    struct err err = ERR_INIT;
    int want = f->q->packed ? bad->packed : bad->split;
    if (want != 2) {
        mem_add_rom(f->t.mem, "rom", GPA(ROM_BASE), 64 * KIB, &err);
        bad->make(f);
        is_int(pop(f), want, bad->what);
        if (want < 0) {
            ok(f->state.broken && f->vq.why != NULL && f->vq.in_flight == 0, "the queue is broken");
            is_int(pop(f), -EPROTO, "and stays so");
            ok(!virtq_enable_kick(&f->vq) && !virtq_should_interrupt(&f->vq), "and is silent");
        }
        if (bad->make == direct_then_indirect && want == 1)
            ok(f->chain.out_len == 4 && f->chain.in_len == 11, "both parts are there");
    }
    tear_down(f);
}

/* The guest makes the same descriptors available again and again: in flight stays bounded. */
static void test_in_flight(uint64_t kind)
{
    struct fixture *f = set_up(kind, 4);
    unsigned popped = 0;
    for (unsigned i = 0; i < 10; i++) {
        raw_desc(f, f->q->desc, i % 4, MIB, 4, 0, 0);
        if (f->q->packed && i >= 4) /* AVAIL 0, USED 1: the second lap */
            store_le16(vtest_ram(&f->t, f->q->desc + 16 * (i % 4) + 14, 2), 1u << 15);
        if (!f->q->packed)
            store_le16(vtest_ram(&f->t, f->q->driver + 2, 2), (uint16_t)(i + 1));
        if (pop(f) != 1)
            break;
        popped++;
    }
    is_int(popped, 4, "not more chains in flight than entries");
    ok(f->state.broken, "more break the queue");
    for (unsigned i = 0; i < popped; i++)
        virtq_push(&f->vq, &f->chain, 0);
    is_int(f->vq.in_flight, 0, "chains of a broken queue may be pushed");
    struct vtest_used used;
    f->q->chain_len[0] = 1;
    ok(!vtest_used(f->q, &used), "and are dropped");
    tear_down(f);
}

static void test_iov_cap(uint64_t kind)
{
    struct fixture *f = set_up(kind, 16);
    struct vtest_seg segs[3] = {
        {MIB, 4, false},
        {MIB, 0, false},
        {MIB, 8, true }
    };
    vtest_add(f->q, segs, 3);
    is_int(virtq_pop(&f->vq, &f->chain, f->iov, 2), 1, "a chain that just fits the caller's iovec");
    struct vtest_seg more[3] = {
        {MIB, 4, false},
        {MIB, 1, false},
        {MIB, 8, true }
    };
    vtest_add(f->q, more, 3);
    is_int(virtq_pop(&f->vq, &f->chain, f->iov, 2), -EPROTO, "one that does not breaks the queue");
    tear_down(f);
}

/* --- 2.7.7, 2.7.10, 2.8.10: suppression --- */

static void serve_one(struct fixture *f)
{
    struct vtest_seg seg = {MIB, 4, true};
    vtest_add(f->q, &seg, 1);
    pop(f);
    virtq_push(&f->vq, &f->chain, 4);
}

static void take_used(struct fixture *f)
{
    struct vtest_used used;
    while (vtest_used(f->q, &used))
        ;
}

static void test_interrupts(uint64_t kind)
{
    struct fixture *f = set_up(kind, 4);
    bool event = f->q->event_idx, silent = true, spoke = true, once = true;
    ok(!virtq_should_interrupt(&f->vq), "no interrupt when nothing was pushed");
    for (unsigned i = 0; i < 40000; i++) {
        vtest_enable_interrupts(f->q);
        serve_one(f);
        spoke = spoke && virtq_should_interrupt(&f->vq);
        silent = silent && !virtq_should_interrupt(&f->vq);
        /* With event index the wish is spent; without it, it stands until it is taken back. */
        if (!event)
            vtest_disable_interrupts(f->q);
        serve_one(f);
        once = once && !virtq_should_interrupt(&f->vq);
        take_used(f);
    }
    ok(spoke, "the driver is told when it asked");
    ok(silent, "no interrupt when nothing was pushed since");
    ok(once, "no interrupt when it did not ask");
    vtest_enable_interrupts(f->q);
    serve_one(f);
    serve_one(f);
    serve_one(f);
    ok(virtq_should_interrupt(&f->vq), "a batch that passes the point asked for");
    f->state.signalled_valid = 0;
    vtest_disable_interrupts(f->q);
    ok(virtq_should_interrupt(&f->vq), "without a valid last decision: interrupt");
    tear_down(f);
}

/* 2.7.10, 2.8.10: the driver asks for the third from now. */
static void test_interrupt_later(uint64_t kind)
{
    struct fixture *f = set_up(kind, 8);
    bool right = true;
    for (unsigned i = 0; i < 100 && f->q->event_idx; i++) {
        uint8_t *p = vtest_ram(&f->t, f->q->driver + (f->q->packed ? 0 : 4 + 2 * 8), 2);
        unsigned at = f->q->used_idx + 2u, wrap = f->q->used_wrap;
        if (f->q->packed && at >= 8) {
            at -= 8;
            wrap ^= 1;
        }
        store_le16(p, (uint16_t)(f->q->packed ? at | wrap << 15 : at));
        if (f->q->packed)
            store_le16(p + 2, 2);
        for (unsigned j = 0; j < 4; j++) {
            serve_one(f);
            right = right && virtq_should_interrupt(&f->vq) == (j == 2);
        }
        take_used(f);
    }
    ok(right, "exactly the third is told");
    tear_down(f);
}

/* A busy device decides late: the point that the driver asked for is more than a lap back. */
static void test_interrupt_laps(uint64_t kind)
{
    static const unsigned counts[] = {3, 4, 5, 8, 9, 65535, 65536, 65537};
    bool right = true;
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        struct fixture *f = set_up(kind, 4);
        vtest_enable_interrupts(f->q);
        for (unsigned j = 0; j < counts[i]; j++) {
            serve_one(f);
            take_used(f);
        }
        right = right && virtq_should_interrupt(&f->vq) && !virtq_should_interrupt(&f->vq);
        tear_down(f);
    }
    ok(right, "an interrupt asked for is not forgotten after whole laps");
}

static void test_kicks(uint64_t kind)
{
    struct fixture *f = set_up(kind, 4);
    bool wanted = true, unwanted = true, raced = true;
    struct vtest_seg seg = {MIB, 4, true};
    for (unsigned i = 0; i < 40000; i++) {
        wanted = wanted && !virtq_enable_kick(&f->vq);
        vtest_add(f->q, &seg, 1);
        wanted = wanted && vtest_kick_wanted(f->q);
        virtq_disable_kick(&f->vq);
        pop(f);
        virtq_push(&f->vq, &f->chain, 0);
        vtest_add(f->q, &seg, 1);
        unwanted = unwanted && !vtest_kick_wanted(f->q);
        raced = raced && virtq_enable_kick(&f->vq);
        pop(f);
        virtq_push(&f->vq, &f->chain, 0);
        take_used(f);
    }
    ok(wanted, "armed: a kick is wanted for the next chain");
    ok(unwanted, "disarmed: none is");
    ok(raced, "arming tells of a chain that came in between");
    tear_down(f);
}

/* --- 2.7, 2.8: layout --- */

static void test_enable(uint64_t kind)
{
    struct fixture *f = set_up(kind, 16);
    bool packed = f->q->packed;
    const struct {
        const char *what;
        uint64_t desc, driver, device;
        unsigned size;
        bool good;
    } cases[] = {
        {"as laid out",                         0,                         0,                0,                16,   true   },
        {"descriptors not 16-byte aligned",     f->q->desc + 8,            0,                0,                16,   false  },
        {"driver area misaligned",              0,                         f->q->driver + 1, 0,                16,   false  },
        {"device area misaligned",              0,                         0,                f->q->device + 2, 16,   false  },
        {"descriptors beyond RAM",              VTEST_RAM_BYTES - 16 * 15, 0,                0,                16,   false  },
        {"driver area beyond RAM",              0,                         VTEST_RAM_BYTES,  0,                16,   false  },
        {"device area beyond RAM",              0,                         0,                UINT64_MAX - 3,   16,   false  },
        {"device area in ROM",                  0,                         0,                ROM_BASE,         16,   false  },
        {"no entries",                          0,                         0,                0,                0,    false  },
        {"more entries than the maximum",       0,                         0,                0,                2048, false  },
        {"no power of two (packed: allowed)",   0,                         0,                0,                12,   packed },
        {"descriptors in ROM (split: allowed)", ROM_BASE,                  0,                0,                16,   !packed},
    };
    struct err err = ERR_INIT;
    mem_add_rom(f->t.mem, "rom", GPA(ROM_BASE), 64 * KIB, &err);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        rewind_queue(f, kind, 16);
        f->state.size = (uint16_t)cases[i].size;
        f->state.desc_gpa = cases[i].desc ? cases[i].desc : f->q->desc;
        f->state.driver_gpa = cases[i].driver ? cases[i].driver : f->q->driver;
        f->state.device_gpa = cases[i].device ? cases[i].device : f->q->device;
        is_int(virtq_enable(&f->vq), cases[i].good ? 0 : -EINVAL, cases[i].what);
        is_int(f->state.broken, !cases[i].good, "broken or not");
        is_int(pop(f), cases[i].good ? 0 : -EPROTO, "pop says so");
    }
    if (packed) {
        rewind_queue(f, kind, 16);
        f->state.avail_idx = 16;
        is_int(virtq_enable(&f->vq), -EINVAL, "a restored position out of range");
    }
    tear_down(f);
}

/* --- dirty pages --- */

static size_t dirty_pages(struct fixture *f, uint64_t *bitmap)
{
    size_t count = 0;
    memset(bitmap, 0, VTEST_RAM_BYTES / 4096 / 8);
    mem_dirty_collect(f->t.mem, 0, bitmap);
    for (size_t i = 0; i < VTEST_RAM_BYTES / 4096 / 64; i++)
        count += (size_t)__builtin_popcountll(bitmap[i]);
    return count;
}

static bool is_dirty(const uint64_t *bitmap, uint64_t gpa)
{
    return bitmap[gpa / 4096 / 64] >> (gpa / 4096 % 64) & 1;
}

static void test_dirty(uint64_t kind)
{
    static uint64_t bitmap[VTEST_RAM_BYTES / 4096 / 64];
    struct fixture *f = set_up(kind, 16);
    struct err err = ERR_INIT;
    uint64_t gpa = vtest_alloc(&f->t, 8 * 4096, 4096);
    mem_dirty_start(f->t.mem, &err);
    dirty_pages(f, bitmap);
    struct vtest_seg segs[] = {
        {gpa,            4096, false},
        {gpa + 4096,     10,   true },
        {gpa + 2 * 4096, 8192, true },
        {gpa + 5 * 4096, 4096, true },
    };
    vtest_add(f->q, segs, 4);
    pop(f);
    is_int(dirty_pages(f, bitmap), 0, "popping writes nothing");
    virtq_push(&f->vq, &f->chain, 10 + 4097);
    size_t count = dirty_pages(f, bitmap);
    ok(is_dirty(bitmap, gpa + 4096) && is_dirty(bitmap, gpa + 2 * 4096) &&
           is_dirty(bitmap, gpa + 3 * 4096),
       "the pages that `written` covers are dirty");
    ok(is_dirty(bitmap, f->q->packed ? f->q->desc : f->q->device), "and the ring");
    is_int(count, 4, "and no other");
    virtq_disable_kick(&f->vq);
    virtq_enable_kick(&f->vq);
    count = dirty_pages(f, bitmap);
    ok(count == 1 && is_dirty(bitmap, f->q->device), "arming kicks marks the device area");

    vtest_add(f->q, segs, 4);
    pop(f);
    f->state.broken = 1;
    virtq_push(&f->vq, &f->chain, 1);
    count = dirty_pages(f, bitmap);
    ok(count == 1 && is_dirty(bitmap, gpa + 4096), "what a dropped chain wrote is dirty too");
    tear_down(f);
}

/* --- both sides at once: no order of memory accesses is lost --- */

#define RACE_CHAINS 20000u

struct race {
    struct fixture *f;
    int kick_fd, irq_fd;
    uint32_t wrong;
    bool stuck;
};

static bool sleep_on(struct race *race, int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    uint64_t count;
    if (poll(&pfd, 1, 5000) != 1) {
        __atomic_store_n(&race->stuck, true, __ATOMIC_SEQ_CST);
        return false;
    }
    return read(fd, &count, sizeof(count)) == sizeof(count);
}

static void wake(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one))
        abort();
}

/* The device: sleeps whenever the queue is empty, and is woken by wanted kicks alone. */
static void *race_device(void *arg)
{
    struct race *race = arg;
    struct fixture *f = race->f;
    for (unsigned served = 0; served < RACE_CHAINS;) {
        int rc = pop(f);
        if (rc < 0)
            break;
        if (rc == 0) {
            if (!virtq_enable_kick(&f->vq) && !sleep_on(race, race->kick_fd))
                break;
            virtq_disable_kick(&f->vq);
            continue;
        }
        uint32_t value = 0;
        virtq_chain_read(&f->chain, 0, &value, 4);
        value = ~value;
        virtq_chain_write(&f->chain, 0, &value, 4);
        virtq_push(&f->vq, &f->chain, 4);
        served++;
        if (virtq_should_interrupt(&f->vq))
            wake(race->irq_fd);
    }
    return NULL;
}

static bool race_take(struct race *race, uint64_t gpa, uint32_t *expect)
{
    struct vtest_used used;
    if (!vtest_used(race->f->q, &used))
        return false;
    uint32_t value;
    memcpy(&value, vtest_ram(&race->f->t, gpa + 8 * (*expect % 16) + 4, 4), 4);
    race->wrong += value != ~*expect || used.len != 4;
    (*expect)++;
    return true;
}

static void race_driver(struct race *race)
{
    struct fixture *f = race->f;
    uint64_t gpa = vtest_alloc(&f->t, 8 * 16, 64);
    uint32_t sent = 0, taken = 0;
    while (taken < RACE_CHAINS) {
        while (sent < RACE_CHAINS && sent - taken < 7) {
            uint64_t slot = gpa + 8 * (sent % 16);
            memcpy(vtest_ram(&f->t, slot, 4), &sent, 4);
            struct vtest_seg segs[] = {
                {slot,     4, false},
                {slot + 4, 4, true }
            };
            if (vtest_add(f->q, segs, 2) < 0)
                break;
            sent++;
            if (vtest_kick_wanted(f->q))
                wake(race->kick_fd);
        }
        if (race_take(race, gpa, &taken))
            continue;
        vtest_enable_interrupts(f->q);
        if (race_take(race, gpa, &taken))
            continue;
        if (!sleep_on(race, race->irq_fd))
            return;
        vtest_disable_interrupts(f->q);
    }
}

static void test_race(uint64_t kind)
{
    struct race race = {.f = set_up(kind, 16)};
    race.kick_fd = eventfd(0, EFD_CLOEXEC);
    race.irq_fd = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    pthread_create(&thread, NULL, race_device, &race);
    race_driver(&race);
    pthread_join(thread, NULL);
    ok(!race.stuck, "2.7.13, 2.8.21: no wake-up is lost between two threads");
    is_int(race.wrong, 0, "and the data is there when the index says so");
    close(race.kick_fd);
    close(race.irq_fd);
    tear_down(race.f);
}

int main(void)
{
    char why[256] = "";
    is_int(state_table_check(&virtq_state_table, why, sizeof(why)), 0, "the state is described");
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        uint64_t kind = kinds[i];
        printf("# %s ring%s\n", kind & VIRTIO_BIT(VIRTIO_F_RING_PACKED) ? "packed" : "split",
               kind & VIRTIO_BIT(VIRTIO_F_EVENT_IDX) ? ", event index" : "");
        test_chain(kind);
        test_laps(kind, 16);
        if (kind & VIRTIO_BIT(VIRTIO_F_RING_PACKED))
            test_laps(kind, 11);
        test_push_many(kind);
        test_unpop(kind);
        for (size_t j = 0; j < ARRAY_LEN(bads); j++)
            test_bad(kind, &bads[j]);
        test_in_flight(kind);
        test_iov_cap(kind);
        test_interrupts(kind);
        test_interrupt_later(kind);
        test_interrupt_laps(kind);
        test_kicks(kind);
        test_enable(kind);
        test_dirty(kind);
        test_race(kind);
    }
    return tap_done();
}
