/* SPDX-License-Identifier: Apache-2.0 */
/* The host's /dev/kvm: opening it with errors that help, and the capabilities it has. */
#ifndef HULL_ENGINE_KVM_HOST_H
#define HULL_ENGINE_KVM_HOST_H

#include <stdbool.h>
#include <stddef.h>

struct err;

/* The IOAPIC in the kernel addresses by APIC ids of 8 bits, of which 255 is the broadcast. */
#define KVM_VCPUS_MAX 255

struct kvm_host {
    int fd;
    bool manual_dirty_protect; /* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
    bool ioeventfd_any_length;
    bool tsc_deadline;
    bool x2apic_api;
    int irq_routes_max;
    int vcpus_max; /* no more than KVM_VCPUS_MAX */
    int xsave_bytes;
};

struct kvm_capability {
    int number; /* KVM_CAP_* */
    const char *name;
    const char *why; /* what Hull needs it for */
    bool required;
};

/* All that Hull looks at; for `hull host`. */
extern const struct kvm_capability kvm_capabilities[];
extern const size_t kvm_capability_count;

/* Open /dev/kvm and check the version and the required capabilities. 0 or -errno, err filled. */
int kvm_host_open(struct kvm_host *host, struct err *err);
void kvm_host_close(struct kvm_host *host);

/* What KVM_CHECK_EXTENSION says: 0 when lacking. */
int kvm_host_check(const struct kvm_host *host, int capability);

#endif
