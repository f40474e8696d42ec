/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPUID that a guest sees: an engine supplies what it can run (KVM: what the host and KVM
 * support), and this makes it describe the machine: one socket, one core a vCPU, one thread a core,
 * running under KVM's paravirtual interface, without the features that cannot work in a guest.
 *
 * Sources: Intel SDM vol. 2 CPUID; AMD APM vol. 3 appendix E; Linux Documentation/virt/kvm/x86/
 * cpuid.rst for 0x40000000 and up.
 */
#ifndef HULL_ENGINE_CPUID_H
#define HULL_ENGINE_CPUID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cpuid_leaf {
    uint32_t function; /* EAX */
    uint32_t index;    /* ECX, when indexed */
    bool indexed;
    uint32_t eax, ebx, ecx, edx;
};

#define CPUID_LEAVES_MAX 256

struct cpuid_table {
    size_t count;
    struct cpuid_leaf leaves[CPUID_LEAVES_MAX];
};

/* What the engine's own devices offer beyond the processor's features. */
struct cpuid_options {
    bool tsc_deadline; /* the local APIC's timer has the TSC-deadline mode */
    bool x2apic;
};

/* NULL when the table has no such leaf. index is ignored for leaves that have no sub-leaves. */
struct cpuid_leaf *cpuid_find(struct cpuid_table *table, uint32_t function, uint32_t index);

/*
 * Set the features: the same for all vCPUs. Then cpuid_set_topology() for each vCPU on a copy of
 * its own. Both leave the table as it is where it is full.
 */
void cpuid_set_features(struct cpuid_table *table, const struct cpuid_options *options);
void cpuid_set_topology(struct cpuid_table *table, unsigned id, unsigned vcpu_count);

/* Physical address bits (leaf 0x80000008); 36 where there is none. */
unsigned cpuid_phys_bits(struct cpuid_table *table);

#endif
