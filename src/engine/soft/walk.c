/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page tables (SDM vol. 3, chapter 4). A walk reads the entries from the top down and remembers
 * them; only when the whole translation allows the access are accessed and dirty bits set, each by
 * compare-and-swap on the value that was read. Where one has changed meanwhile, by another vCPU or
 * a device, the walk starts again.
 */
#include <string.h>

#include "base/units.h"
#include "engine/soft/mmu_internal.h"

#define PTE_P      (1ULL << 0)
#define PTE_W      (1ULL << 1)
#define PTE_U      (1ULL << 2)
#define PTE_A      (1ULL << 5)
#define PTE_D      (1ULL << 6)
#define PTE_PS     (1ULL << 7)
#define PTE_G      (1ULL << 8)
#define PTE_NX     (1ULL << 63)

#define FAULT_P    (1u << 0)
#define FAULT_W    (1u << 1)
#define FAULT_U    (1u << 2)
#define FAULT_RSVD (1u << 3)
#define FAULT_I    (1u << 4)
#define FAULT_PK   (1u << 5)

#define LEVELS_MAX 4
/* Walks that another vCPU's changes may make us repeat. Each means that it got on; in the end the
 * guest's access simply faults as a spurious not-present one, which every kernel retries. */
#define RETRIES_MAX 1000

/* What differs between the kinds of paging. */
struct paging {
    unsigned levels;
    unsigned entry_bytes;
    unsigned index_bits;
    uint64_t address_mask;  /* of an entry's physical address */
    uint64_t reserved_mask; /* of any entry */
};

struct step {
    uint8_t *host;  /* of the entry; NULL: there is no memory */
    bool read_only; /* in a ROM: what is written to it is lost */
    uint64_t value;
};

struct walk {
    struct step steps[LEVELS_MAX];
    unsigned count;
    unsigned page_bits; /* of the page that was found */
    uint64_t leaf;
    bool user, writable, nx;
};

static uint64_t physical_mask(const struct soft_cpu *cpu)
{
    return (1ULL << cpu->vm->model.phys_bits) - 1;
}

static struct paging paging_of(const struct soft_cpu *cpu)
{
    uint64_t physical = physical_mask(cpu);
    uint64_t no_nx = cpu->efer & EFER_NXE ? 0 : PTE_NX;
    if (cpu->efer & CPU_EFER_LMA)
        return (struct paging){.levels = 4,
                               .entry_bytes = 8,
                               .index_bits = 9,
                               .address_mask = physical & ~PAGE_OFFSET,
                               .reserved_mask = (~physical & 0x000fffffffffffffULL) | no_nx};
    if (cpu->cr4 & CPU_CR4_PAE)
        return (struct paging){.levels = 2, /* below the PDPTE registers */
                               .entry_bytes = 8,
                               .index_bits = 9,
                               .address_mask = physical & ~PAGE_OFFSET,
                               .reserved_mask = (~physical & 0x7fffffffffffffffULL) | no_nx};
    return (struct paging){
        .levels = 2, .entry_bytes = 4, .index_bits = 10, .address_mask = 0xfffff000};
}

/* The host's view of a page-table entry; NULL where there is no RAM. */
static uint8_t *entry_host(struct soft_cpu *cpu, uint64_t gpa, bool *read_only)
{
    uint64_t offset;
    struct page_region *r = pages_find(cpu->vm, gpa, &offset);
    *read_only = r && r->region->read_only;
    return r ? r->region->host + offset : NULL;
}

static uint64_t entry_load(const uint8_t *host, unsigned bytes)
{
    return bytes == 8 ? __atomic_load_n((const uint64_t *)(const void *)host, __ATOMIC_RELAXED)
                      : __atomic_load_n((const uint32_t *)(const void *)host, __ATOMIC_RELAXED);
}

/* Set bits of an entry that still has the value that was read. */
static bool entry_set(struct soft_cpu *cpu, const struct step *step, unsigned bytes, uint64_t bits)
{
    if ((step->value & bits) == bits || step->read_only)
        return true;
    uint64_t wanted = step->value | bits;
    bool done;
    if (bytes == 8) {
        uint64_t expected = step->value;
        done = __atomic_compare_exchange_n((uint64_t *)(void *)step->host, &expected, wanted, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
        uint32_t expected = (uint32_t)step->value;
        done =
            __atomic_compare_exchange_n((uint32_t *)(void *)step->host, &expected, (uint32_t)wanted,
                                        false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    if (done)
        mem_mark_dirty_host(cpu->vm->mem, step->host, bytes);
    return done;
}

/* Reserved bits of a large page's entry below its address (SDM vol. 3, tables 4-10, 4-15). */
static uint64_t large_reserved(const struct soft_cpu *cpu, const struct paging *p, unsigned bits)
{
    if (p->entry_bytes == 4) /* PSE-36: bits 20-13 are address bits 39-32, bit 21 is reserved */
        return (1ULL << 21) | ((~physical_mask(cpu) >> 32 & 0xff) << 13 & 0x001fe000ULL);
    return ((1ULL << bits) - 1) & ~0x1fffULL; /* bit 12 is PAT */
}

static bool is_large(const struct soft_cpu *cpu, const struct paging *p, unsigned level,
                     uint64_t entry)
{
    if (!(entry & PTE_PS) || level == 0)
        return false;
    if (p->entry_bytes == 4)
        return cpu->cr4 & CR4_PSE;
    return level == 1 || (level == 2 && cpu->vm->model.gib_pages);
}

/* Is PS set where it is reserved: PML4E, and PDPTE on a processor without 1 GiB pages? */
static bool bad_ps(const struct paging *p, unsigned level, uint64_t entry)
{
    return entry & PTE_PS && p->entry_bytes == 8 && level >= 2;
}

/* From the top to a leaf. false: *error has P clear, or RSVD. */
static bool descend(struct soft_cpu *cpu, const struct paging *p, uint64_t la, struct walk *w,
                    uint32_t *error)
{
    uint64_t table = cpu->cr3 & p->address_mask;
    bool pae_registers = p->levels == 2 && p->entry_bytes == 8;
    *w = (struct walk){.user = true, .writable = true};
    *error = 0;
    if (pae_registers) {
        uint64_t pdpte = cpu->tlb->sets->pdpte[la >> 30 & 3];
        if (!(pdpte & PTE_P))
            return false;
        table = pdpte & p->address_mask;
    }
    for (unsigned level = p->levels; level-- > 0;) {
        unsigned shift = 12 + level * p->index_bits;
        uint64_t index = la >> shift & ((1ULL << p->index_bits) - 1);
        struct step *step = &w->steps[w->count++];
        step->host = entry_host(cpu, table + index * p->entry_bytes, &step->read_only);
        step->value = step->host ? entry_load(step->host, p->entry_bytes) : 0;
        uint64_t entry = step->value;
        if (!(entry & PTE_P))
            return false;
        bool large = is_large(cpu, p, level, entry);
        uint64_t reserved = p->reserved_mask | (large ? large_reserved(cpu, p, shift) : 0);
        if (entry & reserved || (!large && bad_ps(p, level, entry))) {
            *error = FAULT_P | FAULT_RSVD;
            return false;
        }
        w->user &= !!(entry & PTE_U);
        w->writable &= !!(entry & PTE_W);
        w->nx |= p->entry_bytes == 8 && cpu->efer & EFER_NXE && entry & PTE_NX;
        w->leaf = entry;
        w->page_bits = shift;
        if (large)
            return true;
        table = entry & p->address_mask;
    }
    return true;
}

/* Protection keys (SDM vol. 3, 4.6.2). */
static bool key_denies(const struct soft_cpu *cpu, const struct walk *w, struct mmu_access a,
                       bool *write_denied)
{
    *write_denied = false;
    if (!(cpu->cr4 & CR4_PKE) || !(cpu->efer & CPU_EFER_LMA) || !w->user)
        return false;
    unsigned key = w->leaf >> 59 & 15;
    bool access_disable = cpu->fpu.pkru >> (2 * key) & 1;
    *write_denied = cpu->fpu.pkru >> (2 * key + 1) & 1 && (a.user || cpu->cr0 & CPU_CR0_WP);
    return !a.fetch && (access_disable || (a.write && *write_denied));
}

/* What the access is denied for: 0, or bits of the error code. */
static uint32_t denied(const struct soft_cpu *cpu, const struct walk *w, struct mmu_access a,
                       struct mmu_page *page)
{
    bool smap = cpu->cr4 & CR4_SMAP && (a.implicit || !(cpu->rflags & RFLAGS_AC));
    bool may_write = w->writable || (!a.user && !(cpu->cr0 & CPU_CR0_WP));
    bool write_key;
    bool by_key = key_denies(cpu, w, a, &write_key);
    page->executable = !w->nx && (a.user || !(w->user && cpu->cr4 & CR4_SMEP));
    page->writable = may_write && !write_key;
    bool refused = (a.user && !w->user) || (a.write && !may_write) ||
                   (a.fetch && !page->executable) || (!a.user && !a.fetch && w->user && smap);
    /* PK tells what the key says, whatever else denies the access (SDM vol. 3, 4.7). */
    return (refused || by_key ? FAULT_P : 0) | (by_key ? FAULT_PK : 0);
}

static bool set_bits(struct soft_cpu *cpu, const struct walk *w, unsigned bytes, bool write)
{
    for (unsigned i = 0; i < w->count; i++) {
        bool leaf = i == w->count - 1;
        if (!entry_set(cpu, &w->steps[i], bytes, PTE_A | (leaf && write ? PTE_D : 0)))
            return false;
    }
    return true;
}

static uint64_t leaf_address(const struct paging *p, const struct walk *w, uint64_t la)
{
    uint64_t page = (1ULL << w->page_bits) - 1;
    uint64_t base = w->leaf & p->address_mask & ~page;
    if (p->entry_bytes == 4 && w->page_bits > 12)
        base |= (w->leaf >> 13 & 0xff) << 32;
    return (base | (la & page)) & ~PAGE_OFFSET;
}

static uint32_t access_bits(const struct soft_cpu *cpu, struct mmu_access a)
{
    bool nx_known = (cpu->cr4 & CPU_CR4_PAE && cpu->efer & EFER_NXE) || cpu->cr4 & CR4_SMEP;
    return (a.write ? FAULT_W : 0) | (a.user ? FAULT_U : 0) | (a.fetch && nx_known ? FAULT_I : 0);
}

bool mmu_walk(struct soft_cpu *cpu, uint64_t la, struct mmu_access access, struct mmu_page *page,
              uint32_t *error)
{
    if (!(cpu->cr0 & CPU_CR0_PG)) {
        *page = (struct mmu_page){.gpa = la & ~PAGE_OFFSET & 0xffffffff,
                                  .page_size = PAGE_BYTES,
                                  .global = true,
                                  .writable = true,
                                  .executable = true};
        return true;
    }
    const struct paging p = paging_of(cpu);
    struct walk w;
    for (unsigned i = 0; i < RETRIES_MAX; i++) {
        if (!descend(cpu, &p, la, &w, error)) {
            *error |= access_bits(cpu, access);
            return false;
        }
        *error = denied(cpu, &w, access, page);
        if (*error) {
            *error |= access_bits(cpu, access);
            return false;
        }
        if (!set_bits(cpu, &w, p.entry_bytes, access.write))
            continue;
        page->gpa = leaf_address(&p, &w, la);
        page->page_size = 1ULL << w.page_bits;
        page->has_key = cpu->cr4 & CR4_PKE && w.user && w.leaf >> 59 & 15;
        page->global = w.leaf & PTE_G && cpu->cr4 & CR4_PGE;
        /* The first write of an entry whose dirty bit is clear must come here to set it. */
        page->writable &= access.write || w.leaf & PTE_D;
        return true;
    }
    *error = access_bits(cpu, access);
    return false;
}

bool mmu_walk_quietly(struct soft_cpu *cpu, uint64_t la, uint64_t *gpa)
{
    if (!(cpu->cr0 & CPU_CR0_PG)) {
        *gpa = la & 0xffffffff;
        return true;
    }
    const struct paging p = paging_of(cpu);
    struct walk w;
    uint32_t error;
    if (!descend(cpu, &p, la, &w, &error))
        return false;
    *gpa = leaf_address(&p, &w, la) | (la & PAGE_OFFSET);
    return true;
}

bool mmu_load_pdptes(struct soft_cpu *cpu, uint64_t cr3)
{
    const uint64_t reserved = ~physical_mask(cpu) | 0x1e6; /* SDM vol. 3, table 4-8 */
    uint64_t pdpte[4];
    bool read_only;
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *host = entry_host(cpu, (cr3 & 0xffffffe0) + 8ULL * i, &read_only);
        pdpte[i] = host ? entry_load(host, 8) : 0;
        if (pdpte[i] & PTE_P && pdpte[i] & reserved)
            return false;
    }
    memcpy(cpu->tlb->sets->pdpte, pdpte, sizeof(pdpte));
    return true;
}

uint64_t mmu_pdpte(const struct soft_cpu *cpu, unsigned index)
{
    return cpu->tlb->sets->pdpte[index];
}
