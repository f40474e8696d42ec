/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The KVM engine, by file:
 *     host.c    /dev/kvm and what it can do        irq.c     routing, MSI, irqfd, ioeventfd
 *     vm.c      the VM, memory slots, dirty log    vcpu.c    running, kicking, registers
 *     probe.c   how fast it is                     state.c   the power-on state, and back to it
 *     report.c  why the guest cannot go on         debug.c   breakpoints, steps, FPU for a debugger
 *
 * Thread rules are those of engine.h. Linux's interface: Documentation/virt/kvm/api.rst.
 */
#ifndef HULL_ENGINE_KVM_INTERNAL_H
#define HULL_ENGINE_KVM_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>

#include "engine/cpuid.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"

/* One slot beyond those of guest memory is the measurement's. */
#define KVM_SLOT_MEASURE MEM_REGIONS_MAX
#define KVM_SLOT_COUNT   (MEM_REGIONS_MAX + 1)

/* MSRs that KVM has and a guest could have changed by the time of a reset. */
#define KVM_MSRS_MAX 512

struct msr_table {
    uint32_t count;
    struct kvm_msr_entry entries[KVM_MSRS_MAX];
};

/* A vCPU's state after power-on, as KVM creates it, as far as it is the same for all vCPUs. */
struct fresh_cpu {
    bool taken;
    struct kvm_regs regs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_xsave *xsave; /* host.xsave_bytes */
    struct msr_table msrs;
};

/* Interrupt controllers and PIT as KVM creates them. */
struct fresh_chips {
    struct kvm_irqchip pic_master, pic_slave, ioapic;
    struct kvm_pit_state2 pit;
};

struct msi_route {
    bool used;     /* belongs to an irqfd */
    bool set;      /* addr and data are valid: it is in the kernel's table */
    bool attached; /* the eventfd is connected */
    uint64_t addr;
    uint32_t data;
};

struct irq_state {
    pthread_mutex_t lock; /* all below, and the order of changes to the kernel's table */
    bool gsi_level[16];
    bool pic_level[16];
    bool pit_off; /* disconnected from GSI 0 */
    struct msi_route *routes;
    unsigned route_count, route_max;
};

struct slot {
    uint64_t base, len_bytes; /* len_bytes 0: unused */
    uint8_t *host;
    bool read_only;
    uint64_t *log; /* while logging: the kernel's bitmap is read into this */
};

struct kvm_cpu;

struct kvm_machine {
    struct engine_vm base;
    struct engine_vm_config config;
    struct kvm_host host;
    int fd;
    size_t run_bytes; /* of a vCPU's shared struct kvm_run */
    struct cpuid_table cpuid;
    struct irq_state irq;
    struct slot slots[KVM_SLOT_COUNT];
    bool dirty_logging;

    struct fresh_chips fresh_chips;
    struct fresh_cpu fresh_cpu; /* taken from the first vCPU */

    /* The guest's entry is not the reset vector, so no firmware runs: what firmware does to each
     * processor's MSRs is done here. Set by vcpu_set, read by all vCPUs' first run. */
    bool no_firmware;

    /* Atomic: some vCPU has run. Until then a vCPU whose registers nobody has set needs no reset.
     */
    bool ran;

    struct kvm_cpu *measured; /* vCPU 0, made by vm_measure and waiting for vcpu_new */
    unsigned vcpus;           /* that vcpu_new has handed out */
};

#define KVM_EXITS_COUNTED 64

struct kvm_cpu {
    struct engine_vcpu base;
    struct kvm_machine *vm;
    int fd;
    struct kvm_run *run;

    int tid;         /* atomic: the thread inside vcpu_run, or 0 */
    bool kick;       /* atomic: leave vcpu_run */
    bool fresh;      /* has not run since it was created or reset */
    bool set;        /* vcpu_set has been called since it was created or reset */
    bool io_pending; /* the last exit's access is not finished before KVM_RUN is entered again */

    uint64_t exits[KVM_EXITS_COUNTED]; /* by reason; the last one: all that are beyond */
    uint64_t interrupted;              /* KVM_RUNs that a signal ended */

    struct kvm_sregs fresh_sregs; /* with the local APIC's base, which marks the BSP */
    struct kvm_lapic_state fresh_lapic;
};

static inline struct kvm_machine *kvm_machine_of(struct engine_vm *vm)
{
    return (struct kvm_machine *)(void *)vm;
}

static inline struct kvm_cpu *kvm_cpu_of(struct engine_vcpu *vcpu)
{
    return (struct kvm_cpu *)(void *)vcpu;
}

/* irq.c */
int kvm_irq_init(struct kvm_machine *vm, struct err *err);
void kvm_irq_fini(struct kvm_machine *vm);
int kvm_gsi_set(struct engine_vm *vm, unsigned gsi, bool level);
int kvm_pic_set(struct engine_vm *vm, unsigned irq, bool level);
int kvm_pit_connect(struct engine_vm *vm, bool on);
int kvm_msi_send(struct engine_vm *vm, uint64_t addr, uint32_t data);
int kvm_irqfd_new(struct engine_vm *vm, struct engine_irqfd *irqfd);
int kvm_irqfd_set(struct engine_vm *vm, struct engine_irqfd *irqfd, uint64_t addr, uint32_t data,
                  bool masked);
void kvm_irqfd_free(struct engine_vm *vm, struct engine_irqfd *irqfd);
int kvm_ioeventfd_add(struct engine_vm *vm, const struct engine_ioeventfd *ioeventfd);
void kvm_ioeventfd_del(struct engine_vm *vm, const struct engine_ioeventfd *ioeventfd);

/* vm.c: raw slots, for the measurement; len_bytes 0 removes. 0 or -errno. */
int kvm_slot_set(struct kvm_machine *vm, unsigned slot, uint64_t gpa, void *host,
                 uint64_t len_bytes, uint32_t flags);
/* The host address of guest memory, or NULL: for reports only. */
const uint8_t *kvm_guest_byte(const struct kvm_machine *vm, uint64_t gpa);

/* vcpu.c */
int kvm_cpu_new(struct kvm_machine *vm, unsigned id, struct kvm_cpu **cpu, struct err *err);
void kvm_cpu_free(struct kvm_cpu *cpu);
int kvm_vcpu_new(struct engine_vm *vm, unsigned id, struct engine_vcpu **vcpu, struct err *err);
void kvm_vcpu_free(struct engine_vcpu *vcpu);
void kvm_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *exit);
void kvm_vcpu_kick(struct engine_vcpu *vcpu);
int kvm_vcpu_get(struct engine_vcpu *vcpu, struct cpu_regs *regs, struct cpu_sregs *sregs);
int kvm_vcpu_set(struct engine_vcpu *vcpu, const struct cpu_regs *regs,
                 const struct cpu_sregs *sregs);
/* The signal that kicks: a handler that does nothing. */
int kvm_kick_signal_install(struct err *err);
void kvm_regs_to_cpu(struct cpu_regs *to, const struct kvm_regs *r);
void kvm_sregs_to_cpu(struct cpu_sregs *to, const struct kvm_sregs *s);
/* Finish an access that was sent up, so that the registers are those after the instruction. */
int kvm_cpu_finish_io(struct kvm_cpu *cpu);

/* state.c */
int kvm_state_take_chips(struct kvm_machine *vm, struct err *err);
int kvm_state_take_cpu(struct kvm_cpu *cpu, struct err *err);
void kvm_state_fini(struct kvm_machine *vm);
/* Registers alone to the power-on state, for the measurement. 0 or -errno. */
int kvm_state_restore_registers(struct kvm_cpu *cpu);
int kvm_vm_reset(struct engine_vm *vm, struct err *err);
int kvm_vcpu_reset(struct engine_vcpu *vcpu, struct err *err);
/* What firmware would have left in the MSRs. */
void kvm_state_firmware_msrs(struct kvm_cpu *cpu);

/* debug.c */
int kvm_vcpu_debug(struct engine_vcpu *vcpu, const struct engine_debug *debug);
int kvm_vcpu_pass_breakpoint(struct engine_vcpu *vcpu);
bool kvm_vcpu_translate(struct engine_vcpu *vcpu, gva_t gva, gpa_t *gpa);
int kvm_vcpu_get_fpu(struct engine_vcpu *vcpu, struct cpu_fpu *fpu);
int kvm_vcpu_set_fpu(struct engine_vcpu *vcpu, const struct cpu_fpu *fpu);
/* Fill exit from KVM_EXIT_DEBUG. */
void kvm_debug_exit(struct kvm_cpu *cpu, struct engine_exit *exit);

/* probe.c */
void kvm_probe(struct engine_probe *probe);
void kvm_vm_measure(struct engine_vm *vm, struct engine_probe *probe);

/* report.c: all fill exit as ENGINE_EXIT_FAILURE. */
void kvm_report_exit(struct kvm_cpu *cpu, struct engine_exit *exit);
void kvm_vcpu_stats(struct engine_vcpu *vcpu, struct engine_stats *stats);
void kvm_report_run_error(struct kvm_cpu *cpu, int code, struct engine_exit *exit);

#endif
