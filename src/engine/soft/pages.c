/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is known of guest pages beyond their translation: whether decoded code came from them, and
 * whether they were written since the dirty log was last collected.
 *
 * Code. A page has a generation and a bit for each 64-byte line from which some block was decoded.
 * A block keeps the generation of its page and is stale when that has moved on. A TLB entry gets a
 * write tag only while no line bit of its page is set; a write without a tag is a slow one:
 *
 *     decoder                            slow writer
 *       load the generation                store the data
 *       set line bits (locked)             full fence
 *       [page was data: see below]         load the line bits; where they cover the store:
 *       read and decode the bytes            clear all bits, count the generation up
 *
 * The fence and the locked operation order the two: either the writer sees the bits, and the block
 * is stale, or the decoder reads the new bytes. The generation comes first: one that was loaded
 * after the bits were found set could be that of a writer who has cleared them, and the block would
 * be fresh, and nobody watch it.
 *
 * Fast writers, of vCPUs that got a tag when the page was data, see no bits. So whoever sets the
 * first bit of a page drops its own tags of it at once and asks the other vCPUs that may have one
 * to do so (SOFT_EVENT_MMU). Each notes the pages to which it ever gave a tag in a bitmap, so that
 * only those are asked. A vCPU that serves the request may have written through its tag since the
 * bits were set, without a trace: it counts the generation up, as if it had. What the decoder's
 * vCPU runs until then may be old code, as on hardware until the next serialising event.
 *
 * The VMM's own writes (disks, network) are reported by mem_on_write() after the bytes are there.
 *
 * Dirty log. While logging, a write tag is given only after the page's bit in the log is set. Start
 * and collect stop all vCPUs for a moment (an exclusive section), so that no vCPU writes through an
 * old tag between the exchange of the bitmap and the loss of its tags.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/units.h"
#include "engine/soft/mmu_internal.h"
#include "engine/soft/translate.h"

#define LINE_SHIFT 6

struct page_region *pages_find(struct soft_vm *vm, uint64_t gpa, uint64_t *offset)
{
    struct code_pages *pages = vm->code;
    for (size_t i = 0; i < MEM_REGIONS_MAX; i++) {
        struct page_region *r = &pages->regions[i];
        if (!r->region)
            break;
        uint64_t start = gpa - r->region->base.a;
        if (start < r->region->len_bytes) {
            *offset = start;
            return r;
        }
    }
    return NULL;
}

static uint64_t line_mask(uint64_t offset, uint64_t len)
{
    unsigned first = (unsigned)(offset & PAGE_OFFSET) >> LINE_SHIFT;
    unsigned last = (unsigned)((offset & PAGE_OFFSET) + len - 1) >> LINE_SHIFT;
    return ~0ULL >> (63 - last) & ~0ULL << first;
}

/* Ask vCPUs to drop what they have of a page: write tags, or translated code. */
static void ask_to_drop(struct soft_cpu *other, uint64_t gpa, enum mmu_request_kind kind)
{
    struct tlb_sets *sets = other->tlb->sets;
    pthread_mutex_lock(&sets->lock);
    if (sets->request_count < MMU_REQUESTS)
        sets->requests[sets->request_count++] = gpa | kind;
    else
        sets->request_all = true;
    pthread_mutex_unlock(&sets->lock);
    soft_cpu_notify(other, SOFT_EVENT_MMU);
}

/* by: the vCPU whose thread this is, or NULL. It drops at once; the others when they look up. */
static void drop_translated(struct soft_vm *vm, struct soft_cpu *by, uint64_t gpa, uint32_t who)
{
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        struct soft_cpu *cpu = __atomic_load_n(&vm->cpus[i], __ATOMIC_ACQUIRE);
        if (!cpu || !cpu->tlb || !(who >> (i % 32) & 1))
            continue;
        if (cpu == by)
            translate_drop(cpu, gpa);
        else
            ask_to_drop(cpu, gpa, MMU_REQUEST_CODE);
    }
}

/*
 * Where code is made again and again (a JIT's pages, code that modifies itself), to give the page
 * write tags after each change and to take them from all vCPUs at the next execution costs far more
 * than to look at each write. So a page that has changed some times is watched for a while.
 */
#define WATCH_CHANGES 8u
#define WATCH_WRITES  256u

static bool is_watched(struct page_info *info)
{
    uint32_t left = __atomic_load_n(&info->watched, __ATOMIC_RELAXED);
    if (left == 0)
        return false;
    __atomic_store_n(&info->watched, left - 1, __ATOMIC_RELAXED); /* about so many */
    return true;
}

static void invalidate(struct soft_vm *vm, struct soft_cpu *by, struct page_region *r,
                       uint64_t page)
{
    struct page_info *info = &r->info[page];
    __atomic_store_n(&info->lines, 0, __ATOMIC_SEQ_CST);
    if (__atomic_fetch_add(&info->generation, 1, __ATOMIC_SEQ_CST) >= WATCH_CHANGES)
        __atomic_store_n(&info->watched, WATCH_WRITES, __ATOMIC_RELAXED);
    uint32_t who = __atomic_exchange_n(&info->translated, 0, __ATOMIC_SEQ_CST);
    if (who)
        drop_translated(vm, by, r->region->base.a + page * PAGE_BYTES, who);
}

bool mmu_code_translated(struct soft_cpu *cpu, uint64_t gpa, uint32_t generation)
{
    uint64_t offset;
    struct page_region *r = pages_find(cpu->vm, gpa, &offset);
    if (!r)
        return false;
    /* The bit first: whoever counts up afterwards finds it. */
    struct page_info *info = &r->info[offset / PAGE_BYTES];
    __atomic_fetch_or(&info->translated, 1u << (cpu->base.id % 32), __ATOMIC_SEQ_CST);
    return __atomic_load_n(&info->generation, __ATOMIC_SEQ_CST) == generation;
}

bool pages_written(struct soft_vm *vm, struct soft_cpu *by, struct page_region *r, uint64_t offset,
                   uint64_t len)
{
    bool hit = false;
    soft_fence();
    while (len > 0) {
        uint64_t left = PAGE_BYTES - (offset & PAGE_OFFSET);
        uint64_t now = len < left ? len : left;
        struct page_info *info = &r->info[offset / PAGE_BYTES];
        uint64_t lines = __atomic_load_n(&info->lines, __ATOMIC_RELAXED);
        if (lines && lines & line_mask(offset, now)) {
            invalidate(vm, by, r, offset / PAGE_BYTES);
            hit = true;
        }
        offset += now;
        len -= now;
    }
    return hit;
}

void pages_dirty(struct soft_vm *vm, struct page_region *r, uint64_t offset)
{
    uint64_t page = offset / PAGE_BYTES;
    if (vm->code->logging && r->dirty)
        __atomic_fetch_or(&r->dirty[page / 64], 1ULL << (page % 64), __ATOMIC_SEQ_CST);
}

bool pages_allow_fast_write(struct soft_cpu *cpu, struct page_region *r, uint64_t offset)
{
    struct code_pages *pages = cpu->vm->code;
    uint64_t page = offset / PAGE_BYTES;
    uint64_t *tagged = cpu->tlb->sets->tagged[r - pages->regions];
    if (is_watched(&r->info[page]))
        return false;
    /* Noted first, then looked: the decoder sets the bits first and then looks who has noted. */
    uint64_t bit = 1ULL << (page % 64);
    if (!(__atomic_load_n(&tagged[page / 64], __ATOMIC_RELAXED) & bit))
        __atomic_fetch_or(&tagged[page / 64], bit, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&r->info[page].lines, __ATOMIC_SEQ_CST) != 0)
        return false;
    pages_dirty(cpu->vm, r, offset);
    return true;
}

/* --- code --- */

/* The page has become code: nobody writes to it unseen. */
static void drop_everywhere(struct soft_cpu *cpu, const struct page_region *r, uint64_t page)
{
    struct soft_vm *vm = cpu->vm;
    uint64_t gpa = r->region->base.a + page * PAGE_BYTES;
    size_t index = (size_t)(r - vm->code->regions);
    uint64_t bit = 1ULL << (page % 64);
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        struct soft_cpu *other = __atomic_load_n(&vm->cpus[i], __ATOMIC_ACQUIRE);
        if (!other || !other->tlb || !other->tlb->sets->tagged[index])
            continue;
        uint64_t *word = &other->tlb->sets->tagged[index][page / 64];
        if (!(__atomic_load_n(word, __ATOMIC_SEQ_CST) & bit))
            continue;
        if (other == cpu) {
            tlb_drop_write_tags(cpu, gpa);
            __atomic_fetch_and(word, ~bit, __ATOMIC_SEQ_CST);
        } else {
            ask_to_drop(other, gpa, MMU_REQUEST_WRITE_TAGS);
        }
    }
}

const uint32_t *mmu_code_watch(struct soft_cpu *cpu, uint64_t gpa, unsigned len, uint32_t *before)
{
    uint64_t offset;
    struct page_region *r = pages_find(cpu->vm, gpa, &offset);
    if (!r)
        return NULL;
    struct page_info *info = &r->info[offset / PAGE_BYTES];
    uint64_t mask = line_mask(offset, len);
    *before = __atomic_load_n(&info->generation, __ATOMIC_SEQ_CST);
    if ((__atomic_load_n(&info->lines, __ATOMIC_SEQ_CST) & mask) != mask) {
        uint64_t watched = __atomic_fetch_or(&info->lines, mask, __ATOMIC_SEQ_CST);
        if (watched == 0 && !r->region->read_only)
            drop_everywhere(cpu, r, offset / PAGE_BYTES);
    }
    return &info->generation;
}

/* The VMM has written. */
static void on_write(void *ctx, const struct mem_region *region, uint64_t offset, uint64_t len)
{
    struct soft_vm *vm = ctx;
    uint64_t at;
    struct page_region *r = pages_find(vm, region->base.a + offset, &at);
    if (r)
        pages_written(vm, NULL, r, at, len);
}

/* More was asked for than the list holds: as if for every page that is code. */
static void serve_all(struct soft_cpu *cpu)
{
    mmu_flush_all(cpu);
    if (cpu->blocks)
        block_cache_flush(cpu);
    for (size_t i = 0; i < MEM_REGIONS_MAX && cpu->vm->code->regions[i].region; i++) {
        struct page_region *r = &cpu->vm->code->regions[i];
        uint64_t pages = r->region->len_bytes / PAGE_BYTES;
        uint64_t *tagged = cpu->tlb->sets->tagged[i];
        for (uint64_t word = 0; tagged && word < bitmap_words(pages); word++) {
            uint64_t bits = __atomic_exchange_n(&tagged[word], 0, __ATOMIC_SEQ_CST);
            for (; bits; bits &= bits - 1) {
                uint64_t page = word * 64 + (unsigned)__builtin_ctzll(bits);
                if (__atomic_load_n(&r->info[page].lines, __ATOMIC_SEQ_CST))
                    invalidate(cpu->vm, cpu, r, page);
            }
        }
    }
}

static void serve_one(struct soft_cpu *cpu, uint64_t request)
{
    uint64_t offset, gpa = request & ~PAGE_OFFSET;
    if (request & PAGE_OFFSET) {
        translate_drop(cpu, gpa);
        return;
    }
    struct page_region *r = pages_find(cpu->vm, gpa, &offset);
    if (!r)
        return;
    uint64_t page = offset / PAGE_BYTES;
    uint64_t *tagged = cpu->tlb->sets->tagged[r - cpu->vm->code->regions];
    tlb_drop_write_tags(cpu, gpa);
    __atomic_fetch_and(&tagged[page / 64], ~(1ULL << (page % 64)), __ATOMIC_SEQ_CST);
    invalidate(cpu->vm, cpu, r, page);
}

void mmu_serve(struct soft_cpu *cpu)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    uint64_t requests[MMU_REQUESTS];
    pthread_mutex_lock(&sets->lock);
    unsigned count = sets->request_count;
    bool all = sets->request_all;
    memcpy(requests, sets->requests, count * sizeof(requests[0]));
    sets->request_count = 0;
    sets->request_all = false;
    pthread_mutex_unlock(&sets->lock);
    if (all)
        serve_all(cpu);
    else
        for (unsigned i = 0; i < count; i++)
            serve_one(cpu, requests[i]);
}

/* --- the VM's --- */

int mmu_vm_init(struct soft_vm *vm, struct err *err)
{
    vm->code = calloc(1, sizeof(*vm->code));
    return vm->code ? 0 : err_errno(err, ENOMEM, "the soft engine's list of pages");
}

void mmu_vm_fini(struct soft_vm *vm)
{
    if (!vm->code)
        return;
    for (size_t i = 0; i < MEM_REGIONS_MAX; i++) {
        struct page_region *r = &vm->code->regions[i];
        if (r->info)
            munmap(r->info, r->info_bytes);
        free(r->dirty);
    }
    free(vm->code);
    vm->code = NULL;
}

int mmu_vm_map(struct soft_vm *vm, unsigned slot, const struct mem_region *region, struct err *err)
{
    size_t index = 0;
    while (vm->code->regions[index].region)
        index++;
    struct page_region *r = &vm->code->regions[index];
    r->info_bytes = region->len_bytes / PAGE_BYTES * sizeof(r->info[0]);
    /* Pages of it come when they are touched: those of guest pages with code. */
    void *info = mmap(NULL, r->info_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (info == MAP_FAILED)
        return err_errno(err, errno, "%s: the soft engine's list of pages", region->name);
    r->info = info;
    r->slot = slot;
    r->region = region;
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        if (vm->cpus[i] && mmu_add_region(vm->cpus[i], index) < 0)
            return err_errno(err, ENOMEM, "%s: the soft engine's list of pages", region->name);
    }
    if (!vm->mem) {
        vm->mem = region->mem;
        mem_on_write(vm->mem, on_write, vm);
    }
    return 0;
}

/* --- the dirty log --- */

static struct page_region *region_of_slot(struct soft_vm *vm, unsigned slot)
{
    for (size_t i = 0; i < MEM_REGIONS_MAX && vm->code->regions[i].region; i++) {
        if (vm->code->regions[i].slot == slot)
            return &vm->code->regions[i];
    }
    return NULL;
}

/* No write tag outlives this. In an exclusive section. */
static void flush_all_vcpus(struct soft_vm *vm)
{
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        if (vm->cpus[i])
            mmu_flush_all(vm->cpus[i]);
    }
}

int mmu_dirty_start(struct soft_vm *vm, struct err *err)
{
    for (size_t i = 0; i < MEM_REGIONS_MAX && vm->code->regions[i].region; i++) {
        struct page_region *r = &vm->code->regions[i];
        size_t words = bitmap_words(r->region->len_bytes / PAGE_BYTES);
        if (!r->dirty)
            r->dirty = calloc(words, sizeof(uint64_t));
        if (!r->dirty)
            return err_errno(err, ENOMEM, "%s: dirty bitmap", r->region->name);
        memset(r->dirty, 0, words * sizeof(uint64_t));
    }
    soft_exclusive_begin_outside(vm);
    vm->code->logging = true;
    flush_all_vcpus(vm);
    soft_exclusive_end_outside(vm);
    return 0;
}

int mmu_dirty_collect(struct soft_vm *vm, unsigned slot, uint64_t *bitmap)
{
    struct page_region *r = region_of_slot(vm, slot);
    if (!r || !r->dirty || !vm->code->logging)
        return -ENOENT;
    size_t words = bitmap_words(r->region->len_bytes / PAGE_BYTES);
    soft_exclusive_begin_outside(vm);
    for (size_t i = 0; i < words; i++) {
        bitmap[i] |= r->dirty[i];
        r->dirty[i] = 0;
    }
    flush_all_vcpus(vm);
    soft_exclusive_end_outside(vm);
    return 0;
}

int mmu_dirty_stop(struct soft_vm *vm, struct err *err)
{
    (void)err;
    soft_exclusive_begin_outside(vm);
    vm->code->logging = false;
    soft_exclusive_end_outside(vm);
    return 0;
}
