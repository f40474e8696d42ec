/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TLB, and accesses that its fast path does not allow.
 *
 * A vCPU keeps translations of several address spaces (by PCID; without PCIDs there is one), each
 * with a set for every kind of access that may see the page tables differently: supervisor, user,
 * and supervisor with SMAP lifted; and for 64-bit and other code. The fast path looks only at the
 * current set. A set remembers which of its entries it has filled, so that a flush costs no more
 * than the fills before it did.
 *
 * Global pages are kept in each space like others, but stay where the space is flushed for CR3. The
 * space may go with them: the architecture lets a TLB forget at any time.
 */
#include "engine/soft/mmu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/units.h"
#include "engine/soft/insn.h"
#include "engine/soft/mmu_internal.h"

/* tlb_entry.physical, below the page's address */
#define TLB_GLOBAL 1u
/* Two bits: of a large page that this is a piece of, 1 + the place of its size here; or 0. */
#define TLB_SIZE_SHIFT 2u

static const uint8_t large_shifts[] = {21, 22, 30};

#define LARGE_SIZES (sizeof(large_shifts) / sizeof(large_shifts[0]))

/* What the fast path looks at where no entry may match. */
static struct tlb_entry no_entries[TLB_ENTRIES];

/* Zeros become a TLB that holds nothing: behind the first few entries 0 is a tag that is never
 * looked for there, as TLB_EMPTY() is. */
static void init_entries(struct tlb_entry *entries)
{
    for (unsigned i = 0; i < 1u << (TLB_TAG_SHIFT - 12); i++)
        entries[i].read_tag = entries[i].write_tag = TLB_EMPTY(i);
}

static void init_no_entries(void)
{
    init_entries(no_entries);
}

/* --- filters --- */

static unsigned filter_bit(uint64_t number)
{
    _Static_assert(PAGE_FILTER_BITS == 1u << 14, "so many bits of a product");
    return (unsigned)(number * 0x9e3779b97f4a7c15ULL >> 50);
}

/* The page that holds la has the number, and 1 << shift bytes. */
static void filter_add(struct page_filter *f, uint64_t la, unsigned shift, uint64_t number)
{
    uint64_t first = la >> shift << shift, last = first + (1ULL << shift) - 1;
    if (!f->last || first < f->first)
        f->first = first;
    if (last > f->last)
        f->last = last;
    bitmap_set(f->bits, filter_bit(number));
}

static bool filter_has_near(const struct page_filter *f, uint64_t la)
{
    return f->last && la >= f->first && la <= f->last;
}

static void filter_clear(struct page_filter *f)
{
    if (f->last)
        memset(f, 0, sizeof(*f));
}

/* The number of the page of that size that holds la; not one of small pages. */
static uint64_t large_number(uint64_t la, unsigned size)
{
    return la >> large_shifts[size] | (uint64_t)(1 + size) << 60;
}

static void filter_add_small(struct page_filter *f, uint64_t la)
{
    filter_add(f, la, 12, la >> 12);
}

static void filter_add_large(struct page_filter *f, uint64_t la, unsigned size)
{
    filter_add(f, la, large_shifts[size], large_number(la, size));
}

static bool may_be_small(const struct page_filter *f, uint64_t la)
{
    return filter_has_near(f, la) && bitmap_test(f->bits, filter_bit(la >> 12));
}

static bool may_be_large(const struct page_filter *f, uint64_t la)
{
    if (!filter_has_near(f, la))
        return false;
    for (unsigned size = 0; size < LARGE_SIZES; size++) {
        if (bitmap_test(f->bits, filter_bit(large_number(la, size))))
            return true;
    }
    return false;
}

/* The place of a page's size in large_shifts. */
static unsigned size_index(uint64_t bytes)
{
    unsigned size = 0;
    while (size < LARGE_SIZES - 1 && bytes >> large_shifts[size] != 1)
        size++;
    return size;
}

/* --- contexts --- */

static struct soft_context *context_new(struct soft_cpu *cpu)
{
    const size_t bytes = (sizeof(struct soft_context) + PAGE_OFFSET) & ~(size_t)PAGE_OFFSET;
    uint8_t *base = mmap(NULL, SOFT_CPU_SPAN + bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (cpu->memory_fd > 0 && mmap(base, SOFT_CPU_SPAN, PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_FIXED, cpu->memory_fd, 0) == MAP_FAILED) {
        munmap(base, SOFT_CPU_SPAN + bytes);
        return NULL;
    }
    struct soft_context *context = (struct soft_context *)(void *)(base + SOFT_CPU_SPAN);
    init_entries(context->tlb);
    context->self = context;
    return context;
}

static void context_free(struct soft_context *context)
{
    const size_t bytes = (sizeof(*context) + PAGE_OFFSET) & ~(size_t)PAGE_OFFSET;
    if (context)
        munmap((uint8_t *)context - SOFT_CPU_SPAN, SOFT_CPU_SPAN + bytes);
}

static void forget_stack(struct soft_context *context)
{
    for (unsigned i = 0; i < STACK_SIZES; i++)
        context->stack_read.limits[i] = context->stack_write.limits[i] = 0;
}

static void entry_use(struct soft_context *context, unsigned i)
{
    bitmap_set(context->tlb_used, i);
    bitmap_set(context->tlb_words, i / 64);
}

static void entry_clear(struct soft_context *context, unsigned i)
{
    if (!bitmap_test(context->tlb_used, i))
        return;
    context->tlb[i].read_tag = context->tlb[i].write_tag = TLB_EMPTY(i);
    bitmap_clear(context->tlb_used, i);
    if (!context->tlb_used[i / 64])
        bitmap_clear(context->tlb_words, i / 64);
}

/* The first entry from there on that is in use, or TLB_ENTRIES. */
static unsigned entry_next(const struct soft_context *context, unsigned i)
{
    while (i < TLB_ENTRIES) {
        uint64_t entries = context->tlb_used[i / 64] >> i % 64;
        if (entries)
            return i + (unsigned)__builtin_ctzll(entries);
        unsigned word = i / 64 + 1;
        uint64_t words = word < TLB_ENTRIES / 64 ? context->tlb_words[word / 64] >> word % 64 : 0;
        /* Words that the shift has lost are looked for from the next multiple of 64 on. */
        i = 64 * (words ? word + (unsigned)__builtin_ctzll(words) : (word | 63u) + 1);
    }
    return TLB_ENTRIES;
}

/* The entries for which leaves() is false stay. */
static void context_clear_tlb(struct soft_context *context,
                              bool (*leaves)(const struct tlb_entry *entry, uint64_t la),
                              uint64_t la)
{
    forget_stack(context);
    for (unsigned i = entry_next(context, 0); i < TLB_ENTRIES; i = entry_next(context, i + 1)) {
        if (leaves(&context->tlb[i], la))
            entry_clear(context, i);
    }
}

static bool any_entry(const struct tlb_entry *entry, uint64_t la)
{
    (void)entry, (void)la;
    return true;
}

static bool local_entry(const struct tlb_entry *entry, uint64_t la)
{
    (void)la;
    return !(entry->physical & TLB_GLOBAL);
}

static bool large_entry(const struct tlb_entry *entry, uint64_t la)
{
    unsigned size = entry->physical >> TLB_SIZE_SHIFT & 3;
    return size > 0 && large_number(entry->read_tag, size - 1) == large_number(la, size - 1);
}

/* Those of a word of the bitmap, but for what is in `keep`. */
static void context_clear_jump_word(struct soft_context *context, unsigned word, uint64_t keep)
{
    for (uint64_t used = context->jumps_used[word] & ~keep; used; used &= used - 1)
        context->jumps[word * 64 + (unsigned)__builtin_ctzll(used)] = 0;
    context->jumps_used[word] &= keep;
    context->jumps_global[word] &= keep;
    if (!context->jumps_used[word])
        bitmap_clear(context->jumps_words, word);
}

static void context_clear_second(struct soft_context *context, bool keep_global)
{
    for (unsigned i = 0; i < SECOND_SLOTS / 64; i++) {
        uint64_t keep = keep_global ? context->second_global[i] : 0;
        for (uint64_t used = context->second_used[i] & ~keep; used; used &= used - 1)
            context->second[i * 64 + (unsigned)__builtin_ctzll(used)] = (struct second_jump){0};
        context->second_used[i] &= keep;
        context->second_global[i] &= keep;
    }
}

static void context_clear_jumps(struct soft_context *context, bool keep_global)
{
    context_clear_second(context, keep_global);
    for (unsigned i = 0; i < JUMP_SLOTS / 64 / 64; i++) {
        for (uint64_t words = context->jumps_words[i]; words; words &= words - 1) {
            unsigned word = i * 64 + (unsigned)__builtin_ctzll(words);
            context_clear_jump_word(context, word, keep_global ? context->jumps_global[word] : 0);
        }
    }
}

/* Those of one page, and of instructions that cross into it from the one before; others may go. */
static void context_drop_jumps(struct soft_context *context, uint64_t la)
{
    context_clear_second(context, false);
    unsigned first = (mmu_jump_slot(la) & ~(unsigned)PAGE_OFFSET) / 64;
    for (unsigned word = first; word < first + PAGE_BYTES / 64; word++)
        context_clear_jump_word(context, word, 0);
    context_clear_jump_word(context, mmu_jump_slot((la & ~PAGE_OFFSET) - 1) / 64, 0);
}

/* What is known of la's page as code of the current kind, or NULL. */
static const struct fetch_entry *fetch_known(const struct soft_cpu *cpu, uint64_t la)
{
    const struct tlb_sets *sets = cpu->tlb->sets;
    const struct fetch_entry *e = &sets->space->fetches[la >> 12 & (FETCH_ENTRIES - 1)];
    return e->tag == ((la & ~PAGE_OFFSET) | (1 + sets->kind)) ? e : NULL;
}

static bool is_global_code(const struct soft_cpu *cpu, uint64_t la)
{
    const struct fetch_entry *known = fetch_known(cpu, la);
    return known && known->found.global;
}

static void bitmap_put(uint64_t *bitmap, unsigned i, bool value)
{
    if (value)
        bitmap_set(bitmap, i);
    else
        bitmap_clear(bitmap, i);
}

void mmu_set_jump(struct soft_cpu *cpu, uint64_t rip, bool crosses, uint32_t code,
                  uint32_t unchecked)
{
    struct soft_context *context = cpu->tlb->context;
    uint64_t key = rip | cpu->code_tag;
    unsigned slot = mmu_jump_slot(rip), second = mmu_second_slot(key);
    if (!context)
        return;
    uint64_t la = (cpu->seg_base[SEG_CS] + rip) & cpu->mode.linear_mask;
    bool global =
        is_global_code(cpu, la) && (!crosses || is_global_code(cpu, (la | PAGE_OFFSET) + 1));
    bitmap_set(context->jumps_used, slot);
    bitmap_set(context->jumps_words, slot / 64);
    bitmap_put(context->jumps_global, slot, global);
    context->jumps[slot] = code;
    bitmap_set(context->second_used, second);
    bitmap_put(context->second_global, second, global);
    context->second[second] = (struct second_jump){.rip = key, .code = unchecked};
}

void mmu_clear_jumps(struct soft_cpu *cpu)
{
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
            struct soft_context *context = cpu->tlb->sets->spaces[i].contexts[kind];
            if (context)
                context_clear_jumps(context, false);
        }
    }
}

size_t mmu_bytes(const struct soft_cpu *cpu)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
            if (cpu->tlb->sets->spaces[i].contexts[kind])
                bytes += sizeof(struct soft_context);
        }
    }
    return bytes;
}

void mmu_use_one_entry(struct soft_cpu *cpu)
{
    cpu->tlb->sets->one_entry = true;
    mmu_flush_all(cpu);
}

struct soft_cpu *mmu_cpu_alloc(void)
{
    int fd = memfd_create("hull-vcpu", MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    void *memory = MAP_FAILED;
    if (ftruncate(fd, (off_t)SOFT_CPU_SPAN) == 0)
        memory = mmap(NULL, SOFT_CPU_SPAN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        int code = errno;
        close(fd);
        errno = code;
        return NULL;
    }
    struct soft_cpu *cpu = memory;
    cpu->memory_fd = fd;
    return cpu;
}

void mmu_cpu_free(struct soft_cpu *cpu)
{
    close(cpu->memory_fd);
    munmap(cpu, SOFT_CPU_SPAN);
}

/* --- sets --- */

/* Fetches in the space may find something else from now on. */
static void space_renew(struct tlb_sets *sets, struct tlb_space *space)
{
    space->serial = ++sets->serials;
}

static void note_large_entries(struct tlb_space *space, const struct soft_context *context)
{
    for (unsigned i = entry_next(context, 0); i < TLB_ENTRIES; i = entry_next(context, i + 1)) {
        const struct tlb_entry *e = &context->tlb[i];
        unsigned size = e->physical >> TLB_SIZE_SHIFT & 3;
        if (size > 0)
            filter_add_large(&space->large, e->read_tag, size - 1);
    }
}

/* CR4.SMAP may have changed. */
static void space_forget_ac(struct tlb_space *space)
{
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        struct soft_context *context = space->contexts[kind];
        if (context)
            context->by_ac[0] = context->by_ac[1] = NULL;
    }
}

/* keep_global: what global pages have given stays, code too. */
static void space_flush(const struct soft_cpu *cpu, struct tlb_space *space, bool keep_global)
{
    space_renew(cpu->tlb->sets, space);
    filter_clear(&space->large);
    filter_clear(&space->code.pages);
    filter_clear(&space->code.large);
    for (unsigned i = 0; i < FETCH_ENTRIES; i++) {
        if (!keep_global || !space->fetches[i].found.global)
            space->fetches[i].tag = 0;
    }
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        struct soft_context *context = space->contexts[kind];
        if (!context)
            continue;
        context_clear_tlb(context, keep_global ? local_entry : any_entry, 0);
        if (keep_global)
            note_large_entries(space, context);
        context_clear_jumps(context, keep_global);
    }
}

/* With SMAP, STAC and CLAC change the context; without, they do not. */
static void note_by_ac(const struct soft_cpu *cpu, struct soft_context *context)
{
    const struct tlb_sets *sets = cpu->tlb->sets;
    const struct soft_context *with = sets->space->contexts[TLB_SUPERVISOR_AC],
                              *without = sets->space->contexts[TLB_SUPERVISOR];
    if (!(cpu->cr4 & CR4_SMAP))
        with = without;
    context->by_ac[0] = without ? mmu_gs_base(without) : NULL;
    context->by_ac[1] = with ? mmu_gs_base(with) : NULL;
}

/* Make the fast path look at the current space and kind. */
static void publish(struct soft_cpu *cpu)
{
    struct tlb *tlb = cpu->tlb;
    struct tlb_sets *sets = tlb->sets;
    struct soft_context *context = sets->space->contexts[sets->kind];
    tlb->context = sets->always_slow || !cpu->memory_fd ? NULL : context;
    tlb->set = context && !sets->always_slow ? context->tlb : no_entries;
    if (context && (sets->kind == TLB_SUPERVISOR || sets->kind == TLB_SUPERVISOR_AC))
        note_by_ac(cpu, context);
    cpu->fetch_key = sets->space->serial * TLB_KINDS + sets->kind;
    cpu->global_fetch_key = sets->global_serial * TLB_KINDS + sets->kind;
    soft_cpu_update_key(cpu);
}

/* Without PCIDs all translations are of PCID 0 (SDM vol. 3, 4.10.1). */
static uint16_t current_pcid(const struct soft_cpu *cpu)
{
    return cpu->cr4 & CR4_PCIDE ? cpu->cr3 & 0xfff : 0;
}

static void global_renew(struct tlb_sets *sets)
{
    sets->global_serial = ++sets->serials;
}

static void flush_spaces(struct soft_cpu *cpu, bool keep_global)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    /* CR4.PCIDE may have gone. */
    sets->space->pcid = current_pcid(cpu);
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        if (&sets->spaces[i] != sets->space)
            sets->spaces[i].valid = false;
        space_flush(cpu, &sets->spaces[i], keep_global);
        space_forget_ac(&sets->spaces[i]);
    }
    if (!keep_global) {
        global_renew(sets);
        filter_clear(&sets->global_code.pages);
        filter_clear(&sets->global_code.large);
    }
    publish(cpu);
}

void mmu_flush_all(struct soft_cpu *cpu)
{
    flush_spaces(cpu, false);
}

static struct tlb_space *space_find(struct tlb_sets *sets, uint16_t pcid)
{
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        if (sets->spaces[i].valid && sets->spaces[i].pcid == pcid)
            return &sets->spaces[i];
    }
    return NULL;
}

static struct tlb_space *space_least_used(struct tlb_sets *sets)
{
    struct tlb_space *found = &sets->spaces[0];
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        if (!sets->spaces[i].valid)
            return &sets->spaces[i];
        if (sets->spaces[i].last_used < found->last_used)
            found = &sets->spaces[i];
    }
    return found;
}

void mmu_cr3_written(struct soft_cpu *cpu, bool keep)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    uint16_t pcid = current_pcid(cpu);
    struct tlb_space *space = space_find(sets, pcid);
    if (!space) {
        space = space_least_used(sets);
        space->valid = true;
        space->pcid = pcid;
        keep = false;
    }
    if (!keep)
        space_flush(cpu, space, true);
    space->last_used = ++sets->uses;
    sets->space = space;
    publish(cpu);
}

void mmu_select(struct soft_cpu *cpu)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    bool lifted = cpu->cr4 & CR4_SMAP && cpu->rflags & RFLAGS_AC;
    enum tlb_kind kind = cpu->mode.cpl == 3 ? TLB_USER
                         : lifted           ? TLB_SUPERVISOR_AC
                                            : TLB_SUPERVISOR;
    if (!soft_code64(cpu))
        kind += TLB_LEGACY;
    bool alignment = cpu->cr0 & CR0_AM && cpu->rflags & RFLAGS_AC && cpu->mode.cpl == 3;
    bool slow = alignment || cpu->dr[7] & 0xff || (cpu->debug.on && cpu->debug.want.hw_count > 0);
    if (kind == sets->kind && slow == sets->always_slow)
        return;
    sets->kind = kind;
    sets->always_slow = slow;
    publish(cpu);
}

static void space_drop(const struct soft_cpu *cpu, struct tlb_space *space, uint64_t la)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    unsigned i = la >> 12 & (TLB_ENTRIES - 1);
    bool large = may_be_large(&space->large, la);
    bool large_code =
        may_be_large(&space->code.large, la) || may_be_large(&sets->global_code.large, la);
    bool code = large_code || may_be_small(&space->code.pages, la) ||
                may_be_small(&sets->global_code.pages, la);
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        struct soft_context *context = space->contexts[kind];
        if (!context)
            continue;
        /* Whoever sits there: one that is not meant is filled again. */
        entry_clear(context, i);
        forget_stack(context);
        if (large)
            context_clear_tlb(context, large_entry, la);
        /* In legacy code RIP's low bits need not be those of the linear address. */
        if (large_code || (code && kind >= TLB_LEGACY))
            context_clear_jumps(context, false);
        else if (code)
            context_drop_jumps(context, la);
    }
    if (!code)
        return;
    space_renew(sets, space);
    global_renew(sets);
    if (large_code)
        memset(space->fetches, 0, sizeof(space->fetches));
    else
        space->fetches[la >> 12 & (FETCH_ENTRIES - 1)].tag = 0;
}

void mmu_invlpg(struct soft_cpu *cpu, uint64_t address)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    /* In other spaces only global translations are meant; dropping more is allowed. */
    for (unsigned i = 0; i < TLB_SPACES; i++)
        space_drop(cpu, &sets->spaces[i], address & cpu->mode.linear_mask);
    publish(cpu);
}

enum invpcid_type {
    INVPCID_ADDRESS,
    INVPCID_SINGLE,
    INVPCID_ALL_GLOBAL,
    INVPCID_ALL,
};

void mmu_invpcid(struct soft_cpu *cpu, unsigned type, unsigned pcid, uint64_t address)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    struct tlb_space *space = space_find(sets, (uint16_t)pcid);
    switch ((enum invpcid_type)type) {
    case INVPCID_ADDRESS:
        if (space)
            space_drop(cpu, space, address);
        break;
    case INVPCID_SINGLE:
        if (space)
            space_flush(cpu, space, true);
        break;
    case INVPCID_ALL_GLOBAL:
        flush_spaces(cpu, false);
        break;
    case INVPCID_ALL:
        flush_spaces(cpu, true);
        break;
    }
    publish(cpu);
}

/*
 * Linux writes it at each signal and switch, but what it forbids there is for keys that no page
 * has. Fetching code does not depend on it.
 */
void mmu_set_pkru(struct soft_cpu *cpu, uint32_t value)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    uint32_t changed = value ^ cpu->fpu.pkru;
    cpu->fpu.pkru = value;
    if (!changed || (!(changed & 3) && !sets->has_keys))
        return;
    sets->has_keys = false;
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
            if (sets->spaces[i].contexts[kind])
                context_clear_tlb(sets->spaces[i].contexts[kind], any_entry, 0);
        }
    }
}

static void drop_write_tag(struct soft_context *context, unsigned i, uint64_t gpa)
{
    if ((context->tlb[i].physical & ~PAGE_OFFSET) == gpa)
        context->tlb[i].write_tag = TLB_EMPTY(i);
}

void tlb_drop_write_tags(struct soft_cpu *cpu, uint64_t gpa)
{
    for (unsigned s = 0; s < TLB_SPACES; s++) {
        for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
            struct soft_context *context = cpu->tlb->sets->spaces[s].contexts[kind];
            if (!context)
                continue;
            forget_stack(context);
            for (unsigned i = entry_next(context, 0); i < TLB_ENTRIES;
                 i = entry_next(context, i + 1))
                drop_write_tag(context, i, gpa);
        }
    }
}

/* --- one page --- */

struct page {
    uint64_t gpa;               /* of the page */
    struct page_region *region; /* NULL: no RAM or ROM */
    uint64_t offset;            /* of the page in the region */
    bool fast_write;
};

/* The entry that is to hold la's page. */
static struct tlb_entry *entry_for(struct soft_cpu *cpu, uint64_t la)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    struct soft_context **context = &sets->space->contexts[sets->kind];
    unsigned i = la >> 12 & (TLB_ENTRIES - 1);
    if (!*context) {
        *context = context_new(cpu);
        if (!*context)
            return NULL; /* every access stays slow */
        publish(cpu);
    }
    if (sets->one_entry) {
        if (sets->last_context) {
            entry_clear(sets->last_context, sets->last_entry);
            forget_stack(sets->last_context);
        }
        sets->last_context = *context;
        sets->last_entry = i;
    }
    entry_use(*context, i);
    if (((*context)->stack_read.tag ^ la) >> 12 == 0 ||
        ((*context)->stack_write.tag ^ la) >> 12 == 0)
        forget_stack(*context);
    return &(*context)->tlb[i];
}

/* Remember what a walk has found for accesses of the current kind. */
static void fill(struct soft_cpu *cpu, uint64_t la, const struct mmu_page *found, struct page *page)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    cpu->stats.tlb_fills++;
    sets->has_keys |= found->has_key;
    page->fast_write = found->writable && !page->region->region->read_only &&
                       pages_allow_fast_write(cpu, page->region, page->offset);
    struct tlb_entry *e = entry_for(cpu, la);
    if (!e)
        return;
    uint64_t tag = la & ~PAGE_OFFSET;
    e->read_tag = tag;
    e->write_tag = page->fast_write ? tag : TLB_EMPTY(la >> 12 & (TLB_ENTRIES - 1));
    e->host = page->region->region->host + page->offset;
    e->physical = page->gpa | (found->global ? TLB_GLOBAL : 0);
    if (found->page_size > PAGE_BYTES) {
        unsigned size = size_index(found->page_size);
        e->physical |= (1 + size) << TLB_SIZE_SHIFT;
        filter_add_large(&sets->space->large, la, size);
    }
}

_Noreturn static void raise_not_canonical(struct soft_cpu *cpu)
{
    bool stack = cpu->insn && cpu->insn->is_mem && cpu->insn->seg == SEG_SS;
    soft_raise_error(cpu, stack ? EXC_SS : EXC_GP, 0);
}

void mmu_check_canonical(struct soft_cpu *cpu, uint64_t la, unsigned len)
{
    if (!soft_canonical(la) || !soft_canonical(la + len - 1))
        raise_not_canonical(cpu);
}

void mmu_check_alignment(struct soft_cpu *cpu, uint64_t la, unsigned align)
{
    if (cpu->mode.cpl == 3 && cpu->rflags & RFLAGS_AC && cpu->cr0 & CR0_AM && la & (align - 1))
        soft_raise_error(cpu, EXC_AC, 0);
}

/* How an operand of that size is to be aligned (SDM vol. 3, table 6-7), whole vectors to 16 bytes
 * as on AMD's processors. */
static unsigned alignment_of(unsigned size)
{
    switch (size) {
    case 1:
    case 2:
    case 4:
    case 8:
        return size;
    case 10: /* x87's own format */
        return 8;
    case 6:
    case 14: /* x87's environment and state of 16 bits, */
    case 14 + 80:
        return 2;
    case 28: /* and of 32 */
    case 28 + 80:
        return 4;
    default:
        return 16;
    }
}

/* What the address alone can raise comes before #PF: #GP and #SS, and on AMD's processors #AC. */
static void check_address(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    mmu_check_canonical(cpu, la, size);
    mmu_check_alignment(cpu, la, alignment_of(size));
}

/* The page at a canonical address, or a page fault. */
static struct page page_found(struct soft_cpu *cpu, uint64_t la, struct mmu_access access,
                              struct mmu_page *found)
{
    struct page page = {0};
    uint32_t error;
    if (!mmu_walk(cpu, la, access, found, &error))
        soft_raise_page_fault(cpu, la, error);
    page.gpa = found->gpa;
    page.region = pages_find(cpu->vm, found->gpa, &page.offset);
    /* The local APIC's page hides what lies under it. */
    if (found->gpa == (cpu->apic_base & ~PAGE_OFFSET) && cpu->apic_base & APIC_BASE_ENABLE)
        page.region = NULL;
    return page;
}

static struct page page_at(struct soft_cpu *cpu, uint64_t la, struct mmu_access access,
                           bool cacheable)
{
    struct mmu_page found;
    if (!soft_canonical(la))
        raise_not_canonical(cpu);
    struct page page = page_found(cpu, la, access, &found);
    if (page.region && cacheable)
        fill(cpu, la, &found, &page);
    return page;
}

static struct mmu_access access_of(const struct soft_cpu *cpu, bool write)
{
    return (struct mmu_access){.write = write, .user = cpu->mode.cpl == 3};
}

static const struct mmu_access system_read = {.implicit = true};
static const struct mmu_access system_write = {.implicit = true, .write = true};

/* --- what an access does beyond the bytes --- */

static unsigned breakpoint_bytes(uint64_t dr7, unsigned index)
{
    static const uint8_t bytes[] = {1, 2, 8, 4};
    return bytes[dr7 >> (18 + 4 * index) & 3];
}

static void note_watchpoints(struct soft_cpu *cpu, uint64_t la, unsigned size, bool write)
{
    const struct engine_debug *want = &cpu->debug.want;
    for (unsigned i = 0; i < want->hw_count; i++) {
        const struct engine_hw_breakpoint *hw = &want->hw[i];
        bool wanted = hw->kind == ENGINE_WATCH_ACCESS || (hw->kind == ENGINE_WATCH_WRITE && write);
        if (wanted && la < hw->address + hw->len_bytes && hw->address < la + size)
            cpu->debug.hit = i + 1;
    }
}

/* Data breakpoints (SDM vol. 3, 17.2.4) that the access touches: reported after the instruction. */
static void note_breakpoints(struct soft_cpu *cpu, uint64_t la, unsigned size, bool write)
{
    uint64_t dr7 = cpu->dr[7];
    if (cpu->debug.on)
        note_watchpoints(cpu, la, size, write);
    if (!(dr7 & 0xff))
        return;
    for (unsigned i = 0; i < 4; i++) {
        unsigned kind = dr7 >> (16 + 4 * i) & 3;
        uint64_t len = breakpoint_bytes(dr7, i);
        uint64_t first = cpu->dr[i] & ~(len - 1);
        bool wanted = kind == ENGINE_WATCH_ACCESS || (kind == ENGINE_WATCH_WRITE && write);
        if (dr7 >> (2 * i) & 3 && wanted && la < first + len && first < la + size)
            cpu->dr6_pending |= 1ULL << i;
    }
}

/*
 * Guest memory is shared with other vCPUs and devices, and races on it are the guest's: an access
 * of a natural size is one access here too, so that an aligned one is never seen in halves.
 */
static void copy_in(void *to, const uint8_t *from, unsigned size)
{
    switch (size) {
    case 1:
        *(uint8_t *)to = *from;
        break;
    case 2:
        memcpy(to, from, 2);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    case 8:
        memcpy(to, from, 8);
        break;
    default:
        memcpy(to, from, size);
        break;
    }
}

static void page_read(struct soft_cpu *cpu, const struct page *page, uint64_t la, void *buf,
                      unsigned size)
{
    uint64_t in_page = la & PAGE_OFFSET;
    if (page->region) {
        copy_in(buf, page->region->region->host + page->offset + in_page, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned now = size - done < 8 ? size - done : 8;
        soft_mmio_read(cpu, page->gpa + in_page + done, now, (uint8_t *)buf + done);
        done += now;
    }
}

/* A store that had no write tag was made. */
static void note_written(struct soft_cpu *cpu, struct page_region *region, uint64_t offset,
                         unsigned size)
{
    pages_dirty(cpu->vm, region, offset);
    if (pages_written(cpu->vm, cpu, region, offset, size))
        cpu->stop_block = true;
}

static void page_write(struct soft_cpu *cpu, const struct page *page, uint64_t la, const void *buf,
                       unsigned size)
{
    uint64_t in_page = la & PAGE_OFFSET;
    /* A write to a ROM goes up, as one to nothing does. */
    if (page->region && !page->region->region->read_only) {
        copy_in(page->region->region->host + page->offset + in_page, buf, size);
        if (!page->fast_write)
            note_written(cpu, page->region, page->offset + in_page, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned now = size - done < 8 ? size - done : 8;
        soft_mmio_write(cpu, page->gpa + in_page + done, now, (const uint8_t *)buf + done);
        done += now;
    }
}

/* How much of [la, la + size) lies in la's page. */
static unsigned first_part(uint64_t la, unsigned size)
{
    uint64_t left = PAGE_BYTES - (la & PAGE_OFFSET);
    return left < size ? (unsigned)left : size;
}

static uint64_t next_page(const struct soft_cpu *cpu, uint64_t la)
{
    return ((la & ~PAGE_OFFSET) + PAGE_BYTES) & cpu->mode.linear_mask;
}

/* The address has been checked. */
static void access_bytes(struct soft_cpu *cpu, uint64_t la, void *buf, unsigned size, bool write)
{
    struct mmu_access access = access_of(cpu, write);
    unsigned part = first_part(la, size);
    struct page first = page_at(cpu, la, access, true), second = {0};
    uint64_t second_la = next_page(cpu, la);
    if (part < size)
        second = page_at(cpu, second_la, access, true);
    note_breakpoints(cpu, la, size, write);
    if (write) {
        page_write(cpu, &first, la, buf, part);
        if (part < size)
            page_write(cpu, &second, second_la, (uint8_t *)buf + part, size - part);
    } else {
        page_read(cpu, &first, la, buf, part);
        if (part < size)
            page_read(cpu, &second, second_la, (uint8_t *)buf + part, size - part);
    }
}

/* --- accessors --- */

uint64_t mmu_read_slow(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    uint64_t value = 0;
    mmu_read_bytes(cpu, la, &value, size);
    return value;
}

void mmu_write_slow(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value)
{
    mmu_write_bytes(cpu, la, &value, size);
}

uint64_t mmu_read_for_write_slow(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    mmu_check(cpu, la, size, true);
    return mmu_read_slow(cpu, la, size);
}

void mmu_read_bytes(struct soft_cpu *cpu, uint64_t la, void *buf, unsigned len)
{
    check_address(cpu, la, len);
    access_bytes(cpu, la, buf, len, false);
}

void mmu_write_bytes(struct soft_cpu *cpu, uint64_t la, const void *buf, unsigned len)
{
    check_address(cpu, la, len);
    access_bytes(cpu, la, (void *)(uintptr_t)buf, len, true);
}

static void check_pages(struct soft_cpu *cpu, uint64_t la, unsigned len, bool write)
{
    struct mmu_access access = access_of(cpu, write);
    page_at(cpu, la, access, true);
    if (first_part(la, len) < len)
        page_at(cpu, next_page(cpu, la), access, true);
}

void mmu_check(struct soft_cpu *cpu, uint64_t la, unsigned len, bool write)
{
    check_address(cpu, la, len);
    check_pages(cpu, la, len, write);
}

uint64_t mmu_read_element(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    uint64_t value = 0;
    const uint8_t *host = mmu_fast(cpu, la, 8, false);
    if (host) {
        copy_in(&value, host, size);
    } else {
        mmu_check_canonical(cpu, la, size);
        access_bytes(cpu, la, &value, size, false);
    }
    return value;
}

void mmu_write_element(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value)
{
    uint8_t *host = mmu_fast(cpu, la, 8, true);
    if (host) {
        copy_in(host, (const uint8_t *)&value, size);
    } else {
        mmu_check_canonical(cpu, la, size);
        access_bytes(cpu, la, &value, size, true);
    }
}

void mmu_check_element(struct soft_cpu *cpu, uint64_t la, unsigned size, bool write)
{
    if (mmu_fast(cpu, la, 8, write))
        return;
    mmu_check_canonical(cpu, la, size);
    check_pages(cpu, la, size, write);
}

uint64_t mmu_read_system(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    uint64_t value = 0;
    unsigned part = first_part(la, size);
    struct page first = page_at(cpu, la, system_read, false);
    page_read(cpu, &first, la, &value, part);
    if (part < size) {
        uint64_t second_la = next_page(cpu, la);
        struct page second = page_at(cpu, second_la, system_read, false);
        page_read(cpu, &second, second_la, (uint8_t *)&value + part, size - part);
    }
    return value;
}

void mmu_write_system(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value)
{
    unsigned part = first_part(la, size);
    uint64_t second_la = next_page(cpu, la);
    struct page first = page_at(cpu, la, system_write, false), second = {0};
    if (part < size)
        second = page_at(cpu, second_la, system_write, false);
    page_write(cpu, &first, la, &value, part);
    if (part < size)
        page_write(cpu, &second, second_la, (uint8_t *)&value + part, size - part);
}

uint8_t *mmu_lock(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    uint8_t *host = mmu_fast(cpu, la, size, true);
    sets->locked = NULL;
    if (host)
        return host;
    if (first_part(la, size) < size)
        return NULL;
    check_address(cpu, la, size);
    struct page page = page_at(cpu, la, access_of(cpu, true), true);
    note_breakpoints(cpu, la, size, true);
    if (!page.region || page.region->region->read_only)
        return NULL;
    /* Remembered, since by the end of the access the page may be mapped otherwise. */
    sets->locked = page.fast_write ? NULL : page.region;
    sets->locked_offset = page.offset + (la & PAGE_OFFSET);
    return page.region->region->host + sets->locked_offset;
}

void mmu_lock_done(struct soft_cpu *cpu, uint64_t la, unsigned size)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    (void)la;
    if (sets->locked)
        note_written(cpu, sets->locked, sets->locked_offset, size);
}

uint8_t *mmu_span(struct soft_cpu *cpu, uint64_t la, bool write, unsigned *len)
{
    *len = 0;
    if (cpu->tlb->sets->always_slow)
        return NULL;
    *len = (unsigned)(PAGE_BYTES - (la & PAGE_OFFSET));
    uint8_t *host = mmu_fast(cpu, la, 1, write);
    if (host)
        return host;
    struct page page = page_at(cpu, la, access_of(cpu, write), true);
    if (page.region && (!write || page.fast_write))
        return page.region->region->host + page.offset + (la & PAGE_OFFSET);
    *len = 0;
    return NULL;
}

/* The entry that is to hold la's page as code. */
static struct fetch_entry *fetch_for(struct tlb_sets *sets, uint64_t la)
{
    struct fetch_entry *e = &sets->space->fetches[la >> 12 & (FETCH_ENTRIES - 1)];
    if (sets->one_entry) {
        if (sets->last_fetch)
            sets->last_fetch->tag = 0;
        sets->last_fetch = e;
    }
    return e;
}

struct mmu_fetch mmu_fetch_page(struct soft_cpu *cpu, uint64_t la)
{
    struct tlb_sets *sets = cpu->tlb->sets;
    const struct fetch_entry *known = fetch_known(cpu, la);
    struct fetch_entry e;
    if (known) {
        e = *known;
    } else {
        struct mmu_access access = access_of(cpu, false);
        struct mmu_page found;
        access.fetch = true;
        if (!soft_canonical(la))
            soft_raise_error(cpu, EXC_GP, 0);
        struct page page = page_found(cpu, la, access, &found);
        e = (struct fetch_entry){
            .tag = (la & ~PAGE_OFFSET) | (1 + sets->kind),
            .found = {.gpa = page.gpa,
                      .host = page.region ? page.region->region->host + page.offset : NULL,
                      .global = found.global},
            .size = found.page_size,
        };
        if (page.region)
            *fetch_for(sets, la) = e;
    }
    struct code_filters *code = e.found.global ? &sets->global_code : &sets->space->code;
    if (e.size > PAGE_BYTES)
        filter_add_large(&code->large, la, size_index(e.size));
    else
        filter_add_small(&code->pages, la);
    return e.found;
}

bool mmu_translate(struct soft_cpu *cpu, uint64_t la, uint64_t *gpa)
{
    return soft_canonical(la) && mmu_walk_quietly(cpu, la, gpa);
}

/* --- life --- */

int mmu_add_region(struct soft_cpu *cpu, size_t index)
{
    const struct mem_region *region = cpu->vm->code->regions[index].region;
    uint64_t **tagged = &cpu->tlb->sets->tagged[index];
    if (!*tagged)
        *tagged = calloc(bitmap_words(region->len_bytes / PAGE_BYTES), sizeof(uint64_t));
    return *tagged ? 0 : -ENOMEM;
}

int mmu_init(struct soft_cpu *cpu, struct err *err)
{
    cpu->tlb = calloc(1, sizeof(*cpu->tlb));
    struct tlb_sets *sets = calloc(1, sizeof(*sets));
    if (!cpu->tlb || !sets) {
        free(cpu->tlb);
        free(sets);
        cpu->tlb = NULL;
        return err_errno(err, ENOMEM, "the TLB of vCPU %u", cpu->base.id);
    }
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_no_entries);
    pthread_mutex_init(&sets->lock, NULL);
    cpu->tlb->sets = sets;
    for (unsigned i = 0; i < TLB_SPACES; i++)
        space_flush(cpu, &sets->spaces[i], false);
    global_renew(sets);
    sets->space = &sets->spaces[0];
    sets->space->valid = true;
    publish(cpu);
    for (size_t i = 0; i < MEM_REGIONS_MAX && cpu->vm->code->regions[i].region; i++) {
        if (mmu_add_region(cpu, i) < 0) {
            mmu_fini(cpu);
            return err_errno(err, ENOMEM, "the TLB of vCPU %u", cpu->base.id);
        }
    }
    return 0;
}

void mmu_fini(struct soft_cpu *cpu)
{
    if (!cpu->tlb)
        return;
    struct tlb_sets *sets = cpu->tlb->sets;
    for (unsigned i = 0; i < TLB_SPACES; i++) {
        for (unsigned kind = 0; kind < TLB_KINDS; kind++)
            context_free(sets->spaces[i].contexts[kind]);
    }
    for (size_t i = 0; i < MEM_REGIONS_MAX; i++)
        free(sets->tagged[i]);
    pthread_mutex_destroy(&sets->lock);
    free(sets);
    free(cpu->tlb);
    cpu->tlb = NULL;
}
