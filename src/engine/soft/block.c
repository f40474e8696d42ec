/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of one vCPU. Blocks and their instructions lie one after another in an arena; a hash
 * table finds them by guest-physical address and mode, and a table by RIP, which is checked against
 * fetch_key (mmu.h), saves the translation. When the arena is full everything is forgotten: what is
 * in use comes back at once.
 */
#include "engine/soft/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/soft/decode.h"
#include "engine/soft/exec.h"
#include "engine/soft/mmu.h"
#include "engine/soft/translate.h"
#include "engine/soft/vm.h"

/* Decoded blocks take more than their translations: so many bytes for 8 of the code cache. */
#define ARENA_SHARE       12
#define PAGE_MASK         0xfffULL

#define MODE_VEX          (1u << 8)
#define MODE_CAREFUL      (1u << 9)
#define MODE_TRANSLATABLE (1u << 10)

static const uint32_t no_page; /* the generation of what is decoded anew each time */

static const struct opcode fall_through = {.name = "(end)", .op = OP_FALL_THROUGH};

static uint64_t mode_of(const struct soft_cpu *cpu)
{
    bool vex = !cpu->mode.real && !cpu->mode.v86;
    return cpu->mode.code_bits | (vex ? MODE_VEX : 0) | (cpu->mode.careful ? MODE_CAREFUL : 0) |
           (cpu->mode.translatable ? MODE_TRANSLATABLE : 0) | cpu->code_tag;
}

static size_t hash_of(uint64_t gpa, uint64_t rip, uint64_t mode)
{
    uint64_t h = (gpa ^ (rip >> 12) * 0xff51afd7ed558ccdULL ^ mode << 40 ^ mode >> 32) *
                 0x9e3779b97f4a7c15ULL;
    return (size_t)(h >> (64 - HASH_BITS));
}

static bool is_fresh(const struct block *b)
{
    return __atomic_load_n(b->current, __ATOMIC_ACQUIRE) == b->generation &&
           (!b->next_current ||
            __atomic_load_n(b->next_current, __ATOMIC_ACQUIRE) == b->next_generation);
}

/* The handler of what ends a block that has no branch at its end. */
static void exec_fall_through(struct soft_cpu *cpu, const struct insn *insn)
{
    cpu->rip = soft_next_rip(cpu, insn);
}

/* --- fetching --- */

struct fetch {
    uint64_t la;           /* of the block */
    uint64_t page;         /* guest-physical */
    const uint8_t *host;   /* of the page, or NULL: device memory */
    bool crossed;          /* its first instruction reaches into the next page */
    struct mmu_fetch next; /* which is there, */
    const uint32_t *next_current;
    uint32_t next_generation; /* and was so before its bytes were read */
};

static uint64_t code_linear(const struct soft_cpu *cpu, uint64_t rip)
{
    return (cpu->seg_base[SEG_CS] + rip) & cpu->mode.linear_mask;
}

/* Bytes at rip that the code segment's limit allows to be fetched; raises where there are none. */
static size_t limit_bytes(struct soft_cpu *cpu, uint64_t rip, size_t wanted)
{
    if (cpu->code_flat)
        return wanted;
    uint64_t limit = cpu->seg[SEG_CS].limit;
    if (rip > limit)
        soft_raise_error(cpu, EXC_GP, 0);
    uint64_t left = limit - rip + 1;
    return left < wanted ? (size_t)left : wanted;
}

static void read_device(struct soft_cpu *cpu, uint64_t gpa, uint8_t *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        soft_mmio_read(cpu, gpa + i, 1, &buf[i]);
}

/* The bytes at offset of the page, without those of the next one: how many. */
static size_t bytes_here(struct soft_cpu *cpu, const struct fetch *f, size_t offset,
                         uint8_t buf[INSN_LEN_MAX + 1], size_t wanted)
{
    size_t len = PAGE_MASK + 1 - offset;
    len = len < wanted ? len : wanted;
    if (f->host)
        memcpy(buf, f->host + offset, len);
    else
        read_device(cpu, f->page + offset, buf, len);
    return len;
}

/* Decode at rip; false: no first instruction can be had here without a fault that it does not
 * deserve (it is not the first of its block). */
static bool decode_one(struct soft_cpu *cpu, struct fetch *f, uint64_t rip, size_t offset,
                       bool first, struct insn *insn)
{
    const struct decode_mode mode = {.code_bits = cpu->mode.code_bits,
                                     .vex = !cpu->mode.real && !cpu->mode.v86,
                                     .features = cpu->vm->model.features};
    uint8_t bytes[INSN_LEN_MAX + 1];
    if (!first && !cpu->code_flat && rip > cpu->seg[SEG_CS].limit)
        return false;
    size_t allowed = limit_bytes(cpu, rip, INSN_LEN_MAX);
    size_t len = bytes_here(cpu, f, offset, bytes, allowed);
    enum decode_status status = decode_insn(insn, bytes, len, &mode);
    if (status == DECODE_MORE && len < allowed) {
        if (!first)
            return false;
        f->crossed = true;
        f->next = mmu_fetch_page(cpu, code_linear(cpu, rip + len));
        if (f->next.host) {
            f->next_current =
                mmu_code_watch(cpu, f->next.gpa, (unsigned)(allowed - len), &f->next_generation);
            memcpy(bytes + len, f->next.host, allowed - len);
        } else {
            read_device(cpu, f->next.gpa, bytes + len, allowed - len);
        }
        status = decode_insn(insn, bytes, allowed, &mode);
    }
    if (status == DECODE_OK)
        return true;
    if (first) /* too long, or it ends behind the segment's limit */
        soft_raise_error(cpu, EXC_GP, 0);
    return false;
}

/* --- making blocks --- */

static bool ends_block(const struct insn *insn)
{
    return insn->opcode->attr & (ATTR_BRANCH | ATTR_ENDS_BLOCK) || insn->op == OP_UD;
}

static void append_end(struct block *b, unsigned next_offset)
{
    struct insn *end = &b->insns[b->count++];
    *end = (struct insn){.exec = exec_fall_through,
                         .place = (uint8_t)(b->count - 1),
                         .opcode = &fall_through,
                         .op = OP_FALL_THROUGH,
                         .next_offset = (uint16_t)next_offset};
}

static void decode_block(struct soft_cpu *cpu, struct fetch *f, struct block *b, unsigned max)
{
    size_t start = f->la & PAGE_MASK, offset = start;
    struct insn *insn = NULL;
    b->count = 0;
    b->offset = (uint16_t)start;
    while (b->count < max && offset <= PAGE_MASK) {
        insn = &b->insns[b->count];
        if (!decode_one(cpu, f, cpu->rip + (offset - start), offset, b->count == 0, insn))
            break;
        offset += insn->len;
        insn->next_offset = (uint16_t)offset;
        insn->place = (uint8_t)b->count;
        exec_bind(cpu, insn);
        b->count++;
        if (ends_block(insn))
            return;
    }
    append_end(b, (unsigned)offset);
}

static void forget(struct soft_cpu *cpu)
{
    struct block_cache *cache = cpu->blocks;
    memset(cache->hash, 0, sizeof(cache->hash));
    memset(cache->front, 0, sizeof(cache->front));
    cache->used = 0;
    cache->stats.flushes++;
    translate_flush(cpu);
}

static size_t block_bytes(unsigned count)
{
    return (sizeof(struct block) + count * sizeof(struct insn) + 63) & ~(size_t)63;
}

static struct block *make(struct soft_cpu *cpu, struct fetch *f, uint64_t mode)
{
    struct block_cache *cache = cpu->blocks;
    unsigned max = mode & MODE_CAREFUL || !f->host ? 1 : cache->insns_max;
    if (cache->used + block_bytes(BLOCK_INSNS_MAX + 1) > cache->bytes)
        forget(cpu);
    struct block *b = (struct block *)(void *)(cache->arena + cache->used);
    size_t offset = f->la & PAGE_MASK;
    const uint32_t *generation = NULL;
    uint32_t before = 0;
    if (f->host) {
        /* The lines to the page's end: more than will be decoded, so that no write is missed. */
        size_t reach = PAGE_MASK + 1 - offset;
        size_t most = (size_t)max * INSN_LEN_MAX;
        generation =
            mmu_code_watch(cpu, f->page + offset, (unsigned)(reach < most ? reach : most), &before);
    }
    decode_block(cpu, f, b, max);
    cache->stats.made++;
    b->gpa = f->page + offset;
    b->rip = cpu->rip;
    b->mode = mode;
    b->code = b->saved = b->indirect = b->link = b->link_saved = NULL;
    b->stale = b->stale_saved = NULL;
    b->runs = 0;
    b->last_vector = b->vectors = 0;
    b->current = generation ? generation : &no_page;
    b->generation = before;
    b->next_gpa = f->next.gpa;
    b->next_current = f->next_current;
    b->next_generation = f->next_generation;
    /* Across a page's end a segment's limit may be what keeps it from being fetched. */
    if (!generation || (f->crossed && (!f->next_current || !cpu->code_flat))) {
        b->runs = TRANSLATE_NEVER;
        b->next_current = NULL;
        memcpy(cache->transient, b, block_bytes(b->count));
        return cache->transient;
    }
    cache->used += block_bytes(b->count);
    if (cache->used > cache->stats.bytes)
        cache->stats.bytes = cache->used;
    size_t h = hash_of(b->gpa, b->rip, mode);
    b->next = cache->hash[h];
    cache->hash[h] = b;
    return b;
}

/* Is a block that crosses into the next page about what is mapped there now? Fetches from it. */
static bool is_mapped(struct soft_cpu *cpu, struct fetch *f, const struct block *b)
{
    f->crossed = true;
    f->next = mmu_fetch_page(cpu, code_linear(cpu, (b->rip | PAGE_MASK) + 1));
    return f->next.gpa == b->next_gpa;
}

/* f: NULL where it is not executed now, so that no block across a page's end is found. */
static struct block *lookup(struct soft_cpu *cpu, struct fetch *f, uint64_t gpa, uint64_t rip,
                            uint64_t mode)
{
    struct block_cache *cache = cpu->blocks;
    struct block **link = &cache->hash[hash_of(gpa, rip, mode)];
    while (*link) {
        struct block *b = *link;
        if (b->gpa == gpa && b->rip == rip && b->mode == mode) {
            if (is_fresh(b) && (!b->next_current || (f && is_mapped(cpu, f, b))))
                return b;
            if (is_fresh(b)) {
                link = &b->next;
                continue;
            }
            cache->stats.stale++;
            *link = b->next;
            continue;
        }
        link = &b->next;
    }
    return NULL;
}

static struct block *find_slowly(struct soft_cpu *cpu, struct block_front *front)
{
    struct fetch f = {.la = code_linear(cpu, cpu->rip)};
    uint64_t mode = mode_of(cpu);
    limit_bytes(cpu, cpu->rip, 1);
    const struct mmu_fetch found = mmu_fetch_page(cpu, f.la);
    f.page = found.gpa;
    f.host = found.host;
    struct block *b = lookup(cpu, &f, f.page | (f.la & PAGE_MASK), cpu->rip, mode);
    if (b)
        cpu->blocks->stats.found++;
    else
        b = make(cpu, &f, mode);
    bool global = found.global && (!f.crossed || f.next.global);
    if (b != cpu->blocks->transient && cpu->code_keyed)
        *front = (struct block_front){.rip = cpu->rip | cpu->code_tag,
                                      .key = global ? cpu->global_block_key : cpu->block_key,
                                      .block = b};
    return b;
}

struct block *block_find(struct soft_cpu *cpu)
{
    uint64_t rip = cpu->rip | cpu->code_tag;
    struct block_front *front =
        &cpu->blocks->front[(rip ^ rip >> FRONT_BITS) & ((1u << FRONT_BITS) - 1)];
    bool known = front->key == cpu->block_key || front->key == cpu->global_block_key;
    if (__builtin_expect(front->rip == rip && known && front->block && is_fresh(front->block), 1))
        return front->block;
    return find_slowly(cpu, front);
}

struct block *block_lookup(struct soft_cpu *cpu, uint64_t gpa, uint64_t rip)
{
    return lookup(cpu, NULL, gpa, rip, mode_of(cpu));
}

struct block *block_of_insn(struct soft_cpu *cpu, const struct insn *insn)
{
    forget(cpu);
    struct block *b = (struct block *)(void *)cpu->blocks->arena;
    *b = (struct block){.rip = cpu->rip,
                        .mode = mode_of(cpu),
                        .count = 1,
                        .offset = (uint16_t)(cpu->rip & PAGE_MASK),
                        .current = &no_page};
    b->insns[0] = *insn;
    b->insns[0].place = 0;
    b->insns[0].next_offset = (uint16_t)(b->offset + insn->len);
    exec_bind(cpu, &b->insns[0]);
    if (!ends_block(insn))
        append_end(b, b->insns[0].next_offset);
    return b;
}

uint32_t block_insn_offset(const struct soft_cpu *cpu, const struct insn *insn)
{
    return (uint32_t)((const uint8_t *)insn - cpu->blocks->arena);
}

const struct insn *block_insn_at(const struct soft_cpu *cpu, uint32_t offset)
{
    return (const struct insn *)(const void *)(cpu->blocks->arena + offset);
}

/* --- life --- */

int block_cache_init(struct soft_cpu *cpu, struct err *err)
{
    struct block_cache *cache = calloc(1, sizeof(*cache));
    if (cache)
        cache->transient = malloc(block_bytes(BLOCK_INSNS_MAX + 1));
    if (!cache || !cache->transient) {
        free(cache);
        return err_errno(err, ENOMEM, "the code cache of vCPU %u", cpu->base.id);
    }
    size_t bytes = translate_code_bytes(cpu) / 8 * ARENA_SHARE;
    void *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) {
        int code = errno;
        free(cache->transient);
        free(cache);
        return err_errno(err, code, "the code cache of vCPU %u", cpu->base.id);
    }
    cache->arena = arena;
    cache->bytes = bytes;
    cache->insns_max = BLOCK_INSNS_MAX;
    cpu->blocks = cache;
    return 0;
}

void block_cache_fini(struct soft_cpu *cpu)
{
    if (!cpu->blocks)
        return;
    translate_fini(cpu);
    munmap(cpu->blocks->arena, cpu->blocks->bytes);
    free(cpu->blocks->transient);
    free(cpu->blocks);
    cpu->blocks = NULL;
}

void block_cache_flush(struct soft_cpu *cpu)
{
    forget(cpu);
}

void block_cache_stats(const struct soft_cpu *cpu, struct block_stats *stats)
{
    *stats = cpu->blocks->stats;
}
