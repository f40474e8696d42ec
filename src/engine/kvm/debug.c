/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Debugging by KVM_SET_GUEST_DEBUG (Documentation/virt/kvm/api.rst, 4.87): KVM keeps the guest's
 * debug registers aside and uses the processor's for us.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/internal.h"

#define VECTOR_DB    1
#define VECTOR_BP    3
#define DR6_HIT_MASK 0xfULL

/* DR7 (SDM vol. 3, 17.2.4): a local and a global enable bit each, then R/W and LEN. */
static uint64_t dr7_of(const struct engine_debug *debug)
{
    static const uint8_t len_codes[] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
    uint64_t dr7 = 1u << 10; /* always 1 */
    for (unsigned i = 0; i < debug->hw_count; i++) {
        uint64_t control = debug->hw[i].kind | (uint64_t)len_codes[debug->hw[i].len_bytes] << 2;
        dr7 |= 2ULL << (2 * i) | control << (16 + 4 * i);
    }
    return dr7;
}

int kvm_vcpu_debug(struct engine_vcpu *vcpu, const struct engine_debug *debug)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    struct kvm_guest_debug arg = {0};
    if (debug) {
        arg.control = KVM_GUESTDBG_ENABLE;
        if (debug->step)
            arg.control |= KVM_GUESTDBG_SINGLESTEP;
        if (debug->breakpoints)
            arg.control |= KVM_GUESTDBG_USE_SW_BP;
        if (debug->hw_count > 0)
            arg.control |= KVM_GUESTDBG_USE_HW_BP;
        for (unsigned i = 0; i < debug->hw_count; i++)
            arg.arch.debugreg[i] = debug->hw[i].address;
        arg.arch.debugreg[7] = dr7_of(debug);
    }
    int code = kvm_cpu_finish_io(cpu);
    if (code < 0)
        return code;
    return ioctl(cpu->fd, KVM_SET_GUEST_DEBUG, &arg) < 0 ? -errno : 0;
}

void kvm_debug_exit(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    const struct kvm_debug_exit_arch *arch = &cpu->run->debug.arch;
    exit->kind = ENGINE_EXIT_DEBUG;
    if (arch->exception == VECTOR_BP) {
        exit->stop = ENGINE_STOP_BREAKPOINT;
    } else if (arch->dr6 & DR6_HIT_MASK) {
        exit->stop = ENGINE_STOP_HARDWARE;
        exit->hw = (unsigned)__builtin_ctzll(arch->dr6 & DR6_HIT_MASK);
    } else {
        exit->stop = ENGINE_STOP_STEP;
    }
}

int kvm_vcpu_pass_breakpoint(struct engine_vcpu *vcpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    struct kvm_vcpu_events events;
    if (ioctl(cpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return -errno;
    events.exception.injected = 1;
    events.exception.nr = VECTOR_BP;
    events.exception.has_error_code = 0;
    return ioctl(cpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0 ? -errno : 0;
}

bool kvm_vcpu_translate(struct engine_vcpu *vcpu, gva_t gva, gpa_t *gpa)
{
    struct kvm_translation t = {.linear_address = gva.a};
    if (ioctl(kvm_cpu_of(vcpu)->fd, KVM_TRANSLATE, &t) < 0 || !t.valid)
        return false;
    *gpa = GPA(t.physical_address);
    return true;
}

/* --- the legacy region of the vector state --- */

/* XSTATE_BV, in the header behind the legacy region (SDM vol. 1, 13.4.2): x87 and SSE are there. */
#define XSAVE_HEADER_WORD (512 / 4)
#define XSAVE_X87_SSE     3u

/* NULL, with errno set: it cannot be had. */
static struct kvm_xsave *xsave_get(struct kvm_cpu *cpu)
{
    size_t bytes = (size_t)cpu->vm->host.xsave_bytes;
    struct kvm_xsave *xsave = calloc(1, bytes);
    if (!xsave)
        return NULL;
    unsigned long get = bytes > sizeof(struct kvm_xsave) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;
    if (ioctl(cpu->fd, get, xsave) < 0) {
        int code = errno;
        free(xsave);
        errno = code;
        return NULL;
    }
    return xsave;
}

int kvm_vcpu_get_fpu(struct engine_vcpu *vcpu, struct cpu_fpu *fpu)
{
    struct kvm_xsave *xsave = xsave_get(kvm_cpu_of(vcpu));
    if (!xsave)
        return -errno;
    memcpy(fpu->fxsave, xsave->region, sizeof(fpu->fxsave));
    free(xsave);
    return 0;
}

int kvm_vcpu_set_fpu(struct engine_vcpu *vcpu, const struct cpu_fpu *fpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    struct kvm_xsave *xsave = xsave_get(cpu);
    int code = 0;
    if (!xsave)
        return -errno;
    memcpy(xsave->region, fpu->fxsave, sizeof(fpu->fxsave));
    xsave->region[XSAVE_HEADER_WORD] |= XSAVE_X87_SSE;
    if (ioctl(cpu->fd, KVM_SET_XSAVE, xsave) < 0)
        code = -errno;
    free(xsave);
    return code;
}
