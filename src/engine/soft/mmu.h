/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linear addresses to guest memory: paging of all kinds (SDM vol. 3, chapter 4), one TLB a vCPU,
 * and every access of an instruction's handler.
 *
 * All accessors take a linear address, segmentation done (exec.h: insn_linear). They either return
 * or raise (#PF, #GP/#SS for a non-canonical address, #AC, a data breakpoint is noted) without
 * having changed memory: an access that crosses a page checks both pages first. Accesses to
 * devices go to the chips and upcalls; those to nowhere read all ones and write nothing.
 *
 * Privilege: cpu->mode.cpl == 3 is a user access, but those of the _system functions, which are
 * supervisor accesses at any CPL (descriptor tables, TSS).
 *
 * Code. The first write to a page that holds decoded code (block.h) and changes a 64-byte line of
 * it makes its blocks stale on every vCPU; the current block is left after the current instruction
 * (cpu->stop_block). Other vCPUs see it at the latest when they look for their next block after the
 * store has become visible, as the architecture asks for (SDM vol. 3, 8.1.3).
 */
#ifndef HULL_ENGINE_SOFT_MMU_H
#define HULL_ENGINE_SOFT_MMU_H

#include "engine/soft/cpu.h"
#include "mem/mem.h"

struct err;

/*
 * What the accessors test inline: 128 MiB worth of pages. Memory that no translation is kept in is
 * not touched. One bit less makes a random walk through 128 MiB a quarter to a half slower, one
 * more no faster; and a vCPU of a full Debian would take more than the 64 MiB that it is to do
 * with.
 */
#define TLB_BITS    15
#define TLB_ENTRIES (1u << TLB_BITS)

/*
 * A page's translation. A tag is the page's linear address; an access hits where the difference of
 * address and tag, unsigned, is at most 4096 less its size: one subtraction and one comparison are
 * the whole check, page ends included. The write tag is set only where a write needs nothing else
 * done: dirty bit set, no code on the page, dirty log noted, no breakpoint, RAM. Otherwise the slow
 * path does it.
 */
struct tlb_entry {
    uint64_t read_tag, write_tag;
    uint8_t *host;     /* of the page */
    uint64_t physical; /* of the page, with the attributes in the low bits (mmu.c) */
};

/*
 * The tag of entry i that holds nothing: an address of another entry, which is never looked for
 * here, whatever address the guest makes up. Bits 16 to 47 alone tell it from all addresses of this
 * entry; other tags are canonical, so that these bits tell them from each other as well.
 */
#define TLB_EMPTY(i)  ((uint64_t)((i) ^ (1u << (TLB_TAG_SHIFT - 12))) << 12)
#define TLB_TAG_SHIFT 16

/* Where an indirect branch of translated code goes on, by the target's mmu_jump_slot(): code that
 * checks whether it is meant, as its offset in the code cache (soft_translated.code). 0 is code
 * that leaves, so that a table of zeros is an empty one, of which no page is touched before its
 * use. */
#define JUMP_SLOTS 65536u

/*
 * Addresses that have a slot in common take it from each other, and kernels and programs have so
 * many targets that some do. Where the code in the slot is not meant, the address is looked for
 * here, by mmu_second_slot(): code is the offset of what needs no check.
 */
struct second_jump {
    uint64_t rip; /* with soft_cpu.code_tag */
    uint32_t code;
};

#define SECOND_BITS  9
#define SECOND_SLOTS (1u << SECOND_BITS)
#define SECOND_MULTIPLIER                                                                          \
    0x9e3779b9u /* the upper bits of a product depend on all of the factor's */

/*
 * The page of the stack that was accessed last, for looks that need not find its entry in the TLB:
 * an access of so many bytes is in it where it begins less than limits[] behind tag. None: they are
 * 0. Translated code sets it (translate.c), to what the TLB has; whatever takes translations from
 * the TLB takes it away.
 */
enum stack_size {
    STACK_8,
    STACK_64,
    STACK_512,
    STACK_SIZES,
};

/* An access of so many bytes is in a page where it begins less than this far into it. */
#define STACK_LIMIT(bytes) (4096 - (bytes) + 1)

struct stack_page {
    uint64_t tag;
    uint8_t *host;
    uint64_t limits[STACK_SIZES];
};

/*
 * What depends on the address space, the privilege, and whether code is of 64 bits: translations,
 * and translated code by its linear address. In front of a context, the processor's struct is
 * mapped once more, at -SOFT_CPU_SPAN: so translated code reaches both from one base register, and
 * changing that is all that a switch costs it.
 */
struct soft_context {
    struct tlb_entry tlb[TLB_ENTRIES];
    uint32_t jumps[JUMP_SLOTS];
    struct second_jump second[SECOND_SLOTS];
    /* Bitmaps of what is in use, so that a flush costs no more than what there is. */
    uint64_t tlb_used[TLB_ENTRIES / 64];
    uint64_t tlb_words[TLB_ENTRIES / 64 / 64]; /* words of tlb_used that are not zero */
    uint64_t jumps_used[JUMP_SLOTS / 64];
    uint64_t
        jumps_global[JUMP_SLOTS / 64]; /* to code in global pages, which outlive most flushes */
    uint64_t jumps_words[JUMP_SLOTS / 64 / 64]; /* words of jumps_used that are not zero */
    uint64_t second_used[SECOND_SLOTS / 64], second_global[SECOND_SLOTS / 64];
    struct stack_page stack_read, stack_write;
    const struct soft_context *self;
    /* Of a kernel's: the bases of GS with which CLAC and STAC go on; NULL: not known. */
    const uint8_t *by_ac[2];
};

/*
 * The low bits of the address. Kernels, in the upper half of the address space, have more code than
 * slots, and many functions begin at a multiple of 16: there the page's number is mixed into the
 * offset in it. All slots of a page are in a row, and so are those of 64 of its bytes, aligned.
 */
static inline unsigned mmu_jump_slot(uint64_t rip)
{
    return (unsigned)(rip >> 63 ? rip ^ rip >> 12 : rip) & (JUMP_SLOTS - 1);
}

static inline unsigned mmu_second_slot(uint64_t rip)
{
    return (uint32_t)rip * SECOND_MULTIPLIER >> (32 - SECOND_BITS);
}

#define SOFT_CPU_SPAN ((sizeof(struct soft_cpu) + 4095) & ~(size_t)4095)

/* The base of GS with which translated code runs in a context. */
static inline const uint8_t *mmu_gs_base(const struct soft_context *context)
{
    return (const uint8_t *)context - SOFT_CPU_SPAN;
}

struct tlb {
    struct tlb_entry *set;        /* TLB_ENTRIES, for the current privilege and address space */
    struct soft_context *context; /* the same, for translated code; NULL: it must not run now */
    struct tlb_sets *sets;        /* mmu.c */
};

int mmu_init(struct soft_cpu *cpu, struct err *err);
void mmu_fini(struct soft_cpu *cpu);

/* --- when the translation changes --- */

/* CR0.PG, CR0.WP, CR4.PAE/PSE/PGE/PCIDE/SMEP/SMAP/PKE, EFER.NXE changed, or power-on: forget all.
 */
void mmu_flush_all(struct soft_cpu *cpu);
/* CR3 was written (cpu->cr3 holds the new value without bit 63). keep: bit 63 was set with PCIDE.
 */
void mmu_cr3_written(struct soft_cpu *cpu, bool keep);
/* PKRU gets a value: what it forbids is forgotten. */
void mmu_set_pkru(struct soft_cpu *cpu, uint32_t value);
/* The memory of a processor, zeroed, such that contexts can show it again; NULL: errno says why. */
struct soft_cpu *mmu_cpu_alloc(void);
void mmu_cpu_free(struct soft_cpu *cpu);

/* What the contexts take, at the most: pages that nothing was put into are not there. */
size_t mmu_bytes(const struct soft_cpu *cpu);

/* For tests: the TLB holds one translation of data and one of code, so that nothing is found that
 * was not used last. */
void mmu_use_one_entry(struct soft_cpu *cpu);

/* Code was found to be at rip: indirect branches of the current context may go there. crosses: its
 * bytes are in the next page as well. Offsets in the code cache: `code` checks whether it is meant,
 * `unchecked` does not. */
void mmu_set_jump(struct soft_cpu *cpu, uint64_t rip, bool crosses, uint32_t code,
                  uint32_t unchecked);
/* No indirect branch finds translated code any more. */
void mmu_clear_jumps(struct soft_cpu *cpu);

/* CPL or the width of code changed, or RFLAGS.AC / CR4.SMAP in what matters: select the set. Called
 * by soft_cpu_update.
 */
void mmu_select(struct soft_cpu *cpu);
/* INVLPG: every entry of the page that holds the address, large ones whole, all PCIDs' global. */
void mmu_invlpg(struct soft_cpu *cpu, uint64_t address);
/* INVPCID: type 0-3 (SDM vol. 2); the handler has checked the operands. */
void mmu_invpcid(struct soft_cpu *cpu, unsigned type, unsigned pcid, uint64_t address);
/* Load the four PDPTEs of PAE paging at a MOV to CR3/CR0/CR4 (SDM vol. 3, 4.4.1): false: reserved
 * bits are set, and the MOV is #GP. */
bool mmu_load_pdptes(struct soft_cpu *cpu, uint64_t cr3);
/* SOFT_EVENT_MMU: do what other vCPUs have asked for. */
void mmu_serve(struct soft_cpu *cpu);
/* A PDPTE register set (for state save); index 0-3. */
uint64_t mmu_pdpte(const struct soft_cpu *cpu, unsigned index);

/* --- accesses of instructions --- */

uint64_t mmu_read_slow(struct soft_cpu *cpu, uint64_t la, unsigned size);
void mmu_write_slow(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value);
/* The value, having checked that it can be written: for read-modify-write. */
uint64_t mmu_read_for_write_slow(struct soft_cpu *cpu, uint64_t la, unsigned size);

/* The host address where the TLB allows a read (write) of size bytes at once, or NULL. size: a
 * constant of at most 64. */
static inline uint8_t *mmu_fast(const struct soft_cpu *cpu, uint64_t la, unsigned size, bool write)
{
    const struct tlb *tlb = cpu->tlb;
    const struct tlb_entry *e = &tlb->set[la >> 12 & (TLB_ENTRIES - 1)];
    uint64_t offset = la - (write ? e->write_tag : e->read_tag);
    if (__builtin_expect(offset > 4096 - size, 0))
        return NULL;
    return e->host + offset;
}

#define MMU_ACCESSORS(bits)                                                                        \
    static inline uint##bits##_t mmu_read##bits(struct soft_cpu *cpu, uint64_t la)                 \
    {                                                                                              \
        const uint8_t *p = mmu_fast(cpu, la, (bits) / 8, false);                                   \
        if (__builtin_expect(!p, 0))                                                               \
            return (uint##bits##_t)mmu_read_slow(cpu, la, (bits) / 8);                             \
        uint##bits##_t value;                                                                      \
        __builtin_memcpy(&value, p, (bits) / 8);                                                   \
        return value;                                                                              \
    }                                                                                              \
    static inline uint##bits##_t mmu_read_for_write##bits(struct soft_cpu *cpu, uint64_t la)       \
    {                                                                                              \
        const uint8_t *p = mmu_fast(cpu, la, (bits) / 8, true);                                    \
        if (__builtin_expect(!p, 0))                                                               \
            return (uint##bits##_t)mmu_read_for_write_slow(cpu, la, (bits) / 8);                   \
        uint##bits##_t value;                                                                      \
        __builtin_memcpy(&value, p, (bits) / 8);                                                   \
        return value;                                                                              \
    }                                                                                              \
    static inline void mmu_write##bits(struct soft_cpu *cpu, uint64_t la, uint##bits##_t value)    \
    {                                                                                              \
        uint8_t *p = mmu_fast(cpu, la, (bits) / 8, true);                                          \
        if (__builtin_expect(!p, 0))                                                               \
            mmu_write_slow(cpu, la, (bits) / 8, value);                                            \
        else                                                                                       \
            __builtin_memcpy(p, &value, (bits) / 8);                                               \
    }
MMU_ACCESSORS(8)
MMU_ACCESSORS(16)
MMU_ACCESSORS(32)
MMU_ACCESSORS(64)
#undef MMU_ACCESSORS

/* len: 1 to 4096 (at most one page end is crossed). */
void mmu_read_bytes(struct soft_cpu *cpu, uint64_t la, void *buf, unsigned len);
void mmu_write_bytes(struct soft_cpu *cpu, uint64_t la, const void *buf, unsigned len);
/* Raise what a write (read) of len bytes would raise, and no more: for instructions that change
 * several things. */
void mmu_check(struct soft_cpu *cpu, uint64_t la, unsigned len, bool write);
/* Raise #GP, or #SS through SS, unless both ends of the operand are canonical. All accesses do so
 * before they look at any page; this is for instructions that check something else before. */
void mmu_check_canonical(struct soft_cpu *cpu, uint64_t la, unsigned len);
/* Raise #AC where alignment is checked (CR0.AM, RFLAGS.AC, CPL 3) and the address is not aligned.
 */
void mmu_check_alignment(struct soft_cpu *cpu, uint64_t la, unsigned align);
/* Elements of vectors, size 1, 4 or 8, which never raise #AC. */
uint64_t mmu_read_element(struct soft_cpu *cpu, uint64_t la, unsigned size);
void mmu_write_element(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value);
void mmu_check_element(struct soft_cpu *cpu, uint64_t la, unsigned size, bool write);

/* The same as supervisor accesses whatever CPL: descriptor tables, TSS. size 1, 2, 4, 8. */
uint64_t mmu_read_system(struct soft_cpu *cpu, uint64_t la, unsigned size);
void mmu_write_system(struct soft_cpu *cpu, uint64_t la, unsigned size, uint64_t value);

/*
 * A LOCKed (or XCHG) access of size 1, 2, 4, 8 or 16 bytes, checked as a write. Returns the host
 * address, on which the handler uses a LOCKed host instruction (an unaligned one is as atomic there
 * as on hardware), then calls mmu_lock_done(). NULL: a device, or two pages: then the handler does
 * a plain read and write between soft_exclusive_begin() and _end(), having called mmu_check().
 */
uint8_t *mmu_lock(struct soft_cpu *cpu, uint64_t la, unsigned size);
void mmu_lock_done(struct soft_cpu *cpu, uint64_t la, unsigned size);

/*
 * For bulk string moves: the host address and how many bytes from la on lie in the same page and
 * can be read (written) plainly now: 0 where the slow path must be taken. Raises as an access of
 * one byte does. After a bulk write nothing else need be called.
 */
uint8_t *mmu_span(struct soft_cpu *cpu, uint64_t la, bool write, unsigned *len);

/* --- for block.c, the debugger, reports --- */

struct mmu_fetch {
    uint64_t gpa;        /* of the page */
    const uint8_t *host; /* NULL: not RAM or ROM; fetch by mmu_fetch_device */
    bool global;         /* the translation outlives a change of the address space */
};

/* The page of code at la as an instruction fetch. Raises as a fetch does. */
struct mmu_fetch mmu_fetch_page(struct soft_cpu *cpu, uint64_t la);

/* Translate without a side effect, a fault, or a change: false where nothing is mapped. The
 * debugger's view (supervisor, read). */
bool mmu_translate(struct soft_cpu *cpu, uint64_t la, uint64_t *gpa);

/*
 * Pages with code. mmu_code_watch: code was decoded from [gpa, gpa + len), inside one page: returns
 * the page's generation counter, which changes whenever one of its lines with code is written, and
 * in *before its value at the start: comparing the two before running is the block cache's whole
 * check. Never NULL for RAM and ROM; else *before stays.
 */
const uint32_t *mmu_code_watch(struct soft_cpu *cpu, uint64_t gpa, unsigned len, uint32_t *before);

/* This vCPU has translated code of the page that holds gpa, and wants to be told when it changes:
 * translate_drop(). False where it has already: its generation is not that any more. */
bool mmu_code_translated(struct soft_cpu *cpu, uint64_t gpa, uint32_t generation);

/* --- of the whole VM; [any thread] unless said otherwise --- */

/* Called by soft_vm_new/free. Registers with mem for the VMM's own writes (mem_watch). */
int mmu_vm_init(struct soft_vm *vm, struct err *err);
void mmu_vm_fini(struct soft_vm *vm);
/* A region was mapped (engine_ops.map). */
int mmu_vm_map(struct soft_vm *vm, unsigned slot, const struct mem_region *region, struct err *err);
/* engine_ops.dirty_*: marks are set by vCPUs at the first write after start or collect. */
int mmu_dirty_start(struct soft_vm *vm, struct err *err);
int mmu_dirty_collect(struct soft_vm *vm, unsigned slot, uint64_t *bitmap);
int mmu_dirty_stop(struct soft_vm *vm, struct err *err);

#endif
