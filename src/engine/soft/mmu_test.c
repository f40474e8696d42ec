/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paging, against what SDM vol. 3, chapter 4, says of each kind: written down here a second time,
 * as an oracle that goes through every combination. Then the TLB: what must not be remembered.
 */
#include <errno.h>

#include "engine/soft/mmu_internal.h"
#include "engine/soft/test_cpu.h"

#define P         (1ULL << 0)
#define W         (1ULL << 1)
#define U         (1ULL << 2)
#define A         (1ULL << 5)
#define D         (1ULL << 6)
#define PS        (1ULL << 7)
#define G         (1ULL << 8)
#define NX        (1ULL << 63)
#define KEY(n)    ((uint64_t)(n) << 59)
#define ERR_P     1u
#define ERR_W     2u
#define ERR_U     4u
#define ERR_RSVD  8u
#define ERR_I     16u
#define ERR_PK    32u

#define TABLES    0x10000u /* a page for each level; the top is the highest */
#define DATA      0x100000u
#define LARGE     0x400000u
#define CODE      0x3000u
#define LA32      0x80345000ULL
#define LA64      0x123480345000ULL
#define EFER_LONG (CPU_EFER_LME | CPU_EFER_LMA)

static struct test_guest guest;
static struct soft_cpu *cpu;

/*
 * What translated code does with addresses of the stack, for all accesses here: the page that it
 * knows, if that is the address's, must be what the TLB has.
 */
static bool stack_is_right = true;
static unsigned stack_hits;

static struct stack_page *stack_of(const struct soft_cpu *vcpu, bool write)
{
    struct soft_context *context = vcpu->tlb->context;
    return !context ? NULL : write ? &context->stack_write : &context->stack_read;
}

static void check_stack(struct soft_cpu *vcpu, uint64_t la, bool write)
{
    const struct stack_page *s = stack_of(vcpu, write);
    if (!s || la - s->tag >= s->limits[STACK_8])
        return;
    stack_hits++;
    stack_is_right &= s->host + (la - s->tag) == mmu_fast(vcpu, la, 1, write);
}

static void note_stack(struct soft_cpu *vcpu, uint64_t la, bool write)
{
    struct stack_page *s = stack_of(vcpu, write);
    uint8_t *host = mmu_fast(vcpu, la, 1, write);
    if (!s || !host)
        return;
    *s = (struct stack_page){
        .tag = la & ~PAGE_OFFSET,
        .host = host - (la & PAGE_OFFSET),
        .limits = {STACK_LIMIT(8), STACK_LIMIT(64), STACK_LIMIT(512)}
    };
}

static uint8_t *looked_at(struct soft_cpu *vcpu, uint64_t la, unsigned size, bool write)
{
    check_stack(vcpu, la, write);
    note_stack(vcpu, la, write);
    return mmu_fast(vcpu, la, size, write);
}

static uint32_t read_noted(struct soft_cpu *vcpu, uint64_t la)
{
    check_stack(vcpu, la, false);
    uint32_t value = mmu_read32(vcpu, la);
    note_stack(vcpu, la, false);
    return value;
}

static void write_noted(struct soft_cpu *vcpu, uint64_t la, uint32_t value)
{
    check_stack(vcpu, la, true);
    mmu_write32(vcpu, la, value);
    note_stack(vcpu, la, true);
}

#define mmu_fast(vcpu, la, size, write) looked_at(vcpu, la, size, write)
#define mmu_read32(vcpu, la)            read_noted(vcpu, la)
#define mmu_write32(vcpu, la, value)    write_noted(vcpu, la, value)

/* --- page tables --- */

static const struct kind {
    const char *name;
    uint64_t la;
    uint64_t cr4, efer;
    unsigned levels; /* of tables in memory: the PDPTEs of PAE paging are registers */
    unsigned bytes, index_bits;
    unsigned leaf; /* level of the entry that maps the page: 0 is the page table */
    unsigned page_bits;
} kinds[] = {
    {"32-bit, 4 KiB",  LA32, CR4_PSE,     0,         2, 4, 10, 0, 12},
    {"32-bit, 4 MiB",  LA32, CR4_PSE,     0,         2, 4, 10, 1, 22},
    {"PAE, 4 KiB",     LA32, CPU_CR4_PAE, 0,         2, 8, 9,  0, 12},
    {"PAE, 2 MiB",     LA32, CPU_CR4_PAE, 0,         2, 8, 9,  1, 21},
    {"4-level, 4 KiB", LA64, CPU_CR4_PAE, EFER_LONG, 4, 8, 9,  0, 12},
    {"4-level, 2 MiB", LA64, CPU_CR4_PAE, EFER_LONG, 4, 8, 9,  1, 21},
    {"4-level, 1 GiB", LA64, CPU_CR4_PAE, EFER_LONG, 4, 8, 9,  2, 30},
};

enum {
    KIND_32,
    KIND_32_LARGE,
    KIND_PAE,
    KIND_PAE_LARGE,
    KIND_LONG,
    KIND_LONG_2M,
    KIND_LONG_1G,
    KIND_COUNT,
};

static const struct kind *kind;

static uint64_t table_of(unsigned level)
{
    return TABLES + 0x1000ULL * level;
}

/* Where the entry of a level for la is. All la of a test share the tables above the last. */
static uint64_t entry_at(unsigned level, uint64_t la)
{
    uint64_t index = la >> (12 + level * kind->index_bits) & ((1ULL << kind->index_bits) - 1);
    return table_of(level) + index * kind->bytes;
}

static uint64_t entry(unsigned level)
{
    return test_get(guest.ram, entry_at(level, kind->la), kind->bytes);
}

static void set_entry(unsigned level, uint64_t value)
{
    test_put(guest.ram, entry_at(level, kind->la), value, kind->bytes);
}

static uint64_t page_base(void)
{
    return kind->page_bits == 12 ? DATA : kind->page_bits == 30 ? 0 : LARGE;
}

static uint64_t leaf_value(void)
{
    return page_base() | P | W | U | (kind->leaf ? PS : 0);
}

/* The guest-physical address of the page of kind->la. */
static uint64_t target(void)
{
    return page_base() + (kind->la & ((1ULL << kind->page_bits) - 1) & ~0xfffULL);
}

static void make_entries(void)
{
    memset(guest.ram + TABLES, 0, 0x6000);
    for (unsigned level = kind->leaf + 1; level < kind->levels; level++)
        set_entry(level, table_of(level - 1) | P | W | U);
    set_entry(kind->leaf, leaf_value());
    cpu->cr3 = table_of(kind->levels - 1);
    if (kind->bytes == 8 && kind->levels == 2) {
        cpu->cr3 = table_of(5);
        for (unsigned i = 0; i < 4; i++)
            test_put(guest.ram, cpu->cr3 + 8ULL * i, table_of(1) | P, 8);
        mmu_load_pdptes(cpu, cpu->cr3);
    }
}

static void set_ring(unsigned cpl)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i].attr = (uint16_t)((cpu->seg[i].attr & ~SEG_ATTR_DPL) | cpl << 5);
    soft_cpu_update(cpu);
}

/* Everything allowed, and nothing of the processor's protections on. */
static void use_kind(unsigned index)
{
    kind = &kinds[index];
    test_mode(cpu, kind->efer ? 64 : 32, 0);
    cpu->cr0 |= CPU_CR0_PG | CPU_CR0_WP;
    cpu->cr4 = kind->cr4;
    cpu->efer = kind->efer | (kind->bytes == 8 ? EFER_NXE : 0);
    cpu->fpu.pkru = 0;
    soft_cpu_update(cpu);
    make_entries();
    mmu_flush_all(cpu);
    mmu_cr3_written(cpu, false);
}

/* --- one walk --- */

static struct mmu_page found;

/* The error code, or -1 where the walk succeeds. */
static int walk(struct mmu_access access)
{
    uint32_t error = 0;
    return mmu_walk(cpu, kind->la, access, &found, &error) ? -1 : (int)error;
}

static const struct mmu_access read_access = {0}, write_access = {.write = true},
                               fetch_access = {.fetch = true}, user_read = {.user = true},
                               user_write = {.user = true, .write = true},
                               user_fetch = {.user = true, .fetch = true};

static void test_translation(void)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        use_kind(i);
        printf("# %s\n", kind->name);
        is_int(walk(read_access), -1, "the page is found");
        is_int(found.gpa, target(), "where its entry says");
        is_int(found.page_size, 1ULL << kind->page_bits, "its size");
        bool right = true;
        for (unsigned level = kind->leaf; level < kind->levels; level++)
            right &= (entry(level) & (A | D)) == A;
        ok(right, "reading sets the accessed bits alone");
        ok(!found.writable, "a write must come again for the dirty bit");
        is_int(walk(fetch_access), -1, "fetching");
        ok(!(entry(kind->leaf) & D), "sets no dirty bit");
        is_int(walk(write_access), -1, "writing");
        ok(entry(kind->leaf) & D && found.writable, "sets it, of the page's entry");
        for (unsigned level = kind->leaf + 1; level < kind->levels; level++)
            right &= !(entry(level) & D);
        ok(right, "and of no other");
        for (unsigned level = kind->leaf; level < kind->levels; level++) {
            make_entries();
            set_entry(level, entry(level) & ~P);
            uint64_t upper = level + 1 < kind->levels ? entry(level + 1) : 0;
            right &= walk(user_write) == (int)(ERR_W | ERR_U) && walk(read_access) == 0;
            right &= walk(fetch_access) == (int)(kind->bytes == 8 ? ERR_I : 0);
            right &= level + 1 >= kind->levels || entry(level + 1) == upper;
        }
        ok(right, "an entry that is not present: the error code, and nothing is changed");
    }
}

/* What the entries of a PAE PDPTE register may hold (SDM vol. 3, table 4-8). */
static void test_pdptes(void)
{
    bool right = true;
    use_kind(KIND_PAE);
    for (unsigned bit = 1; bit < 64; bit++) {
        bool reserved = bit == 1 || bit == 2 || (bit >= 5 && bit <= 8) || bit >= 46;
        test_put(guest.ram, cpu->cr3 + 16, table_of(1) | P | 1ULL << bit, 8);
        right &= mmu_load_pdptes(cpu, cpu->cr3) == !reserved;
        test_put(guest.ram, cpu->cr3 + 16, 1ULL << bit, 8);
        right &= mmu_load_pdptes(cpu, cpu->cr3);
    }
    ok(right, "reserved bits of present PDPTEs are refused");
    test_put(guest.ram, cpu->cr3 + 16, 0, 8);
    is_int(walk(read_access), 0, "a PDPTE that was loaded without P");
    test_put(guest.ram, cpu->cr3 + 16, table_of(1) | P, 8);
    is_int(walk(read_access), 0, "is a register: what memory holds does not count");
    ok(mmu_load_pdptes(cpu, cpu->cr3) && walk(read_access) == -1, "until it is loaded");
    is_int(mmu_pdpte(cpu, 2), table_of(1) | P, "and can be told");
}

/* --- reserved bits --- */

/* SDM vol. 3, tables 4-5, 4-10, 4-15 and so on, for 46 bits of physical address. */
static bool is_reserved(unsigned level, unsigned bit, bool nxe, bool gib_pages)
{
    bool leaf = level == kind->leaf;
    if (kind->bytes == 4)
        return leaf && level == 1 && bit == 21;
    if (bit == 63)
        return !nxe;
    if (kind->levels == 2 ? bit >= 46 : bit >= 46 && bit < 52)
        return true;
    if (leaf && level > 0)
        return bit >= 13 && bit < kind->page_bits;
    return bit == 7 && (level == 3 || (level == 2 && !gib_pages));
}

static bool has_fault(unsigned level, unsigned bit)
{
    make_entries();
    /* What a PS bit or another address leads to is not the question here. */
    set_entry(level, entry(level) | 1ULL << bit);
    int error = walk(user_write);
    if (error >= 0 && error & (int)ERR_RSVD && error != (int)(ERR_P | ERR_RSVD | ERR_W | ERR_U))
        printf("# level %u, bit %u: error code %x\n", level, bit, (unsigned)error);
    return error >= 0 && error & (int)ERR_RSVD;
}

static void test_reserved(void)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        bool right = true;
        use_kind(i);
        for (unsigned level = kind->leaf; level < kind->levels; level++) {
            for (unsigned bit = 1; bit < kind->bytes * 8; bit++) {
                if (bit == 7 && level == kind->leaf)
                    continue;
                /* Large entries with address bits set by an upper entry's PS: of their own kind. */
                if (bit == 7 && level > kind->leaf && level < 3)
                    continue;
                if (has_fault(level, bit) != is_reserved(level, bit, true, true)) {
                    printf("# %s: level %u, bit %u\n", kind->name, level, bit);
                    right = false;
                }
            }
            if (kind->bytes == 8) {
                cpu->efer &= ~EFER_NXE;
                right &= has_fault(level, 63);
                cpu->efer |= EFER_NXE;
            }
            make_entries();
            set_entry(level, (kind->bytes == 8 ? 0xffffffffffffffffULL : 0xffffffff) & ~P);
            right &= walk(read_access) == 0;
        }
        ok(right, kind->name);
    }
    use_kind(KIND_LONG_1G);
    guest.vm->model.gib_pages = false;
    is_int(walk(read_access), ERR_P | ERR_RSVD, "1 GiB pages on a processor without them");
    is_int(walk(user_fetch), ERR_P | ERR_RSVD | ERR_U | ERR_I, "a user's fetch there");
    guest.vm->model.gib_pages = true;
}

static void test_pse(void)
{
    use_kind(KIND_32_LARGE);
    set_entry(1, leaf_value() | 1 << 13);
    is_int(walk(read_access), -1, "PSE-36");
    is_int(found.gpa, TEST_HIGH + target(), "has address bits 32 to 39 in 13 to 20");
    set_entry(1, leaf_value() | 0xff << 13);
    is_int(walk(read_access), -1, "all of them");
    is_int(found.gpa, (0xffULL << 32) + target(), "are within the processor's physical addresses");
    set_entry(1, leaf_value() | 1 << 12);
    is_int(walk(read_access), -1, "PAT of a large page");
    is_int(found.gpa, target(), "is no address bit");
    cpu->cr4 = 0;
    set_entry(1, table_of(0) | P | W | U | PS);
    set_entry(0, DATA | P | W | U | PS);
    is_int(walk(read_access), -1, "without PSE");
    is_int(found.gpa, DATA, "PS does not count");
    is_int(found.page_size, 4096, "and the page has 4 KiB");
    use_kind(KIND_PAE_LARGE);
    cpu->cr4 = CPU_CR4_PAE; /* PSE is clear */
    is_int(walk(read_access), -1, "PAE has large pages without PSE");
    use_kind(KIND_LONG_2M);
    set_entry(1, leaf_value() | 1 << 12 | G);
    is_int(walk(read_access), -1, "PAT and G of 2 MiB");
    is_int(found.gpa, target(), "are no address bits either");
}

/* --- rights --- */

struct rights {
    bool user, writable, nx; /* of the page */
    bool wp, smep, smap, ac, key_ad, key_wd;
};

/* SDM vol. 3, 4.6 and 4.7: the error code, or -1. */
static int expected(const struct rights *r, struct mmu_access a)
{
    bool denied = false, key = false;
    if (a.fetch) {
        denied = r->nx || (a.user ? !r->user : r->user && r->smep);
    } else if (a.user) {
        denied = !r->user || (a.write && !r->writable);
    } else {
        denied =
            (r->user && r->smap && (a.implicit || !r->ac)) || (a.write && r->wp && !r->writable);
    }
    if (!a.fetch && r->user)
        key = r->key_ad || (a.write && r->key_wd && (a.user || r->wp));
    if (!denied && !key)
        return -1;
    return (int)(ERR_P | (a.write ? ERR_W : 0) | (a.user ? ERR_U : 0) | (a.fetch ? ERR_I : 0) |
                 (key ? ERR_PK : 0));
}

static void set_rights(const struct rights *r)
{
    make_entries();
    set_entry(kind->leaf, (leaf_value() & ~(W | U)) | (r->user ? U : 0) | (r->writable ? W : 0) |
                              (r->nx ? NX : 0) | KEY(5));
    cpu->cr0 = (cpu->cr0 & ~CPU_CR0_WP) | (r->wp ? CPU_CR0_WP : 0);
    cpu->cr4 = CPU_CR4_PAE | CR4_PKE | (r->smep ? CR4_SMEP : 0) | (r->smap ? CR4_SMAP : 0);
    cpu->rflags = RFLAGS_FIXED | (r->ac ? RFLAGS_AC : 0);
    cpu->fpu.pkru = (r->key_ad ? 1u << 10 : 0) | (r->key_wd ? 1u << 11 : 0);
    mmu_flush_all(cpu);
}

static struct rights rights_of(unsigned n)
{
    return (struct rights){.user = n & 1,
                           .writable = n & 2,
                           .nx = n & 4,
                           .wp = n & 8,
                           .smep = n & 16,
                           .smap = n & 32,
                           .ac = n & 64,
                           .key_ad = n & 128,
                           .key_wd = n & 256};
}

/* Read, write, fetch; the processor's own read and write; and a user's three. */
#define ACCESSES 8

static struct mmu_access access_number(unsigned n)
{
    bool user = n >= 5;
    unsigned k = user ? n - 5 : n;
    return (struct mmu_access){
        .user = user, .write = k == 1 || k == 4, .fetch = k == 2, .implicit = k == 3 || k == 4};
}

static bool rights_hold(const struct rights *r, struct mmu_access a)
{
    int want = expected(r, a), got;
    set_rights(r);
    uint64_t before = entry(kind->leaf), upper = entry(3);
    got = walk(a);
    bool bits =
        want < 0 ? entry(kind->leaf) == (before | A | (a.write ? D : 0)) && entry(3) == (upper | A)
                 : entry(kind->leaf) == before && entry(3) == upper;
    if (got == want && bits)
        return true;
    printf("# page %c%c%c, wp %d smep %d smap %d ac %d ad %d wd %d: %s%s %s: %d, want %d%s\n",
           r->user ? 'u' : 's', r->writable ? 'w' : 'r', r->nx ? '-' : 'x', r->wp, r->smep, r->smap,
           r->ac, r->key_ad, r->key_wd, a.user ? "user" : "supervisor",
           a.implicit ? ", implicit" : "",
           a.fetch   ? "fetch"
           : a.write ? "write"
                     : "read",
           got, want, bits ? "" : "; accessed or dirty bits are wrong");
    return false;
}

static void test_rights(void)
{
    static const unsigned places[] = {KIND_LONG, KIND_LONG_2M, KIND_LONG_1G};
    for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        bool right = true;
        use_kind(places[i]);
        for (unsigned n = 0; n < 512; n++) {
            struct rights r = rights_of(n);
            for (unsigned k = 0; k < ACCESSES; k++)
                right &= rights_hold(&r, access_number(k));
        }
        ok(right, kind->name);
    }
}

/* An upper entry takes rights from all below it, and gives none. */
static void test_upper_rights(void)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        bool right = true;
        use_kind(i);
        for (unsigned level = kind->leaf; level < kind->levels; level++) {
            make_entries();
            set_entry(level, entry(level) & ~W);
            right &= walk(user_write) == (int)(ERR_P | ERR_W | ERR_U) && walk(user_read) == -1;
            make_entries();
            set_entry(level, entry(level) & ~U);
            right &= walk(user_read) == (int)(ERR_P | ERR_U) && walk(write_access) == -1;
            cpu->cr4 |= CR4_SMEP | CR4_SMAP;
            right &= walk(fetch_access) == -1 && walk(read_access) == -1;
            cpu->cr4 = kind->cr4;
            make_entries();
            if (kind->bytes == 8) {
                set_entry(level, entry(level) | NX);
                right &= walk(fetch_access) == (int)(ERR_P | ERR_I) && walk(read_access) == -1;
                right &= walk(user_fetch) == (int)(ERR_P | ERR_I | ERR_U);
            }
        }
        ok(right, kind->name);
    }
    use_kind(KIND_32);
    set_entry(0, DATA | P);
    is_int(walk(user_fetch), ERR_P | ERR_U, "the I bit is not set where there is no NX");
    cpu->cr4 |= CR4_SMEP;
    is_int(walk(user_fetch), ERR_P | ERR_U | ERR_I, "but with SMEP");
    set_entry(0, DATA | P | U);
    is_int(walk(fetch_access), ERR_P | ERR_I, "which 32-bit paging has too");
    cpu->cr4 = 0;
    use_kind(KIND_PAE);
    cpu->cr4 |= CR4_PKE;
    cpu->fpu.pkru = 3;
    is_int(walk(user_read), -1, "protection keys are of 4-level paging alone");
}

/* --- accesses, by the TLB --- */

static int read_by_cpu(void)
{
    return TEST_CATCH(cpu, mmu_read_system(cpu, kind->la, 4));
}

static int write_by_cpu(void)
{
    return TEST_CATCH(cpu, mmu_write_system(cpu, kind->la, 4, 7));
}

static int fetch(void)
{
    return TEST_CATCH(cpu, mmu_fetch_page(cpu, kind->la));
}

static int read_data(void)
{
    return TEST_CATCH(cpu, mmu_read32(cpu, kind->la));
}

static int write_data(void)
{
    return TEST_CATCH(cpu, mmu_write32(cpu, kind->la, 7));
}

static int access_by(unsigned n)
{
    const struct mmu_access a = access_number(n);
    if (cpu->mode.cpl != (a.user ? 3 : 0))
        set_ring(a.user ? 3 : 0);
    if (a.implicit)
        return a.write ? write_by_cpu() : read_by_cpu();
    return a.fetch ? fetch() : a.write ? write_data() : read_data();
}

/* Every access after every other, without a flush between: an entry of one kind is none of
 * another's. */
static void test_tlb_rights(void)
{
    const unsigned count = ACCESSES;
    bool right = true;
    use_kind(KIND_LONG);
    for (unsigned n = 0; n < 512; n++) {
        struct rights r = rights_of(n);
        set_rights(&r);
        for (unsigned i = 0; i < count * count * 2; i++) {
            unsigned k = i % 2 ? i / 2 % count : i / 2 / count;
            int want = expected(&r, access_number(k)), got = access_by(k);
            if (got == (want < 0 ? -1 : FAULT(EXC_PF, want)))
                continue;
            right = false;
            printf("# rights %03x, access %u: %x, want %x\n", n, k, (unsigned)got, (unsigned)want);
        }
    }
    ok(right, "an access has its own rights, whatever was accessed before");
    set_ring(0);
}

static void test_accessors(void)
{
    use_kind(KIND_LONG);
    test_put(guest.ram, target() + 8, 0x1122334455667788, 8);
    is_int(mmu_read64(cpu, kind->la + 8), 0x1122334455667788, "eight bytes");
    ok(mmu_fast(cpu, kind->la, 8, false), "the translation is kept");
    ok(!mmu_fast(cpu, kind->la, 8, true), "not for a write, of which there was none");
    mmu_write32(cpu, kind->la + 8, 0x99aabbcc);
    is_int(test_get(guest.ram, target() + 8, 8), 0x1122334499aabbcc, "four are written");
    ok(entry(0) & D, "and the page is dirty");
    ok(mmu_fast(cpu, kind->la, 8, true), "now it is");
    set_entry(0, entry(0) & ~P);
    mmu_flush_all(cpu);
    is_int(TEST_CATCH(cpu, mmu_read8(cpu, kind->la + 0x123)), FAULT(EXC_PF, 0), "not present");
    is_int(cpu->exception.address, kind->la + 0x123, "the address is exact");
    is_int(TEST_CATCH(cpu, mmu_read_for_write16(cpu, kind->la)), FAULT(EXC_PF, ERR_W),
           "what is read to be written faults as a write");
    is_int(TEST_CATCH(cpu, mmu_read64(cpu, 1ULL << 47)), FAULT(EXC_GP, 0), "not canonical");
    is_int(TEST_CATCH(cpu, mmu_read64(cpu, (1ULL << 47) - 4)), FAULT(EXC_GP, 0),
           "nor with its last byte");
    uint64_t gpa;
    ok(!mmu_translate(cpu, kind->la, &gpa), "the debugger sees no page");
    set_entry(0, DATA | P);
    cpu->cr4 |= CR4_SMAP;
    ok(mmu_translate(cpu, kind->la + 5, &gpa) && gpa == DATA + 5, "and sees one without rights");
    ok(!(entry(0) & A), "of which it leaves no trace");
    use_kind(KIND_32);
    mmu_write32(cpu, kind->la, 1);
    is_int(TEST_CATCH(cpu, mmu_read64(cpu, 0xfffffffcULL)), FAULT(EXC_PF, 0), "4 GiB less 4");
}

/* Two pages: what faults is told by its first byte, and nothing is written. */
static void test_crossing(void)
{
    uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    use_kind(KIND_LONG);
    uint64_t second = entry_at(0, kind->la + 0x1000), end = kind->la + 0x1000;
    test_put(guest.ram, target() + 0xffc, 0xaaaaaaaa, 4);
    test_put(guest.ram, second, 0, 8);
    is_int(TEST_CATCH(cpu, mmu_write64(cpu, end - 4, ~0ULL)), FAULT(EXC_PF, ERR_W),
           "a write whose second page is not there");
    is_int(cpu->exception.address, end, "the address is that page's");
    is_int(test_get(guest.ram, target() + 0xffc, 4), 0xaaaaaaaa, "nothing was written");
    is_int(TEST_CATCH(cpu, mmu_write_bytes(cpu, end - 1, bytes, 8)), FAULT(EXC_PF, ERR_W),
           "nor is of a run of bytes");
    is_int(test_get(guest.ram, target() + 0xffc, 4), 0xaaaaaaaa, "not the first");
    is_int(TEST_CATCH(cpu, mmu_write_system(cpu, end - 4, 8, ~0ULL)), FAULT(EXC_PF, ERR_W),
           "nor of the processor's own");
    is_int(test_get(guest.ram, target() + 0xffc, 4), 0xaaaaaaaa, "nothing was written");
    test_put(guest.ram, second, (DATA + 0x5000) | P | U, 8);
    is_int(TEST_CATCH(cpu, mmu_write64(cpu, end - 4, ~0ULL)), FAULT(EXC_PF, ERR_P | ERR_W),
           "a second page that is read-only");
    is_int(test_get(guest.ram, target() + 0xffc, 4), 0xaaaaaaaa, "nothing was written");
    ok(!(test_get(guest.ram, second, 8) & (A | D)), "its entry is as it was");
    test_put(guest.ram, DATA + 0x5000, 0xbbbbbbbb, 4);
    is_int(mmu_read64(cpu, end - 4), 0xbbbbbbbbaaaaaaaa, "a read takes from both");
    ok((test_get(guest.ram, second, 8) & (A | D)) == A, "the second was accessed");
    test_put(guest.ram, second, (DATA + 0x5000) | P | U | W, 8);
    mmu_invlpg(cpu, end);
    mmu_write64(cpu, end - 4, 0x1111111122222222);
    is_int(test_get(guest.ram, target() + 0xffc, 4), 0x22222222, "a write goes to the first");
    is_int(test_get(guest.ram, DATA + 0x5000, 4), 0x11111111, "and the second");
    /* The first is not there: its address, whatever the second is. */
    set_entry(0, 0);
    test_put(guest.ram, second, 0, 8);
    mmu_flush_all(cpu);
    is_int(TEST_CATCH(cpu, mmu_read64(cpu, end - 4)), FAULT(EXC_PF, 0), "neither page is there");
    is_int(cpu->exception.address, end - 4, "the first is the one that is told");
    is_int(TEST_CATCH(cpu, mmu_check(cpu, end - 4, 8, true)), FAULT(EXC_PF, ERR_W), "checked");
}

/* Page tables that are nowhere, or in a ROM, which nothing can write to. */
static void test_places(void)
{
    use_kind(KIND_LONG);
    set_entry(1, 0x20000000 | P | W | U);
    is_int(walk(write_access), ERR_W, "a table where there is no memory holds nothing");
    memset(guest.rom, 0, 0x1000);
    test_put(guest.rom, entry_at(0, kind->la) & 0xfff, DATA | P | W | U, 8);
    set_entry(1, TEST_ROM | P | W | U);
    is_int(walk(write_access), -1, "a table in a ROM");
    is_int(found.gpa, DATA, "is read");
    is_int(test_get(guest.rom, entry_at(0, kind->la) & 0xfff, 8), DATA | P | W | U,
           "and is not written to");
    set_entry(1, table_of(0) | P | W | U);
    set_entry(0, TEST_ROM | P | W | U);
    test_put(guest.rom, 0x10, 0x55, 1);
    is_int(TEST_CATCH(cpu, mmu_write8(cpu, kind->la + 0x10, 0xaa)), -1, "a write to a ROM");
    is_int(mmu_read8(cpu, kind->la + 0x10), 0x55, "does nothing");
    ok(!mmu_fast(cpu, kind->la, 1, true), "and is never a fast one");
    set_entry(0, 0x20000000 | P | W | U);
    mmu_invlpg(cpu, kind->la);
    is_int(mmu_read32(cpu, kind->la), 0xffffffff, "what is nowhere reads as ones");
}

/* --- invalidation --- */

/* The page at la is the first or the second of two, which hold 1 and 2. */
static void point_to(unsigned which)
{
    uint64_t base = kind->page_bits == 12 ? DATA + which * 0x8000ULL : which * 0x400000ULL;
    set_entry(kind->leaf, base | P | W | U | (kind->leaf ? PS : 0) | G);
    test_put(guest.ram, base + (kind->la & ((1ULL << kind->page_bits) - 1)), 1 + which, 4);
}

static bool is_kept(void)
{
    return mmu_fast(cpu, kind->la, 4, false);
}

static void test_invlpg(void)
{
    static const unsigned two[] = {KIND_32,        KIND_32_LARGE, KIND_PAE,
                                   KIND_PAE_LARGE, KIND_LONG,     KIND_LONG_2M};
    for (unsigned i = 0; i < sizeof(two) / sizeof(two[0]); i++) {
        use_kind(two[i]);
        bool right = true;
        uint64_t size = 1ULL << kind->page_bits, first = kind->la & ~(size - 1);
        const uint64_t addresses[] = {kind->la, kind->la + 0xfff, first, first + size - 1};
        for (unsigned k = 0; k < sizeof(addresses) / sizeof(addresses[0]); k++) {
            point_to(0);
            mmu_flush_all(cpu);
            right &= mmu_read32(cpu, kind->la) == 1 && is_kept();
            point_to(1);
            mmu_invlpg(cpu, addresses[k]);
            right &= mmu_read32(cpu, kind->la) == 2;
        }
        mmu_invlpg(cpu, first + size);
        mmu_invlpg(cpu, first - 1);
        right &= is_kept();
        ok(right, "INVLPG of any address of the page, and of its neighbours");
    }
    use_kind(KIND_LONG_1G);
    mmu_write32(cpu, kind->la, 7);
    set_entry(2, 0);
    mmu_invlpg(cpu, kind->la ^ 0x3f000000);
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), FAULT(EXC_PF, 0),
           "of 1 GiB, far away in it");
    use_kind(KIND_LONG);
    mmu_read32(cpu, kind->la);
    set_ring(3);
    mmu_read32(cpu, kind->la);
    set_entry(0, 0);
    set_ring(0);
    mmu_invlpg(cpu, kind->la);
    set_ring(3);
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), FAULT(EXC_PF, ERR_U),
           "the user's translation goes with the supervisor's");
    set_ring(0);
}

/* Can no entry be taken for one that holds an address, of which translated code compares bits 16 to
 * 47 alone? */
static bool all_are_empty(void)
{
    for (unsigned i = 0; i < TLB_ENTRIES; i++) {
        const struct tlb_entry *e = &cpu->tlb->set[i];
        unsigned own = i >> (TLB_TAG_SHIFT - 12), mask = TLB_ENTRIES >> (TLB_TAG_SHIFT - 12);
        if ((e->read_tag >> TLB_TAG_SHIFT) % mask == own ||
            (e->write_tag >> TLB_TAG_SHIFT) % mask == own)
            return false;
    }
    return true;
}

/* A flush finds every entry that is in use, wherever it is. */
static void test_flush_of_all_entries(void)
{
    use_kind(KIND_LONG_2M);
    mmu_read32(cpu, kind->la);
    mmu_flush_all(cpu);
    ok(all_are_empty(), "no entry of a context holds anything at first");
    for (unsigned i = 0; i < 512; i++)
        test_put(guest.ram, table_of(1) + 8ULL * i, leaf_value(), 8);
    uint64_t base = kind->la & ~((1ULL << 30) - 1), random = 1;
    bool kept = true, gone = true;
    for (unsigned round = 0; round < 2000; round++) {
        uint64_t la[4];
        for (unsigned n = 0; n < 4; n++) {
            random = random * 0x5851f42d4c957f2dULL + 1;
            /* near a multiple of 64, for the bitmaps' sake, or of 4096 */
            uint64_t page = (random >> 40 << (round & 1 ? 6 : 12)) + (random >> 33 & 3) - 1;
            la[n] = base + (page % TLB_ENTRIES << 12);
            mmu_read32(cpu, la[n]);
            kept &= mmu_fast(cpu, la[n], 4, false) != NULL;
        }
        mmu_flush_all(cpu);
        for (unsigned n = 0; n < 4; n++)
            gone &= mmu_fast(cpu, la[n], 4, false) == NULL;
    }
    ok(kept && gone && all_are_empty(), "a flush of translations anywhere in the TLB");
    use_kind(KIND_LONG);
    uint64_t neighbour = kind->la ^ 4096;
    test_put(guest.ram, entry_at(0, neighbour), leaf_value(), 8);
    mmu_read32(cpu, kind->la);
    mmu_read32(cpu, neighbour);
    mmu_invlpg(cpu, kind->la);
    kept = mmu_fast(cpu, neighbour, 4, false) != NULL;
    mmu_flush_all(cpu);
    ok(kept && !mmu_fast(cpu, neighbour, 4, false), "and of one whose neighbour has gone before");
}

/* Bytes of an instruction, run at CODE, which is mapped one to one. */
static int run(const uint8_t *bytes, size_t len)
{
    memcpy(guest.ram + CODE, bytes, len);
    block_cache_flush(cpu);
    cpu->rip = CODE;
    return test_step(cpu);
}

#define RUN(...) run((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* Tables for code at CODE beside those of kind->la: one large page at 0. */
static void map_code(void)
{
    if (kind->levels == 4) {
        test_put(guest.ram, table_of(3), table_of(4) | P | W, 8);
        test_put(guest.ram, table_of(4), 0 | P | W | PS, 8);
    }
}

static int mov_cr3(uint64_t value)
{
    cpu->gpr[CPU_RAX] = value;
    return RUN(0x0f, 0x22, 0xd8);
}

static int mov_cr4(uint64_t value)
{
    cpu->gpr[CPU_RAX] = value;
    return RUN(0x0f, 0x22, 0xe0);
}

static int invpcid(uint64_t type, uint64_t pcid, uint64_t address)
{
    test_put(guest.ram, CODE + 0x100, pcid, 8);
    test_put(guest.ram, CODE + 0x108, address, 8);
    cpu->gpr[CPU_RAX] = type;
    cpu->gpr[CPU_RBX] = CODE + 0x100;
    return RUN(0x66, 0x0f, 0x38, 0x82, 0x03);
}

/* Translations of la in the spaces of PCID 1 and 2; then they change behind the TLB's back. */
static void fill_spaces(void)
{
    use_kind(KIND_LONG);
    map_code();
    point_to(0);
    mov_cr4(CPU_CR4_PAE | CR4_PCIDE);
    for (unsigned pcid = 1; pcid <= 2; pcid++) {
        mov_cr3(cpu->cr3 >> 12 << 12 | pcid);
        mmu_read32(cpu, kind->la);
    }
    point_to(1);
}

static uint32_t seen_in(unsigned pcid)
{
    mov_cr3((cpu->cr3 & ~0xfffULL) | pcid | 1ULL << 63);
    return mmu_read32(cpu, kind->la);
}

static void test_cr3(void)
{
    use_kind(KIND_LONG);
    map_code();
    set_entry(0, DATA | P | W | U);
    is_int(mmu_read32(cpu, kind->la), test_get(guest.ram, DATA, 4), "a page");
    ok(is_kept(), "is in the TLB");
    set_entry(0, 0);
    is_int(mov_cr3(cpu->cr3), -1, "CR3 is loaded with what it has");
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), FAULT(EXC_PF, 0), "and all is forgotten");
    is_int(mov_cr3(cpu->cr3 | 1ULL << 63), FAULT(EXC_GP, 0), "bit 63 is reserved without PCIDs");
    is_int(mov_cr3(cpu->cr3 | 1ULL << 50), FAULT(EXC_GP, 0), "bit 50 always");
    fill_spaces();
    is_int(seen_in(1), 1, "a load of CR3 with bit 63 keeps what its PCID has");
    is_int(cpu->cr3 >> 63, 0, "the bit itself is not kept");
    is_int(seen_in(2), 1, "so has the other");
    is_int(mov_cr3(cpu->cr3), -1, "one without bit 63");
    is_int(mmu_read32(cpu, kind->la), 2, "forgets its own");
    is_int(seen_in(1), 1, "and not another's");
    for (unsigned pcid = 3; pcid < 16; pcid++)
        if (seen_in(pcid) != 2)
            printf("# PCID %u\n", pcid);
    is_int(seen_in(0xfff), 2, "a PCID that was never used has nothing");
    point_to(0);
    bool right = true;
    for (unsigned pcid = 20; pcid < 40; pcid++)
        right &= seen_in(pcid) == 1;
    ok(right, "nor has one of many, which takes the place of another");
    fill_spaces();
    is_int(mov_cr4(CPU_CR4_PAE), -1, "PCIDs off");
    is_int(mmu_read32(cpu, kind->la), 2, "forgets all");
    is_int(mov_cr4(CPU_CR4_PAE | CR4_PCIDE), FAULT(EXC_GP, 0), "on again only with PCID 0");
}

static void test_invpcid(void)
{
    fill_spaces();
    is_int(invpcid(0, 1, kind->la + 0x1000), -1, "INVPCID of another page");
    ok(seen_in(1) == 1 && seen_in(2) == 1, "forgets nothing here");
    is_int(invpcid(0, 1, kind->la + 0x123), -1, "of an address");
    is_int(seen_in(1), 2, "forgets it in that space");
    is_int(seen_in(2), 1, "and no other");
    fill_spaces();
    is_int(invpcid(1, 1, 0), -1, "of a space");
    is_int(seen_in(1), 2, "forgets it");
    is_int(seen_in(2), 1, "and no other");
    fill_spaces();
    is_int(invpcid(1, 2, 0), -1, "of the current space");
    is_int(mmu_read32(cpu, kind->la), 2, "forgets at once");
    for (unsigned type = 2; type <= 3; type++) {
        fill_spaces();
        if (type == 3) /* it may keep global translations: these are none */
            set_entry(0, entry(0) & ~G);
        is_int(invpcid(type, 0, 0), -1, "of all");
        ok(seen_in(1) == 2 && seen_in(2) == 2, "forgets both");
    }
    is_int(invpcid(4, 0, 0), FAULT(EXC_GP, 0), "there is no type 4");
    is_int(invpcid(0, 0x1000, 0), FAULT(EXC_GP, 0), "nor a PCID of 13 bits");
    is_int(invpcid(0, 1, 1ULL << 47), FAULT(EXC_GP, 0), "the address must be canonical");
    is_int(invpcid(1, 1, 1ULL << 47), -1, "where it is looked at");
    /* Without PCIDs all is of PCID 0, whatever the number was before. */
    fill_spaces();
    mov_cr4(CPU_CR4_PAE);
    is_int(mmu_read32(cpu, kind->la), 2, "PCIDs off at PCID 2");
    point_to(0);
    is_int(invpcid(0, 1, kind->la), FAULT(EXC_GP, 0), "no PCID but 0 can be named then");
    is_int(invpcid(0, 0, kind->la), -1, "0 is the current space");
    is_int(mmu_read32(cpu, kind->la), 1, "and the address is forgotten");
    point_to(1);
    is_int(invpcid(1, 0, 0), -1, "as a whole");
    is_int(mmu_read32(cpu, kind->la), 2, "too");
}

static void test_global(void)
{
    use_kind(KIND_LONG);
    map_code();
    point_to(0);
    mov_cr4(CPU_CR4_PAE | CR4_PGE);
    is_int(mmu_read32(cpu, kind->la), 1, "a global page");
    point_to(1);
    is_int(mov_cr4(CPU_CR4_PAE), -1, "PGE off");
    is_int(mmu_read32(cpu, kind->la), 2, "forgets it");
    point_to(0);
    is_int(mov_cr4(CPU_CR4_PAE | CR4_PGE), -1, "and on");
    is_int(mmu_read32(cpu, kind->la), 1, "again");
    point_to(1);
    is_int(mov_cr3(cpu->cr3), -1, "CR3");
    is_int(mmu_read32(cpu, kind->la), 1, "leaves it");
    mmu_invlpg(cpu, kind->la);
    is_int(mmu_read32(cpu, kind->la), 2, "INVLPG does not");
    set_entry(0, entry(0) & ~G);
    mmu_invlpg(cpu, kind->la);
    mmu_read32(cpu, kind->la);
    point_to(0);
    set_entry(0, entry(0) & ~G);
    mov_cr3(cpu->cr3);
    is_int(mmu_read32(cpu, kind->la), 1, "a page that is not global goes with CR3");
    /* INVLPG forgets global translations of all spaces, whatever PCID is the current one. */
    fill_spaces();
    mmu_invlpg(cpu, kind->la);
    ok(seen_in(1) == 2 && seen_in(2) == 2, "INVLPG forgets a global page under every PCID");
}

/* What changes the meaning of the entries that are kept. */
static void test_protection_changes(void)
{
    use_kind(KIND_LONG);
    map_code();
    mmu_read32(cpu, kind->la);
    is_int(mov_cr4(CPU_CR4_PAE | CR4_SMAP), -1, "SMAP comes on");
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), FAULT(EXC_PF, ERR_P), "and holds at once");
    is_int(RUN(0x0f, 0x01, 0xcb), -1, "STAC");
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), -1, "lifts it");
    is_int(TEST_CATCH(cpu, mmu_read_system(cpu, kind->la, 4)), FAULT(EXC_PF, ERR_P),
           "not for the processor's own accesses");
    is_int(RUN(0x0f, 0x01, 0xca), -1, "CLAC");
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), FAULT(EXC_PF, ERR_P), "brings it back");
    use_kind(KIND_LONG);
    map_code();
    set_entry(0, DATA | P | U);
    cpu->cr0 &= ~CPU_CR0_WP;
    mmu_flush_all(cpu);
    is_int(TEST_CATCH(cpu, mmu_write32(cpu, kind->la, 1)), -1, "without WP all can be written");
    cpu->gpr[CPU_RAX] = cpu->cr0 | CPU_CR0_WP;
    is_int(RUN(0x0f, 0x22, 0xc0), -1, "with it");
    is_int(TEST_CATCH(cpu, mmu_write32(cpu, kind->la, 1)), FAULT(EXC_PF, ERR_P | ERR_W), "not");
    use_kind(KIND_LONG);
    map_code();
    mov_cr4(CPU_CR4_PAE | CR4_PKE);
    mmu_write32(cpu, kind->la, 1);
    cpu->gpr[CPU_RAX] = 2;
    cpu->gpr[CPU_RCX] = cpu->gpr[CPU_RDX] = 0;
    is_int(RUN(0x0f, 0x01, 0xef), -1, "WRPKRU");
    is_int(TEST_CATCH(cpu, mmu_write32(cpu, kind->la, 1)), FAULT(EXC_PF, ERR_P | ERR_W | ERR_PK),
           "takes the right to write");
    is_int(TEST_CATCH(cpu, mmu_read32(cpu, kind->la)), -1, "and not that to read");
}

/* --- the dirty log --- */

static uint64_t log_bitmap[TEST_RAM_BYTES / 4096 / 64];

static bool is_logged(uint64_t gpa)
{
    memset(log_bitmap, 0, sizeof(log_bitmap));
    if (mmu_dirty_collect(guest.vm, TEST_SLOT_RAM, log_bitmap) < 0)
        return false;
    return log_bitmap[gpa / 4096 / 64] >> (gpa / 4096 % 64) & 1;
}

static void test_dirty_log(void)
{
    struct err err = ERR_INIT;
    use_kind(KIND_LONG);
    is_int(mmu_dirty_collect(guest.vm, TEST_SLOT_RAM, log_bitmap), -ENOENT, "no log yet");
    mmu_write32(cpu, kind->la, 1);
    ok(mmu_fast(cpu, kind->la, 4, true), "writes are fast");
    is_int(mmu_dirty_start(guest.vm, &err), 0, "the log begins");
    ok(!mmu_fast(cpu, kind->la, 4, true), "they are not");
    ok(!is_logged(target()), "nothing was written since");
    /* A read of a page whose dirty bit is set may give a write tag, which is noted at once. */
    set_entry(0, leaf_value());
    mmu_read32(cpu, kind->la);
    ok(!is_logged(target()), "a read of a clean page is none");
    mmu_write32(cpu, kind->la, 2);
    ok(mmu_fast(cpu, kind->la, 4, true), "after the first write they are fast again");
    mmu_write32(cpu, kind->la, 3);
    ok(is_logged(target()), "and have been noted");
    ok(!is_logged(target()), "once");
    mmu_write32(cpu, kind->la, 4);
    ok(is_logged(target()), "each round anew");
    mmu_write_system(cpu, kind->la, 8, 5);
    ok(is_logged(target()), "those of the processor too");
    mmu_read64(cpu, kind->la);
    uint8_t *locked = mmu_lock(cpu, kind->la, 8);
    if (locked)
        *locked = 1;
    mmu_lock_done(cpu, kind->la, 8);
    ok(locked && is_logged(target()), "and locked ones");
    unsigned len;
    ok(mmu_span(cpu, kind->la, true, &len) && len == 4096, "a run to the page's end");
    ok(is_logged(target()), "is noted when it is given");
    is_int(mmu_dirty_stop(guest.vm, &err), 0, "the log ends");
    is_int(mmu_dirty_collect(guest.vm, TEST_SLOT_RAM, log_bitmap), -ENOENT, "and cannot be had");
}

/* --- code --- */

static const struct block *block_at(uint64_t rip)
{
    cpu->rip = rip;
    return block_find(cpu);
}

static bool is_fresh(const struct block *b)
{
    return *b->current == b->generation;
}

static const uint8_t code_bytes[] = {0xb8, 1, 0, 0, 0, 0xc3}; /* mov eax, 1; ret */

static void test_code_pages(void)
{
    use_kind(KIND_LONG);
    memcpy(guest.ram + target(), code_bytes, sizeof(code_bytes));
    mmu_write8(cpu, kind->la + 0x800, 1);
    ok(mmu_fast(cpu, kind->la, 1, true), "a page of data is written to at once");
    const struct block *b = block_at(kind->la);
    ok(is_fresh(b), "its bytes are decoded");
    ok(!mmu_fast(cpu, kind->la, 1, true), "then it is not");
    cpu->stop_block = false;
    mmu_write8(cpu, kind->la + 0xf00, 1);
    ok(is_fresh(b) && !cpu->stop_block, "a write to another line of the page");
    mmu_write8(cpu, kind->la + 1, 2);
    ok(!is_fresh(b), "a write to the code's makes it stale");
    ok(cpu->stop_block, "and the block that runs is left");
    cpu->stop_block = false;
    b = block_at(kind->la);
    is_int(b->insns[0].imm, 2, "the new bytes are decoded");
    mmu_write_system(cpu, kind->la + 1, 1, 3);
    ok(!is_fresh(b), "by a write of the processor's");
    b = block_at(kind->la);
    uint8_t *host = mmu_lock(cpu, kind->la, 8);
    ok(host && is_fresh(b), "by a locked one");
    mmu_lock_done(cpu, kind->la, 8);
    ok(!is_fresh(b), "when it is done");
    b = block_at(kind->la);
    unsigned len;
    ok(!mmu_span(cpu, kind->la, true, &len), "no run of writes is given there");
    const uint8_t byte = 9;
    is_int(mem_write(guest.mem, GPA(target() + 1), &byte, 1), 0, "the VMM writes");
    ok(!is_fresh(b), "and it is stale");
    b = block_at(kind->la);
    is_int(b->insns[0].imm, 9, "the new byte is decoded");
    /* A write over the page's end, to code on both pages. */
    test_put(guest.ram, entry_at(0, kind->la + 0x1000), (DATA + 0x1000) | P | W | U, 8);
    test_put(guest.ram, DATA + 0x1000, 0xc3, 1);
    test_put(guest.ram, DATA + 0xfff, 0xc3, 1);
    const struct block *last = block_at(kind->la + 0xfff), *next = block_at(kind->la + 0x1000);
    ok(is_fresh(last) && is_fresh(next), "code on two pages");
    mmu_write16(cpu, kind->la + 0xfff, 0x9090);
    ok(!is_fresh(last) && !is_fresh(next), "a write to both");
    cpu->stop_block = false;
}

/* The second vCPU writes, through a tag that it got while the page was data. */
static void test_other_vcpu(void)
{
    struct soft_cpu *first = cpu, *second = guest.cpu[1];
    use_kind(KIND_LONG);
    memcpy(guest.ram + target(), code_bytes, sizeof(code_bytes));
    cpu = second;
    use_kind(KIND_LONG);
    mmu_write8(second, kind->la + 0x800, 1);
    ok(mmu_fast(second, kind->la, 1, true), "the other vCPU writes to a page of data");
    __atomic_store_n(&second->events, 0, __ATOMIC_SEQ_CST);
    cpu = first;
    const struct block *b = block_at(kind->la);
    ok(second->events & SOFT_EVENT_MMU, "it is told that this one decoded there");
    ok(!(first->events & SOFT_EVENT_MMU), "and this one is not");
    mmu_write8(second, kind->la + 1, 4);
    mmu_serve(second);
    ok(!is_fresh(b), "what it wrote until it served that counts");
    ok(!mmu_fast(second, kind->la, 1, true), "it writes slowly from then on");
    b = block_at(kind->la);
    is_int(b->insns[0].imm, 4, "what it wrote is decoded");
    mmu_write8(second, kind->la + 1, 5);
    ok(!is_fresh(b), "a slow write counts by itself");
    ok(second->stop_block, "its own block is left too");
    /* More pages than a list of requests has. */
    second->stop_block = false;
    unsigned pages = 2 * MMU_REQUESTS;
    for (unsigned i = 0; i < pages; i++)
        test_put(guest.ram, entry_at(0, kind->la + 0x1000ULL * (i + 1)),
                 (0x200000 + 0x1000ULL * i) | P | W | U, 8);
    bool right = true;
    for (unsigned i = 0; i < pages; i++) {
        uint64_t la = kind->la + 0x1000ULL * (i + 1);
        test_put(guest.ram, 0x200000 + 0x1000ULL * i, 0xc3, 1);
        mmu_write8(second, la + 0x800, 1);
        right &= mmu_fast(second, la, 1, true) != NULL;
    }
    ok(right, "tags of many pages");
    static const struct block *blocks[2 * MMU_REQUESTS];
    for (unsigned i = 0; i < pages; i++) {
        blocks[i] = block_at(kind->la + 0x1000ULL * (i + 1));
        right &= is_fresh(blocks[i]);
    }
    ok(right, "all of which become code");
    mmu_serve(second);
    for (unsigned i = 0; i < pages; i++) {
        right &= !mmu_fast(second, kind->la + 0x1000ULL * (i + 1), 1, true);
        right &= !is_fresh(blocks[i]);
    }
    ok(right, "no tag is left, and none of the blocks is trusted");
}

/* A walk for a write finds another page than that for a read before it, which nobody has told. */
static void test_found_anew(void)
{
    use_kind(KIND_LONG);
    point_to(0);
    set_entry(0, DATA | P | U);
    is_int(mmu_read32(cpu, kind->la), 1, "a page that can be read");
    point_to(1);
    mmu_write32(cpu, kind->la, 2);
    ok(mmu_read32(cpu, kind->la) == 2 && stack_is_right, "a write finds another one in its place");
}

static void test_one_entry(void)
{
    use_kind(KIND_LONG);
    uint64_t neighbour = kind->la ^ 4096;
    test_put(guest.ram, entry_at(0, neighbour), leaf_value(), 8);
    mmu_use_one_entry(cpu);
    mmu_read32(cpu, kind->la);
    mmu_read64(cpu, neighbour); /* which is not of the stack */
    ok(!mmu_fast(cpu, kind->la, 4, false) && stack_is_right, "a TLB of one entry");
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_translation();
    test_pdptes();
    test_reserved();
    test_pse();
    test_rights();
    test_upper_rights();
    test_tlb_rights();
    test_accessors();
    test_crossing();
    test_places();
    test_invlpg();
    test_flush_of_all_entries();
    test_cr3();
    test_invpcid();
    test_global();
    test_protection_changes();
    test_dirty_log();
    test_code_pages();
    test_other_vcpu();
    test_found_anew();
    test_one_entry(); /* there is no way back */
    printf("# %u accesses to the page of the stack\n", stack_hits);
    ok(stack_is_right && stack_hits > 1000, "the page of the stack is one that the TLB has");
}

int main(void)
{
    if (ok(test_guest_init(&guest, 2), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
