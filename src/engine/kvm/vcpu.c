/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kicks. A kick must end the current vcpu_run or, when none is current, the next one, from whatever
 * place the vCPU's thread is at that moment. The kicker stores `kick`, then run->immediate_exit,
 * then sends a signal whose handler does nothing. The vCPU's thread
 *
 *   - before KVM_RUN sees `kick` and returns; or misses it, but then KVM_RUN sees immediate_exit
 *     (it is read inside the call), or the signal, which comes after, interrupts the guest;
 *   - after EINTR clears immediate_exit first and takes `kick` then. A kicker whose immediate_exit
 *     is wiped out by that has stored its `kick` before, so that one is taken now.
 *
 * So the signal need not be blocked outside of KVM_RUN: one that arrives there is spent, but
 * immediate_exit, stored before it, stays.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "engine/kvm/internal.h"

#define KICK_SIGNAL SIGRTMIN

/* Exits that one instruction can take to be finished: a 64-byte access that crosses a page leaves
 * for 8 bytes at a time. */
#define FINISH_IO_EXITS_MAX 64

static void kick_handler(int sig)
{
    (void)sig;
}

int kvm_kick_signal_install(struct err *err)
{
    /* SA_RESTART: system calls of an upcall go on; KVM_RUN returns EINTR all the same. */
    struct sigaction action = {.sa_handler = kick_handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(KICK_SIGNAL, &action, NULL) < 0)
        return err_errno(err, errno, "install the signal that interrupts vCPUs");
    return 0;
}

/* --- creation --- */

static int set_cpuid(struct kvm_cpu *cpu, struct err *err)
{
    struct cpuid_table *table = malloc(sizeof(*table));
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_LEAVES_MAX * sizeof(cpuid->entries[0]));
    int code = 0;
    if (!table || !cpuid) {
        code = err_errno(err, ENOMEM, "CPUID of vCPU %u", cpu->base.id);
        goto out;
    }
    *table = cpu->vm->cpuid;
    cpuid_set_topology(table, cpu->base.id, cpu->vm->config.vcpu_count);
    for (size_t i = 0; i < table->count; i++) {
        const struct cpuid_leaf *l = &table->leaves[i];
        cpuid->entries[i] =
            (struct kvm_cpuid_entry2){.function = l->function,
                                      .index = l->index,
                                      .flags = l->indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                                      .eax = l->eax,
                                      .ebx = l->ebx,
                                      .ecx = l->ecx,
                                      .edx = l->edx};
    }
    cpuid->nent = (uint32_t)table->count;
    if (ioctl(cpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        code = err_errno(err, errno, "set the CPUID of vCPU %u", cpu->base.id);
out:
    free(cpuid);
    free(table);
    return code;
}

int kvm_cpu_new(struct kvm_machine *vm, unsigned id, struct kvm_cpu **out, struct err *err)
{
    struct kvm_cpu *cpu = calloc(1, sizeof(*cpu));
    if (!cpu)
        return err_errno(err, ENOMEM, "vCPU %u", id);
    cpu->base = (struct engine_vcpu){.ops = &engine_kvm, .id = id};
    cpu->vm = vm;
    cpu->fresh = true;
    int code;
    cpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)id);
    if (cpu->fd < 0) {
        code = err_errno(err, errno, "create vCPU %u", id);
        goto free_cpu;
    }
    void *run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (run == MAP_FAILED) {
        code = err_errno(err, errno, "map the shared page of vCPU %u", id);
        goto close_fd;
    }
    cpu->run = run;
    code = set_cpuid(cpu, err);
    if (code == 0)
        code = kvm_state_take_cpu(cpu, err);
    if (code < 0)
        goto unmap;
    *out = cpu;
    return 0;

unmap:
    munmap(run, vm->run_bytes);
close_fd:
    close(cpu->fd);
free_cpu:
    free(cpu);
    return code;
}

void kvm_cpu_free(struct kvm_cpu *cpu)
{
    munmap(cpu->run, cpu->vm->run_bytes);
    close(cpu->fd);
    free(cpu);
}

int kvm_vcpu_new(struct engine_vm *evm, unsigned id, struct engine_vcpu **out, struct err *err)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    assert(id < vm->config.vcpu_count);
    struct kvm_cpu *cpu = NULL;
    if (id == 0 && vm->measured) {
        cpu = vm->measured;
        vm->measured = NULL;
    } else {
        int code = kvm_cpu_new(vm, id, &cpu, err);
        if (code < 0)
            return code;
    }
    vm->vcpus++;
    *out = &cpu->base;
    return 0;
}

void kvm_vcpu_free(struct engine_vcpu *vcpu)
{
    if (!vcpu)
        return;
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    cpu->vm->vcpus--;
    kvm_cpu_free(cpu);
}

/* --- running --- */

static void set_immediate_exit(struct kvm_cpu *cpu, uint8_t value)
{
    __atomic_store_n(&cpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

static bool take_kick(struct kvm_cpu *cpu)
{
    return __atomic_load_n(&cpu->kick, __ATOMIC_SEQ_CST) &&
           __atomic_exchange_n(&cpu->kick, false, __ATOMIC_SEQ_CST);
}

void kvm_vcpu_kick(struct engine_vcpu *vcpu)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    __atomic_store_n(&cpu->kick, true, __ATOMIC_SEQ_CST);
    set_immediate_exit(cpu, 1);
    int tid = __atomic_load_n(&cpu->tid, __ATOMIC_SEQ_CST);
    /* A thread that has left meanwhile, or one of ours that got its number, takes no harm. */
    if (tid != 0)
        syscall(SYS_tgkill, getpid(), tid, KICK_SIGNAL);
}

/* Send up the access of an exit. false: the exit is none. */
static bool dispatch_access(struct kvm_cpu *cpu)
{
    const struct engine_upcalls *up = cpu->vm->config.upcalls;
    void *ctx = cpu->vm->config.upcall_ctx;
    struct kvm_run *run = cpu->run;
    if (run->exit_reason == KVM_EXIT_IO) {
        void *data = (uint8_t *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_OUT)
            up->pio_write(ctx, run->io.port, run->io.size, data, run->io.count);
        else
            up->pio_read(ctx, run->io.port, run->io.size, data, run->io.count);
        return true;
    }
    if (run->exit_reason == KVM_EXIT_MMIO) {
        gpa_t gpa = GPA(run->mmio.phys_addr);
        if (run->mmio.is_write)
            up->mmio_write(ctx, gpa, run->mmio.len, run->mmio.data);
        else
            up->mmio_read(ctx, gpa, run->mmio.len, run->mmio.data);
        return true;
    }
    return false;
}

/* One KVM_RUN: 0 or -errno. Entering it finishes the access of the exit before. */
static int enter(struct kvm_cpu *cpu)
{
    int rc = ioctl(cpu->fd, KVM_RUN, 0);
    int code = rc < 0 ? -errno : 0;
    unsigned reason = code == 0 ? cpu->run->exit_reason : 0;
    if (code == 0)
        cpu->exits[reason < KVM_EXITS_COUNTED ? reason : KVM_EXITS_COUNTED - 1]++;
    else if (code == -EINTR)
        cpu->interrupted++;
    cpu->io_pending = code == 0 && (cpu->run->exit_reason == KVM_EXIT_IO ||
                                    cpu->run->exit_reason == KVM_EXIT_MMIO);
    return code;
}

int kvm_cpu_finish_io(struct kvm_cpu *cpu)
{
    int code = 0;
    /* KVM writes the result to the guest's registers when it is entered, and leaves again. */
    for (int i = 0; cpu->io_pending && code == 0 && i < FINISH_IO_EXITS_MAX; i++) {
        set_immediate_exit(cpu, 1);
        code = enter(cpu);
        if (code == 0)
            dispatch_access(cpu);
    }
    /* A kick that this hides is kept in cpu->kick, which vcpu_run looks at first. */
    set_immediate_exit(cpu, 0);
    if (code == -EINTR || code == -EAGAIN)
        code = 0;
    return cpu->io_pending ? -EBUSY : code;
}

/* The exits other than accesses; true: leave vcpu_run. */
static bool handle_exit(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    switch (cpu->run->exit_reason) {
    case KVM_EXIT_SHUTDOWN:
        exit->kind = ENGINE_EXIT_TRIPLE_FAULT;
        return true;
    case KVM_EXIT_DEBUG:
        kvm_debug_exit(cpu, exit);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return false;
    default:
        kvm_report_exit(cpu, exit);
        return true;
    }
}

static void run_loop(struct kvm_cpu *cpu, struct engine_exit *exit)
{
    for (;;) {
        if (take_kick(cpu)) {
            /* Now, since a string instruction's access ends in guest memory: after a reset that is
             * the next guest's. What fails here fails in the next KVM_RUN and is reported then. */
            if (cpu->io_pending)
                kvm_cpu_finish_io(cpu);
            exit->kind = ENGINE_EXIT_KICK;
            return;
        }
        int code = enter(cpu);
        if (code == 0) {
            if (!dispatch_access(cpu) && handle_exit(cpu, exit))
                return;
        } else if (code == -EINTR) {
            set_immediate_exit(cpu, 0);
        } else if (code != -EAGAIN) { /* EAGAIN: a vCPU that waited for SIPI has got it */
            kvm_report_run_error(cpu, code, exit);
            return;
        }
    }
}

void kvm_vcpu_run(struct engine_vcpu *vcpu, struct engine_exit *exit)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    exit->text[0] = '\0';

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
    __atomic_store_n(&cpu->tid, gettid(), __ATOMIC_SEQ_CST);

    if (cpu->fresh) {
        cpu->fresh = false;
        __atomic_store_n(&cpu->vm->ran, true, __ATOMIC_RELEASE);
        if (__atomic_load_n(&cpu->vm->no_firmware, __ATOMIC_ACQUIRE))
            kvm_state_firmware_msrs(cpu);
    }
    run_loop(cpu, exit);
    __atomic_store_n(&cpu->tid, 0, __ATOMIC_SEQ_CST);
}

/* --- registers --- */

static struct cpu_segment segment_from_kvm(const struct kvm_segment *s)
{
    unsigned attr = s->type | s->s << 4 | s->dpl << 5 | s->present << 7 | s->avl << 12 |
                    s->l << 13 | s->db << 14 | s->g << 15;
    if (s->unusable)
        attr &= ~0x80u;
    return (struct cpu_segment){
        .base = s->base, .limit = s->limit, .selector = s->selector, .attr = (uint16_t)attr};
}

static struct kvm_segment segment_to_kvm(const struct cpu_segment *s)
{
    return (struct kvm_segment){.base = s->base,
                                .limit = s->limit,
                                .selector = s->selector,
                                .type = s->attr & 0xf,
                                .s = s->attr >> 4 & 1,
                                .dpl = s->attr >> 5 & 3,
                                .present = s->attr >> 7 & 1,
                                .avl = s->attr >> 12 & 1,
                                .l = s->attr >> 13 & 1,
                                .db = s->attr >> 14 & 1,
                                .g = s->attr >> 15 & 1,
                                .unusable = !(s->attr >> 7 & 1)};
}

void kvm_regs_to_cpu(struct cpu_regs *to, const struct kvm_regs *r)
{
    *to = (struct cpu_regs){
        .gpr = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi, r->r8, r->r9,
                r->r10, r->r11, r->r12, r->r13, r->r14, r->r15},
        .rip = r->rip,
        .rflags = r->rflags
    };
}

static void regs_to_kvm(struct kvm_regs *to, const struct cpu_regs *r)
{
    *to = (struct kvm_regs){
        .rax = r->gpr[CPU_RAX],
        .rcx = r->gpr[CPU_RCX],
        .rdx = r->gpr[CPU_RDX],
        .rbx = r->gpr[CPU_RBX],
        .rsp = r->gpr[CPU_RSP],
        .rbp = r->gpr[CPU_RBP],
        .rsi = r->gpr[CPU_RSI],
        .rdi = r->gpr[CPU_RDI],
        .r8 = r->gpr[CPU_R8],
        .r9 = r->gpr[CPU_R9],
        .r10 = r->gpr[CPU_R10],
        .r11 = r->gpr[CPU_R11],
        .r12 = r->gpr[CPU_R12],
        .r13 = r->gpr[CPU_R13],
        .r14 = r->gpr[CPU_R14],
        .r15 = r->gpr[CPU_R15],
        .rip = r->rip,
        .rflags = r->rflags,
    };
}

void kvm_sregs_to_cpu(struct cpu_sregs *to, const struct kvm_sregs *s)
{
    *to = (struct cpu_sregs){
        .cs = segment_from_kvm(&s->cs),
        .ds = segment_from_kvm(&s->ds),
        .es = segment_from_kvm(&s->es),
        .fs = segment_from_kvm(&s->fs),
        .gs = segment_from_kvm(&s->gs),
        .ss = segment_from_kvm(&s->ss),
        .tr = segment_from_kvm(&s->tr),
        .ldt = segment_from_kvm(&s->ldt),
        .gdt = {.base = s->gdt.base, .limit = s->gdt.limit},
        .idt = {.base = s->idt.base, .limit = s->idt.limit},
        .cr0 = s->cr0,
        .cr2 = s->cr2,
        .cr3 = s->cr3,
        .cr4 = s->cr4,
        .cr8 = s->cr8,
        .efer = s->efer,
        .apic_base = s->apic_base,
    };
}

/* Leaves the bitmap of injected interrupts as it is. */
static void sregs_to_kvm(struct kvm_sregs *to, const struct cpu_sregs *s)
{
    to->cs = segment_to_kvm(&s->cs);
    to->ds = segment_to_kvm(&s->ds);
    to->es = segment_to_kvm(&s->es);
    to->fs = segment_to_kvm(&s->fs);
    to->gs = segment_to_kvm(&s->gs);
    to->ss = segment_to_kvm(&s->ss);
    to->tr = segment_to_kvm(&s->tr);
    to->ldt = segment_to_kvm(&s->ldt);
    to->gdt.base = s->gdt.base;
    to->gdt.limit = s->gdt.limit;
    to->idt.base = s->idt.base;
    to->idt.limit = s->idt.limit;
    to->cr0 = s->cr0;
    to->cr2 = s->cr2;
    to->cr3 = s->cr3;
    to->cr4 = s->cr4;
    to->cr8 = s->cr8;
    to->efer = s->efer;
    to->apic_base = s->apic_base;
}

int kvm_vcpu_get(struct engine_vcpu *vcpu, struct cpu_regs *regs, struct cpu_sregs *sregs)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    int code = kvm_cpu_finish_io(cpu);
    if (code < 0)
        return code;
    if (regs) {
        struct kvm_regs r;
        if (ioctl(cpu->fd, KVM_GET_REGS, &r) < 0)
            return -errno;
        kvm_regs_to_cpu(regs, &r);
    }
    if (sregs) {
        struct kvm_sregs s;
        if (ioctl(cpu->fd, KVM_GET_SREGS, &s) < 0)
            return -errno;
        kvm_sregs_to_cpu(sregs, &s);
    }
    return 0;
}

int kvm_vcpu_set(struct engine_vcpu *vcpu, const struct cpu_regs *regs,
                 const struct cpu_sregs *sregs)
{
    struct kvm_cpu *cpu = kvm_cpu_of(vcpu);
    int code = kvm_cpu_finish_io(cpu);
    if (code < 0)
        return code;
    cpu->set = true;
    if (sregs) {
        struct kvm_sregs s;
        if (ioctl(cpu->fd, KVM_GET_SREGS, &s) < 0)
            return -errno;
        sregs_to_kvm(&s, sregs);
        if (ioctl(cpu->fd, KVM_SET_SREGS, &s) < 0)
            return -errno;
    }
    if (regs) {
        struct kvm_regs r;
        regs_to_kvm(&r, regs);
        if (ioctl(cpu->fd, KVM_SET_REGS, &r) < 0)
            return -errno;
        if (cpu->fresh && cpu->base.id == 0 && regs->rip != cpu->vm->fresh_cpu.regs.rip)
            __atomic_store_n(&cpu->vm->no_firmware, true, __ATOMIC_RELEASE);
    }
    return 0;
}
