/* SPDX-License-Identifier: Apache-2.0 */
/* Architectural state of one vCPU in the terms of the Intel SDM / AMD APM; no engine's own layout.
 */
#ifndef HULL_ENGINE_CPU_STATE_H
#define HULL_ENGINE_CPU_STATE_H

#include <stdint.h>

/* Index into cpu_regs.gpr: the hardware's register numbers (SDM vol. 2, 3.1.1.1). */
enum cpu_gpr {
    CPU_RAX,
    CPU_RCX,
    CPU_RDX,
    CPU_RBX,
    CPU_RSP,
    CPU_RBP,
    CPU_RSI,
    CPU_RDI,
    CPU_R8,
    CPU_R9,
    CPU_R10,
    CPU_R11,
    CPU_R12,
    CPU_R13,
    CPU_R14,
    CPU_R15,
    CPU_GPR_COUNT,
};

struct cpu_regs {
    uint64_t gpr[CPU_GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
};

/*
 * A segment register with its hidden part. attr holds bits 40-55 of the descriptor: type in 0-3,
 * S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15 (SDM vol. 3, 3.4.5). limit is in bytes, expanded.
 * A segment without P is unusable.
 */
struct cpu_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint16_t attr;
};

#define CPU_SEG_CODE64 0xa09b /* present, ring 0, execute/read, accessed; L, G */
#define CPU_SEG_CODE32 0xc09b
#define CPU_SEG_DATA   0xc093 /* present, ring 0, read/write, accessed; D/B, G */
#define CPU_SEG_TSS    0x008b /* present, busy 32/64-bit TSS */

struct cpu_table_register {
    uint64_t base;
    uint16_t limit;
};

struct cpu_sregs {
    struct cpu_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct cpu_table_register gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
};

/* x87 and SSE as FXSAVE64 writes them (SDM vol. 2, table 3-50). */
struct cpu_fpu {
    uint8_t fxsave[512];
} __attribute__((aligned(16)));

#define CPU_CR0_PE           (1ULL << 0)
#define CPU_CR0_MP           (1ULL << 1)
#define CPU_CR0_ET           (1ULL << 4)
#define CPU_CR0_NE           (1ULL << 5)
#define CPU_CR0_WP           (1ULL << 16)
#define CPU_CR0_PG           (1ULL << 31)
#define CPU_CR4_PAE          (1ULL << 5)
#define CPU_EFER_LME         (1ULL << 8)
#define CPU_EFER_LMA         (1ULL << 10)

#define CPU_APIC_BASE_X2APIC (1ULL << 10)

#endif
