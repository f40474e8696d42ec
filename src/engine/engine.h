/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engines run virtual CPUs and hold what is bound up with them: the interrupt controllers (local
 * APIC, IOAPIC, PIC), the PIT, the paravirtual clock. Everything else of the machine is above and
 * does not know which engine is under it. Operations go down; port and memory accesses come up as
 * upcalls.
 *
 *     kvm/   Linux KVM, in-kernel irqchip        soft/   an x86 processor of our own
 *     fake/  scripted exits, for unit tests
 *
 * Threads: an engine_vm is built and freed by one thread. Functions marked [any] may be called from
 * every thread at any time. Functions marked [vcpu] are for the thread that runs that vCPU, or for
 * any thread while the vCPU does not run. Upcalls come on the thread of the vCPU that caused them.
 */
#ifndef HULL_ENGINE_ENGINE_H
#define HULL_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu_state.h"
#include "mem/mem.h"

struct chip_clock;
struct err;
struct engine_stats;
struct engine_vm;
struct engine_vcpu;

/* Accesses that the engine does not handle itself. size is 1, 2, 4 (or 8 for memory) bytes. */
struct engine_upcalls {
    /* `count` accesses of `size` bytes to the same port (rep ins/outs); data is size * count bytes.
     */
    void (*pio_read)(void *ctx, uint16_t port, unsigned size, void *data, uint32_t count);
    void (*pio_write)(void *ctx, uint16_t port, unsigned size, const void *data, uint32_t count);
    void (*mmio_read)(void *ctx, gpa_t gpa, unsigned size, void *data);
    void (*mmio_write)(void *ctx, gpa_t gpa, unsigned size, const void *data);
};

/* How the soft engine uses its translator; the last four are for tests. */
enum engine_translate {
    ENGINE_TRANSLATE_ON,
    ENGINE_TRANSLATE_OFF,
    ENGINE_TRANSLATE_EXACT,  /* flags that no instruction can see are right at exceptions as well */
    ENGINE_TRANSLATE_SLOW,   /* every access to memory takes the slow path */
    ENGINE_TRANSLATE_FLUSH,  /* blocks are translated at once, and all forgotten again and again */
    ENGINE_TRANSLATE_SINGLE, /* blocks are of one instruction */
};

struct engine_vm_config {
    unsigned vcpu_count;
    const struct engine_upcalls *upcalls;
    void *upcall_ctx;
    const char *cpu_model; /* NULL: the engine's best; the string stays */
    bool virtual_clock;    /* time advances with instructions: soft only */
    unsigned translate;    /* enum engine_translate */
    bool tlb_one;          /* soft, for tests: its TLB has one entry */
    uint64_t code_bytes;   /* soft: of a vCPU's code cache; 0: its default */
    /* soft, with a virtual clock: write the processor's state to a file every so many instructions,
     * and compare it with such a file. */
    const char *trace, *compare; /* NULL: no; the strings stay */
    unsigned trace_every;        /* instructions; 0: 1000 */
    unsigned trace_from;
};

enum engine_exit_kind {
    ENGINE_EXIT_KICK,         /* engine_vcpu_kick(), or a signal */
    ENGINE_EXIT_TRIPLE_FAULT, /* the shutdown state (SDM vol. 3, 6.15, #DF) */
    ENGINE_EXIT_DEBUG,        /* what vcpu_debug() asked for: engine_exit.debug */
    ENGINE_EXIT_FAILURE, /* the engine cannot go on: text says why, in a sentence, then registers
                          * and the bytes at the instruction pointer, a line each */
};

/* --- debugging --- */

#define ENGINE_HW_BREAKPOINTS 4

/* Values of DR7.R/W (SDM vol. 3, 17.2.4). */
enum engine_watch {
    ENGINE_WATCH_EXECUTE = 0,
    ENGINE_WATCH_WRITE = 1,
    ENGINE_WATCH_ACCESS = 3,
};

struct engine_hw_breakpoint {
    uint64_t address;  /* linear; a multiple of len_bytes */
    uint8_t len_bytes; /* 1, 2, 4, 8; 1 for EXECUTE */
    uint8_t kind;      /* enum engine_watch */
};

/* What a debugger wants of a vCPU. The guest's own use of its debug registers does not work
 * meanwhile. */
struct engine_debug {
    bool step;        /* leave after one instruction */
    bool breakpoints; /* leave at an INT3, before it is delivered */
    unsigned hw_count;
    struct engine_hw_breakpoint hw[ENGINE_HW_BREAKPOINTS];
};

enum engine_debug_stop {
    ENGINE_STOP_STEP,
    ENGINE_STOP_BREAKPOINT, /* RIP is that of the INT3 */
    ENGINE_STOP_HARDWARE,   /* hw says which; RIP is that of the instruction to execute, or the one
                             * after the access */
};

struct engine_exit {
    enum engine_exit_kind kind;
    enum engine_debug_stop stop; /* DEBUG only */
    unsigned hw;                 /* ENGINE_STOP_HARDWARE: index into engine_debug.hw */
    char text[4096];             /* FAILURE only */
};

/* An interrupt message that another thread, or the kernel (vhost), sends by writing an eventfd. */
struct engine_irqfd {
    int fd; /* eventfd to write */
    unsigned route;
};

enum engine_space {
    ENGINE_SPACE_PIO,
    ENGINE_SPACE_MMIO,
};

/* A write of the guest that fires an eventfd without an upcall. */
struct engine_ioeventfd {
    enum engine_space space;
    uint64_t addr;
    unsigned len; /* 1, 2, 4, 8; 0: a write of any width */
    int fd;
};

enum engine_quality {
    ENGINE_UNUSABLE, /* cannot run here */
    ENGINE_SLOW,     /* runs, but emulates guest kernel code: of no use for stock guests */
    ENGINE_GOOD,
};

/* What a look at the host found, for `--engine auto` and `hull host`. */
struct engine_probe {
    enum engine_quality quality;
    double guest_kernel_mips; /* measured; 0 when not measured */
    char why[512];            /* a sentence: what was found, or what is lacking and how to get it */
};

struct engine_ops {
    const char *name;

    /* Look at the host: takes some milliseconds (creates and destroys a VM). */
    void (*probe)(struct engine_probe *probe);

    int (*vm_new)(struct engine_vm **vm, const struct engine_vm_config *config, struct err *err);
    /* All vCPUs must have been freed. */
    void (*vm_free)(struct engine_vm *vm);

    /*
     * The same measurement as probe() by the first vCPU of this VM, before any memory is mapped and
     * before it runs: what start-up uses, at no cost of a second VM. May be NULL (always good).
     */
    void (*vm_measure)(struct engine_vm *vm, struct engine_probe *probe);

    /* Make a region of guest memory visible to the guest. slot: below MEM_REGIONS_MAX, unused. */
    int (*map)(struct engine_vm *vm, unsigned slot, const struct mem_region *region,
               struct err *err);

    /* Interrupt controllers, PIT and clock to their state after power-on. No vCPU runs. */
    int (*vm_reset)(struct engine_vm *vm, struct err *err);

    /* [any] Level of input `gsi`: 0-15 the ISA lines (PIC and IOAPIC), 16-23 IOAPIC alone. */
    int (*gsi_set)(struct engine_vm *vm, unsigned gsi, bool level);
    /* [any] Level of an input of the PIC pair alone (PCI interrupts routed by the LPC bridge). */
    int (*pic_set)(struct engine_vm *vm, unsigned irq, bool level);
    /* [any] Does the PIT's counter 0 drive input 0? It does after vm_reset; an HPET with legacy
     * replacement takes the input over (IA-PC HPET 1.0a, 2.3.5). */
    int (*pit_connect)(struct engine_vm *vm, bool on);
    /* [any] Deliver a message-signalled interrupt; 0 or -errno (a message that addresses nobody).
     */
    int (*msi_send)(struct engine_vm *vm, uint64_t addr, uint32_t data);

    /* [any] An eventfd that sends one message. irqfd_set changes it; masked: holds it back. */
    int (*irqfd_new)(struct engine_vm *vm, struct engine_irqfd *irqfd);
    int (*irqfd_set)(struct engine_vm *vm, struct engine_irqfd *irqfd, uint64_t addr, uint32_t data,
                     bool masked);
    void (*irqfd_free)(struct engine_vm *vm, struct engine_irqfd *irqfd);

    /* [any] Returns 0, or -ENOTSUP: then the access comes as an upcall, as without. */
    int (*ioeventfd_add)(struct engine_vm *vm, const struct engine_ioeventfd *ioeventfd);
    void (*ioeventfd_del)(struct engine_vm *vm, const struct engine_ioeventfd *ioeventfd);

    /* Dirty logging of the guest's writes; collect ORs the region in `slot` into bitmap, a bit a
     * page, and clears the log. */
    int (*dirty_start)(struct engine_vm *vm, struct err *err);
    int (*dirty_collect)(struct engine_vm *vm, unsigned slot, uint64_t *bitmap);
    int (*dirty_stop)(struct engine_vm *vm, struct err *err);

    /*
     * id is the vCPU's index, its APIC id, and its place in the topology (one socket, one thread a
     * core). vCPU 0 is the bootstrap processor; the others wait for INIT and SIPI.
     */
    int (*vcpu_new)(struct engine_vm *vm, unsigned id, struct engine_vcpu **vcpu, struct err *err);
    void (*vcpu_free)(struct engine_vcpu *vcpu);
    /* [vcpu] The state after RESET# (SDM vol. 3, table 9-1), MSRs, FPU and local APIC included. */
    int (*vcpu_reset)(struct engine_vcpu *vcpu, struct err *err);

    /* [vcpu] Run to the next exit that is not an upcall. */
    void (*vcpu_run)(struct engine_vcpu *vcpu, struct engine_exit *exit);
    /* [any] Make vcpu_run return soon with KICK: the current call, or else the next one. */
    void (*vcpu_kick)(struct engine_vcpu *vcpu);

    /* [vcpu] */
    int (*vcpu_get)(struct engine_vcpu *vcpu, struct cpu_regs *regs, struct cpu_sregs *sregs);
    int (*vcpu_set)(struct engine_vcpu *vcpu, const struct cpu_regs *regs,
                    const struct cpu_sregs *sregs);

    /* For debuggers: all of these five, or NULL. */
    int (*vcpu_get_fpu)(struct engine_vcpu *vcpu, struct cpu_fpu *fpu);
    /* -EINVAL, and nothing is changed: reserved bits of MXCSR are set. */
    int (*vcpu_set_fpu)(struct engine_vcpu *vcpu, const struct cpu_fpu *fpu);

    /* [vcpu] From the next vcpu_run on; NULL: no debugging. -ENOTSUP: this engine cannot. */
    int (*vcpu_debug)(struct engine_vcpu *vcpu, const struct engine_debug *debug);
    /* [vcpu] The INT3 that it stopped at is the guest's own: the next vcpu_run delivers it. */
    int (*vcpu_pass_breakpoint)(struct engine_vcpu *vcpu);
    /* [vcpu] The guest-physical address behind a linear one, as the guest's kernel would read it,
     * without a side effect; false: not mapped. */
    bool (*vcpu_translate)(struct engine_vcpu *vcpu, gva_t gva, gpa_t *gpa);

    /* [vcpu] Add what the vCPU has counted since it was made: stats.h. May be NULL. */
    void (*vcpu_stats)(struct engine_vcpu *vcpu, struct engine_stats *stats);

    /* The guest's clock where that is not the host's, for all devices; or NULL, also as the op. */
    struct chip_clock *(*virtual_clock)(struct engine_vm *vm);

    unsigned (*vcpu_max)(struct engine_vm *vm);

    /* Bits of a physical address that the guest's CPUID announces. */
    unsigned (*phys_bits)(struct engine_vm *vm);
};

/* Every engine embeds this first in its own struct engine_vm. */
struct engine_vm {
    const struct engine_ops *ops;
};

struct engine_vcpu {
    const struct engine_ops *ops;
    unsigned id;
};

extern const struct engine_ops engine_kvm;
extern const struct engine_ops engine_soft;
extern const struct engine_ops engine_fake;

/* By the name on the command line; NULL when there is none. "fake" is for tests and not found here.
 */
const struct engine_ops *engine_find(const char *name);

#endif
