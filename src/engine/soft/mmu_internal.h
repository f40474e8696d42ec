/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The MMU by file:
 *     mmu.c       TLB sets, and the slow paths of all accesses
 *     walk.c      page tables
 *     pages.c     what is known of guest pages: decoded code on them, the dirty log
 */
#ifndef HULL_ENGINE_SOFT_MMU_INTERNAL_H
#define HULL_ENGINE_SOFT_MMU_INTERNAL_H

#include "engine/soft/mmu.h"
#include "engine/soft/vm.h"

#define PAGE_BYTES  4096ULL
#define PAGE_OFFSET (PAGE_BYTES - 1)

/* --- walk.c --- */

struct mmu_access {
    bool write, fetch;
    bool user;     /* CPL 3, and no implicit supervisor access */
    bool implicit; /* of the processor itself (descriptor tables, TSS): SMAP holds whatever AC is */
};

struct mmu_page {
    uint64_t gpa;       /* of the 4 KiB page */
    uint64_t page_size; /* of the mapping: 4 KiB, 2 MiB, 4 MiB, 1 GiB */
    bool writable;      /* by this kind of access, and the dirty bit is set */
    bool executable;    /* by this kind of access */
    bool global;
    bool has_key; /* a protection key other than 0 */
};

/*
 * Translate a canonical linear address for an access, with all that the access does to the tables
 * (accessed and dirty bits). false: *error is the page fault's error code.
 */
bool mmu_walk(struct soft_cpu *cpu, uint64_t la, struct mmu_access access, struct mmu_page *page,
              uint32_t *error);
/* Without checks of permission and changes. */
bool mmu_walk_quietly(struct soft_cpu *cpu, uint64_t la, uint64_t *gpa);

/* --- pages.c --- */

/* Of a page of RAM or ROM. */
struct page_info {
    uint32_t generation; /* atomic: counts invalidations of code */
    uint32_t
        translated;   /* atomic, a bit for a vCPU (its number modulo 32): it has translated code */
    uint64_t lines;   /* atomic: 64-byte lines that hold decoded code */
    uint32_t watched; /* atomic: writes yet to come that are looked at one by one: pages.c */
};

struct page_region {
    const struct mem_region *region; /* NULL: the slot is not used */
    struct page_info *info;          /* a page each */
    uint64_t *dirty;                 /* atomic bitmap; NULL: never logged */
    size_t info_bytes;
    unsigned slot;
};

struct code_pages {
    struct page_region regions[MEM_REGIONS_MAX];
    bool logging; /* changes only in an exclusive section */
};

/* The region that holds a guest-physical page, or NULL. */
struct page_region *pages_find(struct soft_vm *vm, uint64_t gpa, uint64_t *offset);

/* A store to [offset, offset + len), inside a page of RAM, has been made, by a vCPU's slow path or
 * by the VMM (by: NULL): decoded and translated code there is stale. True: there was some. */
bool pages_written(struct soft_vm *vm, struct soft_cpu *by, struct page_region *region,
                   uint64_t offset, uint64_t len);

/* For the dirty log: the page that holds offset was written. */
void pages_dirty(struct soft_vm *vm, struct page_region *region, uint64_t offset);

/* May a vCPU write to the page without telling: no code on it, and nothing to log? Notes the page
 * in the log and in the vCPU's list of pages with a write tag. */
bool pages_allow_fast_write(struct soft_cpu *cpu, struct page_region *region, uint64_t offset);

/* --- mmu.c --- */

/* Kinds of access that have translations of their own; and code that is not of 64 bits has, since
 * it may be translated otherwise than 64-bit code at the same address. */
enum tlb_kind {
    TLB_SUPERVISOR, /* SMAP enforced, if it is on */
    TLB_USER,
    TLB_SUPERVISOR_AC, /* SMAP is on and RFLAGS.AC lifts it */
    TLB_LEGACY,        /* and these, in code of 32 and 16 bits */
    TLB_KINDS = 2 * TLB_LEGACY,
};

/* Address spaces that are kept, by PCID: Linux uses six. */
#define TLB_SPACES 6

/* Translations of code, for block.c. */
#define FETCH_ENTRIES 256u

struct fetch_entry {
    uint64_t tag; /* the page's linear address, and 1 + the kind; 0: empty */
    struct mmu_fetch found;
    uint64_t size; /* of the page, which may be large */
};

/*
 * Which pages something is known of, by their numbers: not exactly, but a page whose bit is clear
 * is none of them. So the many invalidations of pages that have never been code cost nothing.
 */
#define PAGE_FILTER_BITS 16384u

struct page_filter {
    uint64_t first, last; /* linear addresses of all of them lie between; last 0: there are none */
    uint64_t bits[PAGE_FILTER_BITS / 64];
};

/* Code has been fetched from there, and from large pages there. */
struct code_filters {
    struct page_filter pages, large;
};

struct tlb_space {
    bool valid;
    uint16_t pcid;
    uint64_t last_used;
    uint64_t serial; /* unique: changes whenever code may be found elsewhere */
    struct code_filters code;
    struct page_filter large; /* pieces of large pages have translations here */
    struct fetch_entry fetches[FETCH_ENTRIES];
    struct soft_context *contexts[TLB_KINDS]; /* NULL until used */
};

#define MMU_REQUESTS 64

/* In the low bits of a request, whose others are a page's address. */
enum mmu_request_kind {
    MMU_REQUEST_WRITE_TAGS, /* it has become code */
    MMU_REQUEST_CODE,       /* its code has changed */
};

struct tlb_sets {
    struct tlb_space spaces[TLB_SPACES];
    struct tlb_space *space; /* the current one */
    enum tlb_kind kind;
    bool always_slow; /* alignment checks or data breakpoints are on */
    bool one_entry;   /* for tests: what was filled last is forgotten at the next fill: these */
    struct soft_context *last_context; /* NULL: nothing was filled */
    unsigned last_entry;
    struct fetch_entry *last_fetch;
    bool has_keys; /* there may be translations of pages with keys other than 0 */
    uint64_t uses, serials;
    uint64_t global_serial; /* the same for code in global pages */
    struct code_filters global_code;
    uint64_t pdpte[4];
    struct page_region *locked; /* between mmu_lock() and _done(): the page needs note_written() */
    uint64_t locked_offset;
    uint64_t *tagged[MEM_REGIONS_MAX]; /* atomic bitmap by page: a write tag may exist */

    pthread_mutex_t lock; /* the requests */
    uint64_t requests[MMU_REQUESTS];
    unsigned request_count;
    bool request_all;
};

/* The bitmap of a region for a vCPU; -ENOMEM. */
int mmu_add_region(struct soft_cpu *cpu, size_t index);

/* Drop the write tags of a page from all sets of the vCPU (its own thread, or an exclusive
 * section). */
void tlb_drop_write_tags(struct soft_cpu *cpu, uint64_t gpa);

#endif
