/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The soft engine's machine: what its vCPUs share. Interrupt controllers and timers are those of
 * engine/chip/; ports and device memory that are not theirs go up as upcalls.
 */
#ifndef HULL_ENGINE_SOFT_VM_H
#define HULL_ENGINE_SOFT_VM_H

#include <pthread.h>

#include "engine/chip/clock.h"
#include "engine/chip/irqchip.h"
#include "engine/engine.h"
#include "engine/soft/cpu.h"
#include "engine/soft/model.h"

struct code_pages; /* mmu.c */

struct soft_vm {
    struct engine_vm base;
    struct engine_vm_config config;
    struct mem *mem; /* known from the first map */
    struct soft_model model;
    struct chip_clock *clock;
    struct irqchip *irqchip;
    struct code_pages *code; /* mmu.c: of all regions */
    struct soft_cpu **cpus;  /* config.vcpu_count; NULL until made */

    /* Exclusive sections: run.c. */
    struct soft_exclusive {
        pthread_mutex_t lock;
        pthread_cond_t changed;
        struct soft_cpu *owner;
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

/* --- pv.c: KVM's paravirtual interface (Linux Documentation/virt/kvm/x86/{cpuid,msr,hypercalls})
 */

bool pv_msr_read(struct soft_cpu *cpu, uint32_t index, uint64_t *value, bool *handled);
bool pv_msr_write(struct soft_cpu *cpu, uint32_t index, uint64_t value, bool *handled);
/* VMCALL and VMMCALL: RAX the number, RBX, RCX, RDX, RSI; result in RAX. */
void pv_hypercall(struct soft_cpu *cpu);
/* CPUID 0x40000001 EAX. */
uint32_t pv_features(void);

/* The guest's time stamp counter now, and its rate. */
uint64_t soft_tsc(struct soft_cpu *cpu);
uint64_t soft_tsc_khz(const struct soft_vm *vm);

#endif
