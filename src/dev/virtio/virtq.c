/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation.
 *
 * A virtqueue is shared memory that two parties change at the same time without a lock: the driver
 * on its vCPUs, the device here. Each location has one writer at a time, and ownership passes by
 * one store that the other side polls:
 *
 *   split (2.7)   descriptor table and available ring belong to the driver, the used ring to the
 *                 device. The driver publishes heads by storing avail.idx, the device returns them
 *                 by storing used.idx. Both indices run freely modulo 2^16, not modulo the size.
 *
 *       desc[size]: addr 64 | len 32 | flags 16 | next 16
 *       driver:     flags 16 | idx 16 | ring[size] 16 | used_event 16
 *       device:     flags 16 | idx 16 | ring[size] (id 32, len 32) | avail_event 16
 *
 *   packed (2.8)  one ring of descriptors that both write. The AVAIL and USED bits in a
 *                 descriptor's flags, against a wrap counter that each side flips at the end of the
 *                 ring, say whose it is: AVAIL == wrap, USED != wrap: made available in this lap;
 *                 both == wrap: used. The device pops at (avail_idx, avail_wrap) and writes used
 *                 descriptors at (used_idx, used_wrap), in the order of completion; a used
 *                 descriptor stands for a whole chain, whose other descriptors are skipped.
 *
 *       desc[size]:     addr 64 | len 32 | id 16 | flags 16
 *       driver, device: offset 15, wrap 1 | flags 16      (event suppression)
 *
 * Nothing that the guest wrote is trusted, and it may change while we look. Hence three rules. Each
 * descriptor is copied once, to the stack, and only the copy is examined. Every address range goes
 * through mem_ptr(), so an iovec that leaves here lies in guest RAM (and not in ROM, where the
 * device is to write). Every loop has a cap that the guest cannot move: the size of the table that
 * it walks, and VIRTQ_IOV_MAX. The first violation breaks the queue for good (until its reset); a
 * half-read chain is never given out.
 *
 * At most `size` chains are in flight: an honest driver cannot exceed that, since a chain takes at
 * least one descriptor, and devices may size their tables by it.
 *
 * Memory order. The other party is a CPU, so it is the ordinary rules between threads that count;
 * the atomics below compile to plain moves on x86, except for the full fence.
 *   (A) available index or flags: load-acquire, pairs with the driver's write barrier before its
 *       store. Without it the descriptor could be read before the index that announces it.
 *   (B) used index or flags: store-release. Without it the driver could see the index before the
 *       used element, or before the data that the device wrote into the buffers.
 *   (C) store of the used index, then load of what the driver wants to be interrupted for; the
 *       driver does the reverse: stores its wish, then loads the used index. A store followed by a
 *       load of another address is the one order that x86 does not keep; without a full fence on
 *       both sides both may miss the other's store, and the queue hangs.
 *   (D) likewise the store of what we want to be kicked for, then the load of the available index.
 */
#include "dev/virtio/virtq.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/units.h"

/* Flags of descriptors (2.7.5, 2.8.1). */
#define DESC_F_NEXT     1u
#define DESC_F_WRITE    2u
#define DESC_F_INDIRECT 4u
#define DESC_F_AVAIL    (1u << 7)
#define DESC_F_USED     (1u << 15)

/* Flags of the split rings (2.7.6, 2.7.8). */
#define AVAIL_F_NO_INTERRUPT 1u
#define USED_F_NO_NOTIFY     1u

/* Event suppression of packed rings (2.8.10). */
#define EVENT_ENABLE  0u
#define EVENT_DISABLE 1u
#define EVENT_DESC    2u
#define EVENT_MASK    3u

#define DESC_BYTES    16u

static const struct state_field virtq_fields[] = {
    STATE_U64(struct virtq_state, desc_gpa, 1, 0, "Descriptor area (guest-physical)"),
    STATE_U64(struct virtq_state, driver_gpa, 1, 0, "Driver area (guest-physical)"),
    STATE_U64(struct virtq_state, device_gpa, 1, 0, "Device area (guest-physical)"),
    STATE_U16(struct virtq_state, size, 1, 0, "Entries, as the driver chose"),
    STATE_U16(struct virtq_state, msix_vector, 1, 0xffff, "MSI-X vector; 0xffff: none"),
    STATE_U16(struct virtq_state, avail_idx, 1, 0, "Next chain to take"),
    STATE_U16(struct virtq_state, used_idx, 1, 0, "Next used entry to write"),
    STATE_U16(struct virtq_state, signalled_used, 1, 0, "used_idx at the last interrupt decision"),
    STATE_U8(struct virtq_state, enabled, 1, 0, "The driver enabled the queue"),
    STATE_U8(struct virtq_state, avail_wrap, 1, 1, "Packed: wrap counter of avail_idx"),
    STATE_U8(struct virtq_state, used_wrap, 1, 1, "Packed: wrap counter of used_idx"),
    STATE_U8(struct virtq_state, signalled_wrap, 1, 1, "Packed: wrap counter of signalled_used"),
    STATE_U8(struct virtq_state, signalled_valid, 1, 1,
             "signalled_* hold a decision; 0: the next one is an interrupt"),
    STATE_U8(struct virtq_state, broken, 1, 0, "The driver broke the rules"),
};
const struct state_table virtq_state_table =
    STATE_TABLE("virtq", struct virtq_state, 1, virtq_fields);

/* --- access to shared memory --- */

static uint16_t load16(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED);
}

static uint16_t load16_acquire(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);
}

static void store16(struct virtq *vq, uint8_t *p, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELAXED);
    mem_mark_dirty_host(vq->mem, p, sizeof(value));
}

static void store16_release(struct virtq *vq, uint8_t *p, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)p, value, __ATOMIC_RELEASE);
    mem_mark_dirty_host(vq->mem, p, sizeof(value));
}

/* The __sync form: gcc's thread sanitizer does not take __atomic_thread_fence(). */
static void full_fence(void)
{
    __sync_synchronize();
}

/* One descriptor of either format. */
struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t word12; /* split: flags; packed: id */
    uint16_t word14; /* split: next; packed: flags */
};

/* The one look at it: the compiler barrier keeps later uses from reading guest memory again. */
static struct desc desc_copy(const uint8_t *p)
{
    struct desc d;
    static_assert(sizeof(d) == DESC_BYTES, "layout of a descriptor");
    memcpy(&d, p, sizeof(d));
    __asm__ volatile("" ::: "memory");
    return d;
}

/* --- enable and disable --- */

/* Address of a ring part: aligned, wholly in RAM. */
static uint8_t *ring_part(struct virtq *vq, uint64_t gpa, uint64_t len, uint64_t align,
                          enum mem_access access)
{
    if (gpa % align != 0)
        return NULL;
    return mem_ptr(vq->mem, GPA(gpa), len, access);
}

static int virtq_break(struct virtq *vq, const char *why)
{
    vq->s->broken = 1;
    vq->why = why;
    return -EPROTO;
}

static const char *map_rings(struct virtq *vq)
{
    const struct virtq_state *s = vq->s;
    uint64_t n = s->size;
    if (n == 0 || n > vq->size_max)
        return "queue size out of range";
    if (vq->packed) {
        /* 2.8: alignment and sizes; the device writes into the descriptor ring. */
        vq->desc = ring_part(vq, s->desc_gpa, DESC_BYTES * n, 16, MEM_WRITE);
        vq->driver = ring_part(vq, s->driver_gpa, 4, 4, MEM_READ);
        vq->device = ring_part(vq, s->device_gpa, 4, 4, MEM_WRITE);
    } else {
        /* 2.7: alignment and sizes; the event fields at the ends are part of the rings (2.7.10). */
        if (!is_power_of_two(n))
            return "queue size is not a power of two";
        vq->desc = ring_part(vq, s->desc_gpa, DESC_BYTES * n, 16, MEM_READ);
        vq->driver = ring_part(vq, s->driver_gpa, 6 + 2 * n, 2, MEM_READ);
        vq->device = ring_part(vq, s->device_gpa, 6 + 8 * n, 4, MEM_WRITE);
    }
    if (vq->desc == NULL || vq->driver == NULL || vq->device == NULL)
        return "a ring is misaligned or not in RAM";
    /* Always so after a reset; the indices of a restored queue come from outside. */
    if (vq->packed && (s->avail_idx >= n || s->used_idx >= n || s->signalled_used >= n ||
                       s->avail_wrap > 1 || s->used_wrap > 1 || s->signalled_wrap > 1))
        return "packed ring position out of range";
    return NULL;
}

int virtq_enable(struct virtq *vq)
{
    const char *why = map_rings(vq);
    if (why != NULL) {
        virtq_disable(vq);
        virtq_break(vq, why);
        return -EINVAL;
    }
    vq->s->enabled = 1;
    return 0;
}

void virtq_disable(struct virtq *vq)
{
    vq->s->enabled = 0;
    vq->desc = vq->driver = vq->device = NULL;
}

static bool is_usable(const struct virtq *vq)
{
    return vq->desc != NULL && vq->s->enabled && !vq->s->broken;
}

/* --- pop --- */

/* The chain that is being read. Steps return NULL, or why the guest's chain is wrong. */
struct walk {
    struct virtq *vq;
    struct virtq_chain *chain;
    unsigned iov_cap;
    bool writable_seen;
};

/* Does a writable segment reach into ROM? mem_ptr() would say so too, but it marks dirty at once,
 * and most buffers are not written until much later, or not in whole. */
static bool is_rom(const struct mem *mem, const uint8_t *host)
{
    size_t count = mem_region_count(mem);
    for (size_t i = 0; i < count; i++) {
        const struct mem_region *region = mem_region_at(mem, i);
        if (host >= region->host && host < region->host + region->len_bytes)
            return region->read_only;
    }
    return true;
}

static const char *walk_add(struct walk *walk, uint64_t gpa, uint32_t len, bool writable)
{
    struct virtq_chain *chain = walk->chain;
    if (writable)
        walk->writable_seen = true;
    else if (walk->writable_seen)
        return "a readable descriptor follows a writable one"; /* 2.7.4.2 */
    if (len == 0)
        return NULL;
    /* 2.7.5: not more than 2^32 bytes; one less, so that every length fits 32 bits. */
    if (chain->out_len + chain->in_len + len > UINT32_MAX)
        return "a chain of 4 GiB or more";
    unsigned count = chain->out_num + chain->in_num;
    if (count >= walk->iov_cap)
        return "a chain with too many segments";
    uint8_t *host = mem_ptr(walk->vq->mem, GPA(gpa), len, MEM_READ);
    if (host == NULL)
        return "a descriptor points outside of RAM";
    if (writable && is_rom(walk->vq->mem, host))
        return "a writable descriptor points into ROM";
    chain->iov[count] = (struct iovec){.iov_base = host, .iov_len = len};
    if (writable) {
        chain->in_num++;
        chain->in_len += len;
    } else {
        chain->out_num++;
        chain->out_len += len;
    }
    return NULL;
}

/* The table of an indirect descriptor (2.7.5.3, 2.8.7): readable memory, a whole number of entries.
 */
static const char *indirect_table(struct walk *walk, const struct desc *d, const uint8_t **table,
                                  uint32_t *count)
{
    if (!walk->vq->indirect)
        return "an indirect descriptor without VIRTIO_F_INDIRECT_DESC";
    if (d->len == 0 || d->len % DESC_BYTES != 0)
        return "length of an indirect table is no multiple of 16";
    *table = mem_ptr(walk->vq->mem, GPA(d->addr), d->len, MEM_READ);
    *count = d->len / DESC_BYTES;
    return *table == NULL ? "an indirect table outside of RAM" : NULL;
}

static const char *walk_split(struct walk *walk, uint16_t head)
{
    const uint8_t *table = walk->vq->desc;
    uint32_t count = walk->vq->s->size;
    uint32_t left = count; /* a longer chain must be a loop */
    uint32_t index = head;
    bool in_table = false;
    for (;;) {
        if (left-- == 0)
            return "a chain is too long or loops";
        struct desc d = desc_copy(table + (size_t)DESC_BYTES * index);
        unsigned flags = d.word12;
        const char *why;
        if (flags & DESC_F_INDIRECT) {
            /* Last of its chain, possibly behind direct ones; WRITE in it means nothing (2.7.5.3).
             */
            if (in_table)
                return "an indirect table inside an indirect table";
            if (flags & DESC_F_NEXT)
                return "an indirect descriptor with NEXT";
            why = indirect_table(walk, &d, &table, &count);
            if (why != NULL)
                return why;
            in_table = true;
            left = count < VIRTQ_IOV_MAX ? count : VIRTQ_IOV_MAX;
            index = 0;
            continue;
        }
        why = walk_add(walk, d.addr, d.len, flags & DESC_F_WRITE);
        if (why != NULL || !(flags & DESC_F_NEXT))
            return why;
        if (d.word14 >= count)
            return "next descriptor out of range";
        index = d.word14;
    }
}

/* All entries in order; of the flags only WRITE means something (2.8.7). */
static const char *walk_packed_table(struct walk *walk, const struct desc *d)
{
    const uint8_t *table;
    uint32_t count;
    const char *why = indirect_table(walk, d, &table, &count);
    if (why == NULL && count > VIRTQ_IOV_MAX)
        why = "an indirect table is too long";
    for (uint32_t i = 0; why == NULL && i < count; i++) {
        struct desc entry = desc_copy(table + (size_t)DESC_BYTES * i);
        why = walk_add(walk, entry.addr, entry.len, entry.word14 & DESC_F_WRITE);
    }
    return why;
}

static const char *walk_packed(struct walk *walk, unsigned first_flags)
{
    struct virtq *vq = walk->vq;
    unsigned size = vq->s->size, pos = vq->s->avail_idx;
    for (unsigned n = 1; n <= size; n++) {
        struct desc d = desc_copy(vq->desc + (size_t)DESC_BYTES * pos);
        unsigned flags = n == 1 ? first_flags : d.word14;
        const char *why;
        if (flags & DESC_F_INDIRECT) {
            if (n != 1 || (flags & DESC_F_NEXT))
                return "an indirect descriptor in a direct chain"; /* 2.8.19 */
            why = walk_packed_table(walk, &d);
        } else {
            why = walk_add(walk, d.addr, d.len, flags & DESC_F_WRITE);
        }
        if (why != NULL)
            return why;
        if (!(flags & DESC_F_NEXT)) {
            walk->chain->id = d.word12; /* the last descriptor holds the buffer id (2.8.6) */
            walk->chain->desc_count = (uint16_t)n;
            return NULL;
        }
        if (++pos == size)
            pos = 0;
    }
    return "a chain is longer than the ring";
}

/* Flags of the packed descriptor at the pop position; is it ours? (A) */
static bool packed_available(const struct virtq *vq, unsigned *flags)
{
    *flags = load16_acquire(vq->desc + (size_t)DESC_BYTES * vq->s->avail_idx + 14);
    bool avail = *flags & DESC_F_AVAIL, used = *flags & DESC_F_USED;
    return avail == vq->s->avail_wrap && used != vq->s->avail_wrap;
}

/* Advance a packed position by n descriptors, n <= size. */
static void packed_advance(const struct virtq *vq, uint16_t *idx, uint8_t *wrap, unsigned n)
{
    unsigned pos = *idx + n;
    if (pos >= vq->s->size) {
        pos -= vq->s->size;
        *wrap ^= 1;
    }
    *idx = (uint16_t)pos;
}

static int pop_split(struct virtq *vq, struct walk *walk)
{
    struct virtq_state *s = vq->s;
    uint16_t available = (uint16_t)(load16_acquire(vq->driver + 2) - s->avail_idx); /* (A) */
    if (available == 0)
        return 0;
    if (available > s->size)
        return virtq_break(vq, "available index jumps by more than the queue size");
    if (vq->in_flight >= s->size)
        return virtq_break(vq, "more chains in flight than the queue has entries");
    uint16_t head = load16(vq->driver + 4 + 2 * (size_t)(s->avail_idx & (s->size - 1)));
    if (head >= s->size)
        return virtq_break(vq, "head descriptor out of range");
    const char *why = walk_split(walk, head);
    if (why != NULL)
        return virtq_break(vq, why);
    walk->chain->id = head;
    walk->chain->desc_count = 1;
    s->avail_idx++;
    return 1;
}

static int pop_packed(struct virtq *vq, struct walk *walk)
{
    unsigned flags;
    if (!packed_available(vq, &flags))
        return 0;
    if (vq->in_flight >= vq->s->size)
        return virtq_break(vq, "more chains in flight than the queue has entries");
    const char *why = walk_packed(walk, flags);
    if (why != NULL)
        return virtq_break(vq, why);
    packed_advance(vq, &vq->s->avail_idx, &vq->s->avail_wrap, walk->chain->desc_count);
    return 1;
}

int virtq_pop(struct virtq *vq, struct virtq_chain *chain, struct iovec *iov, unsigned iov_cap)
{
    if (vq->s->broken)
        return -EPROTO;
    if (!is_usable(vq))
        return 0;
    *chain = (struct virtq_chain){.iov = iov};
    struct walk walk = {.vq = vq, .chain = chain, .iov_cap = iov_cap};
    int rc = vq->packed ? pop_packed(vq, &walk) : pop_split(vq, &walk);
    if (rc == 1) {
        vq->in_flight++;
        vq->chains_popped++;
    }
    return rc;
}

void virtq_unpop(struct virtq *vq, const struct virtq_chain *chain)
{
    struct virtq_state *s = vq->s;
    assert(vq->in_flight > 0);
    vq->in_flight--;
    vq->chains_popped--;
    if (!is_usable(vq))
        return;
    if (!vq->packed) {
        s->avail_idx--;
        return;
    }
    int pos = s->avail_idx - chain->desc_count;
    if (pos < 0) {
        pos += s->size;
        s->avail_wrap ^= 1;
    }
    s->avail_idx = (uint16_t)pos;
}

/* --- push --- */

/* What the device wrote into the chain, for migration. */
static void mark_written(struct virtq *vq, const struct virtq_chain *chain, uint64_t written)
{
    const struct iovec *iov = chain->iov + chain->out_num;
    for (uint32_t i = 0; i < chain->in_num && written != 0; i++) {
        uint64_t len = iov[i].iov_len < written ? iov[i].iov_len : written;
        mem_mark_dirty_host(vq->mem, iov[i].iov_base, len);
        written -= len;
    }
}

/*
 * The next interrupt decision compares positions, which is sound up to one lap (split: one turn of
 * the 16-bit index) from the last. A device that pushes more in between, while the driver keeps up
 * with it, gets an interrupt without comparison.
 */
static void limit_distance(struct virtq *vq, unsigned n)
{
    struct virtq_state *s = vq->s;
    unsigned distance = (uint16_t)(s->used_idx - s->signalled_used), max = UINT16_MAX;
    if (vq->packed) {
        distance =
            s->used_idx + (s->used_wrap != s->signalled_wrap ? s->size : 0u) - s->signalled_used;
        max = s->size;
    }
    if (distance + n > max)
        s->signalled_valid = 0;
}

static void push_split(struct virtq *vq, const struct virtq_chain *chains, const uint32_t *written,
                       unsigned n)
{
    struct virtq_state *s = vq->s;
    for (unsigned i = 0; i < n; i++) {
        size_t slot = (uint16_t)(s->used_idx + i) & (s->size - 1);
        uint8_t *p = vq->device + 4 + 8 * slot;
        store_le32(p, chains[i].id);
        store_le32(p + 4, written[i]);
        mem_mark_dirty_host(vq->mem, p, 8);
    }
    limit_distance(vq, n);
    s->used_idx = (uint16_t)(s->used_idx + n);
    store16_release(vq, vq->device + 2, s->used_idx); /* (B) */
}

/*
 * The driver polls the first of the used descriptors alone, and follows from there: its flags are
 * written last, which makes all n visible together.
 */
static void push_packed(struct virtq *vq, const struct virtq_chain *chains, const uint32_t *written,
                        unsigned n)
{
    struct virtq_state *s = vq->s;
    uint8_t *first = NULL;
    unsigned first_flags = 0;
    for (unsigned i = 0; i < n; i++) {
        uint8_t *p = vq->desc + (size_t)DESC_BYTES * s->used_idx;
        unsigned flags =
            (s->used_wrap ? DESC_F_AVAIL | DESC_F_USED : 0) | (written[i] != 0 ? DESC_F_WRITE : 0);
        store_le32(p + 8, written[i]);
        store_le16(p + 12, chains[i].id);
        mem_mark_dirty_host(vq->mem, p, DESC_BYTES);
        if (i == 0) {
            first = p;
            first_flags = flags;
        } else {
            store16(vq, p + 14, (uint16_t)flags);
        }
        limit_distance(vq, chains[i].desc_count);
        packed_advance(vq, &s->used_idx, &s->used_wrap, chains[i].desc_count);
    }
    store16_release(vq, first + 14, (uint16_t)first_flags); /* (B) */
}

void virtq_push_many(struct virtq *vq, const struct virtq_chain *chains, const uint32_t *written,
                     unsigned n)
{
    if (n == 0)
        return;
    assert(vq->in_flight >= n);
    vq->in_flight -= n;
    for (unsigned i = 0; i < n; i++) {
        assert(written[i] <= chains[i].in_len);
        mark_written(vq, &chains[i], written[i]);
    }
    if (!is_usable(vq))
        return;
    if (vq->packed)
        push_packed(vq, chains, written, n);
    else
        push_split(vq, chains, written, n);
}

void virtq_push(struct virtq *vq, const struct virtq_chain *chain, uint32_t written)
{
    virtq_push_many(vq, chain, &written, 1);
}

/* --- event suppression --- */

/*
 * Has the index passed `event` on its way from `old` to `new`? All modulo 2^16, so that the
 * distances count, not the values (2.7.10).
 */
static bool passed(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static bool wants_interrupt_split(const struct virtq *vq, uint16_t old)
{
    const struct virtq_state *s = vq->s;
    if (!vq->event_idx)
        return !(load16(vq->driver) & AVAIL_F_NO_INTERRUPT);
    return passed(load16(vq->driver + 4 + 2 * (size_t)s->size), s->used_idx, old);
}

/* Positions of the previous lap count as negative: new is in this lap, [0, size). */
static bool wants_interrupt_packed(const struct virtq *vq, uint16_t old, uint8_t old_wrap)
{
    const struct virtq_state *s = vq->s;
    /* The driver writes the offset before the flags: read them in the other order. */
    unsigned flags = load16_acquire(vq->driver + 2) & EVENT_MASK;
    if (flags == EVENT_DISABLE)
        return false;
    if (flags != EVENT_DESC || !vq->event_idx)
        return true;
    uint16_t desc = load16(vq->driver);
    uint16_t event = desc & 0x7fff;
    if ((desc >> 15) != s->used_wrap)
        event = (uint16_t)(event - s->size);
    if (old_wrap != s->used_wrap)
        old = (uint16_t)(old - s->size);
    return passed(event, s->used_idx, old);
}

bool virtq_should_interrupt(struct virtq *vq)
{
    struct virtq_state *s = vq->s;
    if (!is_usable(vq))
        return false;
    uint16_t old = s->signalled_used;
    uint8_t old_wrap = s->signalled_wrap;
    bool valid = s->signalled_valid;
    s->signalled_used = s->used_idx;
    s->signalled_wrap = s->used_wrap;
    s->signalled_valid = 1;
    if (!valid)
        return true;
    if (old == s->used_idx && (!vq->packed || old_wrap == s->used_wrap))
        return false; /* nothing was pushed */
    full_fence();     /* (C) */
    return vq->packed ? wants_interrupt_packed(vq, old, old_wrap) : wants_interrupt_split(vq, old);
}

void virtq_disable_kick(struct virtq *vq)
{
    if (!is_usable(vq))
        return;
    if (vq->packed)
        store16(vq, vq->device + 2, EVENT_DISABLE);
    else if (!vq->event_idx)
        store16(vq, vq->device, USED_F_NO_NOTIFY);
    /* Split with event index: avail_event stays behind, which asks for nothing (2.7.10). */
}

bool virtq_enable_kick(struct virtq *vq)
{
    struct virtq_state *s = vq->s;
    if (!is_usable(vq))
        return false;
    if (!vq->packed && vq->event_idx) {
        store16(vq, vq->device + 4 + 8 * (size_t)s->size, s->avail_idx);
    } else if (!vq->packed) {
        store16(vq, vq->device, 0);
    } else if (vq->event_idx) {
        store16(vq, vq->device, (uint16_t)(s->avail_idx | s->avail_wrap << 15));
        store16_release(vq, vq->device + 2, EVENT_DESC); /* flags after the offset they refer to */
    } else {
        store16(vq, vq->device + 2, EVENT_ENABLE);
    }
    full_fence(); /* (D) */
    unsigned flags;
    if (vq->packed)
        return packed_available(vq, &flags);
    return load16_acquire(vq->driver + 2) != s->avail_idx;
}

/* --- helpers on chains --- */

/* Copy between buf and iov, which is guest memory; exactly one of in and out is given. */
static size_t iov_copy(const struct iovec *iov, uint32_t count, size_t offset, void *out,
                       const void *in, size_t len)
{
    size_t done = 0;
    for (uint32_t i = 0; i < count && done < len; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - offset;
        if (n > len - done)
            n = len - done;
        uint8_t *guest = (uint8_t *)iov[i].iov_base + offset;
        if (out != NULL)
            memcpy((uint8_t *)out + done, guest, n);
        else
            memcpy(guest, (const uint8_t *)in + done, n);
        done += n;
        offset = 0;
    }
    return done;
}

size_t virtq_chain_read(const struct virtq_chain *chain, size_t offset, void *buf, size_t len)
{
    size_t n = iov_copy(chain->iov, chain->out_num, offset, buf, NULL, len);
    __asm__ volatile("" ::: "memory"); /* as in desc_copy(): buf is the only look */
    return n;
}

size_t virtq_chain_write(const struct virtq_chain *chain, size_t offset, const void *buf,
                         size_t len)
{
    return iov_copy(chain->iov + chain->out_num, chain->in_num, offset, NULL, buf, len);
}
