/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is this KVM any good? A small loop in 64-bit kernel mode, timed. Processors run hundreds to
 * thousands of million instructions a second there; a KVM without nested paging below it, which
 * emulates guest kernel code, one or two. Between them lies a wide gap.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/kvm/internal.h"

/* Below this many million instructions a second KVM emulates. Far from both sides: emulation was
 * seen at 0.5-3, and a good KVM on an overloaded nested host still at 38. */
#define GOOD_MIPS 15.0

/* A poor result is measured again this often, within this time. */
#define ATTEMPTS_MAX 8
#define PATIENCE_NS  (20 * NS_PER_MS)

/*
 * The loop's memory: page tables, code, data. The guest's RAM may be mapped meanwhile, so it stands
 * where a PC never has any, below the IOAPIC, on a 2 MiB boundary that the page tables map to
 * linear address 0. Code and data by their linear addresses.
 */
#define MEM_GPA  0xfe000000
#define PML4     0x1000
#define PDPT     0x2000
#define PD       0x3000
#define CODE     0x4000
#define DATA     0x5000
#define MEM_LEN  0x6000

#define END_PORT 0xf4

/* 6 instructions a round, as kernel code is: loads, stores, arithmetic, a branch. */
#define ROUND_INSTRUCTIONS 6
static const uint8_t code[] = {
    0x48, 0x8b,     0x03, /* 1: mov (%rbx), %rax */
    0x48, 0x01,     0xc8, /*    add %rcx, %rax */
    0x48, 0x89,     0x03, /*    mov %rax, (%rbx) */
    0x48, 0x31,     0xc2, /*    xor %rax, %rdx */
    0x48, 0xff,     0xc9, /*    dec %rcx */
    0x75, 0xef,           /*    jnz 1b */
    0xe6, END_PORT,       /*    out %al, $END_PORT */
};

/* The slowest KVM needs some 4 ms for the first, a good one 3 us, which is too short to time. */
static const uint64_t rounds[] = {1000, 40000};
#define LONG_ENOUGH_NS (200 * NS_PER_US)

static void set_up_memory(uint8_t *mem)
{
    const uint64_t present_writable = 3, page_size = 0x80;
    store_le64(mem + PML4, (MEM_GPA + PDPT) | present_writable);
    store_le64(mem + PDPT, (MEM_GPA + PD) | present_writable);
    store_le64(mem + PD, MEM_GPA | present_writable | page_size);
    memcpy(mem + CODE, code, sizeof(code));
}

static int set_up_cpu(struct kvm_cpu *cpu)
{
    struct cpu_sregs s;
    int rc = kvm_vcpu_get(&cpu->base, NULL, &s);
    if (rc < 0)
        return rc;
    const struct cpu_segment data = {.limit = 0xffffffff, .selector = 16, .attr = CPU_SEG_DATA};
    s.cs = (struct cpu_segment){.limit = 0xffffffff, .selector = 8, .attr = CPU_SEG_CODE64};
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cr0 |= CPU_CR0_PE | CPU_CR0_PG;
    s.cr3 = MEM_GPA + PML4;
    s.cr4 |= CPU_CR4_PAE;
    s.efer |= CPU_EFER_LME | CPU_EFER_LMA;
    return kvm_vcpu_set(&cpu->base, NULL, &s);
}

/* Time that this thread had a processor, guest or not: what other processes took is not KVM's. */
static uint64_t thread_time_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}

/* Run the loop; the time it took with one exit, or 0 with why filled. */
static uint64_t time_loop(struct kvm_cpu *cpu, uint64_t count, struct engine_probe *probe)
{
    struct kvm_regs regs = {.rip = CODE, .rbx = DATA, .rcx = count, .rflags = 2};
    int rc = kvm_cpu_finish_io(cpu);
    if (rc == 0 && ioctl(cpu->fd, KVM_SET_REGS, &regs) < 0)
        rc = -errno;
    uint64_t start = thread_time_ns();
    if (rc == 0) {
        do {
            rc = ioctl(cpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
        } while (rc == -EINTR || rc == -EAGAIN);
    }
    uint64_t took = thread_time_ns() - start;
    if (rc < 0) {
        snprintf(probe->why, sizeof(probe->why),
                 "/dev/kvm cannot run a small loop in guest kernel mode: %s", strerror(-rc));
        return 0;
    }
    if (cpu->run->exit_reason != KVM_EXIT_IO || cpu->run->io.port != END_PORT) {
        struct engine_exit exit;
        kvm_report_exit(cpu, &exit);
        exit.text[strcspn(exit.text, "\n")] = '\0';
        snprintf(probe->why, sizeof(probe->why),
                 "/dev/kvm cannot run a small loop in guest kernel mode: %.300s", exit.text);
        return 0;
    }
    cpu->io_pending = true;
    return took > 0 ? took : 1;
}

static void judge(struct engine_probe *probe, double mips)
{
    probe->guest_kernel_mips = mips;
    if (mips >= GOOD_MIPS) {
        probe->quality = ENGINE_GOOD;
        snprintf(probe->why, sizeof(probe->why),
                 "KVM runs guest kernel code on the processor: %.0f million instructions a second",
                 mips);
        return;
    }
    probe->quality = ENGINE_SLOW;
    snprintf(probe->why, sizeof(probe->why),
             "KVM emulates guest kernel code here: %.1f million instructions a second, where a "
             "processor runs hundreds and more; this host is itself a virtual machine whose host "
             "offers no nested paging: take a machine of your own, or one with nested "
             "virtualization",
             mips);
}

/*
 * One exit takes as long as thousands of instructions: its time, from a loop of one round, is taken
 * off. The first run of all is to fault in the pages. A poor result is measured again: on a host
 * that is itself a virtual machine, another one may have had the processor in between, which no
 * clock here tells.
 */
static void measure(struct kvm_cpu *cpu, struct engine_probe *probe)
{
    if (time_loop(cpu, 1, probe) == 0)
        return;
    uint64_t exit_ns = time_loop(cpu, 1, probe);
    if (exit_ns == 0)
        return;
    double best = 0;
    uint64_t start = clock_now_ns();
    for (int attempt = 0; attempt < ATTEMPTS_MAX && best < GOOD_MIPS; attempt++) {
        if (attempt > 1 && clock_now_ns() - start > PATIENCE_NS)
            break;
        for (size_t i = 0; i < ARRAY_LEN(rounds); i++) {
            uint64_t took = time_loop(cpu, rounds[i], probe);
            if (took == 0)
                return;
            uint64_t loop_ns = took > exit_ns ? took - exit_ns : 1;
            double mips = (double)(rounds[i] * ROUND_INSTRUCTIONS) * 1000.0 / (double)loop_ns;
            bool enough = loop_ns >= LONG_ENOUGH_NS || i == ARRAY_LEN(rounds) - 1;
            if (enough && mips > best)
                best = mips;
            if (enough)
                break;
        }
    }
    judge(probe, best);
}

void kvm_vm_measure(struct engine_vm *evm, struct engine_probe *probe)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    *probe = (struct engine_probe){.quality = ENGINE_UNUSABLE};
    struct err err = ERR_INIT;
    if (!vm->measured && kvm_cpu_new(vm, 0, &vm->measured, &err) < 0) {
        snprintf(probe->why, sizeof(probe->why), "%.500s", err.text);
        return;
    }
    uint8_t *mem = mmap(NULL, MEM_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED) {
        snprintf(probe->why, sizeof(probe->why), "no memory to measure KVM: %s", strerror(errno));
        return;
    }
    set_up_memory(mem);
    int rc = kvm_slot_set(vm, KVM_SLOT_MEASURE, MEM_GPA, mem, MEM_LEN, 0);
    if (rc == 0)
        rc = set_up_cpu(vm->measured);
    if (rc == 0)
        measure(vm->measured, probe);

    /* Back to what a new VM is. */
    int undo = kvm_cpu_finish_io(vm->measured);
    if (undo == 0)
        undo = kvm_state_restore_registers(vm->measured);
    vm->measured->set = false;
    int unmapped = kvm_slot_set(vm, KVM_SLOT_MEASURE, MEM_GPA, mem, 0, 0);
    munmap(mem, MEM_LEN);
    if (rc == 0)
        rc = undo < 0 ? undo : unmapped;
    if (rc < 0) {
        probe->quality = ENGINE_UNUSABLE;
        snprintf(probe->why, sizeof(probe->why), "KVM does not let itself be measured: %s",
                 strerror(-rc));
    }
}

void kvm_probe(struct engine_probe *probe)
{
    *probe = (struct engine_probe){.quality = ENGINE_UNUSABLE};
    struct err err = ERR_INIT;
    struct engine_vm *vm = NULL;
    static const struct engine_upcalls none;
    const struct engine_vm_config config = {.vcpu_count = 1, .upcalls = &none};
    if (engine_kvm.vm_new(&vm, &config, &err) < 0) {
        snprintf(probe->why, sizeof(probe->why), "%.500s", err.text);
        return;
    }
    kvm_vm_measure(vm, probe);
    engine_kvm.vm_free(vm);
}
