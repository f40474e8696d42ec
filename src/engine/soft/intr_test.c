/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Delivery of exceptions and interrupts, and IRET (SDM vol. 3, chapter 6; vol. 2, INT and IRET):
 * what is pushed, flags, stacks, and what each thing that is wrong raises, in every mode.
 */
#include "engine/soft/intr.h"
#include "engine/soft/seg.h"
#include "engine/soft/test_cpu.h"

#define CODE0   0x10
#define DATA0   0x18
#define CODE3   0x20
#define DATA3   0x28
#define TSS_SEL 0x30
#define SEL     0x40
#define TSS     0x7000u
#define STACK   0x9000u
#define INNER   0xa000u
#define IST     0xb008u /* not aligned: delivery does it */
#define TARGET  0x56781234u
#define HERE    0x100u
#define NEXT    0x102u
#define VECTOR  0x44
#define PRESENT 0x80u
#define S       0x10u
#define INT16   0x6u
#define TRAP16  0x7u
#define INT32   0xeu
#define TRAP32  0xfu
#define FLAGS   (RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF)

static struct test_guest guest;
static struct soft_cpu *cpu;

static uint64_t flat(unsigned byte, uint64_t extra)
{
    return test_descriptor(0, 0xfffff, (uint16_t)(byte | SEG_ATTR_G | extra));
}

static void set(uint16_t selector, uint64_t value)
{
    test_set_entry(&guest, selector, value);
}

/* A gate of the IDT; ist or 0. */
static void set_gate(unsigned vector, uint16_t selector, uint64_t offset, unsigned byte,
                     unsigned ist)
{
    unsigned size = cpu->mode.long_active ? 16 : 8;
    test_put(guest.ram, TEST_IDT + size * vector, test_gate(selector, offset, (uint8_t)byte, ist),
             8);
    if (size == 16)
        test_put(guest.ram, TEST_IDT + size * vector + 8, offset >> 32, 8);
}

static void set_mode(unsigned bits, unsigned cpl)
{
    uint64_t code = bits == 64 ? SEG_ATTR_L : SEG_ATTR_DB;
    test_mode(cpu, bits, cpl);
    test_tables(&guest, cpu);
    set(CODE0, flat(0x9b, code));
    set(DATA0, flat(0x93, SEG_ATTR_DB));
    set(CODE3, flat(0xfb, code));
    set(DATA3, flat(0xf3, SEG_ATTR_DB));
    cpu->seg[SEG_CS].selector = cpl == 3 ? CODE3 | 3 : (uint16_t)(CODE0 | cpl);
    cpu->seg[SEG_SS].selector = cpl == 3 ? DATA3 | 3 : (uint16_t)(DATA0 | cpl);
    cpu->gpr[CPU_RSP] = STACK;
    cpu->rip = HERE;
    cpu->rflags = FLAGS;
    cpu->tr =
        (struct cpu_segment){.base = TSS, .limit = 0x67, .selector = TSS_SEL, .attr = CPU_SEG_TSS};
    memset(guest.ram + TSS, 0, 0x100);
    memset(guest.ram + STACK - 0x100, 0, 0x200);
    test_put(guest.ram, TSS + 4, INNER, bits == 64 ? 8 : 4);
    if (bits != 64)
        test_put(guest.ram, TSS + 8, DATA0, 4);
    else
        for (unsigned i = 0; i < 7; i++)
            test_put(guest.ram, TSS + 0x24 + 8 * i, IST + 0x100 * i, 8);
}

/* --- what delivery raises --- */

static int external(uint8_t vector)
{
    return TEST_CATCH(cpu, intr_deliver_external(cpu, vector));
}

static int software(uint8_t vector)
{
    return TEST_CATCH(cpu, intr_software(cpu, vector, NEXT));
}

static int software_v86(uint8_t vector)
{
    return TEST_CATCH(cpu, intr_software_v86(cpu, vector, NEXT));
}

static int deliver(const struct soft_exception *e)
{
    return TEST_CATCH(cpu, intr_deliver_exception(cpu, e));
}

static int iret(unsigned bytes)
{
    return TEST_CATCH(cpu, seg_return_interrupt(cpu, bytes, NEXT));
}

static uint64_t stack(uint64_t at, unsigned index, unsigned bytes)
{
    return test_get(guest.ram, at + (uint64_t)index * bytes, bytes);
}

/* --- 32 bits --- */

static void test_same_ring(void)
{
    set_mode(32, 0);
    cpu->rflags |= RFLAGS_TF | RFLAGS_NT | RFLAGS_AC;
    set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
    is_int(external(VECTOR), -1, "an interrupt in ring 0");
    is_int(cpu->rip, TARGET, "goes to its handler");
    is_int(cpu->gpr[CPU_RSP], STACK - 12, "pushes three doublewords");
    is_int(stack(STACK - 12, 0, 4), HERE, "EIP");
    is_int(stack(STACK - 12, 1, 4), CODE0, "CS");
    is_int(stack(STACK - 12, 2, 4), FLAGS | RFLAGS_TF | RFLAGS_NT | RFLAGS_AC, "EFLAGS");
    is_int(cpu->rflags, RFLAGS_FIXED | RFLAGS_CF | RFLAGS_AC, "IF, TF and NT are clear");
    set_mode(32, 0);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | TRAP32, 0);
    is_int(software(VECTOR), -1, "INT n by a trap gate");
    is_int(stack(STACK - 12, 0, 4), NEXT, "returns to the next instruction");
    ok(cpu->rflags & RFLAGS_IF, "and leaves IF");
    const struct soft_exception e = {.vector = EXC_GP, .has_error = true, .error = 0x1230};
    set_mode(32, 0);
    set_gate(EXC_GP, CODE0, TARGET, PRESENT | INT32, 0);
    is_int(deliver(&e), -1, "an exception with an error code");
    is_int(cpu->gpr[CPU_RSP], STACK - 16, "four doublewords");
    is_int(stack(STACK - 16, 0, 4), 0x1230, "the code is on top");
    is_int(stack(STACK - 16, 1, 4), HERE, "EIP is the instruction's");
    is_int(stack(STACK - 16, 3, 4), FLAGS | RFLAGS_RF, "a fault has RF on the stack");
    ok(!(cpu->rflags & RFLAGS_RF), "and not in EFLAGS");
    const struct soft_exception trap = {.vector = EXC_DB, .trap = true, .dr6 = 1 << 14};
    set_mode(32, 0);
    set_gate(EXC_DB, CODE0, TARGET, PRESENT | INT32, 0);
    cpu->dr[6] = 0xffff0ff1;
    cpu->dr[7] = 0x2400;
    is_int(deliver(&trap), -1, "a debug trap");
    is_int(stack(STACK - 12, 2, 4), FLAGS, "has not");
    is_int(cpu->dr[6], 0xffff4ff0, "DR6 has its reason, and no earlier breakpoint");
    is_int(cpu->dr[7], 0x400, "DR7.GD is clear");
    const struct soft_exception fault = {
        .vector = EXC_PF, .has_error = true, .error = 6, .address = 0x12345678};
    set_mode(32, 0);
    set_gate(EXC_PF, CODE0, TARGET, PRESENT | INT32, 0);
    is_int(deliver(&fault), -1, "a page fault");
    is_int(cpu->cr2, 0x12345678, "CR2");
    is_int(stack(STACK - 16, 0, 4), 6, "and its code");
    set_mode(32, 0);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | INT16, 0);
    is_int(external(VECTOR), -1, "a 16-bit gate");
    is_int(cpu->rip, TARGET & 0xffff, "has an offset of 16 bits");
    is_int(cpu->gpr[CPU_RSP], STACK - 6, "pushes words");
    is_int(stack(STACK - 6, 2, 2), FLAGS & 0xffff, "FLAGS");
    ok(!(cpu->rflags & RFLAGS_IF), "and clears IF");
    set_mode(32, 0);
    set_gate(EXC_GP, CODE0, TARGET, PRESENT | TRAP16, 0);
    is_int(deliver(&e), -1, "a 16-bit trap gate");
    is_int(cpu->gpr[CPU_RSP], STACK - 8, "has the error code in a word");
    ok(cpu->rflags & RFLAGS_IF, "and leaves IF");
}

static void test_inner_ring(void)
{
    set_mode(32, 3);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
    is_int(external(VECTOR), -1, "an interrupt in ring 3");
    ok(cpu->mode.cpl == 0 && cpu->seg[SEG_CS].selector == CODE0, "is served in ring 0");
    is_int(cpu->seg[SEG_SS].selector, DATA0, "SS is the TSS's");
    is_int(cpu->gpr[CPU_RSP], INNER - 20, "on its stack");
    is_int(stack(INNER - 20, 0, 4), HERE, "EIP");
    is_int(stack(INNER - 20, 1, 4), CODE3 | 3, "CS");
    is_int(stack(INNER - 20, 2, 4), FLAGS, "EFLAGS");
    is_int(stack(INNER - 20, 3, 4), STACK, "ESP");
    is_int(stack(INNER - 20, 4, 4), DATA3 | 3, "SS");
    is_int(iret(4), -1, "IRET");
    ok(cpu->mode.cpl == 3 && cpu->rip == HERE && cpu->gpr[CPU_RSP] == STACK, "goes back");
    is_int(cpu->rflags, FLAGS, "with the flags");
    set_mode(32, 3);
    set(SEL, flat(0x9f, SEG_ATTR_DB));
    set_gate(VECTOR, SEL, TARGET, PRESENT | INT32, 0);
    is_int(external(VECTOR), -1, "a handler in a conforming segment");
    ok(cpu->mode.cpl == 3 && cpu->seg[SEG_CS].selector == (SEL | 3), "stays in ring 3");
    is_int(cpu->gpr[CPU_RSP], STACK - 12, "on its stack");
    set_mode(32, 3);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
    cpu->tr.limit = 8;
    is_int(external(VECTOR), FAULT(EXC_TS, TSS_SEL | 1), "the stack beyond the TSS");
    cpu->tr.limit = 0x67;
    test_put(guest.ram, TSS + 8, 0, 4);
    is_int(external(VECTOR), FAULT(EXC_TS, 1), "a null stack");
    test_put(guest.ram, TSS + 8, DATA3 | 3, 4);
    is_int(external(VECTOR), FAULT(EXC_TS, DATA3 | 1), "of another ring");
    is_int(software(VECTOR) >> 16, EXC_GP, "INT n of a gate with DPL 0");
    set_gate(VECTOR, CODE0, TARGET, PRESENT | 0x60 | INT32, 0);
    is_int(software(VECTOR), FAULT(EXC_TS, DATA3), "with DPL 3; there is no EXT");
    test_put(guest.ram, TSS + 8, DATA0, 4);
    set(DATA0, flat(0x13, SEG_ATTR_DB));
    is_int(external(VECTOR), FAULT(EXC_SS, DATA0 | 1), "not present");
    set(DATA0, test_descriptor(0, INNER - 5, 0x93 | SEG_ATTR_DB));
    is_int(external(VECTOR), FAULT(EXC_SS, DATA0 | 1), "without room");
    ok(cpu->mode.cpl == 3 && cpu->rip == HERE && cpu->gpr[CPU_RSP] == STACK, "nothing has changed");
}

/* --- gates and their targets, all of them --- */

enum cause {
    EXTERNAL,
    SOFTWARE,
};

static int by(enum cause cause)
{
    return cause == EXTERNAL ? external(VECTOR) : software(VECTOR);
}

static int expected_gate(unsigned bits, unsigned byte, unsigned cpl, enum cause cause)
{
    unsigned type = byte & 0x1f, error = VECTOR * 8 + 2 + (cause == EXTERNAL);
    bool good = type == INT32 || type == TRAP32 ||
                (bits != 64 && (type == INT16 || type == TRAP16 || type == 5));
    if (!good || (cause == SOFTWARE && (byte >> 5 & 3) < cpl))
        return FAULT(EXC_GP, error);
    if (!(byte & PRESENT))
        return FAULT(EXC_NP, error);
    if (type == 5) /* which leads to a busy task here */
        return FAULT(EXC_GP, CODE0);
    return -1;
}

static int expected_target(unsigned bits, unsigned byte, unsigned cpl, enum cause cause)
{
    unsigned error = SEL | (cause == EXTERNAL);
    if ((byte & (S | 8)) != (S | 8) || (byte >> 5 & 3) > cpl)
        return FAULT(EXC_GP, error);
    (void)bits;
    return byte & PRESENT ? -1 : FAULT(EXC_NP, error);
}

static bool gate_holds(unsigned bits, unsigned byte, unsigned cpl, enum cause cause)
{
    set_mode(bits, cpl);
    set_gate(VECTOR, CODE0, TARGET, byte, 0);
    int want = expected_gate(bits, byte, cpl, cause), got = by(cause);
    /* By a task gate the loop is what puts RIP back. */
    bool same = cpu->gpr[CPU_RSP] == STACK && (cpu->rip == HERE || (byte & 0x1f) == 5);
    if (got == want && (want < 0 || same))
        return true;
    printf("# %u bits: gate %02x, CPL %u, %s: %x, want %x\n", bits, byte, cpl,
           cause == EXTERNAL ? "external" : "INT n", (unsigned)got, (unsigned)want);
    return false;
}

static bool target_holds(unsigned bits, unsigned byte, unsigned cpl, enum cause cause)
{
    set_mode(bits, cpl);
    set(SEL, flat(byte, bits == 64 ? SEG_ATTR_L : SEG_ATTR_DB));
    for (unsigned ring = 0; ring < 3 && bits == 32; ring++) {
        test_put(guest.ram, TSS + 4 + 8 * ring, INNER, 4);
        test_put(guest.ram, TSS + 8 + 8 * ring, 0x50 + 8 * ring + ring, 4);
        set((uint16_t)(0x50 + 8 * ring), flat(0x93 | ring << 5, SEG_ATTR_DB));
    }
    for (unsigned ring = 0; ring < 3 && bits == 64; ring++)
        test_put(guest.ram, TSS + 4 + 8 * ring, INNER, 8);
    set_gate(VECTOR, SEL | 3, TARGET, PRESENT | 0x60 | INT32, 0);
    int want = expected_target(bits, byte, cpl, cause), got = by(cause);
    unsigned ring = want < 0 && !(byte & 4) ? byte >> 5 & 3 : cpl;
    bool right = got == want && cpu->mode.cpl == ring && cpu->rip == (want < 0 ? TARGET : HERE);
    if (want < 0)
        right &= cpu->seg[SEG_CS].selector == (SEL | ring);
    if (!right)
        printf("# %u bits: target %02x, CPL %u, %s: %x, want %x\n", bits, byte, cpl,
               cause == EXTERNAL ? "external" : "INT n", (unsigned)got, (unsigned)want);
    return right;
}

static void test_gates(void)
{
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        bool gates = true, targets = true;
        for (unsigned n = 0; n < 256 * 8; n++) {
            gates &= gate_holds(bits, n >> 3, n & 3, n & 4 ? EXTERNAL : SOFTWARE);
            targets &= target_holds(bits, n >> 3, n & 3, n & 4 ? EXTERNAL : SOFTWARE);
        }
        ok(gates, "every gate, at every CPL");
        ok(targets, "every target");
        set_mode(bits, 0);
        cpu->idt.limit = (uint16_t)((VECTOR + 1) * (bits == 64 ? 16 : 8) - 1);
        set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
        set_gate(VECTOR + 1, CODE0, TARGET, PRESENT | INT32, 0);
        is_int(external(VECTOR + 1), FAULT(EXC_GP, VECTOR * 8 + 8 + 3), "beyond the IDT");
        is_int(external(VECTOR), -1, "the last of it");
        set_mode(bits, 0);
        cpu->idt.limit = (uint16_t)((VECTOR + 1) * (bits == 64 ? 16 : 8) - 2);
        set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
        is_int(external(VECTOR), FAULT(EXC_GP, VECTOR * 8 + 3), "without its last byte");
        set_mode(bits, 0);
        set_gate(VECTOR, 3, TARGET, PRESENT | INT32, 0);
        is_int(external(VECTOR), FAULT(EXC_GP, 1), "a handler in null");
        is_int(software(VECTOR), FAULT(EXC_GP, 0), "by INT n");
        set_gate(VECTOR, 0x800, TARGET, PRESENT | INT32, 0);
        is_int(external(VECTOR), FAULT(EXC_GP, 0x801), "beyond the GDT");
    }
    set_mode(32, 0);
    set(SEL, test_descriptor(0, 0x1000, 0x9b | SEG_ATTR_DB));
    set_gate(VECTOR, SEL, 0x1001, PRESENT | INT32, 0);
    is_int(software(VECTOR), FAULT(EXC_GP, 0), "a handler beyond its segment");
    cpu->seg[SEG_SS].limit = STACK - 5;
    soft_cpu_update(cpu);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | INT32, 0);
    is_int(software(VECTOR), FAULT(EXC_SS, 0), "no room on the stack");
}

/* --- 64 bits --- */

static void test_long(void)
{
    const uint64_t offset = 0x123456781234;
    set_mode(64, 0);
    cpu->gpr[CPU_RSP] = STACK - 5;
    set_gate(VECTOR, CODE0, offset, PRESENT | INT32, 0);
    is_int(external(VECTOR), -1, "an interrupt in 64-bit code of ring 0");
    is_int(cpu->rip, offset, "has an offset of 64 bits");
    is_int(cpu->gpr[CPU_RSP], STACK - 16 - 40, "the stack is aligned before the push");
    is_int(stack(STACK - 56, 0, 8), HERE, "RIP");
    is_int(stack(STACK - 56, 1, 8), CODE0, "CS");
    is_int(stack(STACK - 56, 2, 8), FLAGS, "RFLAGS");
    is_int(stack(STACK - 56, 3, 8), STACK - 5, "RSP as it was, in the same ring too");
    is_int(stack(STACK - 56, 4, 8), DATA0, "SS");
    is_int(cpu->seg[SEG_SS].selector, DATA0, "which stays");
    set_mode(64, 3);
    const struct soft_exception e = {.vector = EXC_GP, .has_error = true, .error = 0x28};
    set_gate(EXC_GP, CODE0, offset, PRESENT | INT32, 0);
    is_int(deliver(&e), -1, "an exception of ring 3");
    is_int(cpu->gpr[CPU_RSP], INNER - 48, "is on RSP0");
    is_int(stack(INNER - 48, 0, 8), 0x28, "with its error code");
    is_int(stack(INNER - 48, 5, 8), DATA3 | 3, "and SS");
    ok(cpu->seg[SEG_SS].selector == 0 && cpu->mode.cpl == 0, "which becomes null");
    bool right = true;
    for (unsigned cpl = 0; cpl < 4; cpl += 3) {
        for (unsigned ist = 1; ist < 8; ist++) {
            set_mode(64, cpl);
            set_gate(VECTOR, CODE0, offset, PRESENT | INT32, ist);
            uint64_t top = (IST + 0x100 * (ist - 1)) & ~15ULL;
            right &= external(VECTOR) == -1 && cpu->gpr[CPU_RSP] == top - 40 &&
                     stack(top - 40, 3, 8) == STACK && cpu->mode.cpl == 0;
            right &= cpu->seg[SEG_SS].selector == (cpl ? 0 : DATA0);
        }
    }
    ok(right, "each interrupt stack, from ring 0 and 3");
    set_mode(64, 0);
    set_gate(VECTOR, CODE0, offset, PRESENT | INT32, 7);
    cpu->tr.limit = 0x24 + 6 * 8 + 6;
    is_int(external(VECTOR), FAULT(EXC_TS, TSS_SEL | 1), "one beyond the TSS");
    cpu->tr.limit++;
    is_int(external(VECTOR), -1, "just within");
    set_mode(64, 0);
    set_gate(VECTOR, CODE0, offset, PRESENT | INT32, 1);
    test_put(guest.ram, TSS + 0x24, 1ULL << 47, 8);
    is_int(external(VECTOR), FAULT(EXC_SS, 1), "one that is not canonical");
    set_gate(VECTOR, CODE0, 1ULL << 47, PRESENT | INT32, 0);
    is_int(software(VECTOR), FAULT(EXC_GP, 0), "a handler that is not");
    cpu->gpr[CPU_RSP] = 1ULL << 48;
    set_gate(VECTOR, CODE0, offset, PRESENT | INT32, 0);
    is_int(software(VECTOR), FAULT(EXC_SS, 0), "a stack pointer that is not");
    set_mode(64, 3);
    set(SEL, flat(0x9b, SEG_ATTR_DB));
    set_gate(VECTOR, SEL, TARGET, PRESENT | INT32, 0);
    is_int(external(VECTOR), FAULT(EXC_GP, SEL | 1), "a handler of 32 bits");
    set(SEL, flat(0x9b, SEG_ATTR_DB | SEG_ATTR_L));
    is_int(external(VECTOR), FAULT(EXC_GP, SEL | 1), "of both L and D");
    /* From compatibility mode. */
    set_mode(64, 3);
    set_gate(VECTOR, CODE0, offset, PRESENT | INT32, 0);
    cpu->seg[SEG_CS].attr = (uint16_t)((cpu->seg[SEG_CS].attr & ~SEG_ATTR_L) | SEG_ATTR_DB);
    soft_cpu_update(cpu);
    is_int(external(VECTOR), -1, "an interrupt in compatibility mode");
    ok(cpu->mode.code_bits == 64 && cpu->gpr[CPU_RSP] == INNER - 40, "is served in 64-bit code");
    cpu->seg[SEG_CS].attr = CPU_SEG_CODE64;
    set(SEL, flat(0xfb, SEG_ATTR_DB));
    test_put(guest.ram, INNER - 32, SEL | 3, 8);
    is_int(iret(8), -1, "IRET");
    ok(cpu->mode.code_bits == 32 && cpu->gpr[CPU_RSP] == STACK, "goes back");
}

/* --- virtual-8086 and real mode --- */

static void enter_v86(unsigned iopl)
{
    set_mode(32, 0);
    cpu->rflags = FLAGS | RFLAGS_VM | (uint64_t)iopl << 12;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i] = (struct cpu_segment){.base = 0x100 * (i + 1) * 16,
                                           .limit = 0xffff,
                                           .selector = (uint16_t)(0x100 * (i + 1)),
                                           .attr = 0xf3};
    cpu->gpr[CPU_RSP] = 0x800;
    soft_cpu_update(cpu);
}

static void test_v86(void)
{
    enter_v86(0);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | 0x60 | INT32, 0);
    uint64_t flags = cpu->rflags;
    is_int(external(VECTOR), -1, "an interrupt in virtual-8086 mode");
    ok(!cpu->mode.v86 && cpu->mode.cpl == 0, "leaves it");
    is_int(cpu->gpr[CPU_RSP], INNER - 36, "nine doublewords");
    const uint32_t want[] = {HERE,  0x200, (uint32_t)flags, 0x800, 0x300,
                             0x100, 0x400, 0x500,           0x600};
    is_int(memcmp(guest.ram + INNER - 36, want, sizeof(want)), 0,
           "EIP CS EFLAGS ESP SS ES DS FS GS");
    ok(cpu->seg[SEG_DS].selector == 0 && !(cpu->seg[SEG_GS].attr & SEG_ATTR_P),
       "the data segments are null");
    is_int(iret(4), -1, "IRET");
    ok(cpu->mode.v86 && cpu->rip == HERE && cpu->gpr[CPU_RSP] == 0x800, "goes back");
    is_int(cpu->rflags, flags, "with the flags");
    ok(cpu->seg[SEG_GS].base == 0x6000 && cpu->seg[SEG_SS].selector == 0x300, "and segments");
    enter_v86(0);
    set(SEL, flat(0xfb, SEG_ATTR_DB));
    set_gate(VECTOR, SEL, TARGET, PRESENT | INT32, 0);
    is_int(external(VECTOR), FAULT(EXC_GP, SEL | 1), "a handler of ring 3");
    set(SEL, flat(0x9f, SEG_ATTR_DB));
    is_int(external(VECTOR), FAULT(EXC_GP, SEL | 1), "or a conforming one, cannot be had");
    is_int(software_v86(VECTOR), FAULT(EXC_GP, 0), "INT n needs IOPL 3");
    is_int(iret(2), FAULT(EXC_GP, 0), "and IRET");
    enter_v86(3);
    set_gate(VECTOR, CODE0, TARGET, PRESENT | 0x60 | INT32, 0);
    is_int(software_v86(VECTOR), -1, "which it has");
    is_int(stack(INNER - 36, 0, 4), NEXT, "goes by the gate");
    /* The redirection bitmap, with VME. */
    enter_v86(0);
    cpu->cr4 |= CR4_VME;
    cpu->tr.limit = 0xff;
    test_put(guest.ram, TSS + 0x66, 0x88, 2);
    test_put(guest.ram, TSS + 0x68 + VECTOR / 8, 0xff & ~(1 << VECTOR % 8), 1);
    test_put(guest.ram, VECTOR * 4, 0x12345678, 4);
    cpu->rflags &= ~RFLAGS_IF;
    cpu->rflags |= RFLAGS_VIF;
    is_int(software_v86(VECTOR), -1, "INT n to the 8086 program's own handler");
    ok(cpu->rip == 0x5678 && cpu->seg[SEG_CS].base == 0x12340, "by the table at 0");
    is_int(cpu->gpr[CPU_RSP], 0x800 - 6, "three words");
    is_int(test_get(guest.ram, 0x3000 + 0x800 - 2, 2), (FLAGS | RFLAGS_IOPL) & 0xffff,
           "the flags have VIF as IF, and IOPL 3");
    ok(!(cpu->rflags & RFLAGS_VIF) && cpu->mode.v86, "VIF is clear");
    is_int(iret(2), -1, "IRET with VME");
    ok(cpu->rflags & RFLAGS_VIF && !(cpu->rflags & (RFLAGS_IF | RFLAGS_IOPL)), "sets VIF alone");
    test_put(guest.ram, TSS + 0x68 + VECTOR / 8, 0xff, 1);
    is_int(software_v86(VECTOR), FAULT(EXC_GP, 0), "with its bit set: not redirected");
}

static void test_real(void)
{
    const struct soft_exception e = {.vector = EXC_GP, .has_error = true, .error = 0x28};
    set_mode(16, 0);
    cpu->cr0 &= ~CPU_CR0_PE;
    cpu->seg[SEG_CS] = (struct cpu_segment){.limit = 0xffff, .selector = 0, .attr = 0x9b};
    cpu->seg[SEG_SS].limit = 0xffff;
    soft_cpu_update(cpu);
    cpu->rflags |= RFLAGS_TF | RFLAGS_AC;
    cpu->idt = (struct cpu_table_register){.base = 0x500, .limit = 4 * EXC_GP + 3};
    test_put(guest.ram, 0x500 + 4 * EXC_GP, 0x12345678, 4);
    is_int(deliver(&e), -1, "an exception in real mode");
    ok(cpu->rip == 0x5678 && cpu->seg[SEG_CS].base == 0x12340, "goes to the far pointer");
    is_int(cpu->gpr[CPU_RSP], STACK - 6, "pushes three words and no error code");
    is_int(stack(STACK - 6, 0, 2), HERE, "IP");
    is_int(stack(STACK - 6, 2, 2), (FLAGS | RFLAGS_TF) & 0xffff, "FLAGS");
    is_int(cpu->rflags, RFLAGS_FIXED | RFLAGS_CF, "IF, TF and AC are clear");
    is_int(iret(2), -1, "IRET");
    ok(cpu->rip == HERE && cpu->rflags == (FLAGS | RFLAGS_TF), "goes back");
    is_int(external(EXC_GP + 1), FAULT(EXC_GP, (EXC_GP + 1) * 8 + 3), "beyond the table");
}

/* --- IRET --- */

static void push_frame(unsigned bytes, uint64_t rip, uint16_t cs, uint64_t flags, uint64_t rsp,
                       uint16_t ss)
{
    const uint64_t frame[] = {rip, cs, flags, rsp, ss};
    for (unsigned i = 0; i < 5; i++)
        test_put(guest.ram, STACK + (uint64_t)bytes * i, frame[i], bytes);
    cpu->gpr[CPU_RSP] = STACK;
}

static int expected_return(unsigned byte, unsigned rpl, unsigned cpl)
{
    unsigned dpl = byte >> 5 & 3;
    if ((byte & (S | 8)) != (S | 8) || rpl < cpl || (byte & 4 ? dpl > rpl : dpl != rpl))
        return FAULT(EXC_GP, SEL);
    return byte & PRESENT ? -1 : FAULT(EXC_NP, SEL);
}

static bool return_holds(unsigned bits, unsigned byte, unsigned rpl, unsigned cpl)
{
    unsigned bytes = bits / 8;
    set_mode(bits, cpl);
    set(SEL, flat(byte, bits == 64 ? SEG_ATTR_L : SEG_ATTR_DB));
    set(0x50, flat(0x93 | rpl << 5, SEG_ATTR_DB));
    push_frame(bytes, TARGET, (uint16_t)(SEL | rpl), FLAGS, INNER, (uint16_t)(0x50 | rpl));
    int want = expected_return(byte, rpl, cpl), got = iret(bytes);
    bool pops = bits == 64 || rpl != cpl;
    uint64_t rsp = want >= 0 ? STACK : pops ? INNER : STACK + 12;
    if (got == want && cpu->mode.cpl == (want < 0 ? rpl : cpl) && cpu->gpr[CPU_RSP] == rsp &&
        cpu->rip == (want < 0 ? TARGET : HERE))
        return true;
    printf("# %u bits: byte 5 %02x, RPL %u, CPL %u: %x, want %x\n", bits, byte, rpl, cpl,
           (unsigned)got, (unsigned)want);
    return false;
}

static void test_returns(void)
{
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        bool right = true;
        for (unsigned n = 0; n < 256 * 16; n++)
            right &= return_holds(bits, n >> 4, n & 3, n >> 2 & 3);
        ok(right, "IRET to every segment");
        set_mode(bits, 0);
        push_frame(bits / 8, TARGET, 3, FLAGS, INNER, 0);
        is_int(iret(bits / 8), FAULT(EXC_GP, 0), "to null");
        push_frame(bits / 8, TARGET, CODE3 | 3, FLAGS, INNER, 3);
        is_int(iret(bits / 8), FAULT(EXC_GP, 0), "to ring 3 with a null stack");
        push_frame(bits / 8, TARGET, CODE3 | 3, FLAGS, INNER, DATA0 | 3);
        is_int(iret(bits / 8), FAULT(EXC_GP, DATA0), "with one of ring 0");
        set(DATA3, flat(0x73, SEG_ATTR_DB));
        push_frame(bits / 8, TARGET, CODE3 | 3, FLAGS, INNER, DATA3 | 3);
        is_int(iret(bits / 8), FAULT(EXC_SS, DATA3), "with one that is not present");
        ok(cpu->mode.cpl == 0 && cpu->rip == HERE, "nothing has changed");
    }
    set_mode(64, 0);
    push_frame(8, TARGET, CODE0, FLAGS, INNER, 0);
    is_int(iret(8), -1, "in 64-bit code SS may be null");
    is_int(cpu->gpr[CPU_RSP], INNER, "and RSP comes from the stack in the same ring too");
    set_mode(64, 0);
    push_frame(8, 1ULL << 47, CODE0, FLAGS, INNER, 0);
    is_int(iret(8), FAULT(EXC_GP, 0), "an address that is not canonical");
    push_frame(8, TARGET, CODE0, FLAGS, INNER, 0);
    cpu->rflags |= RFLAGS_NT;
    is_int(iret(8), FAULT(EXC_GP, 0), "NT in long mode");
    set_mode(64, 0);
    cpu->gpr[CPU_RSP] = 1ULL << 47;
    is_int(iret(8), FAULT(EXC_SS, 0), "a stack that is not canonical");
    set_mode(32, 0);
    set(SEL, test_descriptor(0, 0xfff, 0x9b | SEG_ATTR_DB));
    push_frame(4, 0x1000, SEL, FLAGS, INNER, 0);
    is_int(iret(4), FAULT(EXC_GP, 0), "an address beyond the segment");
    set_mode(32, 0);
    cpu->nmi_blocked = true;
    push_frame(4, TARGET, CODE0, FLAGS, 0, 0);
    is_int(iret(4), -1, "after IRET");
    ok(!cpu->nmi_blocked, "NMIs come again");
}

/* The flags that an IRET may change (SDM vol. 2, IRET). */
static void test_return_flags(void)
{
    bool right = true;
    const uint64_t all = 0x3f7fd7 & ~RFLAGS_VM & ~RFLAGS_NT;
    for (unsigned n = 0; n < 64; n++) {
        unsigned cpl = n & 3, iopl = n >> 2 & 3, bytes = n & 16 ? 2 : 4;
        uint64_t now = (n & 32 ? all & ~RFLAGS_IOPL : RFLAGS_FIXED) | (uint64_t)iopl << 12;
        uint64_t image = n & 32 ? 0 : all | RFLAGS_NT | (cpl ? RFLAGS_VM : 0);
        uint64_t mask = 0x254dd5; /* ID AC RF NT OF DF TF SF ZF AF PF CF */
        if (cpl <= iopl)
            mask |= RFLAGS_IF;
        if (cpl == 0)
            mask |= RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP;
        if (bytes == 2)
            mask &= 0xffff;
        set_mode(32, cpl);
        set(SEL, flat(0x9b | cpl << 5, SEG_ATTR_DB));
        push_frame(bytes, 0x1234, (uint16_t)(SEL | cpl), image, 0, 0);
        cpu->rflags = now;
        soft_cpu_update(cpu);
        uint64_t want = (now & ~mask) | (image & mask) | RFLAGS_FIXED;
        int got = iret(bytes);
        if (got == -1 && cpu->rflags == want && cpu->mode.cpl == cpl)
            continue;
        right = false;
        printf("# CPL %u, IOPL %u, %u bytes: %x; flags %llx, image %llx: %llx, want %llx\n", cpl,
               iopl, bytes, (unsigned)got, (unsigned long long)now, (unsigned long long)image,
               (unsigned long long)cpu->rflags, (unsigned long long)want);
    }
    ok(right, "flags by CPL, IOPL and size");
}

/* --- faults in delivery --- */

enum class {
    BENIGN,
    CONTRIBUTORY,
    PAGE_FAULT,
    DOUBLE_FAULT,
};

static enum class class_of(int vector) {
    if (vector == 0 || (vector >= 10 && vector <= 13)) return CONTRIBUTORY;
    return vector == 14  ? PAGE_FAULT
           : vector == 8 ? DOUBLE_FAULT
                         : BENIGN;
}

/* SDM vol. 3, table 6-5. */
static void test_combine(void)
{
    bool right = true;
    for (int first = -1; first < 32; first++) {
        for (unsigned second = 0; second < 32; second++) {
            const struct soft_exception e = {
                .vector = (uint8_t)second, .has_error = true, .error = 0x28, .address = 1};
            struct soft_exception result = {0};
            enum class a = class_of(first), b = class_of((int)second);
            bool shutdown = a == DOUBLE_FAULT && (b == CONTRIBUTORY || b == PAGE_FAULT);
            bool twice = (a == CONTRIBUTORY && b == CONTRIBUTORY) ||
                         (a == PAGE_FAULT && (b == CONTRIBUTORY || b == PAGE_FAULT));
            if (second == EXC_DF)
                continue; /* is not raised by itself */
            bool ext = first >= 0 && second >= 10 && second <= 13;
            bool same = intr_combine(first, &e, &result) == !shutdown;
            if (!shutdown && twice)
                same &= result.vector == EXC_DF && result.has_error && result.error == 0;
            else if (!shutdown)
                same &= result.vector == second && result.error == (ext ? 0x29u : 0x28u);
            if (!same)
                printf("# %u in the delivery of %d\n", second, first);
            right &= same;
        }
    }
    ok(right, "an exception in the delivery of another: itself, a double fault, shutdown; EXT");
}

/* The loop: code at CODE, handlers that write to a port, which ends the run. */
#define CODE    0x2000u
#define HANDLER 0x3000u

static enum engine_exit_kind run(void)
{
    static const uint8_t out[] = {0xe7, 0xe0, 0xf4};
    struct engine_exit exit;
    memcpy(guest.ram + HANDLER, out, sizeof(out));
    block_cache_flush(cpu);
    cpu->rip = CODE;
    __atomic_store_n(&cpu->events, 0, __ATOMIC_SEQ_CST);
    engine_soft.vcpu_run(&cpu->base, &exit);
    test_expect_nothing(cpu);
    return exit.kind;
}

static void test_loop(void)
{
    static const uint8_t load[] = {0x66, 0xb8, 0x00,
                                   0x08, 0x8e, 0xd8}; /* mov ax, 800; mov ds, ax */
    set_mode(32, 0);
    memcpy(guest.ram + CODE, load, sizeof(load));
    set_gate(EXC_GP, CODE0, HANDLER, PRESENT | INT32, 0);
    is_int(run(), ENGINE_EXIT_KICK, "a fault in the loop");
    is_int(stack(STACK - 16, 0, 4), 0x800, "its error code");
    is_int(stack(STACK - 16, 1, 4), CODE + 4, "and instruction");
    set_mode(32, 0);
    set_gate(EXC_GP, CODE0, HANDLER, INT32, 0); /* not present */
    set_gate(EXC_NP, CODE0, HANDLER + 0x100, PRESENT | INT32, 0);
    set_gate(EXC_DF, CODE0, HANDLER, PRESENT | INT32, 0);
    is_int(run(), ENGINE_EXIT_KICK, "a fault whose gate is not present");
    is_int(cpu->gpr[CPU_RSP], STACK - 16, "is a double fault");
    is_int(stack(STACK - 16, 0, 4), 0, "with an error code of 0");
    is_int(stack(STACK - 16, 1, 4), CODE + 4, "at the same instruction");
    set_mode(32, 0);
    is_int(run(), ENGINE_EXIT_TRIPLE_FAULT, "without a gate for that: shutdown");
    static const uint8_t undefined[] = {0x0f, 0x0b};
    set_mode(32, 0);
    memcpy(guest.ram + CODE, undefined, sizeof(undefined));
    set_gate(EXC_UD, CODE0, HANDLER, INT32, 0);
    set_gate(EXC_NP, CODE0, HANDLER, PRESENT | INT32, 0);
    is_int(run(), ENGINE_EXIT_KICK, "#UD, which is benign, whose gate is not present");
    is_int(stack(STACK - 16, 0, 4), EXC_UD * 8 + 3, "is #NP of that gate, with EXT");
    set_mode(32, 0);
    set(SEL, test_descriptor(0, 0x1000, 0x9b | SEG_ATTR_DB));
    set_gate(EXC_UD, SEL, 0x1001, PRESENT | INT32, 0);
    set_gate(EXC_GP, CODE0, HANDLER, PRESENT | INT32, 0);
    is_int(run(), ENGINE_EXIT_KICK, "whose handler is beyond its segment");
    is_int(stack(STACK - 16, 0, 4), 1, "is #GP with nothing but EXT");
    static const uint8_t interrupt[] = {0xcd, VECTOR};
    set_mode(32, 0);
    memcpy(guest.ram + CODE, interrupt, sizeof(interrupt));
    set_gate(VECTOR, CODE0, HANDLER, INT32, 0);
    set_gate(EXC_NP, CODE0, HANDLER, PRESENT | INT32, 0);
    is_int(run(), ENGINE_EXIT_KICK, "INT n whose gate is not present");
    is_int(stack(STACK - 16, 0, 4), VECTOR * 8 + 2, "is the program's own doing");
    is_int(stack(STACK - 16, 1, 4), CODE, "and a fault");
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_same_ring();
    test_inner_ring();
    test_gates();
    test_long();
    test_v86();
    test_real();
    test_returns();
    test_return_flags();
    test_combine();
    test_loop();
}

int main(void)
{
    if (ok(test_guest_init(&guest, 1), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
