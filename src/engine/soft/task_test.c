/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hardware task switches (SDM vol. 3, chapter 7): by JMP, CALL, task gates, interrupts and IRET;
 * what is saved and loaded, busy bits, NT and link (table 7-2), and all that can be wrong (table
 * 7-1).
 */
#include "engine/soft/intr.h"
#include "engine/soft/seg.h"
#include "engine/soft/test_cpu.h"

#define CODE0    0x10
#define DATA0    0x18
#define CODE3    0x20
#define DATA3    0x28
#define OLD      0x30 /* TSSs */
#define NEW      0x38
#define NEW16    0x40
#define GATE     0x48
#define LDT      0x50
#define BAD      0x58
#define OLD_AT   0x7000u
#define NEW_AT   0x7100u
#define NEW16_AT 0x7200u
#define STACK    0x9000u
#define NEW_SP   0xa000u
#define HERE     0x107u /* RIP behind the instruction */

static struct test_guest guest;
static struct soft_cpu *cpu;

static uint64_t flat(unsigned byte)
{
    return test_descriptor(0, 0xfffff, (uint16_t)(byte | SEG_ATTR_G | SEG_ATTR_DB));
}

static void set(uint16_t selector, uint64_t value)
{
    test_set_entry(&guest, selector, value);
}

static bool is_busy(uint16_t selector)
{
    return test_entry(&guest, selector) >> 41 & 1;
}

static uint64_t in(unsigned tss, unsigned at, unsigned bytes)
{
    return test_get(guest.ram, tss + at, bytes);
}

static void put(unsigned tss, unsigned at, uint64_t value)
{
    test_put(guest.ram, tss + at, value, 4);
}

static void fill_new(void)
{
    static const uint16_t segments[] = {DATA0, CODE0, DATA0, DATA0, DATA3 | 3, 0};
    memset(guest.ram + OLD_AT, 0, 0x300);
    put(NEW_AT, 0x1c, 0x123000); /* CR3, which is not loaded without paging */
    put(NEW_AT, 0x20, 0x1234);
    put(NEW_AT, 0x24, RFLAGS_FIXED | RFLAGS_CF | RFLAGS_IF);
    for (unsigned i = 0; i < 8; i++)
        put(NEW_AT, 0x28 + 4 * i, i == CPU_RSP ? NEW_SP : 0x80000000 + i);
    for (unsigned i = 0; i < 6; i++)
        put(NEW_AT, 0x48 + 4 * i, segments[i]);
    put(NEW_AT, 0x60, LDT);
    test_put(guest.ram, NEW16_AT + 0x0e, 0x5678, 2);
    test_put(guest.ram, NEW16_AT + 0x10, RFLAGS_FIXED | RFLAGS_ZF, 2);
    for (unsigned i = 0; i < 8; i++)
        test_put(guest.ram, NEW16_AT + 0x12 + 2 * i, i == CPU_RSP ? NEW_SP : 0x8000 + i, 2);
    for (unsigned i = 0; i < 4; i++)
        test_put(guest.ram, NEW16_AT + 0x22 + 2 * i, segments[i], 2);
}

/* A task of ring 0, and two that wait. */
static void set_up(unsigned cpl)
{
    test_mode(cpu, 32, cpl);
    test_tables(&guest, cpu);
    set(CODE0, flat(0x9b));
    set(DATA0, flat(0x93));
    set(CODE3, flat(0xfb));
    set(DATA3, flat(0xf3));
    set(OLD, test_descriptor(OLD_AT, 0x67, 0x8b));
    set(NEW, test_descriptor(NEW_AT, 0x67, 0x89));
    set(NEW16, test_descriptor(NEW16_AT, 0x2b, 0x81));
    set(GATE, test_gate(NEW, 0, 0xe5, 0));
    set(LDT, test_descriptor(TEST_LDT, 0x7ff, 0x82));
    fill_new();
    cpu->tr =
        (struct cpu_segment){.base = OLD_AT, .limit = 0x67, .selector = OLD, .attr = CPU_SEG_TSS};
    cpu->ldt = (struct cpu_segment){0};
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = 0x100 + i;
    cpu->gpr[CPU_RSP] = STACK;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i].selector = (uint16_t)(cpl == 3 ? DATA3 | 3 : DATA0);
    cpu->seg[SEG_CS].selector = cpl == 3 ? CODE3 | 3 : CODE0;
    cpu->rflags = RFLAGS_FIXED | RFLAGS_PF;
    cpu->rip = 0x100;
    cpu->cr0 &= ~CR0_TS;
    cpu->dr[7] = 0x400 | 0x2aa | 0x155;
    soft_cpu_update(cpu);
}

static int jump(uint16_t selector)
{
    return TEST_CATCH(cpu, seg_jump_far(cpu, selector, 99, 4, HERE));
}

static int call(uint16_t selector)
{
    return TEST_CATCH(cpu, seg_call_far(cpu, selector, 99, 4, HERE));
}

static int iret(void)
{
    return TEST_CATCH(cpu, seg_return_interrupt(cpu, 4, HERE));
}

static bool is_old_saved(uint64_t flags)
{
    bool right = in(OLD_AT, 0x20, 4) == HERE && in(OLD_AT, 0x24, 4) == flags;
    for (unsigned i = 0; i < 8; i++)
        right &= in(OLD_AT, 0x28 + 4 * i, 4) == (i == CPU_RSP ? STACK : 0x100 + i);
    for (unsigned i = 0; i < 6; i++)
        right &= in(OLD_AT, 0x48 + 4 * i, 4) == (i == SEG_CS ? CODE0 : DATA0);
    /* What only software writes. */
    return right && in(OLD_AT, 0x1c, 4) == 0 && in(OLD_AT, 0x60, 4) == 0;
}

static bool is_new_loaded(void)
{
    bool right = cpu->rip == 0x1234;
    for (unsigned i = 0; i < 8; i++)
        right &= cpu->gpr[i] == (i == CPU_RSP ? NEW_SP : 0x80000000 + i);
    right &= cpu->seg[SEG_CS].selector == CODE0 && cpu->seg[SEG_SS].selector == DATA0 &&
             cpu->seg[SEG_FS].selector == (DATA3 | 3) && cpu->seg[SEG_FS].limit == UINT32_MAX;
    right &= !(cpu->seg[SEG_GS].attr & SEG_ATTR_P);
    return right && cpu->ldt.selector == LDT && cpu->ldt.base == TEST_LDT;
}

static void test_switches(void)
{
    set_up(0);
    is_int(jump(NEW), -1, "JMP to a TSS");
    ok(is_old_saved(RFLAGS_FIXED | RFLAGS_PF), "the old task is in its TSS");
    ok(is_new_loaded(), "the new one's in the registers");
    ok(!is_busy(OLD) && is_busy(NEW), "the old is not busy any more, the new one is");
    is_int(cpu->rflags, RFLAGS_FIXED | RFLAGS_CF | RFLAGS_IF, "its flags, NT clear");
    is_int(in(NEW_AT, 0, 4), 0, "no link");
    ok(cpu->tr.selector == NEW && cpu->tr.base == NEW_AT, "TR");
    is_int(cpu->tr.attr & SEG_ATTR_TYPE, 0xb, "is busy too");
    ok(cpu->cr0 & CR0_TS, "CR0.TS is set");
    is_int(cpu->dr[7] & 0x3ff, 0x2aa, "the local breakpoints are off");
    set_up(0);
    cpu->rflags |= RFLAGS_NT;
    is_int(call(NEW), -1, "CALL of a TSS");
    ok(is_old_saved(RFLAGS_FIXED | RFLAGS_PF | RFLAGS_NT), "keeps NT of the old");
    ok(is_new_loaded() && cpu->rflags & RFLAGS_NT, "sets that of the new");
    is_int(in(NEW_AT, 0, 4), OLD, "which has a link");
    ok(is_busy(OLD) && is_busy(NEW), "both are busy");
    put(OLD_AT, 0x48 + 4 * SEG_GS, 0);
    put(OLD_AT, 0x48 + 4 * SEG_FS, 0);
    is_int(iret(), -1, "IRET with NT");
    ok(cpu->rip == HERE && cpu->tr.selector == OLD, "goes back");
    is_int(cpu->gpr[CPU_RSP], STACK, "with all registers");
    ok(cpu->rflags & RFLAGS_NT, "NT is the old one's");
    ok(is_busy(OLD) && !is_busy(NEW), "the one that ended is not busy");
    is_int(in(NEW_AT, 0x24, 4) & RFLAGS_NT, 0, "nor has it NT");
    is_int(in(NEW_AT, 0x20, 4), HERE, "it is where it was left");
    set_up(3);
    is_int(call(GATE), -1, "a task gate of ring 3");
    ok(is_new_loaded() && cpu->mode.cpl == 0, "to a task of ring 0");
    set_up(0);
    cpu->gpr[CPU_RAX] = 0xabcd0000;
    is_int(jump(NEW16), -1, "a 16-bit TSS");
    is_int(cpu->rip, 0x5678, "has IP");
    is_int(cpu->gpr[CPU_RAX], 0xabcd8000, "and the lower halves of the registers");
    is_int(cpu->rflags, RFLAGS_FIXED | RFLAGS_ZF, "its flags");
    ok(cpu->seg[SEG_DS].selector == DATA0 && !(cpu->seg[SEG_FS].attr & SEG_ATTR_P),
       "four segments");
    put(NEW16_AT, 0x2c, 0xdeadbeef);
    set(CODE0, flat(0x9b));
    fill_new();
    is_int(call(NEW), -1, "from a 16-bit TSS");
    is_int(in(NEW16_AT, 0x0e, 2), HERE, "IP is saved");
    is_int(in(NEW16_AT, 0x12, 2), 0x8000, "and AX");
    is_int(in(NEW16_AT, 0x22 + 2 * SEG_CS, 2), CODE0, "and CS");
}

static void test_v86(void)
{
    set_up(0);
    put(NEW_AT, 0x24, RFLAGS_FIXED | RFLAGS_VM | RFLAGS_IOPL);
    put(NEW_AT, 0x48 + 4 * SEG_CS, 0x1000);
    put(NEW_AT, 0x48 + 4 * SEG_SS, 0xabcd);
    is_int(jump(NEW), -1, "a task of virtual-8086 mode");
    ok(cpu->mode.v86 && cpu->mode.cpl == 3, "is in it");
    ok(cpu->seg[SEG_CS].base == 0x10000 && cpu->seg[SEG_SS].base == 0xabcd0, "its segments");
}

static void test_paging(void)
{
    set_up(0);
    for (unsigned i = 0; i < 2; i++) { /* two page directories that are the same, of 4 MiB pages */
        test_put(guest.ram, 0x20000 + 0x1000 * i, 0x83, 4);
        test_put(guest.ram, 0x20004 + 0x1000 * i, i ? 0x400083 : 0x83, 4);
    }
    cpu->cr0 |= CPU_CR0_PG;
    cpu->cr4 = CR4_PSE;
    cpu->cr3 = 0x20000;
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    put(NEW_AT, 0x1c, 0x21000);
    test_put(guest.ram, 0x400000, 0x77, 1);
    test_put(guest.ram, 0, 0x66, 1);
    is_int(mmu_read8(cpu, 0x400000), 0x66, "the old task's mapping");
    is_int(jump(NEW), -1, "with paging");
    is_int(cpu->cr3, 0x21000, "CR3 is loaded");
    is_int(mmu_read8(cpu, 0x400000), 0x77, "and the mapping is the new task's");
}

/* Before the new task's TSS is known to be good all is the old task's, and unchanged. */
static bool unchanged(void)
{
    return cpu->rip == 0x100 && cpu->tr.selector == OLD && is_busy(OLD) &&
           cpu->gpr[CPU_RSP] == STACK && in(OLD_AT, 0x20, 4) == 0;
}

static void test_refused(void)
{
    for (unsigned by_call = 0; by_call < 2; by_call++) {
        int (*go)(uint16_t) = by_call ? call : jump;
        printf("# %s\n", by_call ? "CALL" : "JMP");
        set_up(0);
        set(NEW, test_descriptor(NEW_AT, 0x67, 0x8b));
        is_int(go(NEW), FAULT(EXC_GP, NEW), "a busy task");
        is_int(go(GATE), FAULT(EXC_GP, NEW), "by a gate");
        set(NEW, test_descriptor(NEW_AT, 0x67, 0x09));
        is_int(go(NEW), FAULT(EXC_NP, NEW), "not present");
        is_int(go(GATE), FAULT(EXC_NP, NEW), "by a gate");
        set(NEW, test_descriptor(NEW_AT, 0x66, 0x89));
        is_int(go(NEW), FAULT(EXC_TS, NEW), "a TSS too short");
        set(NEW16, test_descriptor(NEW16_AT, 0x2a, 0x81));
        is_int(go(NEW16), FAULT(EXC_TS, NEW16), "and one of 16 bits");
        set(GATE, test_gate(NEW, 0, 0x65, 0));
        is_int(go(GATE), FAULT(EXC_NP, GATE), "a gate that is not present");
        set(GATE, test_gate(DATA0, 0, 0xe5, 0));
        is_int(go(GATE), FAULT(EXC_GP, DATA0), "to data");
        set(GATE, test_gate(0, 0, 0xe5, 0));
        is_int(go(GATE), FAULT(EXC_GP, 0), "to null");
        set(GATE, test_gate(4, 0, 0xe5, 0));
        is_int(go(GATE), FAULT(EXC_GP, 4), "to the LDT");
        set(GATE, test_gate(0x800, 0, 0xe5, 0));
        is_int(go(GATE), FAULT(EXC_GP, 0x800), "beyond the GDT");
        ok(unchanged(), "nothing has changed");
        set_up(3);
        is_int(go(NEW), FAULT(EXC_GP, NEW), "a TSS of ring 0 from ring 3");
        set(GATE, test_gate(NEW, 0, 0xc5, 0));
        is_int(go(GATE), FAULT(EXC_GP, GATE), "a gate of ring 2");
        ok(unchanged(), "nothing has changed");
        set_up(0);
        is_int(go(NEW | 1), FAULT(EXC_GP, NEW), "an RPL above the DPL");
    }
}

static int back_to(uint16_t selector)
{
    set_up(0);
    cpu->rflags |= RFLAGS_NT;
    put(OLD_AT, 0, selector);
    return iret();
}

static void test_bad_links(void)
{
    is_int(back_to(NEW), FAULT(EXC_TS, NEW), "IRET to a task that is not busy");
    ok(unchanged(), "nothing has changed");
    is_int(back_to(0), FAULT(EXC_TS, 0), "to null");
    is_int(back_to(4), FAULT(EXC_TS, 4), "to the LDT");
    is_int(back_to(0x800), FAULT(EXC_TS, 0x800), "beyond the GDT");
    is_int(back_to(CODE0), FAULT(EXC_TS, CODE0), "to code");
    test_mode(cpu, 64, 0);
    cpu->rflags |= RFLAGS_NT;
    is_int(iret(), FAULT(EXC_GP, 0), "in long mode there are no tasks");
}

/* What is wrong with the new task's segments is its own fault. */
static int with(unsigned at, uint16_t selector, uint64_t bad)
{
    set_up(0);
    set(BAD, bad);
    put(NEW_AT, at, selector);
    int outcome = jump(NEW);
    if (outcome >= 0 && (cpu->tr.selector != NEW || cpu->rip != 0x1234))
        printf("# the fault is not the new task's\n");
    return outcome;
}

#define SEG_AT(seg) (0x48 + 4 * (seg))

static void test_bad_segments(void)
{
    is_int(with(0x60, BAD, flat(0x93)), FAULT(EXC_TS, BAD), "LDT: data");
    is_int(with(0x60, BAD, 0x02ULL << 40), FAULT(EXC_TS, BAD), "LDT: not present");
    is_int(with(0x60, 4, 0), FAULT(EXC_TS, 4), "LDT: in the LDT");
    is_int(with(0x60, 0, 0), -1, "LDT: null");
    is_int(with(SEG_AT(SEG_CS), 0, 0), FAULT(EXC_TS, 0), "CS: null");
    is_int(with(SEG_AT(SEG_CS), DATA0, 0), FAULT(EXC_TS, DATA0), "CS: data");
    is_int(with(SEG_AT(SEG_CS), BAD, flat(0x1b)), FAULT(EXC_NP, BAD), "CS: not present");
    is_int(with(SEG_AT(SEG_CS), CODE3, 0), FAULT(EXC_TS, CODE3), "CS: DPL and RPL differ");
    is_int(with(SEG_AT(SEG_CS), BAD, flat(0xbf)), FAULT(EXC_TS, BAD), "CS: conforming, DPL above");
    is_int(with(SEG_AT(SEG_CS), 0x800, 0), FAULT(EXC_TS, 0x800), "CS: beyond the GDT");
    is_int(with(SEG_AT(SEG_SS), 0, 0), FAULT(EXC_TS, 0), "SS: null");
    is_int(with(SEG_AT(SEG_SS), DATA3, 0), FAULT(EXC_TS, DATA3), "SS: another ring");
    is_int(with(SEG_AT(SEG_SS), DATA0 | 1, 0), FAULT(EXC_TS, DATA0), "SS: another RPL");
    is_int(with(SEG_AT(SEG_SS), BAD, flat(0x91)), FAULT(EXC_TS, BAD), "SS: read-only");
    is_int(with(SEG_AT(SEG_SS), BAD, flat(0x13)), FAULT(EXC_SS, BAD), "SS: not present");
    is_int(with(SEG_AT(SEG_DS), BAD, flat(0x99)), FAULT(EXC_TS, BAD), "DS: not readable");
    is_int(with(SEG_AT(SEG_DS), DATA0 | 3, 0), FAULT(EXC_TS, DATA0), "DS: RPL above DPL");
    is_int(with(SEG_AT(SEG_ES), 0x800, 0), FAULT(EXC_TS, 0x800), "ES: beyond the GDT");
    is_int(with(SEG_AT(SEG_FS), BAD, flat(0x13)), FAULT(EXC_NP, BAD), "FS: not present");
    is_int(with(SEG_AT(SEG_GS), NEW, 0), FAULT(EXC_TS, NEW), "GS: a TSS");
    is_int(with(0x20, 0, 0), -1, "EIP 0");
    set_up(0);
    set(CODE0, test_descriptor(0, 0x1233, 0x9b | SEG_ATTR_DB));
    is_int(jump(NEW), FAULT(EXC_GP, 0), "EIP beyond CS");
    ok(cpu->tr.selector == NEW, "in the new task");
    /* A local segment is of the new task's LDT. */
    set_up(0);
    set(0xc, test_descriptor(0x5555000, 0xfff, 0x93));
    put(NEW_AT, SEG_AT(SEG_DS), 0xc);
    is_int(jump(NEW), -1, "DS of the LDT");
    is_int(cpu->seg[SEG_DS].base, 0x5555000, "the new one's");
}

static int deliver(const struct soft_exception *e)
{
    return TEST_CATCH(cpu, intr_deliver_exception(cpu, e));
}

static void test_interrupts(void)
{
    const struct soft_exception e = {.vector = EXC_NP, .has_error = true, .error = 0x120};
    set_up(3);
    test_put(guest.ram, TEST_IDT + 8 * EXC_NP, test_gate(NEW, 0, 0x85, 0), 8);
    is_int(deliver(&e), -1, "an exception by a task gate");
    ok(cpu->tr.selector == NEW && cpu->rflags & RFLAGS_NT, "nests");
    is_int(in(NEW_AT, 0, 4), OLD, "with a link");
    is_int(in(OLD_AT, 0x20, 4), 0x100, "the old task is at its instruction");
    is_int(cpu->gpr[CPU_RSP], NEW_SP - 4, "the error code");
    is_int(test_get(guest.ram, NEW_SP - 4, 4), 0x120, "is on the new stack");
    set_up(3);
    test_put(guest.ram, TEST_IDT + 8 * EXC_NP, test_gate(NEW16, 0, 0x85, 0), 8);
    is_int(deliver(&e), -1, "by one of 16 bits");
    is_int(cpu->gpr[CPU_RSP] & 0xffff, NEW_SP - 2, "it is a word");
    set_up(0);
    set(NEW, test_descriptor(NEW_AT, 0x67, 0x8b));
    test_put(guest.ram, TEST_IDT + 8 * EXC_NP, test_gate(NEW, 0, 0x85, 0), 8);
    is_int(deliver(&e), FAULT(EXC_GP, NEW), "to a busy task");
    ok(unchanged(), "nothing has changed");
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_switches();
    test_v86();
    test_paging();
    test_refused();
    test_bad_links();
    test_bad_segments();
    test_interrupts();
}

int main(void)
{
    if (ok(test_guest_init(&guest, 1), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
