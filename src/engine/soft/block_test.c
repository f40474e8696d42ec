/* SPDX-License-Identifier: Apache-2.0 */
/* The cache of decoded code: what is found again, what is not, and where a block ends. */
#include "engine/soft/mmu_internal.h"
#include "engine/soft/test_cpu.h"

#define CODE     0x200000u /* linear and physical, but for the aliases */
#define ALIAS    0x300000u /* the linear address of another mapping of CODE */
#define OTHER    0x210000u
#define TABLES   0x10000u
#define PTE      3u
#define PRESENT  1u
#define G        (1ULL << 8)
#define NX       (1ULL << 63)
#define ERR_I    16u
#define PAGE_END (CODE + 0x1000u)

static struct test_guest guest;
static struct soft_cpu *cpu;

static void put(uint64_t gpa, const uint8_t *bytes, size_t len)
{
    mem_write(guest.mem, GPA(gpa), bytes, len);
}

#define PUT(gpa, ...)                                                                              \
    put((gpa), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void fill(uint64_t gpa, uint8_t byte, size_t len)
{
    for (size_t i = 0; i < len; i++)
        put(gpa + i, &byte, 1);
}

static void set_page(uint64_t la, uint64_t entry)
{
    test_put(guest.ram, TABLES + 0x3000 + (la >> 12) * 8, entry, 8);
    mmu_invlpg(cpu, la);
}

/* 64-bit code, and pages of the first 4 MiB as they are, in two page tables. */
static void map_pages(void)
{
    test_mode(cpu, 64, 0);
    test_put(guest.ram, TABLES, (TABLES + 0x1000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x1000, (TABLES + 0x2000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x2000, (TABLES + 0x3000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x2008, (TABLES + 0x4000) | PTE, 8);
    for (uint64_t la = 0; la < 4 * MIB; la += 4096)
        test_put(guest.ram, TABLES + 0x3000 + (la >> 12) * 8, la | PTE, 8);
    cpu->cr0 |= CPU_CR0_PG;
    cpu->cr4 = CPU_CR4_PAE;
    cpu->efer |= EFER_NXE;
    cpu->cr3 = TABLES;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    mmu_cr3_written(cpu, false);
}

static const struct block *found;

static const struct block *at(uint64_t rip)
{
    cpu->rip = rip;
    return found = block_find(cpu);
}

static int raises(uint64_t rip)
{
    cpu->rip = rip;
    return TEST_CATCH(cpu, found = block_find(cpu));
}

/* Instructions of the block, without what is put behind one that has no branch at its end. */
static unsigned count(const struct block *b)
{
    return b->count - (b->insns[b->count - 1].op == OP_FALL_THROUGH);
}

static struct block_stats stats(void)
{
    struct block_stats now;
    block_cache_stats(cpu, &now);
    return now;
}

static void test_finding(void)
{
    map_pages();
    PUT(CODE, 0xb8, 1, 0, 0, 0, 0x90, 0xc3);
    uint64_t made = stats().made;
    const struct block *b = at(CODE);
    is_int(count(b), 3, "a block up to its branch");
    is_int(b->gpa, CODE, "has the physical address");
    is_int(stats().made, made + 1, "was made");
    ok(at(CODE) == b, "and is found by RIP");
    mmu_flush_all(cpu);
    ok(at(CODE) == b, "by physical address, when no translation holds any more");
    is_int(stats().made, made + 1, "it is not made again");
    ok(at(CODE + 5) != b, "one from its middle on is another");
    is_int(count(found), 2, "that has the rest");
    ok(at(CODE) == b, "both are kept");
    /* By another linear address, and what was mapped there before. */
    PUT(OTHER, 0xf4);
    set_page(ALIAS, OTHER | PTE);
    is_int(at(ALIAS)->gpa, OTHER, "another page");
    set_page(ALIAS, CODE | PTE);
    ok(at(ALIAS)->gpa == CODE, "mapped anew: a block of the page that is there now");
    is_int(found->rip, ALIAS, "which is one by its linear address as well");
    is_int(b->insns[0].next_offset, 5, "counts from its page");
    PUT(CODE + 1, 2);
    is_int(at(ALIAS)->insns[0].imm, 2, "a write to the page is seen by one mapping");
    is_int(at(CODE)->insns[0].imm, 2, "and the other");
    set_page(ALIAS, 0);
    is_int(raises(ALIAS), FAULT(EXC_PF, ERR_I), "unmapped, it faults, though the block is kept");
    set_page(ALIAS, CODE | PTE | NX);
    is_int(raises(ALIAS), FAULT(EXC_PF, ERR_I | PRESENT), "as where it may not be executed");
}

static void test_stale(void)
{
    map_pages();
    PUT(CODE, 0xb8, 1, 0, 0, 0, 0xc3);
    const struct block *b = at(CODE);
    uint64_t made = stats().made, stale = stats().stale;
    mmu_write8(cpu, CODE + 1, 7);
    is_int(at(CODE)->insns[0].imm, 7, "what was written is decoded");
    is_int(stats().made, made + 1, "anew");
    is_int(stats().stale, stale + 1, "and the old block is gone");
    (void)b;
    mmu_write8(cpu, CODE + 0xf00, 1);
    b = found;
    ok(at(CODE) == b, "data elsewhere in the page is left alone");
    mmu_write8(cpu, CODE + 5, 0x90);
    PUT(CODE + 6, 0xc3);
    is_int(count(at(CODE)), 3, "a branch that was overwritten does not end it");
    cpu->stop_block = false;
}

/* What is known of code in global pages outlives CR3, and no INVLPG of its page. */
static void test_global(void)
{
    map_pages();
    cpu->cr4 |= CR4_PGE;
    mmu_flush_all(cpu);
    PUT(CODE, 0xb8, 1, 0, 0, 0, 0xc3);
    PUT(OTHER, 0xb8, 2, 0, 0, 0, 0xc3);
    for (unsigned global = 0; global < 2; global++) {
        uint64_t bits = PTE | (global ? G : 0);
        set_page(ALIAS, CODE | bits);
        is_int(at(ALIAS)->insns[0].imm, 1, global ? "code of a global page" : "code of a page");
        test_put(guest.ram, TABLES + 0x3000 + (ALIAS >> 12) * 8, OTHER | bits, 8);
        mmu_cr3_written(cpu, false);
        is_int(at(ALIAS)->insns[0].imm, global ? 1 : 2,
               global ? "is the same behind CR3" : "is looked for anew behind CR3");
        mmu_invlpg(cpu, ALIAS + 0x1000);
        is_int(at(ALIAS)->insns[0].imm, global ? 1 : 2, "and another page's INVLPG");
        mmu_invlpg(cpu, ALIAS + 5);
        is_int(at(ALIAS)->insns[0].imm, 2, "not behind its own");
    }
    /* Found by way of another address space, too. */
    set_page(ALIAS, CODE | PTE | G);
    is_int(at(ALIAS)->insns[0].imm, 1, "global code");
    test_put(guest.ram, TABLES + 0x3000 + (ALIAS >> 12) * 8, OTHER | PTE | G, 8);
    cpu->cr4 |= CR4_PCIDE;
    for (unsigned pcid = 1; pcid < 20; pcid++) {
        cpu->cr3 = TABLES | pcid;
        mmu_cr3_written(cpu, false);
        at(ALIAS);
    }
    mmu_invlpg(cpu, ALIAS);
    is_int(at(ALIAS)->insns[0].imm, 2, "INVLPG finds it whatever was loaded in between");
    cpu->cr3 = TABLES;
}

static void test_modes(void)
{
    map_pages();
    PUT(CODE, 0xb8, 1, 0, 2, 0, 0xc3);
    is_int(at(CODE)->insns[0].imm, 0x20001, "mov eax in 64-bit code");
    test_mode(cpu, 16, 0);
    is_int(at(CODE)->insns[0].imm, 1, "mov ax in 16-bit code of the same bytes");
    is_int(found->insns[0].len, 3, "is shorter");
    /* The flush that setting the mode implies must not be what keeps them apart. */
    cpu->seg[SEG_CS].attr |= SEG_ATTR_DB;
    soft_cpu_update(cpu);
    is_int(at(CODE)->insns[0].imm, 0x20001, "32-bit code");
    cpu->seg[SEG_CS].attr &= (uint16_t)~SEG_ATTR_DB;
    soft_cpu_update(cpu);
    is_int(at(CODE)->insns[0].imm, 1, "and 16-bit code again");
    /* C5 is LDS, and VEX only where there are no real-mode programs. */
    PUT(CODE, 0xc5, 0xf8, 0x77, 0xc3);
    if (guest.vm->model.features & FEATURE(AVX))
        is_int(at(CODE)->insns[0].len, 3, "VZEROUPPER in protected mode");
    cpu->cr0 &= ~CPU_CR0_PE;
    soft_cpu_update(cpu);
    is_int(at(CODE)->insns[0].op, OP_UD, "LDS of a register in real mode: undefined");
    /* Real mode: a base that changes under the same RIP. */
    cpu->seg[SEG_CS].limit = 0xffff;
    PUT(0x8000, 0xb8, 1, 0, 0xc3);
    PUT(0x9000, 0xb8, 2, 0, 0xc3);
    cpu->seg[SEG_CS].base = 0x8000;
    soft_cpu_update(cpu);
    is_int(at(0)->insns[0].imm, 1, "CS:0");
    cpu->seg[SEG_CS].base = 0x9000;
    soft_cpu_update(cpu);
    is_int(at(0)->insns[0].imm, 2, "CS:0 with another base");
}

static void test_ends(void)
{
    map_pages();
    fill(CODE, 0x90, 200);
    is_int(count(at(CODE)), BLOCK_INSNS_MAX, "a block has so many instructions at most");
    PUT(CODE + 2, 0x0f, 0x0b);
    is_int(count(at(CODE)), 3, "an undefined one ends it");
    PUT(CODE + 1, 0x0f, 0x22, 0xd8);
    is_int(count(at(CODE)), 2, "so does MOV CR3, behind which all may be mapped differently");
    PUT(CODE + 1, 0xeb, 0x00, 0x90);
    is_int(count(at(CODE)), 2, "and a jump");
    /* 15 prefixes and an opcode: too long. */
    PUT(CODE, 0x90, 0x90);
    fill(CODE + 2, 0x66, 15);
    is_int(count(at(CODE)), 2, "it ends before an instruction that is too long");
    is_int(raises(CODE + 2), FAULT(EXC_GP, 0), "which faults when its turn comes");
    fill(PAGE_END - 16, 0x90, 16);
    PUT(PAGE_END, 0x90, 0xc3);
    is_int(count(at(PAGE_END - 16)), 16, "it ends with the page");
}

static void test_careful(void)
{
    map_pages();
    fill(CODE, 0x90, 8);
    PUT(CODE + 8, 0xc3);
    const struct block *b = at(CODE);
    is_int(count(b), 9, "a block");
    cpu->rflags |= RFLAGS_TF;
    soft_cpu_update(cpu);
    is_int(count(at(CODE)), 1, "while stepping it has one instruction");
    is_int(found->count, 2, "and what goes on to the next");
    is_int(count(at(CODE + 8)), 1, "a branch");
    is_int(found->count, 1, "goes on by itself");
    cpu->rflags &= ~RFLAGS_TF;
    soft_cpu_update(cpu);
    ok(at(CODE) == b, "after that it is the whole one");
    cpu->dr[7] |= 1;
    soft_cpu_update(cpu);
    is_int(count(at(CODE)), 1, "an enabled breakpoint does the same");
    cpu->dr[7] &= ~1ULL;
    soft_cpu_update(cpu);
}

/* mov eax, imm32 with two bytes before the page's end. */
static void test_crossing(void)
{
    map_pages();
    set_page(PAGE_END, OTHER | PTE);
    PUT(PAGE_END - 4, 0x90, 0x90, 0xb8, 0x11);
    PUT(OTHER, 0x22, 0x33, 0x44, 0xc3);
    is_int(count(at(PAGE_END - 4)), 2, "a block ends before an instruction that crosses the page");
    is_int(count(at(PAGE_END - 2)), 1, "which is a block by itself");
    is_int(found->insns[0].imm, 0x44332211, "of the bytes of both pages");
    const struct block *kept = found;
    uint64_t made = stats().made;
    ok(at(PAGE_END - 2) == kept, "is kept");
    mmu_flush_all(cpu);
    ok(at(PAGE_END - 2) == kept && stats().made == made, "and found by its physical addresses");
    PUT(OTHER, 0x55);
    is_int(at(PAGE_END - 2)->insns[0].imm, 0x44335511, "a change of the second page is seen");
    PUT(PAGE_END - 1, 0x66);
    is_int(at(PAGE_END - 2)->insns[0].imm, 0x44335566, "and one of the first");
    PUT(OTHER + 0x1000, 0x77, 0x88, 0x99);
    set_page(PAGE_END, (OTHER + 0x1000) | PTE);
    is_int(at(PAGE_END - 2)->insns[0].imm, 0x99887766U, "and another second page");
    kept = found;
    set_page(PAGE_END, OTHER | PTE);
    is_int(at(PAGE_END - 2)->insns[0].imm, 0x44335566, "and the one before");
    set_page(PAGE_END, (OTHER + 0x1000) | PTE);
    ok(at(PAGE_END - 2) == kept, "both are kept");
    set_page(PAGE_END, 0);
    is_int(raises(PAGE_END - 2), FAULT(EXC_PF, ERR_I), "no second page");
    is_int(cpu->exception.address, PAGE_END, "is a fault at its first byte");
    is_int(raises(PAGE_END - 4), -1, "and none for the block before");
    is_int(count(found), 2, "which has the instructions that are there");
    set_page(PAGE_END, OTHER | PTE | NX);
    is_int(raises(PAGE_END - 2), FAULT(EXC_PF, ERR_I | PRESENT), "a second page of data");
    set_page(PAGE_END, OTHER | PTE);
    is_int(raises(PAGE_END - 2), -1, "a second page again");
    is_int(found->insns[0].imm, 0x44335566, "with its bytes");
    /* The last instruction of a page does not look at the next. */
    PUT(PAGE_END - 1, 0xc3);
    set_page(PAGE_END, 0);
    is_int(raises(PAGE_END - 1), -1, "one that ends with its page needs no other");
    set_page(PAGE_END, PAGE_END | PTE);
}

/* The same RIP in another code segment is another address; also where CS begins with 0. */
static void test_base(void)
{
    static const uint32_t bases[] = {CODE, OTHER, 0};
    map_pages();
    for (unsigned bits = 16; bits <= 32; bits += 16) {
        test_mode(cpu, bits, 0);
        cpu->seg[SEG_SS].limit = cpu->seg[SEG_DS].limit = 0xfff; /* none of them is translatable */
        if (bits == 16)
            cpu->seg[SEG_CS].limit = 0xffff;
        for (unsigned i = 0; i < 3; i++)
            PUT(bases[i] + 0x100, 0xb0, (uint8_t)i, 0xc3);
        uint64_t made = stats().made;
        for (unsigned round = 0; round < 9; round++) {
            cpu->seg[SEG_CS].base = bases[round % 3];
            soft_cpu_update(cpu);
            is_int(at(0x100)->insns[0].imm, round % 3, "code of that segment");
        }
        is_int(stats().made, made + 3, "each is made once");
        is_int(at(0x100)->insns[0].imm, 2, "the last one");
        uint64_t searched = stats().found;
        at(0x100);
        is_int(stats().found, searched, "is found by RIP");
    }
    test_mode(cpu, 16, 0);
    cpu->seg[SEG_CS].limit = 0xffff;
    soft_cpu_update(cpu);
    is_int(raises(0x10000), FAULT(EXC_GP, 0), "16-bit code ends with 64 KiB");
}

static void test_limit(void)
{
    map_pages();
    test_mode(cpu, 32, 0);
    fill(CODE, 0x90, 16);
    PUT(CODE + 8, 0xb8, 1, 0, 0, 0, 0xc3);
    cpu->seg[SEG_CS].limit = CODE + 8 + 3;
    soft_cpu_update(cpu);
    is_int(count(at(CODE)), 8, "the limit within an instruction ends the block before it");
    is_int(raises(CODE + 8), FAULT(EXC_GP, 0), "which faults");
    is_int(raises(CODE + 12), FAULT(EXC_GP, 0), "as what is behind the limit does");
    cpu->seg[SEG_CS].limit++;
    soft_cpu_update(cpu);
    is_int(raises(CODE + 8), -1, "one byte more");
    is_int(count(found), 1, "and it is whole, and the block's last");
    cpu->seg[SEG_CS].limit = CODE + 7;
    soft_cpu_update(cpu);
    is_int(count(at(CODE)), 8, "a limit between two");
    is_int(raises(CODE + 8), FAULT(EXC_GP, 0), "faults at the second");
}

/* Code where there is no memory, and in a ROM. */
static void test_places(void)
{
    map_pages();
    set_page(ALIAS, TEST_ROM | PTE);
    memset(guest.rom, 0x90, 16);
    guest.rom[3] = 0xc3;
    const struct block *b = at(ALIAS);
    is_int(count(b), 4, "code in a ROM");
    ok(at(ALIAS) == b, "is kept");
    mmu_write8(cpu, ALIAS, 0xcc);
    ok(at(ALIAS) == b, "and cannot be written to");
    set_page(ALIAS, 0x60000000 | PTE);
    uint64_t made = stats().made;
    is_int(at(ALIAS)->insns[0].op, OP_UD, "a device that reads as ones has no instructions");
    at(ALIAS);
    is_int(stats().made, made + 2, "its code is fetched each time");
    cpu->stop_block = false;
}

static void test_flush(void)
{
    map_pages();
    PUT(CODE, 0xb8, 1, 0, 0, 0, 0xc3);
    at(CODE);
    uint64_t flushes = stats().flushes, made = stats().made;
    block_cache_flush(cpu);
    is_int(stats().flushes, flushes + 1, "all is forgotten");
    is_int(at(CODE)->insns[0].imm, 1, "and found again");
    is_int(stats().made, made + 1, "by decoding");
    /* More than the cache holds. */
    memset(guest.ram + OTHER, 0x90, 0x20000);
    bool right = true;
    unsigned n = 0;
    for (flushes = stats().flushes; stats().flushes == flushes && n < 0x1f000; n++)
        right &= at(OTHER + n)->insns[0].len == 1;
    ok(right && stats().flushes == flushes + 1, "it is full at last, and begins anew");
    is_int(found->gpa, OTHER + n - 1, "with the block that was wanted");
    made = stats().made;
    is_int(at(CODE)->insns[0].imm, 1, "the others");
    is_int(stats().made, made + 1, "are decoded when they are wanted");
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_finding();
    test_stale();
    test_global();
    test_modes();
    test_ends();
    test_careful();
    test_crossing();
    test_base();
    test_limit();
    test_places();
    test_flush();
}

int main(void)
{
    if (ok(test_guest_init(&guest, 1), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
