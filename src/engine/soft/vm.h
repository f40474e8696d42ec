/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The soft engine's machine: what its vCPUs share. Interrupt controllers and timers are those of
 * engine/chip/; ports and device memory that are not theirs go up as upcalls.
 */
#ifndef HULL_ENGINE_SOFT_VM_H
#define HULL_ENGINE_SOFT_VM_H

#include <pthread.h>

#include "base/log.h"
#include "engine/chip/clock.h"
#include "engine/chip/irqchip.h"
#include "engine/engine.h"
#include "engine/soft/cpu.h"
#include "engine/soft/model.h"

struct code_pages; /* pages.c */
struct irqfds;     /* irqfd.c */

/* The date at which a virtual clock begins: 2026-01-01 00:00 UTC. */
#define SOFT_VIRTUAL_EPOCH 1767225600

struct soft_vm {
    struct engine_vm base;
    struct engine_vm_config config;
    struct mem *mem; /* known from the first map */
    struct soft_model model;
    struct chip_clock *clock;
    struct irqchip *irqchip;
    struct code_pages *code;      /* pages.c: of all regions */
    struct trace *trace;          /* trace.c; NULL: none */
    struct log_budget msr_budget; /* for MSRs that there are not */
    struct soft_cpu **cpus;       /* config.vcpu_count; NULL until made */

    pthread_mutex_t ioeventfd_lock;
    struct engine_ioeventfd *ioeventfds;
    unsigned ioeventfd_count; /* atomic for a look without the lock */
    struct irqfds *irqfds;

    pthread_mutex_t build_lock; /* vCPUs are made while memory is mapped */

    /* Exclusive sections: run.c. */
    struct soft_exclusive {
        pthread_mutex_t lock;
        pthread_cond_t changed;
        bool owned;
        unsigned running; /* vCPUs in their loop, neither asleep nor waiting for a section's end */
    } exclusive;
};

static inline struct soft_vm *soft_vm_of(struct engine_vm *vm)
{
    return (struct soft_vm *)(void *)vm;
}

/* --- io.c: accesses that leave the processor --- */

/* size 1, 2, 4; count accesses to one port (rep ins/outs), data size * count bytes. */
void soft_pio_read(struct soft_cpu *cpu, uint16_t port, unsigned size, void *data, uint32_t count);
void soft_pio_write(struct soft_cpu *cpu, uint16_t port, unsigned size, const void *data,
                    uint32_t count);
/* size 1-8; not across a page. */
void soft_mmio_read(struct soft_cpu *cpu, uint64_t gpa, unsigned size, void *data);
void soft_mmio_write(struct soft_cpu *cpu, uint64_t gpa, unsigned size, const void *data);

/* --- irqfd.c --- */

int irqfds_init(struct soft_vm *vm, struct err *err);
void irqfds_fini(struct soft_vm *vm);
int soft_irqfd_new(struct engine_vm *vm, struct engine_irqfd *irqfd);
int soft_irqfd_set(struct engine_vm *vm, struct engine_irqfd *irqfd, uint64_t addr, uint32_t data,
                   bool masked);
void soft_irqfd_free(struct engine_vm *vm, struct engine_irqfd *irqfd);

/* --- pv.c: KVM's paravirtual interface (Linux Documentation/virt/kvm/x86/{cpuid,msr,hypercalls})
 */

bool pv_msr_read(struct soft_cpu *cpu, uint32_t index, uint64_t *value, bool *handled);
bool pv_msr_write(struct soft_cpu *cpu, uint32_t index, uint64_t value, bool *handled);
/* VMCALL and VMMCALL: RAX the number, RBX, RCX, RDX, RSI; result in RAX. */
void pv_hypercall(struct soft_cpu *cpu);
/* CPUID 0x40000001 EAX. */
uint32_t pv_features(unsigned vcpu_count);

/* The vCPU is about to sleep, or awake again: what other vCPUs wanted of its TLB meanwhile. */
void pv_sleeps(struct soft_cpu *cpu);
void pv_wakes(struct soft_cpu *cpu);
/* The TSC was changed: tell the guest's clock page. */
void pv_write_clock(struct soft_cpu *cpu);

/* The guest's time stamp counter now, and its rate. */
uint64_t soft_tsc(struct soft_cpu *cpu);
uint64_t soft_tsc_khz(const struct soft_vm *vm);

#endif
