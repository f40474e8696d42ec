/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The soft engine's processor: one struct per vCPU, shared by all its modules.
 *
 *     insn.h decode.h   bytes -> struct insn           block.h   runs of instructions, kept decoded
 *     mmu.h             linear address -> memory       seg.h     segments, far transfers, tasks
 *     exec.h            struct insn -> effect          intr.h    exceptions and interrupts
 * delivered run.c             the loop                       msr.h model.h  MSRs; CPUID, CPU models
 *     vm.h              the machine: chips, ports, memory-mapped devices, clock
 *
 * Precise exceptions. An instruction's handler checks everything that can fault before it changes
 * architectural state, or puts back what it changed. It then raises with soft_raise*(), which does
 * not return: the run loop finds RIP of the faulting instruction from cpu->insn, and delivers.
 *
 * Where RIP is. While a block runs, `rip` is that of the block's first instruction; the address
 * of the instruction after the current one is soft_next_rip(). An instruction that ends a block
 * (every branch, and what may change the mode, the mapping or the interrupt flag) stores the new
 * `rip` itself.
 *
 * Threads: everything belongs to the vCPU's thread, but for what says otherwise.
 */
#ifndef HULL_ENGINE_SOFT_CPU_H
#define HULL_ENGINE_SOFT_CPU_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu_state.h"
#include "engine/engine.h"

struct block;
struct insn;
struct block_cache;
struct cpuid_table;
struct lapic;
struct soft_vm;
struct tlb;

/* --- bits of the architecture, beyond those of cpu_state.h --- */

#define RFLAGS_CF    (1ULL << 0)
#define RFLAGS_FIXED (1ULL << 1)
#define RFLAGS_PF    (1ULL << 2)
#define RFLAGS_AF    (1ULL << 4)
#define RFLAGS_ZF    (1ULL << 6)
#define RFLAGS_SF    (1ULL << 7)
#define RFLAGS_TF    (1ULL << 8)
#define RFLAGS_IF    (1ULL << 9)
#define RFLAGS_DF    (1ULL << 10)
#define RFLAGS_OF    (1ULL << 11)
#define RFLAGS_IOPL  (3ULL << 12)
#define RFLAGS_NT    (1ULL << 14)
#define RFLAGS_RF    (1ULL << 16)
#define RFLAGS_VM    (1ULL << 17)
#define RFLAGS_AC    (1ULL << 18)
#define RFLAGS_VIF   (1ULL << 19)
#define RFLAGS_VIP   (1ULL << 20)
#define RFLAGS_ID    (1ULL << 21)
/* The six that arithmetic sets. */
#define RFLAGS_ARITH     (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

#define CR0_EM           (1ULL << 2)
#define CR0_TS           (1ULL << 3)
#define CR0_AM           (1ULL << 18)
#define CR0_NW           (1ULL << 29)
#define CR0_CD           (1ULL << 30)

#define APIC_BASE_BSP    (1ULL << 8)
#define APIC_BASE_X2APIC CPU_APIC_BASE_X2APIC
#define APIC_BASE_ENABLE (1ULL << 11)

#define CR4_VME          (1ULL << 0)
#define CR4_PVI          (1ULL << 1)
#define CR4_TSD          (1ULL << 2)
#define CR4_DE           (1ULL << 3)
#define CR4_PSE          (1ULL << 4)
#define CR4_MCE          (1ULL << 6)
#define CR4_PGE          (1ULL << 7)
#define CR4_PCE          (1ULL << 8)
#define CR4_OSFXSR       (1ULL << 9)
#define CR4_OSXMMEXCPT   (1ULL << 10)
#define CR4_UMIP         (1ULL << 11)
#define CR4_FSGSBASE     (1ULL << 16)
#define CR4_PCIDE        (1ULL << 17)
#define CR4_OSXSAVE      (1ULL << 18)
#define CR4_SMEP         (1ULL << 20)
#define CR4_SMAP         (1ULL << 21)
#define CR4_PKE          (1ULL << 22)

#define EFER_SCE         (1ULL << 0)
#define EFER_NXE         (1ULL << 11)
#define EFER_FFXSR       (1ULL << 14)
#define EFER_AUTOIBRS    (1ULL << 21)

enum soft_vector {
    EXC_DE = 0,  /* divide error */
    EXC_DB = 1,  /* debug */
    EXC_NMI = 2, /* non-maskable interrupt */
    EXC_BP = 3,  /* INT3 */
    EXC_OF = 4,  /* INTO */
    EXC_BR = 5,  /* BOUND */
    EXC_UD = 6,  /* invalid opcode */
    EXC_NM = 7,  /* device not available */
    EXC_DF = 8,  /* double fault; error code 0 */
    EXC_TS = 10, /* invalid TSS; error code */
    EXC_NP = 11, /* segment not present; error code */
    EXC_SS = 12, /* stack fault; error code */
    EXC_GP = 13, /* general protection; error code */
    EXC_PF = 14, /* page fault; error code */
    EXC_MF = 16, /* x87 */
    EXC_AC = 17, /* alignment check; error code 0 */
    EXC_MC = 18, /* machine check */
    EXC_XM = 19, /* SIMD floating point */
};

/* In the hardware's order (SDM vol. 2, table 3-1 "sreg"). */
enum soft_segment {
    SEG_ES,
    SEG_CS,
    SEG_SS,
    SEG_DS,
    SEG_FS,
    SEG_GS,
    SEG_COUNT,
};

/* cpu_segment.attr */
#define SEG_ATTR_TYPE  0x000fu
#define SEG_ATTR_S     0x0010u
#define SEG_ATTR_DPL   0x0060u
#define SEG_ATTR_P     0x0080u
#define SEG_ATTR_L     0x2000u
#define SEG_ATTR_DB    0x4000u
#define SEG_ATTR_G     0x8000u
#define SEG_TYPE_CODE  0x8u
#define SEG_TYPE_DOWN  0x4u /* data: expand down; code: conforming */
#define SEG_TYPE_WRITE 0x2u /* data: writable; code: readable */

/* --- events: why the run loop must look up, in soft_cpu.events --- */

enum soft_event {
    SOFT_EVENT_KICK = 1 << 0, /* engine_vcpu_kick */
    SOFT_EVENT_IRQ = 1 << 1,  /* the local APIC or the PIC may have an interrupt for us */
    SOFT_EVENT_NMI = 1 << 2,
    SOFT_EVENT_INIT = 1 << 3,
    SOFT_EVENT_SIPI = 1 << 4,   /* with soft_cpu.sipi_vector */
    SOFT_EVENT_MMU = 1 << 5,    /* mmu_serve(): another vCPU wants something dropped from our TLB */
    SOFT_EVENT_STOP = 1 << 6,   /* another vCPU is in an exclusive section: wait for its end */
    SOFT_EVENT_CLOCK = 1 << 7,  /* virtual clock: nothing holds it any more */
    SOFT_EVENT_UNHALT = 1 << 8, /* a paravirtual kick: go on after HLT */
};

/* What a vCPU does when no event is pending. */
enum soft_activity {
    SOFT_ACTIVE,
    SOFT_HALTED,    /* HLT: an interrupt, NMI or INIT goes on */
    SOFT_WAIT_SIPI, /* after INIT on a processor that is not the BSP */
    SOFT_SHUTDOWN,  /* triple fault */
};

/* An exception on its way. */
struct soft_exception {
    uint8_t vector;
    bool has_error;
    bool trap; /* #DB after an instruction: RIP is the next one's, RF is not set on the stack */
    bool soft; /* INT n, INT3, INTO: DPL is checked, RIP is the next instruction's */
    uint32_t error;
    uint64_t address; /* of a page fault: to CR2 when it is delivered */
    uint64_t dr6;     /* #DB: bits to set in DR6 */
};

/*
 * Base and index registers are read from gpr without a branch: a form that has none names
 * GPR_ZERO. Nothing ever writes to that slot.
 */
#define GPR_ZERO  16
#define GPR_SLOTS 17

/* What memory accesses and decoding depend on, derived from the control registers, EFER, RFLAGS.VM,
 * CS and SS by soft_cpu_update(). */
struct soft_mode {
    uint8_t code_bits;    /* 16, 32, 64: default operand size of the code */
    uint8_t stack_bytes;  /* 2, 4, 8: what RSP is used at */
    uint8_t cpl;          /* 0-3; 3 in virtual-8086 mode, 0 in real mode */
    bool real;            /* CR0.PE = 0 */
    bool v86;             /* virtual-8086 mode */
    bool long_active;     /* EFER.LMA */
    bool paging;          /* CR0.PG */
    bool translatable;    /* cpu.c: is_translatable() */
    bool careful;         /* TF, an enabled breakpoint in DR7, a debugger: one instruction a time */
    uint64_t linear_mask; /* 2^32 - 1, or all ones in 64-bit code */
};

struct soft_msrs {
    uint64_t star, lstar, cstar, sfmask;
    uint64_t kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat;
    uint64_t tsc_aux, tsc_adjust;
    uint64_t misc_enable;
    uint64_t mtrr_def_type;
    uint64_t mtrr_fixed[11];
    uint64_t mtrr_base[8], mtrr_mask[8];
    uint64_t spec_ctrl;
    uint64_t mcg_status;
    uint64_t mc_ctl[16];
    uint64_t kvm_wall_clock, kvm_system_time, kvm_steal_time, kvm_poll_control, kvm_async_pf,
        kvm_pv_eoi;
};

/* x87, SSE and AVX state, laid out as XSAVE's standard format (SDM vol. 1, 13.4), so that XSAVE and
 * FXSAVE are copies. */
struct soft_fpu {
    uint8_t x87[32];      /* FCW FSW FTW(abridged) FOP FIP FDP MXCSR MXCSR_MASK */
    uint8_t st[8][16];    /* ST0-ST7, 80 bits each */
    uint8_t xmm[16][16];  /* low halves of YMM0-YMM15 */
    uint8_t reserved[96]; /* of the legacy region */
    uint8_t header[64];   /* not used while it lives here */
    uint8_t ymm_hi[16][16];
    uint32_t pkru;
} __attribute__((aligned(64)));

/* For `hull run --stats`. Plain counters, on paths that are slow anyway. */
struct soft_stats {
    uint64_t exceptions[32];
    uint64_t interrupts[256];
    uint64_t sleeps;
    uint64_t held; /* virtual clock: waits for devices */
    uint64_t traced;
    uint64_t tlb_fills;
    uint64_t port_reads, port_writes, memory_reads, memory_writes; /* that went up to devices */
    uint64_t chips; /* accesses to interrupt controllers and timers */
    uint64_t ioeventfds;
};

/* Stretches of memory that a loop goes through (translate_group.h), at the most. */
#define SOFT_STRETCHES 4

struct soft_cpu {
    struct engine_vcpu base;

    /* --- registers --- */
    uint64_t gpr[GPR_SLOTS]; /* the hardware's numbers: enum cpu_gpr */
    uint64_t rip;
    uint64_t rflags;              /* always exact, the arithmetic flags too */
    uint64_t seg_base[SEG_COUNT]; /* what is added: 0 for ES, CS, SS, DS in 64-bit code */
    /* Bit s: a read (write) through s needs no check; always set in 64-bit code. */
    uint8_t seg_flat, seg_flat_write;
    uint8_t seg_64k, seg_64k_write; /* the same of 16-bit offsets: the limit is 64 KiB or more */
    bool code_flat;                 /* CS has no limit: nor does RIP */
    bool code_keyed;                /* blocks are found by RIP: soft_cpu_update_key() */
    /* Where CS begins, for what is found by RIP, in its upper half. 0: 64-bit code, or 32-bit code
     * from address 0 on. */
    uint64_t code_tag;
    struct soft_mode mode;

    /* --- the run loop's --- */
    const struct insn *insn; /* being executed */
    const struct insn *block_start;
    uint64_t rip_page;     /* RIP that corresponds to insn->next_offset 0 */
    bool stop_block;       /* leave the block after this instruction */
    bool rip_set;          /* with stop_block: the handler has stored where to go on (REP) */
    bool exclusive;        /* in an exclusive section, which an exception ends */
    bool no_interrupt;     /* shadow of STI or MOV SS: none before the next instruction is done */
    bool no_debug;         /* shadow of MOV SS: no debug exception either */
    bool nmi_blocked;      /* until IRET */
    bool ran;              /* since power-on or reset */
    uint8_t activity;      /* enum soft_activity */
    uint8_t sipi_vector;   /* atomic */
    uint32_t events;       /* atomic, enum soft_event; a futex while the vCPU sleeps */
    uint32_t pauses;       /* PAUSE executed: exec_flow.c */
    uint32_t sleeping;     /* atomic: notify must wake */
    uint64_t instructions; /* executed so far (up to date between blocks) */
    uint64_t
        clock_offset_ns;   /* virtual clock: what sleeping has skipped; now = instructions + it */
    uint64_t random_state; /* virtual clock: RDRAND's */
    uint64_t clock_check;  /* virtual clock: look at it when so many have been executed: */
    uint64_t clock_due;    /* since timers may be due, */
    uint64_t trace_next;   /* or the trace wants to know (trace.h; UINT64_MAX: it does not) */
    uint64_t dr6_pending;  /* data breakpoints hit by the current instruction: DR6 bits */
    jmp_buf unwind;        /* where soft_raise and soft_exit go */
    struct soft_exception exception;
    int delivering;      /* vector whose delivery is under way, or -1: a fault in it may be #DF */
    unsigned deliveries; /* of exceptions, one in another's delivery */
    struct engine_exit *exit; /* of the current vcpu_run */

    struct soft_debug {
        bool on;
        bool pass_breakpoint; /* the next INT3 is the guest's */
        bool resumed;         /* do not stop before the first instruction */
        unsigned hit;         /* 1 + the watchpoint that the current instruction has hit */
        struct engine_debug want;
    } debug;

    /* --- architectural state that is less often used --- */
    struct cpu_segment seg[SEG_COUNT], tr, ldt;
    struct cpu_table_register gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0, xss;
    uint64_t dr[8]; /* 0-3, 6, 7 */
    uint64_t apic_base;
    struct soft_msrs msr;
    struct soft_fpu fpu;

    /* --- other modules' --- */
    /* block.c: fetch_key with the decoding mode, and the same for code in global pages. */
    uint64_t block_key, global_block_key; /* soft_cpu_update_key() */
    /* mmu.c: equal to an earlier value: what was fetched then is there still. */
    uint64_t fetch_key, global_fetch_key;
    struct soft_vm *vm;
    struct cpuid_table *cpuid;  /* model's, with this vCPU's place in the topology */
    struct tlb *tlb;            /* mmu.c */
    struct block_cache *blocks; /* block.c */
    struct lapic *lapic;        /* chip/lapic.h */
    struct soft_stats stats;
    int memory_fd; /* of this struct: mmu_cpu_alloc(); 0: ordinary memory */

    /* Translated code's, which finds this struct at %gs:0. translate.c */
    struct soft_translated {
        struct soft_cpu *self;
        const uint8_t *gs; /* what the base of GS is now; NULL: something else */
        uint64_t host_rsp; /* of translate_enter() while the guest's RSP is in RSP */
        uint64_t resume;   /* where translated code goes on */
        uint64_t stretches[SOFT_STRETCHES]; /* of a loop: their host addresses */
        uint64_t target;          /* kept for a few instructions: of an indirect call, for one */
        const uint8_t *code;      /* the code cache: a context's jump table has offsets in it */
        uint64_t look, saved_rax; /* while a page of the stack is looked for: thunk_stack_read */
        /* Code between translated code and C, in translate.c. */
        uintptr_t exit_host, exit_saved, exit_link, exit_link_saved, slow_host, slow_saved;
        uintptr_t stack_read, stack_write, second;
        /* Functions: the vector and x87 registers to soft_cpu.fpu, the host's MXCSR and an empty
         * x87 unit in their place; and back. */
        uintptr_t store_vectors, load_vectors;
        uint32_t host_mxcsr;
        uint16_t control;   /* what FLDCW is about to load */
        uint8_t link_saved; /* exit_link_saved it was */
        uint8_t vectors;    /* enum vectors: registers that hold the guest's state */
        uint32_t attention; /* atomic: events may be pending; translated code leaves */
        uint32_t indirect;  /* offset, in the arena, of the indirect branch that has left for RIP;
                             * or NO_INDIRECT */
        uint16_t flags;     /* the guest's arithmetic flags: AH and AL of LAHF and SETO */
    } translated;
};

static inline struct soft_cpu *soft_cpu_of(struct engine_vcpu *vcpu)
{
    return (struct soft_cpu *)(void *)vcpu;
}

static inline bool soft_code64(const struct soft_cpu *cpu)
{
    return cpu->mode.code_bits == 64;
}

/*
 * RF, which returns from faults have set, is for the next instruction, which is about to run (SDM
 * vol. 3, 17.3.1.1). Where nothing looks for breakpoints (soft_mode.careful) it can go now: a fault
 * has it in its image of the flags whatever it is here.
 */
static inline void soft_forget_resume(struct soft_cpu *cpu)
{
    cpu->rflags &= ~RFLAGS_RF;
}

/* A full barrier. Not the compiler's, which the thread sanitizer does not know. */
static inline void soft_fence(void)
{
    __asm__ volatile("mfence" ::: "memory");
}

/* Is the address canonical (48 bits, sign extended; LA57 is not offered)? */
static inline bool soft_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/*
 * What a block that was found by RIP alone depends on besides: the translation (fetch_key counts up
 * and never reaches the upper bits), and how bytes are decoded. Where CS has a limit other than the
 * usual one of 16-bit code no block is found so.
 */
static inline void soft_cpu_update_key(struct soft_cpu *cpu)
{
    uint64_t mode = cpu->mode.code_bits | (uint64_t)cpu->mode.careful << 7 |
                    (uint64_t)(cpu->mode.real || cpu->mode.v86) << 8 |
                    (uint64_t)cpu->mode.translatable << 9;
    cpu->block_key = cpu->code_keyed ? cpu->fetch_key | mode << 48 : UINT64_MAX;
    cpu->global_block_key = cpu->code_keyed ? cpu->global_fetch_key | mode << 48 : UINT64_MAX;
}

/* --- cpu.c --- */

/* The state after RESET#, and after INIT (SDM vol. 3, table 9-1: the FPU, TSC, MTRRs and most MSRs
 * are kept), but for what lapic, TLB and block cache hold. */
void soft_cpu_reset_state(struct soft_cpu *cpu);
void soft_cpu_init_state(struct soft_cpu *cpu);

/* The MSRs that firmware would have set up, where the guest is entered without any. */
void soft_cpu_firmware_state(struct soft_cpu *cpu);

/*
 * Derive mode, seg_base and seg_flat. Call after any change to CR0, CR4, EFER, DR7, RFLAGS.VM,
 * RFLAGS.TF, a segment's hidden part or CPL. CPL is SS.DPL in protected mode (as in KVM).
 */
void soft_cpu_update(struct soft_cpu *cpu);

/* --- run.c --- */

/* Raise an exception from an instruction's handler; never return. Those with an error code in
 * soft_raise_error(). */
_Noreturn void soft_raise(struct soft_cpu *cpu, enum soft_vector vector);
_Noreturn void soft_raise_error(struct soft_cpu *cpu, enum soft_vector vector, uint32_t error);
_Noreturn void soft_raise_page_fault(struct soft_cpu *cpu, uint64_t address, uint32_t error);
_Noreturn void soft_raise_exception(struct soft_cpu *cpu, const struct soft_exception *exception);

/* Leave vcpu_run: the guest cannot go on (FAILURE: a sentence, to which the registers and bytes at
 * RIP are added), or has shut down (TRIPLE_FAULT; format may be NULL). */
_Noreturn void soft_exit(struct soft_cpu *cpu, enum engine_exit_kind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Is there an event that the vCPU would serve now? */
bool soft_cpu_has_events(const struct soft_cpu *cpu);

/* [any thread] Set events and wake the vCPU if it sleeps. */
void soft_cpu_notify(struct soft_cpu *cpu, uint32_t events);

/*
 * Exclusive section: all other vCPUs of the VM are between instructions, not in guest memory,
 * until soft_exclusive_end(). For what cannot be atomic otherwise (a LOCK across pages). Serves
 * others' sections while it waits for its own. Not nestable. What is raised inside ends it, so
 * check before it: inside, only what another vCPU has changed meanwhile may raise.
 */
void soft_exclusive_begin(struct soft_cpu *cpu);
void soft_exclusive_end(struct soft_cpu *cpu);
/* The same for a thread that runs no vCPU. */
void soft_exclusive_begin_outside(struct soft_vm *vm);
void soft_exclusive_end_outside(struct soft_vm *vm);

/* The instructions of a block by their handlers, from one on to its end or to where a handler wants
 * to leave it: they and those before it are counted, RIP is set. Returns the last one. */
const struct insn *soft_run_from(struct soft_cpu *cpu, const struct block *block,
                                 const struct insn *insn);

void soft_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *exit);
void soft_vcpu_kick(struct engine_vcpu *vcpu);

#endif
