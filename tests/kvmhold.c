/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvmhold: holds two idle VMs open for as long as the testbed lives.
 *
 * KVM rewrites kernel code (static keys) whenever the first VM appears and the last one goes, a
 * vCPU's local APIC is switched on or off, or a vCPU has none. QEMU's TCG with more than one
 * processor may keep on running the translation of an instruction that was patched for a moment
 * (int3 in __schedule(), seen with 7.2): both processors then loop for ever. One VM of each sort
 * that never changes keeps those keys where they are.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(void)
{
    struct kvm_sregs sregs;
    int kvm = open("/dev/kvm", O_RDWR);

    if (kvm < 0)
        return fail("kvmhold: /dev/kvm");
    int bare = ioctl(kvm, KVM_CREATE_VM, 0);
    int full = ioctl(kvm, KVM_CREATE_VM, 0);
    if (bare < 0 || full < 0 || ioctl(full, KVM_CREATE_IRQCHIP, 0) < 0)
        return fail("kvmhold: VM");
    int no_apic = ioctl(bare, KVM_CREATE_VCPU, 0);
    int software_disabled = ioctl(full, KVM_CREATE_VCPU, 0);
    int hardware_disabled = ioctl(full, KVM_CREATE_VCPU, 1);
    if (no_apic < 0 || software_disabled < 0 || hardware_disabled < 0)
        return fail("kvmhold: vCPU");
    if (ioctl(hardware_disabled, KVM_GET_SREGS, &sregs) < 0)
        return fail("kvmhold: KVM_GET_SREGS");
    sregs.apic_base = 0;
    if (ioctl(hardware_disabled, KVM_SET_SREGS, &sregs) < 0)
        return fail("kvmhold: KVM_SET_SREGS");
    for (;;)
        pause();
}
