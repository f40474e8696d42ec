/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/kvm/host.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"

#define KVM_DEVICE "/dev/kvm"

#define CAPABILITY(name, required, why)                                                            \
    {                                                                                              \
        KVM_CAP_##name, #name, why, required                                                       \
    }

const struct kvm_capability kvm_capabilities[] = {
    CAPABILITY(USER_MEMORY, true, "guest memory that is the VMM's memory"),
    CAPABILITY(READONLY_MEM, true, "ROM"),
    CAPABILITY(DESTROY_MEMORY_REGION_WORKS, true, "removing memory slots"),
    CAPABILITY(IRQCHIP, true, "interrupt controllers in the kernel"),
    CAPABILITY(IRQ_ROUTING, true, "PIC and IOAPIC inputs, and MSI by eventfd"),
    CAPABILITY(SIGNAL_MSI, true, "message-signalled interrupts"),
    CAPABILITY(IRQFD, true, "interrupts by eventfd"),
    CAPABILITY(IOEVENTFD, true, "queue notifications by eventfd"),
    CAPABILITY(PIT2, true, "the interval timer"),
    CAPABILITY(PIT_STATE2, true, "resetting the interval timer, and the HPET in its place"),
    CAPABILITY(REINJECT_CONTROL, true, "the HPET in the interval timer's place"),
    CAPABILITY(ADJUST_CLOCK, true, "resetting the paravirtual clock"),
    CAPABILITY(SET_TSS_ADDR, true, "real mode on older Intel processors"),
    CAPABILITY(EXT_CPUID, true, "choosing the guest's CPUID"),
    CAPABILITY(MP_STATE, true, "processors that wait for INIT and SIPI"),
    CAPABILITY(VCPU_EVENTS, true, "resetting pending exceptions"),
    CAPABILITY(DEBUGREGS, true, "resetting debug registers"),
    CAPABILITY(XSAVE, true, "resetting floating point and vector state"),
    CAPABILITY(XCRS, true, "resetting XCR0"),
    CAPABILITY(IMMEDIATE_EXIT, true, "interrupting a processor without a race"),
    CAPABILITY(TSC_DEADLINE_TIMER, false, "a cheaper timer for the guest"),
    CAPABILITY(IOEVENTFD_ANY_LENGTH, false, "faster queue notifications"),
    CAPABILITY(MANUAL_DIRTY_LOG_PROTECT2, false, "live migration with shorter stalls"),
    CAPABILITY(X2APIC_API, false, "x2APIC ids in interrupt messages"),
    CAPABILITY(SET_IDENTITY_MAP_ADDR, false, "real mode on older Intel processors"),
    CAPABILITY(XSAVE2, false, "vector state above 4 KiB"),
    CAPABILITY(ASYNC_PF_INT, false, "guests that go on while the host swaps a page in"),
    CAPABILITY(STEAL_TIME, false, "guests that know how long they waited"),
    CAPABILITY(TSC_CONTROL, false, "moving guests to hosts of another clock rate"),
};

const size_t kvm_capability_count = ARRAY_LEN(kvm_capabilities);

int kvm_host_check(const struct kvm_host *host, int capability)
{
    int value = ioctl(host->fd, KVM_CHECK_EXTENSION, capability);
    return value > 0 ? value : 0;
}

static int open_failed(struct err *err, int code)
{
    switch (code) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
        return err_set(err, code,
                       KVM_DEVICE " is not there: load the module (modprobe kvm_intel or kvm_amd); "
                                  "switch virtualization (VT-x, SVM) on in the firmware; in a "
                                  "virtual machine, its host must offer nested virtualization; in "
                                  "a container, pass the device in");
    case EACCES:
    case EPERM:
        return err_set(err, code,
                       KVM_DEVICE " may not be opened by this user: `sudo usermod -aG kvm $USER` "
                                  "and log in again, or for now `sudo setfacl -m u:$USER:rw "
                                  "" KVM_DEVICE "`");
    case EBUSY:
        return err_set(err, code,
                       KVM_DEVICE " is busy: another hypervisor (VirtualBox, VMware) holds the "
                                  "processor's virtualization; end its machines");
    default:
        return err_errno(err, code, "open " KVM_DEVICE);
    }
}

static int check_required(const struct kvm_host *host, struct err *err)
{
    for (size_t i = 0; i < kvm_capability_count; i++) {
        const struct kvm_capability *c = &kvm_capabilities[i];
        if (c->required && !kvm_host_check(host, c->number))
            return err_set(err, ENOTSUP,
                           "this host's KVM lacks KVM_CAP_%s (%s): a kernel of 4.13 or later, "
                           "built with its usual options, has it",
                           c->name, c->why);
    }
    return 0;
}

int kvm_host_open(struct kvm_host *host, struct err *err)
{
    *host = (struct kvm_host){.fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC)};
    if (host->fd < 0)
        return open_failed(err, errno);

    int code;
    int version = ioctl(host->fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        code = err_set(err, ENOTSUP, KVM_DEVICE " speaks version %d of KVM's interface, not %d",
                       version, KVM_API_VERSION);
        goto fail;
    }
    code = check_required(host, err);
    if (code < 0)
        goto fail;

    host->manual_dirty_protect = kvm_host_check(host, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) &
                                 KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    host->ioeventfd_any_length = kvm_host_check(host, KVM_CAP_IOEVENTFD_ANY_LENGTH) != 0;
    host->tsc_deadline = kvm_host_check(host, KVM_CAP_TSC_DEADLINE_TIMER) != 0;
    host->x2apic_api = kvm_host_check(host, KVM_CAP_X2APIC_API) != 0;
    host->irq_routes_max = kvm_host_check(host, KVM_CAP_IRQ_ROUTING);
    host->vcpus_max = kvm_host_check(host, KVM_CAP_MAX_VCPUS);
    if (host->vcpus_max == 0) /* api.rst, 4.8: what is there when the capability is not */
        host->vcpus_max = 4;
    if (host->vcpus_max > KVM_VCPUS_MAX)
        host->vcpus_max = KVM_VCPUS_MAX;
    host->xsave_bytes = kvm_host_check(host, KVM_CAP_XSAVE2);
    if (host->xsave_bytes < (int)sizeof(struct kvm_xsave))
        host->xsave_bytes = sizeof(struct kvm_xsave);
    return 0;

fail:
    kvm_host_close(host);
    return code;
}

void kvm_host_close(struct kvm_host *host)
{
    if (host->fd >= 0)
        close(host->fd);
    host->fd = -1;
}
