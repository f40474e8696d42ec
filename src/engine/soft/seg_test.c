/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading segment registers, and far transfers without a task switch: the checks of the SDM (vol.
 * 3, chapter 5; vol. 2, the operation sections of MOV, JMP, CALL, RET, IRET), a second time, over
 * all combinations of type, DPL, RPL, CPL and P.
 */
#include "engine/soft/seg.h"

#include "engine/soft/test_cpu.h"

#define SEL     0x40 /* what is tried out */
#define SEL2    0x48 /* a gate's target; the upper half of a system descriptor of long mode */
#define CODE0   0x10
#define STACK0  0x18
#define CODE3   0x23
#define STACK3  0x2b
#define TSS_SEL 0x30
#define LAST    0x7f8
#define TSS     0x7000u
#define STACK   0x9000u
#define INNER   0xa000u
#define TARGET  0x1234u
#define PRESENT 0x80u
#define S       0x10u

static struct test_guest guest;
static struct soft_cpu *cpu;

static void set(uint16_t selector, uint64_t value)
{
    test_set_entry(&guest, selector, value);
}

/* A flat descriptor by its byte 5. */
static uint64_t flat(unsigned byte)
{
    return test_descriptor(0, 0xfffff, (uint16_t)(byte | SEG_ATTR_G | SEG_ATTR_DB));
}

static uint64_t flat64(unsigned byte)
{
    return test_descriptor(0, 0xfffff, (uint16_t)(byte | SEG_ATTR_G | SEG_ATTR_L));
}

static void set_mode(unsigned bits, unsigned cpl)
{
    test_mode(cpu, bits, cpl);
    test_tables(&guest, cpu);
    set(CODE0, bits == 64 ? flat64(0x9b) : flat(0x9b));
    set(STACK0, flat(0x93));
    set(CODE3, bits == 64 ? flat64(0xfb) : flat(0xfb));
    set(STACK3, flat(0xf3));
    cpu->seg[SEG_CS].selector = cpl == 3 ? CODE3 : (uint16_t)(CODE0 | cpl);
    cpu->seg[SEG_SS].selector = cpl == 3 ? STACK3 : (uint16_t)(STACK0 | cpl);
    cpu->gpr[CPU_RSP] = STACK;
    cpu->tr =
        (struct cpu_segment){.base = TSS, .limit = 0x67, .selector = TSS_SEL, .attr = CPU_SEG_TSS};
    memset(guest.ram + TSS, 0, 0x100);
    if (bits == 64) {
        test_put(guest.ram, TSS + 4, INNER, 8);
    } else {
        test_put(guest.ram, TSS + 4, INNER, 4);
        test_put(guest.ram, TSS + 8, STACK0, 4);
    }
}

/* CPL alone, where nothing else of the mode matters. */
static void set_ring(unsigned cpl)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        cpu->seg[i].attr = (uint16_t)((cpu->seg[i].attr & ~SEG_ATTR_DPL) | cpl << 5);
    soft_cpu_update(cpu);
}

/* --- what they raise --- */

static int load(unsigned seg, uint16_t selector)
{
    return TEST_CATCH(cpu, seg_load(cpu, seg, selector));
}

static int load_ldt(uint16_t selector)
{
    return TEST_CATCH(cpu, seg_load_ldt(cpu, selector));
}

static int load_task(uint16_t selector)
{
    return TEST_CATCH(cpu, seg_load_task(cpu, selector));
}

static int access_of(unsigned seg, uint64_t offset, unsigned size, bool write)
{
    return TEST_CATCH(cpu, seg_check_access(cpu, seg, offset, size, write));
}

static int jump(uint16_t selector, uint64_t offset, unsigned bytes, uint64_t next)
{
    return TEST_CATCH(cpu, seg_jump_far(cpu, selector, offset, bytes, next));
}

static int call_far(uint16_t selector, uint64_t offset, unsigned bytes, uint64_t next)
{
    return TEST_CATCH(cpu, seg_call_far(cpu, selector, offset, bytes, next));
}

static int return_far(unsigned bytes, unsigned drop)
{
    return TEST_CATCH(cpu, seg_return_far(cpu, bytes, drop));
}

/* --- loads --- */

static int expected_data(unsigned byte, unsigned rpl, unsigned cpl)
{
    unsigned dpl = byte >> 5 & 3;
    bool code = byte & 8, conforming = code && byte & 4, readable = !code || byte & 2;
    if (!(byte & S) || !readable || (!conforming && (rpl > dpl || cpl > dpl)))
        return FAULT(EXC_GP, SEL);
    return byte & PRESENT ? -1 : FAULT(EXC_NP, SEL);
}

static int expected_stack(unsigned byte, unsigned rpl, unsigned cpl)
{
    bool writable = (byte & (S | 8 | 2)) == (S | 2);
    if (rpl != cpl || !writable || (byte >> 5 & 3) != cpl)
        return FAULT(EXC_GP, SEL);
    return byte & PRESENT ? -1 : FAULT(EXC_SS, SEL);
}

static bool load_holds(unsigned seg, unsigned byte, unsigned rpl, unsigned cpl)
{
    struct cpu_segment before = cpu->seg[seg];
    uint64_t descriptor = test_descriptor(0x12345678, 0x9abcd, (uint16_t)(byte | SEG_ATTR_DB));
    int want = seg == SEG_SS ? expected_stack(byte, rpl, cpl) : expected_data(byte, rpl, cpl);
    set(SEL, descriptor);
    int got = load(seg, (uint16_t)(SEL | rpl));
    const struct cpu_segment *s = &cpu->seg[seg];
    bool right = got == want;
    if (want < 0)
        right &= s->base == 0x12345678 && s->limit == 0x9abcd && s->selector == (SEL | rpl) &&
                 s->attr == (byte | SEG_ATTR_DB | 1) &&
                 test_entry(&guest, SEL) == (descriptor | 1ULL << 40);
    else
        right &= memcmp(s, &before, sizeof(before)) == 0 && test_entry(&guest, SEL) == descriptor;
    if (!right)
        printf("# byte 5 %02x, RPL %u, CPL %u: %x, want %x\n", byte, rpl, cpl, (unsigned)got,
               (unsigned)want);
    return right;
}

static void test_loads(void)
{
    static const uint8_t segments[] = {SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < sizeof(segments); i++) {
        bool right = true;
        set_mode(32, 0);
        for (unsigned n = 0; n < 256 * 16; n++) {
            set_ring(n >> 2 & 3);
            right &= load_holds(segments[i], n >> 4, n & 3, n >> 2 & 3);
            cpu->seg[segments[i]] = cpu->seg[SEG_CS]; /* whatever: not what was loaded */
        }
        ok(right, "every descriptor, with every RPL, at every CPL");
    }
}

static void test_null(void)
{
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        bool right = true;
        for (unsigned n = 0; n < 16; n++) {
            unsigned cpl = n & 3, rpl = n >> 2;
            set_mode(bits, cpl);
            right &= load(SEG_DS, (uint16_t)rpl) == -1;
            right &= cpu->seg[SEG_DS].selector == rpl && !(cpu->seg[SEG_DS].attr & SEG_ATTR_P);
            int want = bits == 64 && cpl == rpl && cpl != 3 ? -1 : FAULT(EXC_GP, 0);
            right &= load(SEG_SS, (uint16_t)rpl) == want;
            right &= cpu->mode.cpl == cpl;
        }
        ok(right, "null selectors: SS only in 64-bit code below ring 3, with RPL = CPL");
    }
    set_mode(32, 0);
    seg_load(cpu, SEG_DS, 0);
    is_int(access_of(SEG_DS, 0, 1, false), FAULT(EXC_GP, 0), "and nothing can be read through one");
}

static void test_limits(void)
{
    set_mode(32, 0);
    set(LAST, flat(0x93));
    set(LAST | 4, flat(0x93));
    is_int(load(SEG_DS, LAST), -1, "the GDT's last descriptor");
    is_int(load(SEG_DS, LAST | 4), -1, "the LDT's");
    cpu->gdt.limit--;
    cpu->ldt.limit--;
    is_int(load(SEG_DS, LAST | 3), FAULT(EXC_GP, LAST), "with its last byte beyond the limit");
    is_int(load(SEG_SS, LAST | 4), FAULT(EXC_GP, LAST | 4),
           "in the LDT: the error code says which");
    cpu->ldt.attr = 0;
    is_int(load(SEG_DS, 4), FAULT(EXC_GP, 4), "without an LDT");
    /* Granularity. */
    set(SEL, test_descriptor(0, 0x12345, 0x93));
    seg_load(cpu, SEG_DS, SEL);
    is_int(cpu->seg[SEG_DS].limit, 0x12345, "a limit in bytes");
    is_int(access_of(SEG_DS, 0x12342, 4, true), -1, "its last bytes");
    is_int(access_of(SEG_DS, 0x12343, 4, true), FAULT(EXC_GP, 0), "one too far");
    set(SEL, test_descriptor(0, 0x12345, 0x93 | SEG_ATTR_G));
    seg_load(cpu, SEG_DS, SEL);
    is_int(cpu->seg[SEG_DS].limit, 0x12345fff, "and in pages");
    /* Down from 64 KiB: what is within the limit is what cannot be used. */
    set(SEL, test_descriptor(0, 0xfff, 0x97));
    seg_load(cpu, SEG_SS, SEL);
    is_int(access_of(SEG_SS, 0x1000, 4, true), -1,
           "above the limit of a segment that expands down");
    is_int(access_of(SEG_SS, 0xfff, 1, true), FAULT(EXC_SS, 0), "not at it");
    is_int(access_of(SEG_SS, 0xfffd, 4, true), FAULT(EXC_SS, 0), "nor beyond 64 KiB");
    set(SEL, flat(0x91));
    seg_load(cpu, SEG_DS, SEL);
    is_int(access_of(SEG_DS, 0, 1, true), FAULT(EXC_GP, 0), "read-only data is not written to");
    set(SEL, flat(0x99));
    cpu->seg[SEG_DS] = seg_unpack(SEL, (struct seg_descriptor){.low = flat(0x99)});
    is_int(access_of(SEG_DS, 0, 1, false), FAULT(EXC_GP, 0), "execute-only code is not read");
}

/* LLDT and LTR: only the one type, present, and of the GDT. */
static void test_system_loads(void)
{
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        bool right = true;
        set_mode(bits, 0);
        for (unsigned byte = 0; byte < 256; byte++) {
            unsigned type = byte & 0x1f;
            uint64_t low = test_descriptor(0x12345678, 0x1ff, (uint16_t)byte);
            set(SEL, low);
            set(SEL2, 0x7000);
            int absent = byte & PRESENT ? -1 : FAULT(EXC_NP, SEL);
            int want = type == 2 ? absent : FAULT(EXC_GP, SEL);
            right &= load_ldt(SEL) == want;
            bool tss = type == 9 || (type == 1 && bits == 32);
            right &= test_entry(&guest, SEL) == low;
            want = tss ? absent : FAULT(EXC_GP, SEL);
            right &= load_task(SEL | 3) == want;
            right &= test_entry(&guest, SEL) == (want < 0 ? low | 2ULL << 40 : low);
            if (want < 0)
                right &= cpu->tr.selector == (SEL | 3) && cpu->tr.limit == 0x1ff &&
                         cpu->tr.base == (bits == 64 ? 0x700012345678 : 0x12345678) &&
                         (cpu->tr.attr & 15) == (type | 2);
        }
        ok(right, "LLDT and LTR take every type but theirs for wrong");
        is_int(load_ldt(3), -1, "LLDT of null");
        ok(!(cpu->ldt.attr & SEG_ATTR_P), "leaves no table");
        is_int(load_task(3), FAULT(EXC_GP, 0), "LTR of null");
        is_int(load_ldt(SEL | 4), FAULT(EXC_GP, SEL | 4), "in the LDT");
        is_int(load_task(SEL | 4), FAULT(EXC_GP, SEL | 4), "neither");
    }
    /* In long mode there are 16 bytes. */
    set(LAST, test_descriptor(0, 0xff, 0x82));
    is_int(load_ldt(LAST), FAULT(EXC_GP, LAST), "the second half beyond the limit");
    set(LAST, test_descriptor(0, 0x67, 0x89));
    is_int(load_task(LAST), FAULT(EXC_GP, LAST), "of a TSS");
    set(LAST - 8, test_descriptor(0, 0x67, 0x89));
    set(LAST, 0x8000);
    is_int(load_task(LAST - 8), FAULT(EXC_GP, LAST - 8), "a base that is not canonical");
    ok(!(test_entry(&guest, LAST - 8) >> 41 & 1), "does not become busy");
    struct seg_descriptor d;
    set(LAST, flat(0x93));
    ok(seg_find_descriptor(cpu, LAST, &d), "a data segment has 8 bytes there too");
}

static void test_real_loads(void)
{
    set_mode(16, 0);
    cpu->cr0 &= ~CPU_CR0_PE;
    cpu->seg[SEG_DS].limit = 0x12345;
    soft_cpu_update(cpu);
    seg_load(cpu, SEG_DS, 0xabcd);
    is_int(cpu->seg[SEG_DS].base, 0xabcd0, "real mode: the selector is the base");
    is_int(cpu->seg[SEG_DS].limit, 0x12345, "and the limit stays what it was");
    set_mode(32, 3);
    cpu->rflags |= RFLAGS_VM;
    soft_cpu_update(cpu);
    seg_load(cpu, SEG_SS, 0x1234);
    is_int(cpu->seg[SEG_SS].base, 0x12340, "virtual-8086 mode too");
    ok(cpu->seg[SEG_SS].limit == 0xffff && cpu->seg[SEG_SS].attr == 0xf3, "but not the limit");
}

/* --- JMP and CALL to code segments --- */

static int expected_code(unsigned byte, unsigned rpl, unsigned cpl)
{
    unsigned dpl = byte >> 5 & 3;
    bool code = (byte & (S | 8)) == (S | 8);
    if (!code || (byte & 4 ? dpl > cpl : rpl > cpl || dpl != cpl))
        return FAULT(EXC_GP, SEL);
    return byte & PRESENT ? -1 : FAULT(EXC_NP, SEL);
}

static void test_direct(void)
{
    for (unsigned call = 0; call < 2; call++) {
        bool right = true;
        for (unsigned n = 0; n < 256 * 16; n++) {
            unsigned byte = n >> 4, rpl = n & 3, cpl = n >> 2 & 3;
            if (!(byte & S))
                continue;
            set_mode(32, cpl);
            cpu->rip = 0x100;
            set(SEL, flat(byte));
            int want = expected_code(byte, rpl, cpl), got;
            if (call)
                got = call_far((uint16_t)(SEL | rpl), TARGET, 4, 0x107);
            else
                got = jump((uint16_t)(SEL | rpl), TARGET, 4, 0x107);
            bool same = got == want && cpu->mode.cpl == cpl;
            same &= cpu->rip == (want < 0 ? TARGET : 0x100);
            same &= cpu->gpr[CPU_RSP] == (want < 0 && call ? STACK - 8 : STACK);
            if (want < 0)
                same &= cpu->seg[SEG_CS].selector == (SEL | cpl) &&
                        test_entry(&guest, SEL) == flat(byte | 1);
            if (!same)
                printf("# byte 5 %02x, RPL %u, CPL %u: %x, want %x\n", byte, rpl, cpl,
                       (unsigned)got, (unsigned)want);
            right &= same;
        }
        ok(right, call ? "CALL to every code segment" : "JMP to every code segment");
    }
    set_mode(32, 0);
    is_int(jump(3, 0, 4, 0), FAULT(EXC_GP, 0), "to null");
    is_int(jump(0x800, 0, 4, 0), FAULT(EXC_GP, 0x800), "beyond the table");
    set(SEL, test_descriptor(0, TARGET - 1, 0x9b | SEG_ATTR_DB));
    is_int(jump(SEL, TARGET, 4, 0), FAULT(EXC_GP, 0), "beyond the segment's limit");
    cpu->gpr[CPU_RSP] = STACK;
    is_int(call_far(SEL, TARGET - 1, 4, 0x107), -1, "at it");
    is_int(test_get(guest.ram, STACK - 8, 8), 0x107 | (uint64_t)CODE0 << 32, "what CALL pushes");
    set_mode(32, 0);
    cpu->seg[SEG_SS].limit = STACK - 9;
    soft_cpu_update(cpu);
    is_int(call_far(CODE0, TARGET, 4, 0x107), FAULT(EXC_SS, 0), "no room on the stack");
    set_mode(64, 0);
    set(SEL, flat64(0x9b) | 1ULL << 54);
    is_int(jump(SEL, TARGET, 8, 0), FAULT(EXC_GP, SEL), "in long mode L and D are not both set");
    is_int(jump(CODE0, 1ULL << 47, 8, 0), FAULT(EXC_GP, 0), "64-bit code: not canonical");
    set(SEL, flat(0x9b));
    is_int(jump(SEL, TARGET, 8, 0), -1, "to compatibility mode");
    is_int(cpu->mode.code_bits, 32, "which has 32 bits");
}

/* --- call gates --- */

struct gate_case {
    unsigned gate_dpl, rpl, cpl; /* of the gate */
    bool gate_present, call;
    unsigned byte; /* of the target */
};

static int expected_gate(const struct gate_case *c)
{
    unsigned dpl = c->byte >> 5 & 3;
    bool code = (c->byte & (S | 8)) == (S | 8), conforming = c->byte & 4;
    if (c->gate_dpl < c->cpl || c->gate_dpl < c->rpl)
        return FAULT(EXC_GP, SEL);
    if (!c->gate_present)
        return FAULT(EXC_NP, SEL);
    if (!code || dpl > c->cpl || (!c->call && !conforming && dpl != c->cpl))
        return FAULT(EXC_GP, SEL2);
    return c->byte & PRESENT ? -1 : FAULT(EXC_NP, SEL2);
}

static bool gate_holds(const struct gate_case *c)
{
    unsigned dpl = c->byte >> 5 & 3;
    bool inner = c->call && !(c->byte & 4) && dpl < c->cpl;
    set_mode(32, c->cpl);
    cpu->rip = 0x100;
    for (unsigned ring = 0; ring < 3; ring++) {
        test_put(guest.ram, TSS + 4 + 8 * ring, INNER, 4);
        test_put(guest.ram, TSS + 8 + 8 * ring, 0x50 + 8 * ring + ring, 4);
        set((uint16_t)(0x50 + 8 * ring), flat(0x93 | ring << 5));
    }
    set(SEL2, flat(c->byte));
    set(SEL, test_gate(SEL2 | 3, TARGET,
                       (uint8_t)(0xc | c->gate_dpl << 5 | (c->gate_present ? PRESENT : 0)), 0));
    int want = expected_gate(c), got;
    if (c->call)
        got = call_far((uint16_t)(SEL | c->rpl), 99, 4, 0x107);
    else
        got = jump((uint16_t)(SEL | c->rpl), 99, 4, 0x107);
    unsigned cpl = want < 0 && inner ? dpl : c->cpl;
    uint64_t rsp = want >= 0 || !c->call ? STACK : inner ? INNER - 16 : STACK - 8;
    bool right = got == want && cpu->mode.cpl == cpl && cpu->gpr[CPU_RSP] == rsp &&
                 cpu->rip == (want < 0 ? TARGET : 0x100);
    if (want < 0)
        right &= cpu->seg[SEG_CS].selector == (SEL2 | cpl);
    if (want < 0 && inner)
        right &= cpu->seg[SEG_SS].selector == 0x50 + 8 * dpl + dpl;
    if (!right)
        printf("# gate: DPL %u, RPL %u, P %d; CPL %u; %s; target %02x: %x, want %x\n", c->gate_dpl,
               c->rpl, c->gate_present, c->cpl, c->call ? "call" : "jmp", c->byte, (unsigned)got,
               (unsigned)want);
    return right;
}

static void test_gates(void)
{
    bool right = true;
    static const uint8_t bytes[] = {0x9b, 0xbb, 0xdb, 0xfb, 0x9f, 0xbf, 0xdf, 0xff,
                                    0x1b, 0x7b, 0x1f, 0x93, 0xf3, 0x89, 0xec};
    for (unsigned i = 0; i < sizeof(bytes); i++) {
        for (unsigned n = 0; n < 256; n++) {
            const struct gate_case c = {.gate_dpl = n & 3,
                                        .rpl = n >> 2 & 3,
                                        .cpl = n >> 4 & 3,
                                        .gate_present = n & 64,
                                        .call = n & 128,
                                        .byte = bytes[i]};
            right &= gate_holds(&c);
        }
    }
    ok(right, "every call gate, to every kind of target");
}

/* A CALL by a gate to ring 0: what is pushed where, and what is wrong with the new stack. */
static void use_gate(unsigned type, unsigned parameters)
{
    set_mode(32, 3);
    set(SEL, test_gate(CODE0, 0x56781234, (uint8_t)(type | 0xe0), parameters));
    for (unsigned i = 0; i < 8; i++)
        test_put(guest.ram, STACK + 4 * i, 0x11110000 * (i + 1) + i, 4);
}

static int call_gate(void)
{
    return call_far(SEL | 3, 0, 4, 0x107);
}

static void test_gate_stack(void)
{
    use_gate(0xc, 2);
    is_int(call_gate(), -1, "a 32-bit gate with two parameters");
    is_int(cpu->rip, 0x56781234, "to its offset");
    is_int(cpu->gpr[CPU_RSP], INNER - 24, "six doublewords");
    is_int(test_get(guest.ram, INNER - 4, 4), STACK3, "SS");
    is_int(test_get(guest.ram, INNER - 8, 4), STACK, "ESP");
    is_int(test_get(guest.ram, INNER - 12, 4), 0x22220001, "the second parameter");
    is_int(test_get(guest.ram, INNER - 16, 4), 0x11110000, "the first");
    is_int(test_get(guest.ram, INNER - 20, 4), CODE3, "CS");
    is_int(test_get(guest.ram, INNER - 24, 4), 0x107, "EIP");
    seg_return_far(cpu, 4, 8);
    ok(cpu->mode.cpl == 3 && cpu->rip == 0x107, "RET goes back");
    is_int(cpu->gpr[CPU_RSP], STACK + 8, "and drops them there too");
    use_gate(0x4, 1);
    is_int(call_gate(), -1, "a 16-bit gate with one");
    is_int(cpu->rip, 0x1234, "has an offset of 16 bits");
    is_int(cpu->gpr[CPU_RSP], INNER - 10, "five words");
    is_int(test_get(guest.ram, INNER - 6, 2), 0, "the parameter is one");
    use_gate(0xc, 0);
    cpu->tr.limit = 8;
    is_int(call_gate(), FAULT(EXC_TS, TSS_SEL), "the new stack's pointer beyond the TSS");
    cpu->tr.limit = 9;
    is_int(call_gate(), -1, "just within");
    use_gate(0xc, 0);
    test_put(guest.ram, TSS + 8, 0, 4);
    is_int(call_gate(), FAULT(EXC_TS, 0), "null");
    test_put(guest.ram, TSS + 8, STACK0 | 1, 4);
    is_int(call_gate(), FAULT(EXC_TS, STACK0), "another RPL");
    test_put(guest.ram, TSS + 8, STACK3 & ~3u, 4);
    is_int(call_gate(), FAULT(EXC_TS, STACK3 & ~3), "another DPL");
    test_put(guest.ram, TSS + 8, CODE0, 4);
    is_int(call_gate(), FAULT(EXC_TS, CODE0), "code");
    test_put(guest.ram, TSS + 8, 0x800, 4);
    is_int(call_gate(), FAULT(EXC_TS, 0x800), "beyond the table");
    test_put(guest.ram, TSS + 8, STACK0, 4);
    set(STACK0, flat(0x13));
    is_int(call_gate(), FAULT(EXC_SS, STACK0), "not present");
    set(STACK0, flat(0x91));
    is_int(call_gate(), FAULT(EXC_TS, STACK0), "read-only");
    set(STACK0, test_descriptor(0, INNER - 9, 0x93 | SEG_ATTR_DB));
    is_int(call_gate(), FAULT(EXC_SS, STACK0), "no room on it");
    ok(cpu->mode.cpl == 3 && cpu->gpr[CPU_RSP] == STACK, "nothing has changed by all this");
    set(SEL, test_gate(0, 0, 0xec, 0));
    is_int(call_gate(), FAULT(EXC_GP, 0), "a gate to null");
    cpu->tr.attr = 0x83; /* a 16-bit TSS */
    use_gate(0xc, 0);
    cpu->tr.attr = 0x83;
    test_put(guest.ram, TSS + 2, 0xb000, 2);
    test_put(guest.ram, TSS + 4, STACK0, 2);
    is_int(call_gate(), -1, "a 16-bit TSS");
    is_int(cpu->gpr[CPU_RSP], 0xb000 - 16, "has its stack elsewhere");
}

static void test_gate_64(void)
{
    set_mode(64, 3);
    set(SEL, test_gate(CODE0, 0x56781234, 0xec, 0));
    set(SEL2, 0x1234);
    cpu->rip = 0x100;
    is_int(call_gate(), -1, "a call gate of long mode");
    is_int(cpu->rip, 0x123456781234, "has 64 bits of offset");
    is_int(cpu->gpr[CPU_RSP], INNER - 32, "and pushes four quadwords");
    is_int(cpu->seg[SEG_SS].selector, 0, "SS is null");
    is_int(test_get(guest.ram, INNER - 8, 8), STACK3, "the old one is on the stack");
    is_int(test_get(guest.ram, INNER - 32, 8), 0x107, "and RIP");
    seg_return_far(cpu, 8, 0);
    ok(cpu->mode.cpl == 3 && cpu->rip == 0x107 && cpu->gpr[CPU_RSP] == STACK, "RET goes back");
    set(SEL2, 0x1234 | 1ULL << 40);
    is_int(call_gate(), FAULT(EXC_GP, SEL), "a type in the second half");
    set(SEL2, 0x8000);
    is_int(call_gate(), FAULT(EXC_GP, 0), "an offset that is not canonical");
    set(SEL2, 0);
    set(CODE0, flat(0x9b));
    is_int(call_gate(), FAULT(EXC_GP, CODE0), "to code that is not 64-bit");
    set(CODE0, flat64(0x9b));
    cpu->tr.limit = 10;
    is_int(call_gate(), FAULT(EXC_TS, TSS_SEL), "RSP beyond the TSS");
    cpu->tr.limit = 0x67;
    test_put(guest.ram, TSS + 4, 1ULL << 47, 8);
    is_int(call_gate(), FAULT(EXC_SS, 0), "RSP not canonical");
    set(SEL, test_gate(CODE0, 0, 0xe4, 0));
    is_int(call_gate(), FAULT(EXC_GP, SEL), "there are no 16-bit gates");
    set(SEL, test_gate(CODE0, 0, 0xe5, 0));
    is_int(call_gate(), FAULT(EXC_GP, SEL), "nor task gates");
    set(SEL, test_descriptor(TSS, 0x67, 0xe9));
    is_int(call_gate(), FAULT(EXC_GP, SEL), "nor tasks");
}

/* --- RET --- */

static void push_frame(unsigned bytes, uint64_t rip, uint16_t cs, uint64_t rsp, uint16_t ss)
{
    const uint64_t frame[] = {rip, cs, rsp, ss};
    for (unsigned i = 0; i < 4; i++)
        test_put(guest.ram, STACK + (uint64_t)bytes * i, frame[i], bytes);
    cpu->gpr[CPU_RSP] = STACK;
}

static int expected_return(unsigned byte, unsigned rpl, unsigned cpl)
{
    unsigned dpl = byte >> 5 & 3;
    bool code = (byte & (S | 8)) == (S | 8);
    if (!code || rpl < cpl || (byte & 4 ? dpl > rpl : dpl != rpl))
        return FAULT(EXC_GP, SEL);
    return byte & PRESENT ? -1 : FAULT(EXC_NP, SEL);
}

static void test_returns(void)
{
    bool right = true;
    for (unsigned n = 0; n < 256 * 16; n++) {
        unsigned byte = n >> 4, rpl = n & 3, cpl = n >> 2 & 3;
        set_mode(32, cpl);
        cpu->rip = 0x100;
        set(SEL, flat(byte));
        set(0x50, flat(0x93 | rpl << 5));
        push_frame(4, TARGET, (uint16_t)(SEL | rpl), INNER, (uint16_t)(0x50 | rpl));
        int want = expected_return(byte, rpl, cpl);
        int got = return_far(4, 0);
        unsigned now = want < 0 ? rpl : cpl;
        uint64_t rsp = want >= 0 ? STACK : rpl == cpl ? STACK + 8 : INNER;
        if (got == want && cpu->mode.cpl == now && cpu->gpr[CPU_RSP] == rsp &&
            cpu->rip == (want < 0 ? TARGET : 0x100))
            continue;
        right = false;
        printf("# byte 5 %02x, RPL %u, CPL %u: %x, want %x\n", byte, rpl, cpl, (unsigned)got,
               (unsigned)want);
    }
    ok(right, "RET to every code segment");
    set_mode(32, 0);
    push_frame(4, TARGET, 0, 0, 0);
    is_int(return_far(4, 0), FAULT(EXC_GP, 0), "to null");
    push_frame(4, TARGET, CODE3, INNER, 0);
    is_int(return_far(4, 0), FAULT(EXC_GP, 0), "with a null stack");
    push_frame(4, TARGET, CODE3, INNER, STACK0);
    is_int(return_far(4, 0), FAULT(EXC_GP, STACK0), "of another ring");
    set(STACK3, flat(0x73));
    push_frame(4, TARGET, CODE3, INNER, STACK3);
    is_int(return_far(4, 0), FAULT(EXC_SS, STACK3 & ~3), "that is not present");
    set(STACK3, flat(0xf3));
    cpu->seg[SEG_DS] = seg_unpack(STACK0, (struct seg_descriptor){.low = flat(0x93)});
    cpu->seg[SEG_ES] = seg_unpack(STACK3, (struct seg_descriptor){.low = flat(0xf3)});
    cpu->seg[SEG_FS] = seg_unpack(SEL, (struct seg_descriptor){.low = flat(0x9f)});
    cpu->seg[SEG_GS] = seg_unpack(CODE0, (struct seg_descriptor){.low = flat(0x9b)});
    test_put(guest.ram, STACK + 8, 0x55, 4);
    test_put(guest.ram, STACK + 12, INNER, 4);
    test_put(guest.ram, STACK + 16, STACK3, 4);
    is_int(return_far(4, 4), -1, "to ring 3");
    is_int(cpu->gpr[CPU_RSP], INNER + 4, "drops from its stack");
    ok(cpu->seg[SEG_DS].selector == 0 && !(cpu->seg[SEG_DS].attr & SEG_ATTR_P),
       "inner data becomes null");
    is_int(cpu->seg[SEG_ES].selector, STACK3, "its own stays");
    is_int(cpu->seg[SEG_FS].selector, SEL, "so does conforming code");
    is_int(cpu->seg[SEG_GS].selector, 0, "and other code does not");
    set_mode(64, 0);
    push_frame(8, TARGET, CODE3, INNER, 3);
    is_int(return_far(8, 0), FAULT(EXC_GP, 0), "64-bit code of ring 3 has no null stack");
    set(SEL, flat64(0xbb));
    push_frame(8, TARGET, SEL | 1, INNER, 1);
    is_int(return_far(8, 0), -1, "of ring 1 it has");
    is_int(cpu->mode.cpl, 1, "and is in ring 1");
    set_mode(64, 0);
    push_frame(8, 1ULL << 47, CODE0, 0, 0);
    is_int(return_far(8, 0), FAULT(EXC_GP, 0), "not canonical");
    set_mode(16, 0);
    cpu->cr0 &= ~CPU_CR0_PE;
    cpu->seg[SEG_CS].limit = 0xffff;
    soft_cpu_update(cpu);
    push_frame(2, 0x1234, 0xabcd, 0, 0);
    is_int(return_far(2, 6), -1, "real mode");
    ok(cpu->rip == 0x1234 && cpu->seg[SEG_CS].base == 0xabcd0, "CS:IP");
    is_int(cpu->gpr[CPU_RSP], STACK + 10, "and what is dropped");
}

/* --- I/O permission --- */

static int io(unsigned port, unsigned size)
{
    return TEST_CATCH(cpu, seg_check_io(cpu, port, size));
}

static void test_io(void)
{
    set_mode(32, 3);
    cpu->tr.limit = 0x67 + 0x10;
    test_put(guest.ram, TSS + 0x66, 0x68, 2);
    test_put(guest.ram, TSS + 0x68 + 1, 0xfe, 1);
    is_int(io(8, 1), -1, "a port whose bit is clear");
    is_int(io(9, 1), FAULT(EXC_GP, 0), "one whose bit is set");
    is_int(io(8, 2), FAULT(EXC_GP, 0), "two ports need both");
    is_int(io(4, 4), -1, "four that end before");
    is_int(io(5, 4), -1, "whose last is the clear one");
    is_int(io(6, 4), FAULT(EXC_GP, 0), "whose last is not");
    is_int(io(0x77, 1), -1, "the last port with two bytes in the TSS");
    is_int(io(0x78, 1), FAULT(EXC_GP, 0), "one whose second byte is not");
    cpu->rflags |= RFLAGS_IOPL;
    is_int(io(9, 1), -1, "IOPL allows all");
    cpu->rflags |= RFLAGS_VM;
    soft_cpu_update(cpu);
    is_int(io(9, 1), FAULT(EXC_GP, 0), "not in virtual-8086 mode");
    set_mode(32, 3);
    cpu->tr.attr = 0x83;
    is_int(io(8, 1), FAULT(EXC_GP, 0), "a 16-bit TSS has no bitmap");
}

static void tests(void)
{
    cpu = guest.cpu[0];
    test_loads();
    test_null();
    test_limits();
    test_system_loads();
    test_real_loads();
    test_direct();
    test_gates();
    test_gate_stack();
    test_gate_64();
    test_returns();
    test_io();
}

int main(void)
{
    if (ok(test_guest_init(&guest, 1), "a machine"))
        test_all(tests);
    test_guest_fini(&guest);
    return tap_done();
}
