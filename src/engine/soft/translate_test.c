/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both tiers on the same code: loops of random instructions, most of which access memory, from the
 * same state. Registers, flags, the FPU's state, memory, how it ends and the number of instructions
 * must be the same. (The single instructions are compared with the host's processor: diff/.)
 */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "engine/soft/exec_vec.h"
#include "engine/soft/mmu_internal.h"
#include "engine/soft/test_cpu.h"
#include "engine/soft/translate.h"

#define CODE         0x200000u
#define CODE_BYTES   0x2000u
#define PAGE_END     (CODE + 0x1000u)
#define FUNCTION     (CODE + 0xa00u) /* that is called */
#define FAR_FUNCTION (FUNCTION + 0x10000u)
#define SCRATCH      (CODE + 0xc00u) /* data in the pages of the code: here and a page further */
#define DATA         0x300000u
#define DATA_PAGES   16u
#define DATA_BYTES   (DATA_PAGES << 12)
#define READ_ONLY    5u /* pages of it */
#define NOT_PRESENT  9u
#define STACK        (DATA + 0xd000u) /* about there */
#define TABLES       0x10000u
#define EDGE_MEMORY  0x600000u /* 2 MiB whose last page is the last one of the lower half */
/* Of a kind. The thread sanitizer is slow here, and there is but one thread. */
#ifdef __SANITIZE_THREAD__
#define LOOPS 40
#else
#define LOOPS 1000
#endif
#define PTE          7u
#define WRITABLE     2u
#define USER         4u
#define LARGE        0x80u
#define ROUNDS       7 /* of a loop */
#define TIGHT_ROUNDS 40
#ifdef __SANITIZE_THREAD__
#define SHADOW_ROUNDS 2000
#else
#define SHADOW_ROUNDS 200000
#endif

static struct test_guest guest;
static struct soft_cpu *cpu;

/* --- random numbers (xorshift64*) --- */

static uint64_t seed;

static uint32_t below(uint32_t limit)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * 0x2545f4914f6cdd1dULL >> 32) * limit >> 32);
}

static bool one_in(uint32_t n)
{
    return below(n) == 0;
}

/* --- code --- */

static uint8_t code[4096];
static unsigned len;
static uint32_t origin = CODE; /* where it lies */

static uint32_t scratch_address(void)
{
    return SCRATCH + 8 * below(16) + (one_in(4) ? 0x1000 : 0);
}

/* Where most constant addresses of the code at hand are near, so that accesses share. */
static uint32_t favourite_constant;

/* Near the end of a page, or near its start; seldom of one that faults, often before one. */
static void pick_favourite_constant(void)
{
    uint32_t page = one_in(8) ? below(DATA_PAGES) : one_in(3) ? READ_ONLY - 1 : below(READ_ONLY);
    favourite_constant = DATA + (page << 12) + (one_in(3) ? 4096 - 16 * below(12) : 16 * below(40));
}

static uint32_t constant_address(void)
{
    if (one_in(6))
        return scratch_address();
    if (one_in(12)) /* the next page may be another matter */
        return (favourite_constant | 4095) - below(8);
    return favourite_constant + (one_in(4) ? below(96) : 8 * below(16));
}

static void put(unsigned byte)
{
    code[len++] = (uint8_t)byte;
}

static void put32(uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        put(value >> (8 * i));
}

static bool kernel; /* at CPL 0, with pages that SMAP keeps it from */
static bool code32; /* in compatibility mode, of 32 bits or 16; else of 64 */
static bool code16;

static void put16(uint32_t value)
{
    put(value);
    put(value >> 8);
}

/* An address, a distance or an immediate of the usual size. */
static void put_word(uint32_t value)
{
    if (code16)
        put16(value);
    else
        put32(value);
}

/* Registers that hold addresses, and those that anything is done with: the first ones are those of
 * 32-bit code. */
static const uint8_t pointers[] = {CPU_RBX, CPU_RBP, CPU_RSI, CPU_R8, CPU_R10, CPU_RDI};
static const uint8_t values[] = {CPU_RAX, CPU_RCX, CPU_RDX, CPU_R9,
                                 CPU_R11, CPU_R12, CPU_R13, CPU_R14};

#define PICK(list) (list)[below(sizeof(list) / sizeof((list)[0]))]

static unsigned a_pointer(void)
{
    return pointers[below(code32 ? 3 : sizeof(pointers))];
}

static unsigned a_value(void)
{
    return values[below(code32 ? 3 : sizeof(values))];
}

static unsigned a_vector(void)
{
    return below(code32 ? 8 : 16);
}

/* Of the kind that is done some rounds at a time: pointers change by constants. */
static bool tight;

/* That counts the rounds. */
static unsigned counter(void)
{
    return code32 ? CPU_RDI : CPU_R15;
}

static void put_rex(unsigned rex)
{
    if (!code32)
        put(0x40u | rex);
}

/* The pointers of the code at hand are few, so that accesses share them. */
static uint8_t favourites[2];

static unsigned pick_pointer(void)
{
    unsigned n = below(8);
    return n == 0 ? a_pointer() : n == 1 ? CPU_RSP : favourites[n & 1];
}

/* ES, FS, GS, CS, DS, SS: set_segments() */
static const uint8_t segments[] = {0x26, 0x26, 0x64, 0x64, 0x65, 0x2e, 0x3e, 0x36};

static void put_distance(bool far)
{
    if (far)
        put_word(8 * below(80) - 256);
    else
        put(8 * below(16) + (one_in(4) ? below(8) : 0));
}

/* An opcode, its legacy prefix before REX, with memory for r/m. escape: 0, 0x0f, 0x0f38. */
static void put_memory(unsigned prefix, bool wide, unsigned escape, unsigned opcode, unsigned reg)
{
    unsigned base = tight && one_in(8) ? a_value() : pick_pointer();
    unsigned index = one_in(6) ? counter() : CPU_RSP;
    bool relative = one_in(8), absolute = relative && !code16 && one_in(3);
    if (prefix)
        put(prefix);
    if (one_in(16))
        put(code32 ? PICK(segments) : kernel && one_in(2) ? 0x65 : 0x64);
    if (relative && !code32 && one_in(8)) /* addresses of 32 bits */
        put(0x67);
    unsigned rex = (wide ? 8u : 0) | (reg >> 3 & 1) << 2;
    if (!code16)
        put_rex(relative ? rex : rex | (index >> 3 & 1) << 1 | (base >> 3 & 1));
    if (escape)
        put(0x0f);
    if (escape > 0xff)
        put(escape);
    put(opcode);
    /* From the next instruction in 64-bit code: an immediate of one byte moves it, no harm. */
    if (relative && code16) {
        put((reg & 7) << 3 | 6);
        put16(constant_address());
        return;
    }
    if (absolute) { /* without base and index */
        put((reg & 7) << 3 | 4);
        put(0x25);
        put32(constant_address());
        return;
    }
    if (relative) {
        put((reg & 7) << 3 | 5);
        put32(constant_address() - (code32 ? 0 : origin + len + 4));
        return;
    }
    bool far = one_in(4);
    if (code16) { /* BX+SI, BX+DI, BP+SI, BP+DI, SI, DI, BP, BX */
        put((far ? 0x80u : 0x40u) | (reg & 7) << 3 | below(8));
        put_distance(far);
        return;
    }
    put((far ? 0x80u : 0x40u) | (reg & 7) << 3 | 4);
    put(below(4) << 6 | (index & 7) << 3 | (base & 7));
    put_distance(far);
}

static void put_registers(unsigned prefix, bool wide, unsigned escape, unsigned opcode,
                          unsigned reg, unsigned rm)
{
    if (prefix)
        put(prefix);
    put_rex((wide ? 8u : 0) | (reg >> 3 & 1) << 2 | (rm >> 3 & 1));
    if (escape)
        put(0x0f);
    put(opcode);
    put(0xc0u | (reg & 7) << 3 | (rm & 7));
}

/* Flags that the manual leaves undefined are not the same in both tiers: cmp %r14, %r13 defines
 * them; cmp %ecx, %eax. */
static void define_flags(void)
{
    put_registers(0, true, 0, 0x39, code32 ? CPU_RCX : CPU_R14, code32 ? CPU_RAX : CPU_R13);
}

static void put_integer(void)
{
    static const uint8_t plain[] = {0x01, 0x03, 0x09, 0x0b, 0x11, 0x13, 0x19, 0x1b,
                                    0x21, 0x23, 0x29, 0x2b, 0x31, 0x33, 0x38, 0x39,
                                    0x3a, 0x3b, 0x63, 0x84, 0x85, 0x86, 0x87, 0x88,
                                    0x89, 0x89, 0x89, 0x8a, 0x8b, 0x8b, 0x8b, 0x8d};
    static const uint8_t escaped[] = {0x40, 0x44, 0x4d, 0xa5, 0xad, 0xaf, 0xb0, 0xb1, 0xb6,
                                      0xb7, 0xb8, 0xbc, 0xbd, 0xbe, 0xbf, 0xc1, 0x94, 0x9c};
    bool wide = one_in(2), memory = !one_in(4);
    unsigned reg = a_value(), escape = one_in(4) ? 0x0f : 0;
    unsigned opcode = escape ? PICK(escaped) : PICK(plain);
    if (code32 && !escape && !(opcode & 1) && one_in(3))
        reg = 4 + below(4); /* AH, CH, DH; and BH, which is part of a pointer */
    unsigned prefix = one_in(8) ? 0x66 : 0;
    if (escape && opcode == 0xb8)
        prefix = 0xf3; /* POPCNT */
    if (memory && escape && opcode == 0xc1)
        prefix = 0xf0; /* LOCK XADD */
    if (memory)
        put_memory(prefix, wide, escape, opcode, reg);
    else if (opcode != 0x8d)
        put_registers(prefix, wide, escape, opcode, reg, a_value());
    if (escape && (opcode == 0xa5 || opcode == 0xad || opcode == 0xaf || (opcode | 1) == 0xbd))
        define_flags();
}

static void put_unary(void)
{
    /* INC, DEC, NOT, NEG, MUL, IMUL, DIV, IDIV, shifts by 1 and by CL */
    static const uint16_t unary[] = {0xff0, 0xff1, 0xf72, 0xf73, 0xf74, 0xf75, 0xf76, 0xf77,
                                     0xd14, 0xd15, 0xd17, 0xd10, 0xd34, 0xd35, 0xd33};
    unsigned pick = PICK(unary), opcode = pick >> 4, reg = pick & 15;
    bool divides = opcode == 0xf7 && reg >= 6;
    if (code32 && one_in(3)) { /* inc, dec in one byte */
        if (one_in(4))
            put(0x66);
        put((one_in(2) ? 0x40u : 0x48u) + (one_in(4) ? pick_pointer() : a_value()));
        return;
    }
    if (divides) /* a dividend that may well do: xor %edx, %edx */
        put_registers(0, false, 0, 0x31, CPU_RDX, CPU_RDX);
    if (one_in(2))
        put_memory(0, one_in(2), 0, opcode, reg);
    else
        put_registers(0, one_in(2), 0, opcode, reg, a_value());
    if ((opcode == 0xf7 && reg >= 4) || opcode == 0xd1 || opcode == 0xd3)
        define_flags();
}

static void put_vector(void)
{
    /* prefix, opcode: moves, aligned and not, arithmetic, to general registers */
    static const uint16_t vectors[] = {0x0010, 0x0011, 0x0028, 0x0029, 0xf210, 0xf211, 0xf310,
                                       0xf311, 0x66fe, 0x66ef, 0xf258, 0xf259, 0x666e, 0x667e,
                                       0x66d6, 0xf36f, 0xf37f, 0x666f, 0x667f, 0xf22a, 0xf22d};
    unsigned pick = PICK(vectors), prefix = pick >> 8, opcode = pick & 0xff;
    bool general = opcode == 0x6e || opcode == 0x7e || opcode == 0x2a || opcode == 0x2d;
    unsigned reg = opcode == 0x2d ? a_value() : a_vector();
    if (!one_in(4))
        put_memory(prefix, one_in(2) && opcode != 0xd6, 0x0f, opcode, reg);
    else
        put_registers(prefix, one_in(2) && opcode != 0xd6, 0x0f, opcode, reg,
                      general && opcode != 0x2d ? a_value() : a_vector());
}

static void put_x87(void)
{
    static const uint16_t memory[] = {0xd90, 0xd93, 0xdd0, 0xdd3, 0xdb0, 0xdb5, 0xdb7, 0xd80,
                                      0xdc1, 0xdc6, 0xdf5, 0xdf7, 0xd95, 0xd97, 0xdd7, 0xda1};
    static const uint16_t registers[] = {0xd9e8, 0xd9ee, 0xd9eb, 0xdec1, 0xdec9, 0xdee9, 0xdcc1,
                                         0xd9c9, 0xd9e0, 0xd9fa, 0xdbf1, 0xdfe0, 0xddd8, 0xdbe2,
                                         0xdac1, 0xdbe9, 0xd9fc, 0xdde1, 0xd9f6, 0xd9c1};
    if (one_in(2)) {
        unsigned pick = PICK(memory);
        put_memory(0, false, 0, pick >> 4, pick & 15);
    } else {
        unsigned pick = PICK(registers);
        put(pick >> 8);
        put(pick & 0xff);
    }
}

static void put_stack(void)
{
    unsigned reg = one_in(4) ? a_pointer() : a_value();
    switch (below(10)) {
    case 0:
    case 1:
    case 2:
        put_rex(reg >> 3);
        put(0x50u | (reg & 7));
        break;
    case 3:
    case 4:
        reg = a_value();
        put_rex(reg >> 3);
        put(0x58u | (reg & 7));
        break;
    case 5: /* push $ */
        put(0x68);
        put_word(below(UINT32_MAX));
        break;
    case 6: /* add or sub $, %rsp */
        put_registers(0, true, 0, 0x83, one_in(2) ? 0 : 5, CPU_RSP);
        put(8 * below(4));
        break;
    case 7: /* push of memory; or what may become RSP */
        if (!code32 && one_in(3)) {
            put(0x54); /* push %rsp */
            if (one_in(2))
                put_integer();
            put(0x5c);
            break;
        }
        put_memory(0, false, 0, 0xff, 6);
        break;
    case 8: /* leave */
        if (one_in(8)) {
            put(0xc9);
            break;
        }
        /* fall through */
    default: /* pushf: by its handler */
        put(0x9c);
        break;
    }
}

/* A register becomes a number that is not large, its lower half at least. */
static void put_small(unsigned reg, int32_t value)
{
    if (one_in(3)) {
        put_rex(reg >> 3);
        put(0xb8u | (reg & 7));
        put32((uint32_t)value);
        return;
    }
    put_rex(8u | reg >> 3);
    put(0xc7);
    put(0xc0u | (reg & 7));
    put32((uint32_t)value);
}

/* In 64-bit code: MOVS, STOS, mostly repeated, seldom downwards; not to where code is. */
static void put_string(void)
{
    bool down = one_in(8), repeat = !one_in(4);
    unsigned bytes = below(4);
    if (down)
        put(0xfd);
    put_small(CPU_RDI, (int32_t)(favourite_constant + below(4096)));
    if (repeat && !one_in(32))
        put_small(CPU_RCX, (int32_t)(one_in(16) ? 0 : one_in(16) ? below(5000) : below(40)));
    if (repeat)
        put(one_in(8) ? 0xf2 : 0xf3);
    if (one_in(16))
        put(one_in(2) ? 0x64 : 0x67);
    if (bytes == 1)
        put(0x66);
    put_rex(bytes == 3 ? 8 : 0);
    put((one_in(2) ? 0xa4u : 0xaau) + (bytes > 0));
    if (down)
        put(0xfc);
}

/* BT, BTS, BTR, BTC with a register, LOCK or not. */
static void put_bit(void)
{
    static const uint8_t opcodes[] = {0xa3, 0xab, 0xb3, 0xbb};
    unsigned opcode = PICK(opcodes), reg = a_value();
    put_small(reg, (int32_t)below(6000) - 3000);
    put_memory(opcode != 0xa3 && one_in(3) ? 0xf0
               : one_in(8)                 ? 0x66
                                           : 0,
               one_in(2), 0x0f, opcode, reg);
    define_flags();
}

/* What a kernel alone may do. */
static void put_system(void)
{
    /* CLAC, STAC, SWAPGS, RDPKRU */
    static const uint8_t escaped[] = {0xca, 0xcb, 0xca, 0xcb, 0xf8, 0xee};
    uint32_t n = below(8);
    if (n < 2) {
        put(0xfa); /* cli */
    } else if (n < 4) {
        put(0xfb); /* sti */
    } else if (n < 7) {
        unsigned pick = PICK(escaped);
        if (pick == 0xee && !one_in(16)) /* xor %ecx, %ecx, or it is refused */
            put_registers(0, false, 0, 0x31, CPU_RCX, CPU_RCX);
        put(0x0f);
        put(0x01);
        put(pick);
    } else { /* pushf, popf: both by flags of their own */
        put(0x9c);
        if (one_in(2))
            put(0x9d);
    }
}

static void put_pointer(void)
{
    unsigned reg = pick_pointer();
    if (one_in(3)) {
        put_registers(0, true, 0, 0x89, a_pointer(), a_pointer());
    } else if (one_in(2)) { /* lea disp8(reg), reg */
        put_rex(8u | (reg >> 3) << 2 | reg >> 3);
        put(0x8d);
        if (code16) {
            put(0x40u | (reg & 7) << 3 | below(8));
        } else {
            put(0x40u | (reg & 7) << 3 | 4);
            put(0x20u | (reg & 7));
        }
        put(8 * below(32));
    } else {
        put_registers(0, true, 0, 0x83, one_in(2) ? 0 : 5, reg);
        put(8 * below(8));
    }
}

static void put_call(void)
{
    put(0xe8);
    put_word(FUNCTION - (origin + len + (code16 ? 2 : 4)));
}

/* mov of the accumulator and memory at an address that is in the instruction */
static void put_moffs(void)
{
    uint64_t address = constant_address();
    unsigned store = 2 * below(2);
    if (code32 && one_in(3))
        put(PICK(segments));
    else if (!code32 && one_in(8))
        put(0x64);
    /* Where there is other memory, with the same entries of the TLB: map_pages(); and where there
     * cannot be any. */
    if (!code32 && !store && one_in(4))
        address += 1ULL << 32;
    else if (!code32 && one_in(64))
        address += 1ULL << 48;
    put(0xa0u + below(2) + store);
    put_word((uint32_t)address);
    if (!code32)
        put32((uint32_t)(address >> 32));
}

/* Segments become null: ES, GS, FS, and with DS hardly anything can follow. */
static void put_null_segment(void)
{
    static const uint8_t selectors[] = {0xc0, 0xe0, 0xe8, 0xd8};
    put(0x31); /* xor %eax, %eax */
    put(0xc0);
    put(0x8e); /* mov %eax, segment */
    put(selectors[below(4)]);
}

static bool with_x87;

static void put_one(void);

static void put_some(void)
{
    for (unsigned n = 1 + below(3); n > 0; n--)
        put_one();
}

/* A branch whose displacement patch_branch() sets: any condition, or none (16). */
static unsigned put_branch(unsigned condition)
{
    if (condition < 16)
        put(0x0f);
    put(condition < 16 ? 0x80 + condition : 0xe9);
    put_word(0);
    return len;
}

static void patch_branch(unsigned behind, unsigned target)
{
    uint32_t displacement = target - behind;
    unsigned bytes = code16 ? 2 : 4;
    memcpy(code + behind - bytes, &displacement, bytes);
}

/* Over something; or to something and back. */
static void put_branches(void)
{
    if (one_in(4)) {
        unsigned there = put_branch(16), back = len;
        put_some();
        unsigned on = put_branch(16);
        patch_branch(there, len);
        put_some();
        patch_branch(put_branch(16), back);
        patch_branch(on, len);
    } else {
        unsigned over = put_branch(below(17));
        put_some();
        patch_branch(over, len);
    }
}

static void put_one(void)
{
    uint32_t n = below(with_x87 ? 24 : 20);
    if (one_in(12)) {
        put_branches();
        return;
    }
    if (one_in(20)) {
        put_moffs();
        return;
    }
    if (one_in(20)) { /* prefetch */
        put_memory(0, false, 0x0f, 0x18, below(4));
        return;
    }
    if (one_in(kernel ? 8 : 200)) {
        put_system();
        return;
    }
    if (!code32 && one_in(16)) {
        if (one_in(2))
            put_string();
        else
            put_bit();
        return;
    }
    if (code32 && one_in(200)) {
        put_null_segment();
        return;
    }
    if (code32 && one_in(20)) { /* loop, jcxz over an instruction */
        put(one_in(2) ? 0xe2 : 0xe3);
        put(1);
        put(0x90);
        return;
    }
    if (n < 9)
        put_integer();
    else if (n < 11)
        put_unary();
    else if (n < 14)
        put_vector();
    else if (n < 17)
        put_stack();
    else if (n < 19)
        put_pointer();
    else if (n < 20)
        put_call();
    else
        put_x87();
}

static void put_bytes(uint64_t gpa, const uint8_t *bytes, size_t count)
{
    mem_write(guest.mem, GPA(gpa), bytes, count);
}

static void finish_loop(void)
{
    put_registers(0, true, 0, 0xff, 1, counter()); /* dec */
    put(0x0f);                                     /* jnz origin */
    put(0x85);
    put_word(0u - (len + (code16 ? 2 : 4)));
    put(0xe6); /* out %al, $0x80: the end */
    put(0x80);
    put(0xf4);
    put_bytes(origin, code, len);
}

static void make_tight_loop(void)
{
    unsigned aside[4], asides = 0; /* branches out of it */
    len = 0;
    origin = CODE + below(512);
    pick_favourite_constant();
    favourites[0] = (uint8_t)a_pointer();
    favourites[1] = (uint8_t)a_pointer();
    for (unsigned n = 1 + below(9); n > 0; n--) {
        uint32_t kind = below(20);
        if (kind >= 18 && asides < 4) {
            aside[asides++] = put_branch(below(16));
        } else if (kind >= 16) {
            unsigned over = put_branch(below(17));
            put_integer();
            patch_branch(over, len);
        } else if (kind < 9) {
            put_integer();
        } else if (kind < 12) {
            put_vector();
        } else if (kind < 13) {
            put_unary();
        } else {
            unsigned reg = favourites[below(2)];
            put_registers(0, true, 0, 0x83, one_in(2) ? 0 : 5, reg); /* add, sub */
            put(one_in(2) ? 16 : below(80));
        }
    }
    put_registers(0, true, 0, 0x83, 5, counter()); /* sub $1 */
    put(1);
    put(0x0f); /* jnz, jg, ja, js origin */
    put(one_in(8) ? 0x88 : one_in(2) ? 0x85 : one_in(2) ? 0x8f : 0x87);
    put32(0u - (len + 4));
    while (asides > 0)
        patch_branch(aside[--asides], len);
    put(0xe6);
    put(0x80);
    put(0xf4);
    put_bytes(origin, code, len);
}

static void make_loop(void)
{
    /* push %rbx; mov 16(%rsp), %r12; pop %r9; ret */
    static const uint8_t function[] = {0x53, 0x4c, 0x8b, 0x64, 0x24, 0x10, 0x41, 0x59, 0xc3};
    /* push %ebx; mov 8(%esp), %edx; pop %ecx; ret */
    static const uint8_t function32[] = {0x53, 0x8b, 0x54, 0x24, 8, 0x59, 0xc3};
    /* push %bx; mov %sp, %bp; mov 4(%bp), %dx; pop %cx; ret */
    static const uint8_t function16[] = {0x53, 0x8b, 0xec, 0x8b, 0x56, 4, 0x59, 0xc3};
    len = 0;
    origin = one_in(2) ? CODE : PAGE_END - 1 - below(300);
    pick_favourite_constant();
    favourites[0] = (uint8_t)a_pointer();
    favourites[1] = (uint8_t)a_pointer();
    for (unsigned n = 3 + below(40); n > 0; n--)
        put_one();
    if (code16)
        put_bytes(FUNCTION, function16, sizeof(function16));
    else if (code32)
        put_bytes(FUNCTION, function32, sizeof(function32));
    else
        put_bytes(FUNCTION, function, sizeof(function));
    finish_loop();
}

/* --- states --- */

struct state {
    uint64_t gpr[16], rip, rflags, count, gs, kernel_gs;
    struct soft_fpu fpu;
    int ending; /* enum engine_exit_kind */
    uint8_t data[DATA_BYTES], code[CODE_BYTES];
};

static struct state start, first, second;
static bool protection_keys; /* for RDPKRU */

/* FS has a base, GS a limit; of 16-bit code all have both, and the data are 64 KiB. */
static void set_segments(void)
{
    if (!code32) {
        cpu->seg[SEG_FS].base += 0x40;
        return;
    }
    cpu->efer = CPU_EFER_LME | CPU_EFER_LMA;
    for (unsigned i = 0; code16 && i < SEG_COUNT; i++) {
        cpu->seg[i].base = i == SEG_CS ? CODE : DATA;
        cpu->seg[i].limit = UINT16_MAX;
    }
    cpu->seg[SEG_FS].base += 0x40;
    cpu->seg[SEG_GS].limit = (code16 ? 0 : DATA) + 0x7fff;
}

/* Where a page of the data is in memory: neighbours are none, for whoever goes too far. */
static unsigned memory_page(unsigned page)
{
    return page >= 2 && page < 14 ? page ^ 1 : page;
}

static void map_pages(void)
{
    test_mode(cpu, code16 ? 16 : code32 ? 32 : 64, kernel ? 0 : 3);
    set_segments();
    memset(guest.ram + TABLES, 0, 0x5000);
    test_put(guest.ram, TABLES, (TABLES + 0x1000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x1000, (TABLES + 0x2000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x2008, (TABLES + 0x3000) | PTE, 8);
    /* 4 GiB above the data other memory can be read, for whoever loses a carry. */
    test_put(guest.ram, TABLES + 0x1020, (TABLES + 0x4000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x4008, LARGE | (PTE & ~WRITABLE), 8);
    /* The last page of the lower half, by tables that are there already. */
    test_put(guest.ram, TABLES + 255 * 8, (TABLES + 0x1000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x1000 + 511 * 8, (TABLES + 0x4000) | PTE, 8);
    test_put(guest.ram, TABLES + 0x4000 + 511 * 8, EDGE_MEMORY | LARGE | PTE, 8);
    unsigned code_entry = kernel ? PTE & ~USER : PTE;
    test_put(guest.ram, TABLES + 0x3000, CODE | code_entry, 8);
    test_put(guest.ram, TABLES + 0x3008, PAGE_END | code_entry, 8);
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        uint64_t entry = (DATA + 4096 * memory_page(i)) | (i == READ_ONLY ? PTE & ~WRITABLE : PTE);
        if (kernel && i % 8 != 3)
            entry &= ~(uint64_t)USER;
        test_put(guest.ram, TABLES + 0x3800 + 8 * i, i == NOT_PRESENT ? 0 : entry, 8);
    }
    cpu->cr0 |= CPU_CR0_PG | CPU_CR0_WP;
    cpu->cr4 = CPU_CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | (kernel ? CR4_SMAP : 0) |
               (protection_keys ? CR4_PKE : 0);
    cpu->cr3 = TABLES;
    cpu->idt.limit = 0; /* an exception is the end */
    soft_cpu_update(cpu);
    mmu_flush_all(cpu);
    mmu_cr3_written(cpu, false);
}

/* Near the end of a page, or near its start. */
static uint64_t random_address(void)
{
    uint64_t page = DATA + 4096 * below(DATA_PAGES), offset = 16 * below(40);
    /* Many rounds would come to their own code, and to whatever they make of it. */
    if (!tight && one_in(16))
        return SCRATCH;
    return one_in(2) ? page + offset : page + 4096 - offset;
}

static void make_start(void)
{
    for (unsigned i = 0; i < 16; i++)
        start.gpr[i] = (uint64_t)below(UINT32_MAX) << below(33);
    for (unsigned i = 0; i < sizeof(pointers); i++)
        start.gpr[pointers[i]] = random_address();
    for (unsigned i = 0; tight && i < sizeof(values); i++) {
        if (one_in(2))
            start.gpr[values[i]] = random_address();
    }
    start.gpr[CPU_RSP] = STACK + 8 * below(600);
    start.gpr[counter()] = tight ? TIGHT_ROUNDS : ROUNDS;
    protection_keys = !one_in(8);
    start.rip = origin - (code16 ? CODE : 0);
    start.rflags = RFLAGS_FIXED | RFLAGS_IOPL | (below(4096) & RFLAGS_ARITH);
    if (kernel && one_in(2))
        start.rflags |= RFLAGS_AC;
    start.fpu = cpu->fpu;
    for (unsigned i = 0; i < sizeof(start.data); i++)
        start.data[i] = (uint8_t)(i * 37 + i / 4096);
    memcpy(start.code, guest.ram + CODE, sizeof(start.code));
}

static void set_state(void)
{
    memcpy(cpu->gpr, start.gpr, sizeof(start.gpr));
    cpu->rip = start.rip;
    cpu->rflags = start.rflags;
    cpu->fpu = start.fpu;
    cpu->activity = SOFT_ACTIVE;
    cpu->delivering = -1;
    put_bytes(DATA, start.data, sizeof(start.data));
    put_bytes(CODE, start.code, sizeof(start.code));
    map_pages();
    memcpy(cpu->gpr, start.gpr, sizeof(start.gpr)); /* test_mode() clears them */
    cpu->rflags = start.rflags;
    cpu->msr.kernel_gs_base = 0x80;
    mmu_select(cpu);
}

/* A loop that writes to its own code may become one without an end: it is stopped, and proves
 * nothing. */
static unsigned runs;   /* atomic, of vcpu_run: begun and ended */
static bool endless;    /* atomic */
static bool watching;   /* atomic */
static pthread_t watch; /* the thread */

static void *watch_runs(void *arg)
{
    unsigned last = 0, ticks = 0;
    (void)arg;
    while (__atomic_load_n(&watching, __ATOMIC_ACQUIRE)) {
        unsigned now = __atomic_load_n(&runs, __ATOMIC_ACQUIRE);
        ticks = now == last ? ticks + 1 : 0;
        last = now;
        if (now % 2 && ticks > 50) {
            __atomic_store_n(&endless, true, __ATOMIC_RELEASE);
            engine_soft.vcpu_kick(&guest.cpu[0]->base);
            ticks = 0;
        }
        usleep(100000);
    }
    return NULL;
}

static bool start_watch(void)
{
    watching = true;
    return pthread_create(&watch, NULL, watch_runs, NULL) == 0;
}

static void end_watch(void)
{
    __atomic_store_n(&watching, false, __ATOMIC_RELEASE);
    pthread_join(watch, NULL);
}

static void run(const struct translate_options *options, struct state *end)
{
    struct engine_exit exit;
    set_state();
    translate_configure(cpu, options);
    uint64_t before = cpu->instructions;
    __atomic_fetch_add(&runs, 1, __ATOMIC_ACQ_REL);
    soft_vcpu_run(&cpu->base, &exit);
    __atomic_fetch_add(&runs, 1, __ATOMIC_ACQ_REL);
    memcpy(end->gpr, cpu->gpr, sizeof(end->gpr));
    end->rip = cpu->rip;
    end->rflags = cpu->rflags;
    end->gs = cpu->seg_base[SEG_GS];
    end->kernel_gs = cpu->msr.kernel_gs_base;
    end->count = cpu->instructions - before;
    end->fpu = cpu->fpu;
    end->ending = (int)exit.kind;
    memcpy(end->data, guest.ram + DATA, sizeof(end->data));
    memcpy(end->code, guest.ram + CODE, sizeof(end->code));
}

/* Says what differs. */
static bool same(bool exact)
{
    bool counted = chip_clock_is_virtual(cpu->vm->clock);
    bool faulted = first.ending != ENGINE_EXIT_KICK;
    uint64_t flags = faulted && !exact ? ~RFLAGS_ARITH : ~0ULL;
    bool good = true;
    for (unsigned i = 0; i < 16; i++) {
        /* 32-bit code does not see more. */
        uint64_t seen = code32 && i < 8 ? UINT32_MAX : UINT64_MAX;
        if (((first.gpr[i] ^ second.gpr[i]) & seen) == 0)
            continue;
        printf("# register %u: %#llx, translated %#llx\n", i, (unsigned long long)first.gpr[i],
               (unsigned long long)second.gpr[i]);
        good = false;
    }
    if (first.ending != second.ending || first.rip != second.rip ||
        (counted && first.count != second.count) || (first.rflags ^ second.rflags) & flags) {
        printf("# ends %d at %#llx, flags %#llx, after %llu; translated %d at %#llx, %#llx, %llu\n",
               first.ending, (unsigned long long)first.rip, (unsigned long long)first.rflags,
               (unsigned long long)first.count, second.ending, (unsigned long long)second.rip,
               (unsigned long long)second.rflags, (unsigned long long)second.count);
        good = false;
    }
    if (first.gs != second.gs || first.kernel_gs != second.kernel_gs) {
        printf("# bases of GS: %#llx, %#llx, translated %#llx, %#llx\n",
               (unsigned long long)first.gs, (unsigned long long)first.kernel_gs,
               (unsigned long long)second.gs, (unsigned long long)second.kernel_gs);
        good = false;
    }
    const uint8_t *by_first = (const uint8_t *)&first.fpu,
                  *by_second = (const uint8_t *)&second.fpu;
    for (unsigned i = 0; i < sizeof(first.fpu); i++) {
        if (by_first[i] == by_second[i])
            continue;
        printf("# FPU state, byte %u: %02x, translated %02x\n", i, by_first[i], by_second[i]);
        good = false;
    }
    for (unsigned i = 0; i < sizeof(first.data); i++) {
        if (first.data[i] == second.data[i])
            continue;
        printf("# memory %#x: %02x, translated %02x\n", DATA + i, first.data[i], second.data[i]);
        good = false;
        break;
    }
    if (memcmp(first.code, second.code, sizeof(first.code)) != 0) {
        printf("# the page of the code differs\n");
        good = false;
    }
    return good;
}

static void print_code(void)
{
    printf("# code:");
    for (unsigned i = 0; i < len; i++)
        printf(" %02x", code[i]);
    printf("\n");
}

static bool compare(const struct translate_options *options)
{
    static const struct translate_options off = {.off = true};
    run(&off, &first);
    if (__atomic_exchange_n(&endless, false, __ATOMIC_ACQ_REL)) {
        printf("# a loop without an end\n");
        return true;
    }
    run(options, &second);
    if (same(options->exact))
        return true;
    print_code();
    return false;
}

/* --- tests --- */

/* How many of them end by a fault: neither none nor all, or not much is tested. */
static unsigned faults;

static bool random_loops(unsigned count, const struct translate_options *options)
{
    for (unsigned n = 0; n < count; n++) {
        uint64_t number = seed;
        if (tight)
            make_tight_loop();
        else
            make_loop();
        make_start();
        if (!compare(options)) {
            printf("# seed %#llx\n", (unsigned long long)number);
            return false;
        }
        faults += first.ending != ENGINE_EXIT_KICK;
    }
    return true;
}

#define KINDS 8u

static void set_kind(unsigned kind)
{
    with_x87 = kind & 1;
    code16 = kind / 2 == 2;
    code32 = kind / 2 == 1 || code16;
    kernel = kind / 2 == 3;
}

static void test_random(unsigned count)
{
    static const struct {
        const char *title;
        struct translate_options options;
    } modes[] = {
        {"",                             {.runs = 1}                  },
        {", with exact flags",           {.runs = 1, .exact = true}   },
        {", without looks into the TLB", {.runs = 1, .slow = true}    },
        {", forgetting the code",        {.runs = 2, .flush_every = 3}},
    };
    for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        for (unsigned kind = 0; kind < KINDS; kind++) {
            set_kind(kind);
            char name[80];
            snprintf(name, sizeof(name), "random loops of %u bits%s%s%s",
                     code16   ? 16
                     : code32 ? 32
                              : 64,
                     with_x87 ? " with x87 code" : "", kernel ? " in a kernel" : "",
                     modes[i].title);
            ok(random_loops(count, &modes[i].options), name);
        }
    }
    set_kind(0);
    unsigned all = count * KINDS * (unsigned)(sizeof(modes) / sizeof(modes[0]));
    struct translate_stats stats;
    translate_stats(cpu, &stats);
    printf("# %llu blocks in the code of others, %u of %u end by a fault\n",
           (unsigned long long)stats.parts, faults, all);
    ok(stats.parts > all / 4, "blocks become code with others");
    ok(faults > all / 20 && faults < all - all / 20, "some end by a fault");
}

/* Without a virtual clock, with which blocks end where they do in the first tier. */
static void test_loops(unsigned count)
{
    static const struct {
        const char *title;
        struct translate_options options;
    } modes[] = {
        {"tight loops",                      {.runs = 1}                  },
        {"tight loops, forgetting the code", {.runs = 1, .flush_every = 3}},
        {"tight loops with exact flags",     {.runs = 1, .exact = true}   },
        {"tight loops, hot at once",         {.runs = 3}                  },
    };
    struct translate_stats stats;
    tight = true;
    faults = 0;
    for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        ok(random_loops(4 * count, &modes[i].options), modes[i].title);
    }
    tight = false;
    translate_stats(cpu, &stats);
    code32 = false;
    ok(random_loops(count, &modes[0].options), "random loops of 64 bits");
    code32 = true;
    ok(random_loops(count, &modes[0].options), "random loops of 32 bits");
    code32 = false;
    printf("# %llu of %u done some rounds at a time, %u of %u end by a fault\n",
           (unsigned long long)stats.loops, 8 * count, faults, 12 * count);
    ok(stats.loops > count, "some of them are done some rounds at a time");
    ok(faults > count / 2, "some of them end by a fault");
}

/* Somebody wants the processor, again and again: translated code leaves wherever it looks. */
static bool nudging;

static void *nudge(void *arg)
{
    (void)arg;
    while (__atomic_load_n(&nudging, __ATOMIC_RELAXED))
        soft_cpu_notify(cpu, 0);
    return NULL;
}

static void test_events(unsigned count)
{
    const struct translate_options options = {.runs = 1};
    pthread_t thread;
    nudging = true;
    if (!ok(pthread_create(&thread, NULL, nudge, NULL) == 0, "a thread"))
        return;
    for (unsigned kind = 0; kind < KINDS; kind += 2) {
        set_kind(kind);
        ok(random_loops(count, &options), "random loops with events");
    }
    set_kind(0);
    tight = true;
    ok(random_loops(count, &options), "tight loops with events");
    tight = false;
    __atomic_store_n(&nudging, false, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
}

/* --- interrupts --- */

#define IDT_AT     (DATA + 0xe000u)
#define GDT_AT     (DATA + 0xf000u)
#define INTERRUPTS 20u  /* that are enough */
#define COUNTS_AT  DATA /* of interrupts, by the low byte of where they came */
#define VECTOR     0x60u
#define CODE_SEL   0x10u
#define DATA_SEL   0x18u
#define X2APIC     0xd00u /* IA32_APIC_BASE: enabled, x2APIC, the BSP */
#define SVR        0x80fu

static void *interrupt(void *arg)
{
    (void)arg;
    while (__atomic_load_n(&nudging, __ATOMIC_RELAXED)) {
        irqchip_msi_send(guest.vm->irqchip, 0xfee00000, VECTOR);
        sched_yield();
    }
    return NULL;
}

/* Interrupts counts where they come; EOI. */
static void put_interrupt_handler(void)
{
    static const uint8_t handler[] = {
        0x50, 0x51, 0x52,                      /* push %rax, %rcx, %rdx */
        0x48, 0x8b, 0x44, 0x24, 24,            /* mov 24(%rsp), %rax */
        0x0f, 0xb6, 0xc0,                      /* movzbl %al, %eax */
        0xff, 0x04, 0x85, 0,    0,    0x30, 0, /* incl COUNTS_AT(, %rax, 4) */
        0xb9, 0x0b, 8,    0,    0,             /* mov $, %ecx */
        0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30,    /* xor %eax, %eax; %edx; wrmsr */
        0x5a, 0x59, 0x58, 0x48, 0xcf};         /* pop them; iretq */
    uint64_t gate[2] = {test_gate(CODE_SEL, FUNCTION, 0x8e, 0), 0};
    put_bytes(FUNCTION, handler, sizeof(handler));
    memcpy(start.code + (FUNCTION - CODE), handler, sizeof(handler));
    memcpy(start.data + (IDT_AT - DATA) + sizeof(gate) * VECTOR, gate, sizeof(gate));
    uint64_t code_entry = test_descriptor(0, 0xfffff, CPU_SEG_CODE64 | SEG_ATTR_G);
    uint64_t data_entry = test_descriptor(0, 0xfffff, CPU_SEG_DATA | SEG_ATTR_G);
    memcpy(start.data + (GDT_AT - DATA) + CODE_SEL, &code_entry, 8);
    memcpy(start.data + (GDT_AT - DATA) + DATA_SEL, &data_entry, 8);
}

/* How many interrupts have come; *shadowed: of them to the instruction right behind STI. */
static uint32_t interrupted(const struct translate_options *options, unsigned shadow,
                            uint32_t *shadowed)
{
    struct engine_exit exit;
    set_state();
    translate_configure(cpu, options);
    cpu->idt = (struct cpu_table_register){.base = IDT_AT, .limit = 0xfff};
    cpu->gdt = (struct cpu_table_register){.base = GDT_AT, .limit = 0xff};
    cpu->seg[SEG_CS].selector = CODE_SEL;
    cpu->seg[SEG_SS].selector = DATA_SEL;
    soft_vcpu_run(&cpu->base, &exit);
    uint32_t all = 0;
    for (unsigned i = 0; i < 256; i++)
        all += (uint32_t)test_get(guest.ram, COUNTS_AT + 4 * i, 4);
    *shadowed = (uint32_t)test_get(guest.ram, COUNTS_AT + 4 * shadow, 4);
    if (exit.kind != ENGINE_EXIT_KICK)
        printf("# ends %d: %s\n", (int)exit.kind, exit.text);
    return exit.kind == ENGINE_EXIT_KICK ? all : 0;
}

/* A loop of CLI, so many NOPs, STI and the bytes, until some interrupts have come. */
static bool keeps_shadow(unsigned before, const uint8_t *bytes, unsigned length,
                         const struct translate_options *options)
{
    uint32_t all = 0, shadowed = 0;
    len = 0;
    origin = CODE;
    put(0xfa); /* cli */
    for (unsigned i = 0; i < before; i++)
        put(0x90);
    put(0xfb); /* sti */
    unsigned shadow = len;
    for (unsigned i = 0; i < length; i++)
        put(bytes[i]);
    put_registers(0, true, 0, 0x83, 5, counter()); /* sub $1; jnz */
    put(1);
    patch_branch(put_branch(5), 0);
    put(0xe6);
    put(0x80);
    put_bytes(origin, code, len);
    make_start();
    memset(start.data, 0, sizeof(start.data));
    start.gpr[counter()] = SHADOW_ROUNDS;
    start.gpr[CPU_RSP] = STACK;
    put_interrupt_handler();
    for (unsigned tries = 0; all < INTERRUPTS && shadowed == 0 && tries < 1000; tries++)
        all += interrupted(options, shadow, &shadowed);
    if (all >= INTERRUPTS && shadowed == 0)
        return true;
    printf("# %s: %u of %u interrupts in the shadow\n", options->off ? "first tier" : "translated",
           shadowed, all);
    return false;
}

/* No interrupt comes between STI and the instruction behind it, wherever that is. */
static void test_shadow(void)
{
    static const struct {
        const char *title;
        uint8_t before, bytes[8], length;
    } bodies[] = {
        {"a loop's end",               2,                   {0},                0},
        {"one instruction, then CLI",  0,                   {0x90, 0xfa},       2},
        {"a jump",                     1,                   {0xeb, 0x00},       2},
        {"an access",                  3,                   {0x50, 0x58},       2},
        {"PUSHF",                      0,                   {0x9c, 0x58, 0x90}, 3},
        {"what begins the next block", BLOCK_INSNS_MAX - 2, {0},                0},
    };
    static const struct translate_options modes[] = {{.off = true}, {.runs = 1}, {.runs = 4}};
    struct irqchip *chip = guest.vm->irqchip;
    pthread_t thread;
    set_kind(6);
    irqchip_set_apic_base(chip, 0, 0xfee00000 | X2APIC);
    irqchip_msr_write(chip, 0, SVR, 0x1ff);
    nudging = true;
    if (!ok(pthread_create(&thread, NULL, interrupt, NULL) == 0, "a thread"))
        return;
    for (unsigned n = 0; n < sizeof(bodies) / sizeof(bodies[0]); n++) {
        bool good = true;
        for (unsigned mode = 0; mode < sizeof(modes) / sizeof(modes[0]); mode++) {
            good = good &&
                   keeps_shadow(bodies[n].before, bodies[n].bytes, bodies[n].length, &modes[mode]);
        }
        ok(good, bodies[n].title);
    }
    __atomic_store_n(&nudging, false, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    set_kind(0);
}

/* As many ways out of a block as there can be. */
static void test_many_slow_paths(void)
{
    len = 0;
    origin = CODE;
    for (unsigned i = 0; i < BLOCK_INSNS_MAX;
         i++) { /* idivl 8(%rbx,%rsp..): all of them fault-free */
        put(0xf7);
        put(0x7b);
        put(8);
    }
    finish_loop();
    make_start();
    start.gpr[CPU_RBX] = DATA + 0x100;
    start.gpr[CPU_RAX] = 1000;
    start.gpr[CPU_RDX] = 0;
    memset(start.data + 0x108, 0, 4);
    start.data[0x108] = 3;
    ok(compare(&(struct translate_options){.runs = 1}), "a block of divisions by memory");
    len = 0;
    for (unsigned i = 0; i < BLOCK_INSNS_MAX; i++) { /* addps 16 * i(%rsi), %xmm0 */
        put(0x0f);
        put(0x58);
        put(0x86);
        put32(16 * (i % 2 ? i : 4096 / 16 + i));
    }
    finish_loop();
    make_start();
    start.gpr[CPU_RSI] = DATA + 0x100;
    ok(compare(&(struct translate_options){.runs = 1}), "and of aligned vectors");
    /* No #DE, and no difference, where the quotient does not fit either. */
    start.gpr[CPU_RSI] = DATA + 0x108;
    ok(compare(&(struct translate_options){.runs = 1}), "and of vectors that are not aligned");
}

/* mov distance(%rsi), reg */
static void put_load_from_rsi(unsigned reg, unsigned distance)
{
    put_rex(8u | reg >> 3 << 2);
    put(0x8b);
    put(0x40u | (reg & 7) << 3 | CPU_RSI);
    put(distance);
}

/*
 * What has more to say of its operand, among loads: lock cmpxchg16b 16(%rsi), which must be aligned
 * and is 8 bytes behind the start of the stretch; andn 40(%rsi), %r9, %r8, which has a VEX prefix.
 */
static void test_among_loads(void)
{
    static const uint8_t exchange[] = {0xf0, 0x48, 0x0f, 0xc7, 0x4e, 16};
    static const uint8_t and_not[] = {0xc4, 0x62, 0xb0, 0xf2, 0x46, 40};
    len = 0;
    put_load_from_rsi(CPU_R8, 8);
    for (unsigned i = 0; i < sizeof(exchange); i++)
        put(exchange[i]);
    put_load_from_rsi(CPU_R9, 32);
    define_flags(); /* none is kept for later */
    finish_loop();
    make_start();
    start.gpr[CPU_RSI] = DATA + 0x100;
    memcpy(&start.gpr[CPU_RAX], start.data + 0x110, 8);
    memcpy(&start.gpr[CPU_RDX], start.data + 0x118, 8);
    ok(compare(&(struct translate_options){.runs = 1}), "loads, and an access that is aligned");
    ok(memcmp(start.data + 0x110, first.data + 0x110, 16) != 0, "which has written");
    if (!__builtin_cpu_supports("bmi")) {
        tap_skip("loads, and an operand of ANDN", "the host has no BMI1");
        return;
    }
    len = 0;
    put_load_from_rsi(CPU_R9, 32);
    for (unsigned i = 0; i < sizeof(and_not); i++)
        put(and_not[i]);
    define_flags();
    finish_loop();
    make_start();
    start.gpr[CPU_RSI] = DATA + 0x100;
    ok(compare(&(struct translate_options){.runs = 1}), "loads, and an operand of ANDN");
    ok(first.ending == ENGINE_EXIT_KICK, "which is one");
}

/* An access at `distance` from `base`. opcode: 0x8b, MOV; 0x89, to memory; 0x63, MOVSXD; 0x03, ADD.
 * prefix: or 0. */
static void put_access(unsigned prefix, bool wide, unsigned opcode, unsigned reg, unsigned base,
                       int32_t distance)
{
    bool small = distance == (int8_t)distance;
    if (prefix)
        put(prefix);
    put_rex((wide ? 8u : 0) | reg >> 3 << 2 | base >> 3);
    put(opcode);
    unsigned mod = distance == 0 && (base & 7) != CPU_RBP ? 0 : small ? 0x40 : 0x80;
    put(mod | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == CPU_RSP)
        put(0x24);
    if (mod == 0x40)
        put((uint8_t)distance);
    else if (mod == 0x80)
        put32((uint32_t)distance);
}

/* Where the next element of a list is: across the end of a page, in a page that is not there, at no
 * address; or in a page that can be read, as almost all are. */
static uint64_t list_element(void)
{
    uint32_t page = one_in(2) ? below(READ_ONLY + 1) : READ_ONLY + 1 + below(3);
    switch (below(32)) {
    case 0:
        return DATA + (NOT_PRESENT << 12) + 16 * below(200);
    case 1:
        return 1ULL << 47;
    case 2:
    case 3:
        return DATA + (page << 12) + 4096 - 1 - below(15);
    default:
        return DATA + (page << 12) + 16 * below(256);
    }
}

/*
 * Loads of the register that their address is made of: lists, with pointers that lie `distance`
 * before what they lead to; addresses may be cut to 32 bits, or have a base. Alone, and with other
 * accesses, one of which reads the address as well.
 */
static bool follow_pointers(unsigned reg)
{
    static const int32_t distances[] = {0, 0, 8, -8, 0x48, 0x1000, -0x12340, INT32_MIN};
    int32_t distance = PICK(distances);
    static const uint8_t prefixes[] = {0, 0, 0, 0, 0x64, 0x67};
    unsigned prefix = PICK(prefixes), kind = below(3);
    uint64_t behind = (uint64_t)(int64_t)distance + (prefix == 0x64 ? 0x40 : 0);
    uint64_t upper = prefix == 0x67 ? 0x5a00000000 : 0;
    bool wide = one_in(2), after = one_in(3);
    unsigned other = reg == CPU_RCX ? CPU_RDX : CPU_RCX;
    len = 0;
    origin = CODE;
    if (one_in(2)) {
        /* Flags are to be kept, and the TLB has the page: cmp address, %rdi */
        put_rex(8);
        put(0x3b);
        put(0x3c);
        put(0x25);
        put32(DATA + (READ_ONLY << 12));
    }
    if (kind)
        put_access(prefix, true, kind == 1 ? 0x03 : 0x89, other, reg, distance + 8);
    if (kind && one_in(2)) /* mov reg, other */
        put_registers(0, true, 0, 0x89, reg, other);
    put_access(prefix, wide, wide || one_in(2) ? 0x8b : 0x63, reg, reg, distance);
    if (after) /* xor reg, %rdi */
        put_registers(0, true, 0, 0x31, reg, CPU_RDI);
    finish_loop();
    make_start();
    uint64_t at = list_element();
    start.gpr[reg] = at - behind + upper;
    for (unsigned i = 0; i <= ROUNDS; i++) {
        uint64_t next = list_element(), value = next - behind + upper;
        for (unsigned n = 0; n < 8 && at + n - DATA < sizeof(start.data); n++) {
            unsigned offset = (unsigned)(at + n - DATA);
            start.data[memory_page(offset >> 12) << 12 | (offset & 4095)] =
                (uint8_t)(value >> (8 * n));
        }
        at = next;
    }
    bool good = compare(&(struct translate_options){.runs = 1});
    faults += first.ending != ENGINE_EXIT_KICK;
    return good;
}

static void test_pointers(unsigned count)
{
    static const uint8_t registers[] = {CPU_RAX, CPU_RCX, CPU_RBX, CPU_RBP, CPU_RSI, CPU_R8,
                                        CPU_R9,  CPU_R10, CPU_R11, CPU_R12, CPU_R13};
    bool good = true;
    faults = 0;
    for (unsigned n = 0; n < count && good; n++)
        good = follow_pointers(PICK(registers));
    ok(good, "loads of the register that their address is made of");
    ok(faults > count / 20 && faults < count - count / 20, "some of which end by a fault");
    faults = 0;
}

/*
 * A stretch that would begin below the lowest displacement: mov (%rdx), %rsi, so that the TLB has
 * the page 4 GiB further on; mov -0x80000000(%rbx), %rax; sub $8, %rbx; the same to %rcx.
 */
static void test_lowest_displacement(void)
{
    static const uint8_t loads[] = {0x48, 0x8b, 0x32, 0x48, 0x8b, 0x83, 0, 0, 0, 0x80, 0x48,
                                    0x83, 0xeb, 8,    0x48, 0x8b, 0x8b, 0, 0, 0, 0x80};
    len = 0;
    origin = CODE;
    for (unsigned i = 0; i < sizeof(loads); i++)
        put(loads[i]);
    finish_loop();
    make_start();
    start.gpr[CPU_RBX] = DATA + 0x400 + 0x80000000ULL;
    start.gpr[CPU_RDX] = DATA + 0x400 + 0x100000000ULL;
    ok(compare(&(struct translate_options){.runs = 1}), "accesses below the lowest displacement");
    ok(first.ending == ENGINE_EXIT_KICK, "which are at addresses that are there");
}

/* The x87 pointers tell of the instruction before the branch that leaves in the last round. */
static void test_side_exit(void)
{
    const struct translate_options options = {.runs = 2};
    len = 0;
    origin = CODE;
    put(0xd9); /* fld1 */
    put(0xe8);
    put_registers(0, true, 0, 0x83, 7, counter()); /* cmp $1; je over */
    put(1);
    unsigned over = put_branch(4);
    put(0xdd); /* fstp %st(0) */
    put(0xd8);
    patch_branch(over, len);
    finish_loop();
    make_start();
    ok(compare(&options), "a trace is left behind an x87 instruction");
}

static void put_stac(bool set)
{
    put(0x0f);
    put(0x01);
    put(set ? 0xcb : 0xca);
}

/*
 * A kernel reads a program's page between STAC and CLAC, and its own at all times; in the last
 * round but one it reads the program's without STAC, though it has just been read.
 */
static void test_smap(void)
{
    set_kind(6);
    len = 0;
    origin = CODE;
    put_stac(true);
    put_access(0, true, 0x8b, CPU_RAX, CPU_RBX, 0);
    put_access(0, true, 0x8b, CPU_RDX, CPU_RSI, 0);
    put_stac(false);
    put_access(0, true, 0x8b, CPU_RDX, CPU_RSI, 8);
    put_registers(0, true, 0, 0x83, 7, counter()); /* cmp $2; jne over */
    put(2);
    unsigned over = put_branch(5);
    put_access(0, true, 0x8b, CPU_RCX, CPU_RBX, 8);
    patch_branch(over, len);
    finish_loop();
    make_start();
    start.gpr[CPU_RBX] = DATA + 0x3000;
    start.gpr[CPU_RSI] = DATA + 0x2000;
    ok(compare(&(struct translate_options){.runs = 1}), "STAC and CLAC");
    ok(second.ending != ENGINE_EXIT_KICK && second.gpr[counter()] == 2,
       "without it the program's page cannot be read");
    set_kind(0);
}

/* Where code at an address ends, and with what in the registers, when it has run so many times. */
static uint64_t edge_of(uint64_t rip, unsigned times, uint64_t gpr[16])
{
    struct engine_exit exit;
    for (unsigned i = 0; i < times; i++) {
        memcpy(cpu->gpr, start.gpr, sizeof(start.gpr));
        cpu->rip = rip;
        cpu->activity = SOFT_ACTIVE;
        cpu->delivering = -1;
        soft_vcpu_run(&cpu->base, &exit);
        if (exit.kind != ENGINE_EXIT_TRIPLE_FAULT)
            return 0;
    }
    memcpy(gpr, cpu->gpr, 16 * sizeof(*gpr));
    return cpu->rip;
}

/* Code that has branched indirectly, and comes out of the lower half by another way, translated as
 * it does by handlers. */
static void test_edge(void)
{
    /* call *%rdx; dec %ecx; jnz to the start, and a way on; at the start of the page: ret */
    static const uint8_t loop[] = {0xff, 0xd2, 0xff, 0xc9, 0x75, 0xfa};
    static const struct {
        unsigned len, before; /* how far from the edge RIP is then */
        uint8_t code[5];
        const char *what;
    } ways[] = {
        {2, 2, {0xeb, 0x10}, "a jump out of the lower half"               },
        {2, 2, {0x74, 0x10}, "a conditional one"                          },
        {2, 0, {0x75, 0x10}, "one that is not taken"                      },
        {5, 5, {0xe8, 0x10}, "a call"                                     },
        {2, 0, {0x90, 0x90}, "code that ends there"                       },
        {2, 0, {0x9c, 0x9d}, "and whose last instruction is for a handler"}, /* pushf; popf */
    };
    const uint64_t edge = 1ULL << 47, page = EDGE_MEMORY + 0x1ff000;
    for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        uint64_t at = edge - ways[i].len - sizeof(loop), gpr[16], same[16];
        put_bytes(page + (at & 0xfff), loop, sizeof(loop));
        put_bytes(page + 0x1000 - ways[i].len, ways[i].code, ways[i].len);
        put_bytes(page, (const uint8_t[]){0xc3}, 1);
        make_start();
        start.gpr[CPU_RCX] = ROUNDS;
        start.gpr[CPU_RDX] = edge - 0x1000;
        set_state();
        translate_configure(cpu, &(struct translate_options){.off = true});
        uint64_t rip = edge_of(at, 1, gpr);
        translate_configure(cpu, &(struct translate_options){.runs = 1});
        ok(rip == edge - ways[i].before && edge_of(at, 4, same) == rip &&
               memcmp(same, gpr, sizeof(gpr)) == 0,
           ways[i].what);
    }
}

/* RAX when the code at origin, which is a loop, has run once more. */
static uint64_t again(void)
{
    struct engine_exit exit;
    cpu->rip = origin;
    cpu->gpr[CPU_RCX] = ROUNDS;
    cpu->activity = SOFT_ACTIVE;
    soft_vcpu_run(&cpu->base, &exit);
    return cpu->gpr[CPU_RAX];
}

static void map_second_page(uint64_t gpa)
{
    test_put(guest.ram, TABLES + 0x3008, gpa | PTE, 8);
    mmu_invlpg(cpu, PAGE_END);
}

/* An instruction that crosses into a page that is mapped anew, or changes. */
static void test_crossing(void)
{
    /* mov $, %eax of which two bytes are in the next page; dec %ecx; jnz origin; out, hlt */
    static const uint8_t here[] = {0x90, 0x90, 0x90, 0xb8, 0x11, 0x22};
    static const uint8_t there[] = {0x33, 0x44, 0xff, 0xc9, 0x75, 0xf4, 0xe6, 0x80, 0xf4};
    struct translate_stats stats;
    const uint64_t other = DATA;
    origin = PAGE_END - sizeof(here);
    memset(&start, 0, sizeof(start));
    start.rip = origin;
    start.rflags = RFLAGS_FIXED | RFLAGS_IOPL;
    start.fpu = cpu->fpu;
    memcpy(start.code + 0x1000 - sizeof(here), here, sizeof(here));
    memcpy(start.code + 0x1000, there, sizeof(there));
    memcpy(start.data, there, sizeof(there));
    start.data[0] = 0x77;
    set_state();
    translate_configure(cpu, &(struct translate_options){.runs = 1});
    is_int(again(), 0x44332211, "an instruction that crosses into the next page");
    is_int(again(), 0x44332211, "which is kept");
    translate_stats(cpu, &stats);
    uint64_t entered = stats.entered;
    again();
    translate_stats(cpu, &stats);
    ok(stats.entered - entered < ROUNDS, "translated, and found by translated code");
    map_second_page(other);
    is_int(again(), 0x44772211, "with another page behind it it is another");
    is_int(again(), 0x44772211, "again and again");
    map_second_page(PAGE_END);
    is_int(again(), 0x44332211, "and the first one comes back");
    again();
    put_bytes(PAGE_END, (const uint8_t[]){0x55}, 1);
    is_int(again(), 0x44552211, "a change of the second page is seen");
    again();
    put_bytes(PAGE_END - 1, (const uint8_t[]){0x66}, 1);
    is_int(again(), 0x44556611, "and one of the first");
    again();
    put_bytes(other, (const uint8_t[]){0x88}, 1);
    map_second_page(other);
    is_int(again(), 0x44886611, "and one of a page that was not mapped");
}

/* mov $target, %edx; call *%rdx */
static void put_call_of(uint32_t target)
{
    put(0xba);
    put32(target);
    put(0xff);
    put(0xd2);
}

/* add $, %eax; ret */
static void put_function(uint64_t gpa, uint8_t adds)
{
    put_bytes(gpa, (const uint8_t[]){0x83, 0xc0, adds, 0xc3}, 4);
}

static void map_far_function(uint64_t gpa)
{
    test_put(guest.ram, TABLES + 0x3000 + (FAR_FUNCTION - CODE) / 4096 * 8, gpa | PTE, 8);
}

/* RAX when it has run once more from 0 on, and how often the run loop has entered its code. */
static uint64_t run_calls(uint64_t *entered)
{
    struct translate_stats before, after;
    translate_stats(cpu, &before);
    cpu->gpr[CPU_RAX] = 0;
    uint64_t result = again();
    translate_stats(cpu, &after);
    *entered = after.entered - before.entered;
    return result;
}

/* Two functions whose addresses have a slot of the jump table in common. */
static void test_second(void)
{
    const uint64_t far = FAR_FUNCTION & ~4095u, other = far + 0x1000, offset = FAR_FUNCTION & 4095;
    uint64_t entered;
    is_int(mmu_jump_slot(FUNCTION), mmu_jump_slot(FAR_FUNCTION), "one slot for two addresses");
    len = 0;
    origin = CODE;
    put_call_of(FUNCTION);
    put_call_of(FAR_FUNCTION);
    put(0xff); /* dec %ecx */
    put(0xc9);
    patch_branch(put_branch(5), 0);
    put(0xe6);
    put(0x80);
    put(0xf4);
    memset(&start, 0, sizeof(start));
    memcpy(start.code, code, len);
    start.gpr[CPU_RSP] = STACK;
    start.rip = origin;
    start.rflags = RFLAGS_FIXED | RFLAGS_IOPL;
    start.fpu = cpu->fpu;
    set_state();
    put_function(FUNCTION, 1);
    put_function(far + offset, 16);
    put_function(other + offset, 32);
    map_far_function(far);
    translate_configure(cpu, &(struct translate_options){.runs = 1});
    is_int(run_calls(&entered), ROUNDS * 17, "both are called");
    run_calls(&entered);
    is_int(run_calls(&entered), ROUNDS * 17, "and again");
    ok(entered <= 3, "without the run loop");
    map_far_function(other);
    mmu_invlpg(cpu, FAR_FUNCTION);
    is_int(run_calls(&entered), ROUNDS * 33, "INVLPG: the other one");
    run_calls(&entered);
    is_int(run_calls(&entered), ROUNDS * 33, "and again");
    ok(entered <= 3, "without the run loop");
    map_far_function(far);
    mmu_cr3_written(cpu, false);
    is_int(run_calls(&entered), ROUNDS * 17, "CR3: the first one");
    run_calls(&entered);
    put_function(far + offset, 64);
    is_int(run_calls(&entered), ROUNDS * 65, "a change of it is seen");
    run_calls(&entered);
    block_cache_flush(cpu);
    is_int(run_calls(&entered), ROUNDS * 65, "and that all code has been forgotten");
    /* The same 32 bits of another address, in the last round, have both slots in common; the code
     * there is of zeros, and faults. mov $, %edx; cmp $1, %ecx; jne over; bts $32, %rdx;
     * over: call *%rdx; dec %ecx; jnz origin */
    static const uint8_t last[] = {0xba, 0,    0x0a, 0x21, 0,    0x83, 0xf9, 1,    0x75, 5,   0x48,
                                   0x0f, 0xba, 0xea, 32,   0xff, 0xd2, 0xff, 0xc9, 0x75, 0xeb};
    put_bytes(CODE, last, sizeof(last));
    is_int(run_calls(&entered), (ROUNDS - 1) * 64, "another address that has the same slots");
}

static unsigned loops_wanted(void)
{
    const char *from = getenv("HULL_TEST_SEED"), *loops = getenv("HULL_TEST_LOOPS");
    seed = from ? strtoull(from, NULL, 0) : 20261128;
    return loops ? (unsigned)atoi(loops) : LOOPS;
}

static void tests(void)
{
    unsigned loops = loops_wanted();
    cpu = guest.cpu[0];
    x87_init(cpu);
    fpu_set_mxcsr(cpu, MXCSR_INIT);
    test_many_slow_paths();
    test_among_loads();
    test_pointers(loops);
    test_lowest_displacement();
    test_side_exit();
    test_edge();
    test_smap();
    test_crossing();
    test_second();
    test_random(loops);
}

static void tests_without_clock(void)
{
    unsigned loops = loops_wanted();
    cpu = guest.cpu[0];
    x87_init(cpu);
    fpu_set_mxcsr(cpu, MXCSR_INIT);
    test_lowest_displacement();
    test_pointers(loops);
    test_loops(loops);
    test_events(loops);
    test_shadow();
}

int main(void)
{
    if (ok(test_guest_init(&guest, 1), "a machine") && ok(start_watch(), "a thread")) {
        test_all(tests);
        end_watch();
    }
    test_guest_fini(&guest);
    if (ok(test_guest_init(&guest, 2), "a machine without a virtual clock") &&
        ok(start_watch(), "a thread")) {
        test_all(tests_without_clock);
        end_watch();
    }
    test_guest_fini(&guest);
    return tap_done();
}
