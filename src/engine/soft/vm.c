/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's operations: engine.h. */
#include "engine/soft/vm.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/soft/block.h"
#include "engine/soft/exec_xsave.h"
#include "engine/soft/mmu.h"
#include "engine/soft/trace.h"
#include "engine/soft/translate.h"
#include "engine/stats.h"

#define RESET_RIP 0xfff0
#define VCPUS_MAX 1024 /* so many have been seen to work; ids could have 15 bits */

/* --- what the chips ask for --- */

static struct soft_cpu *cpu_at(void *ctx, unsigned cpu)
{
    struct soft_vm *vm = ctx;
    return __atomic_load_n(&vm->cpus[cpu], __ATOMIC_ACQUIRE);
}

static void notify(void *ctx, unsigned id, uint32_t event)
{
    struct soft_cpu *cpu = cpu_at(ctx, id);
    if (cpu)
        soft_cpu_notify(cpu, event);
}

static void on_wake(void *ctx, unsigned cpu)
{
    notify(ctx, cpu, SOFT_EVENT_IRQ);
}

static void on_nmi(void *ctx, unsigned cpu)
{
    notify(ctx, cpu, SOFT_EVENT_NMI);
}

static void on_init(void *ctx, unsigned cpu)
{
    notify(ctx, cpu, SOFT_EVENT_INIT);
}

static void on_sipi(void *ctx, unsigned id, uint8_t vector)
{
    struct soft_cpu *cpu = cpu_at(ctx, id);
    if (!cpu)
        return;
    __atomic_store_n(&cpu->sipi_vector, vector, __ATOMIC_RELEASE);
    soft_cpu_notify(cpu, SOFT_EVENT_SIPI);
}

/* The TSC counts nanoseconds. */
static uint64_t tsc_at(void *ctx, unsigned id, uint64_t now_ns)
{
    const struct soft_cpu *cpu = cpu_at(ctx, id);
    return now_ns + (cpu ? cpu->msr.tsc_adjust : 0);
}

static uint64_t ns_at_tsc(void *ctx, unsigned id, uint64_t tsc)
{
    const struct soft_cpu *cpu = cpu_at(ctx, id);
    uint64_t adjust = cpu ? cpu->msr.tsc_adjust : 0;
    return tsc > adjust ? tsc - adjust : 0;
}

static void on_clock_released(void *ctx)
{
    notify(ctx, 0, SOFT_EVENT_CLOCK);
}

static const struct irqchip_upcalls chip_upcalls = {
    .wake = on_wake,
    .nmi = on_nmi,
    .init = on_init,
    .sipi = on_sipi,
    .tsc_at = tsc_at,
    .ns_at_tsc = ns_at_tsc,
};

/* --- the VM --- */

static void soft_probe(struct engine_probe *probe)
{
    *probe = (struct engine_probe){.quality = ENGINE_GOOD};
    snprintf(probe->why, sizeof(probe->why),
             "Hull's own processor: works on every x86-64 host, at a fraction of the speed of KVM");
}

static void cpu_free(struct soft_cpu *cpu)
{
    if (!cpu)
        return;
    block_cache_fini(cpu);
    mmu_fini(cpu);
    free(cpu->cpuid);
    mmu_cpu_free(cpu);
}

static void soft_vm_free(struct engine_vm *evm)
{
    struct soft_vm *vm = soft_vm_of(evm);
    if (!vm)
        return;
    trace_close(vm);
    irqfds_fini(vm);
    irqchip_free(vm->irqchip);
    chip_clock_free(vm->clock);
    for (unsigned i = 0; vm->cpus && i < vm->config.vcpu_count; i++)
        cpu_free(vm->cpus[i]);
    mmu_vm_fini(vm);
    pthread_cond_destroy(&vm->exclusive.changed);
    pthread_mutex_destroy(&vm->exclusive.lock);
    pthread_mutex_destroy(&vm->ioeventfd_lock);
    pthread_mutex_destroy(&vm->build_lock);
    free(vm->ioeventfds);
    free(vm->cpus);
    free(vm);
}

static int make_parts(struct soft_vm *vm, struct err *err)
{
    const struct engine_vm_config *config = &vm->config;
    vm->cpus = calloc(config->vcpu_count, sizeof(struct soft_cpu *));
    if (!vm->cpus)
        return err_errno(err, ENOMEM, "the soft engine");
    int code = model_init(&vm->model, config->cpu_model, config->vcpu_count, err);
    if (code == 0)
        code = mmu_vm_init(vm, err);
    if (code == 0)
        code = chip_clock_new(&vm->clock,
                              config->virtual_clock ? CHIP_CLOCK_VIRTUAL : CHIP_CLOCK_HOST, err);
    if (code < 0)
        return code;
    chip_clock_on_release(vm->clock, on_clock_released, vm);
    const struct irqchip_config chips = {
        .cpu_count = config->vcpu_count, .clock = vm->clock, .upcalls = &chip_upcalls, .ctx = vm};
    return irqchip_new(&vm->irqchip, &chips, err);
}

static int soft_vm_new(struct engine_vm **out, const struct engine_vm_config *config,
                       struct err *err)
{
    if (config->vcpu_count == 0 || config->vcpu_count > VCPUS_MAX)
        return err_set(err, EINVAL, "%u vCPUs: the soft engine runs 1 to %d", config->vcpu_count,
                       VCPUS_MAX);
    if (config->virtual_clock && config->vcpu_count > 1)
        return err_set(err, EINVAL,
                       "a virtual clock advances with one vCPU's instructions: give the machine "
                       "--cpus 1");
    if (config->code_bytes &&
        (config->code_bytes < TRANSLATE_CODE_MIN || config->code_bytes > TRANSLATE_CODE_MAX))
        return err_set(err, EINVAL,
                       "a code cache has %llu MiB to %llu MiB: --engine soft,code-cache",
                       TRANSLATE_CODE_MIN / MIB, TRANSLATE_CODE_MAX / MIB);
    struct soft_vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return err_errno(err, ENOMEM, "the soft engine");
    vm->base.ops = &engine_soft;
    vm->config = *config;
    pthread_mutex_init(&vm->build_lock, NULL);
    pthread_mutex_init(&vm->ioeventfd_lock, NULL);
    pthread_mutex_init(&vm->exclusive.lock, NULL);
    pthread_cond_init(&vm->exclusive.changed, NULL);
    int code = irqfds_init(vm, err);
    if (code == 0)
        code = make_parts(vm, err);
    if (code == 0)
        code = trace_open(vm, err);
    if (code < 0) {
        soft_vm_free(&vm->base);
        return code;
    }
    *out = &vm->base;
    return 0;
}

static int soft_map(struct engine_vm *evm, unsigned slot, const struct mem_region *region,
                    struct err *err)
{
    struct soft_vm *vm = soft_vm_of(evm);
    pthread_mutex_lock(&vm->build_lock);
    int code = mmu_vm_map(vm, slot, region, err);
    pthread_mutex_unlock(&vm->build_lock);
    return code;
}

static int soft_vm_reset(struct engine_vm *evm, struct err *err)
{
    (void)err;
    irqchip_reset(soft_vm_of(evm)->irqchip);
    return 0;
}

static int soft_gsi_set(struct engine_vm *evm, unsigned gsi, bool level)
{
    return irqchip_gsi_set(soft_vm_of(evm)->irqchip, gsi, level);
}

static int soft_pic_set(struct engine_vm *evm, unsigned irq, bool level)
{
    return irqchip_pic_set(soft_vm_of(evm)->irqchip, irq, level);
}

static int soft_pit_connect(struct engine_vm *evm, bool on)
{
    irqchip_pit_connect(soft_vm_of(evm)->irqchip, on);
    return 0;
}

static int soft_msi_send(struct engine_vm *evm, uint64_t addr, uint32_t data)
{
    return irqchip_msi_send(soft_vm_of(evm)->irqchip, addr, data);
}

static int soft_ioeventfd_add(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    struct soft_vm *vm = soft_vm_of(evm);
    /* Virtual clock: the device must hold it before the write has ended. */
    if (chip_clock_is_virtual(vm->clock))
        return -ENOTSUP;
    pthread_mutex_lock(&vm->ioeventfd_lock);
    bool taken = false;
    for (unsigned i = 0; i < vm->ioeventfd_count; i++) {
        const struct engine_ioeventfd *e = &vm->ioeventfds[i];
        taken |= e->space == ioeventfd->space && e->addr == ioeventfd->addr &&
                 (e->len == ioeventfd->len || e->len == 0 || ioeventfd->len == 0);
    }
    struct engine_ioeventfd *list =
        taken ? NULL : realloc(vm->ioeventfds, (vm->ioeventfd_count + 1) * sizeof(*list));
    if (list) {
        list[vm->ioeventfd_count] = *ioeventfd;
        vm->ioeventfds = list;
        __atomic_store_n(&vm->ioeventfd_count, vm->ioeventfd_count + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&vm->ioeventfd_lock);
    return list ? 0 : -ENOTSUP;
}

static void soft_ioeventfd_del(struct engine_vm *evm, const struct engine_ioeventfd *ioeventfd)
{
    struct soft_vm *vm = soft_vm_of(evm);
    pthread_mutex_lock(&vm->ioeventfd_lock);
    for (unsigned i = 0; i < vm->ioeventfd_count; i++) {
        const struct engine_ioeventfd *e = &vm->ioeventfds[i];
        if (e->fd != ioeventfd->fd || e->addr != ioeventfd->addr || e->space != ioeventfd->space)
            continue;
        vm->ioeventfds[i] = vm->ioeventfds[vm->ioeventfd_count - 1];
        __atomic_store_n(&vm->ioeventfd_count, vm->ioeventfd_count - 1, __ATOMIC_RELEASE);
        break;
    }
    pthread_mutex_unlock(&vm->ioeventfd_lock);
}

static int soft_dirty_start(struct engine_vm *evm, struct err *err)
{
    return mmu_dirty_start(soft_vm_of(evm), err);
}

static int soft_dirty_collect(struct engine_vm *evm, unsigned slot, uint64_t *bitmap)
{
    return mmu_dirty_collect(soft_vm_of(evm), slot, bitmap);
}

static int soft_dirty_stop(struct engine_vm *evm, struct err *err)
{
    return mmu_dirty_stop(soft_vm_of(evm), err);
}

static struct chip_clock *soft_virtual_clock(struct engine_vm *evm)
{
    struct soft_vm *vm = soft_vm_of(evm);
    return chip_clock_is_virtual(vm->clock) ? vm->clock : NULL;
}

static unsigned soft_vcpu_max(struct engine_vm *evm)
{
    (void)evm;
    return VCPUS_MAX;
}

static unsigned soft_phys_bits(struct engine_vm *evm)
{
    return soft_vm_of(evm)->model.phys_bits;
}

/* --- vCPUs --- */

/* The threads of the chips may be about to notify it: its memory stays as long as they do. */
static void soft_vcpu_free(struct engine_vcpu *vcpu)
{
    (void)vcpu;
}

static int soft_vcpu_reset(struct engine_vcpu *vcpu, struct err *err)
{
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    (void)err;
    cpu->msr.tsc_adjust = 0;
    cpu->ran = false;
    soft_cpu_reset_state(cpu);
    irqchip_reset_lapic(cpu->vm->irqchip, cpu->base.id, false);
    cpu->apic_base = irqchip_get_apic_base(cpu->vm->irqchip, cpu->base.id);
    mmu_flush_all(cpu);
    return 0;
}

static void configure_translator(struct soft_cpu *cpu)
{
    const enum engine_translate how = cpu->vm->config.translate;
    const struct translate_options options = {
        .off = how == ENGINE_TRANSLATE_OFF,
        .exact = how == ENGINE_TRANSLATE_EXACT,
        .slow = how == ENGINE_TRANSLATE_SLOW,
        .single = how == ENGINE_TRANSLATE_SINGLE,
        .runs = how == ENGINE_TRANSLATE_FLUSH ? 1 : 0,
        .flush_every = how == ENGINE_TRANSLATE_FLUSH ? 300 : 0,
    };
    translate_configure(cpu, &options);
}

static int make_cpu(struct soft_cpu *cpu, struct err *err)
{
    cpu->cpuid = malloc(sizeof(*cpu->cpuid));
    if (!cpu->cpuid)
        return err_errno(err, ENOMEM, "vCPU %u", cpu->base.id);
    *cpu->cpuid = cpu->vm->model.cpuid;
    cpuid_set_topology(cpu->cpuid, cpu->base.id, cpu->vm->config.vcpu_count);
    int code = mmu_init(cpu, err);
    if (code == 0)
        code = block_cache_init(cpu, err);
    if (code == 0)
        code = translate_init(cpu, err);
    if (code == 0)
        configure_translator(cpu);
    if (code == 0 && cpu->vm->config.tlb_one)
        mmu_use_one_entry(cpu);
    return code;
}

static int soft_vcpu_new(struct engine_vm *evm, unsigned id, struct engine_vcpu **out,
                         struct err *err)
{
    struct soft_vm *vm = soft_vm_of(evm);
    assert(id < vm->config.vcpu_count);
    struct soft_cpu *cpu = mmu_cpu_alloc();
    if (!cpu)
        return err_errno(err, errno, "the memory of vCPU %u", id);
    cpu->base = (struct engine_vcpu){.ops = &engine_soft, .id = id};
    cpu->vm = vm;
    cpu->trace_next = trace_first(vm);
    pthread_mutex_lock(&vm->build_lock);
    int code = make_cpu(cpu, err);
    if (code == 0)
        __atomic_store_n(&vm->cpus[id], cpu, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&vm->build_lock);
    if (code < 0) {
        cpu_free(cpu);
        return code;
    }
    soft_vcpu_reset(&cpu->base, err);
    *out = &cpu->base;
    return 0;
}

/* --- registers --- */

static int soft_vcpu_get(struct engine_vcpu *vcpu, struct cpu_regs *regs, struct cpu_sregs *sregs)
{
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    if (regs) {
        memcpy(regs->gpr, cpu->gpr, sizeof(regs->gpr));
        regs->rip = cpu->rip;
        regs->rflags = cpu->rflags;
    }
    if (sregs)
        *sregs = (struct cpu_sregs){
            .cs = cpu->seg[SEG_CS],
            .ds = cpu->seg[SEG_DS],
            .es = cpu->seg[SEG_ES],
            .fs = cpu->seg[SEG_FS],
            .gs = cpu->seg[SEG_GS],
            .ss = cpu->seg[SEG_SS],
            .tr = cpu->tr,
            .ldt = cpu->ldt,
            .gdt = cpu->gdt,
            .idt = cpu->idt,
            .cr0 = cpu->cr0,
            .cr2 = cpu->cr2,
            .cr3 = cpu->cr3,
            .cr4 = cpu->cr4,
            .cr8 = irqchip_get_cr8(cpu->vm->irqchip, vcpu->id),
            .efer = cpu->efer,
            .apic_base = cpu->apic_base,
        };
    return 0;
}

static int set_system(struct soft_cpu *cpu, const struct cpu_sregs *s)
{
    struct irqchip *chip = cpu->vm->irqchip;
    cpu->seg[SEG_CS] = s->cs;
    cpu->seg[SEG_DS] = s->ds;
    cpu->seg[SEG_ES] = s->es;
    cpu->seg[SEG_FS] = s->fs;
    cpu->seg[SEG_GS] = s->gs;
    cpu->seg[SEG_SS] = s->ss;
    cpu->tr = s->tr;
    cpu->ldt = s->ldt;
    cpu->gdt = s->gdt;
    cpu->idt = s->idt;
    cpu->cr0 = s->cr0 | CPU_CR0_ET;
    cpu->cr2 = s->cr2;
    cpu->cr3 = s->cr3;
    cpu->cr4 = s->cr4;
    cpu->efer = s->efer;
    if (s->apic_base != cpu->apic_base && !irqchip_set_apic_base(chip, cpu->base.id, s->apic_base))
        return -EINVAL;
    cpu->apic_base = irqchip_get_apic_base(chip, cpu->base.id);
    irqchip_set_cr8(chip, cpu->base.id, (uint8_t)s->cr8);
    mmu_flush_all(cpu);
    soft_cpu_update(cpu);
    mmu_cr3_written(cpu, false);
    if (cpu->mode.paging && cpu->cr4 & CPU_CR4_PAE && !cpu->mode.long_active)
        mmu_load_pdptes(cpu, cpu->cr3);
    return 0;
}

/* The guest is entered somewhere else than at the reset vector: no firmware will set up MSRs. */
static void without_firmware(struct soft_vm *vm)
{
    for (unsigned i = 0; i < vm->config.vcpu_count; i++) {
        if (vm->cpus[i])
            soft_cpu_firmware_state(vm->cpus[i]);
    }
}

static int soft_vcpu_set(struct engine_vcpu *vcpu, const struct cpu_regs *regs,
                         const struct cpu_sregs *sregs)
{
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    int code = sregs ? set_system(cpu, sregs) : 0;
    if (code < 0)
        return code;
    if (regs) {
        memcpy(cpu->gpr, regs->gpr, sizeof(regs->gpr));
        cpu->rip = regs->rip;
        cpu->rflags = regs->rflags | RFLAGS_FIXED;
        if (vcpu->id == 0 && !cpu->ran && regs->rip != RESET_RIP)
            without_firmware(cpu->vm);
    }
    soft_cpu_update(cpu);
    return 0;
}

static int soft_vcpu_get_fpu(struct engine_vcpu *vcpu, struct cpu_fpu *fpu)
{
    memcpy(fpu->fxsave, &soft_cpu_of(vcpu)->fpu, sizeof(fpu->fxsave));
    return 0;
}

static int soft_vcpu_set_fpu(struct engine_vcpu *vcpu, const struct cpu_fpu *fpu)
{
    return fpu_set_legacy(soft_cpu_of(vcpu), fpu->fxsave) ? 0 : -EINVAL;
}

/* --- counters --- */

static const char *const exception_names[32] = {
    [EXC_DE] = "#DE", [EXC_DB] = "#DB", [EXC_BP] = "#BP", [EXC_OF] = "#OF", [EXC_BR] = "#BR",
    [EXC_UD] = "#UD", [EXC_NM] = "#NM", [EXC_DF] = "#DF", [EXC_TS] = "#TS", [EXC_NP] = "#NP",
    [EXC_SS] = "#SS", [EXC_GP] = "#GP", [EXC_PF] = "#PF", [EXC_MF] = "#MF", [EXC_AC] = "#AC",
    [EXC_MC] = "#MC", [EXC_XM] = "#XM",
};

static void soft_vcpu_stats(struct engine_vcpu *vcpu, struct engine_stats *stats)
{
    const struct soft_cpu *cpu = soft_cpu_of(vcpu);
    const struct soft_stats *s = &cpu->stats;
    struct block_stats blocks;
    block_cache_stats(cpu, &blocks);
    struct translate_stats code;
    translate_stats(cpu, &code);
    engine_stats_add(stats, cpu->instructions,
                     chip_clock_is_virtual(cpu->vm->clock) ? "instructions"
                                                           : "instructions of the first tier");
    engine_stats_add(stats, code.blocks, "blocks translated");
    engine_stats_add(stats, code.entered, "entries to translated code");
    engine_stats_add(stats, code.loops, "loops of several rounds");
    engine_stats_add(stats, code.parts, "blocks in code of others");
    engine_stats_add(stats, code.steps, "instructions by handlers from there");
    engine_stats_add(stats, code.links, "jumps linked");
    engine_stats_add(stats, code.dropped, "translated blocks dropped");
    engine_stats_add(stats, code.flushes, "translations all forgotten");
    engine_stats_add(stats, code.code_bytes, "bytes of code");
    engine_stats_add(stats, blocks.made, "blocks made");
    engine_stats_add(stats, blocks.found, "blocks found by address");
    engine_stats_add(stats, blocks.stale, "blocks found stale");
    engine_stats_add(stats, blocks.flushes, "block cache flushes");
    engine_stats_add(stats, blocks.bytes, "bytes of blocks");
    engine_stats_add(stats, s->tlb_fills, "TLB misses");
    engine_stats_add(stats, mmu_bytes(cpu), "bytes of TLBs and jump tables");
    engine_stats_add(stats, s->sleeps, "sleeps");
    if (chip_clock_is_virtual(cpu->vm->clock))
        engine_stats_add(stats, s->held, "waits for devices");
    if (cpu->vm->trace)
        engine_stats_add(stats, s->traced, "states traced");
    engine_stats_add(stats, s->port_reads, "device port reads");
    engine_stats_add(stats, s->port_writes, "device port writes");
    engine_stats_add(stats, s->memory_reads, "device memory reads");
    engine_stats_add(stats, s->memory_writes, "device memory writes");
    engine_stats_add(stats, s->ioeventfds, "device notifications (ioeventfd)");
    engine_stats_add(stats, s->chips, "accesses to interrupt chips, timers");
    for (unsigned i = 0; i < ARRAY_LEN(s->exceptions); i++)
        engine_stats_add_ranked(stats, s->exceptions[i], "exception %u %s", i,
                                exception_names[i] ? exception_names[i] : "");
    for (unsigned i = 0; i < ARRAY_LEN(s->interrupts); i++)
        engine_stats_add_ranked(stats, s->interrupts[i], "interrupt %#x%s", i,
                                i == EXC_NMI ? " NMI" : "");
}

/* --- debugging --- */

static int soft_vcpu_debug(struct engine_vcpu *vcpu, const struct engine_debug *debug)
{
    struct soft_cpu *cpu = soft_cpu_of(vcpu);
    cpu->debug.on = debug != NULL;
    cpu->debug.want = debug ? *debug : (struct engine_debug){0};
    cpu->debug.resumed = true;
    soft_cpu_update(cpu);
    return 0;
}

static int soft_vcpu_pass_breakpoint(struct engine_vcpu *vcpu)
{
    soft_cpu_of(vcpu)->debug.pass_breakpoint = true;
    return 0;
}

static bool soft_vcpu_translate(struct engine_vcpu *vcpu, gva_t gva, gpa_t *gpa)
{
    uint64_t address;
    if (!mmu_translate(soft_cpu_of(vcpu), gva.a, &address))
        return false;
    *gpa = GPA(address);
    return true;
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .vm_new = soft_vm_new,
    .vm_free = soft_vm_free,
    .map = soft_map,
    .vm_reset = soft_vm_reset,
    .gsi_set = soft_gsi_set,
    .pic_set = soft_pic_set,
    .pit_connect = soft_pit_connect,
    .msi_send = soft_msi_send,
    .irqfd_new = soft_irqfd_new,
    .irqfd_set = soft_irqfd_set,
    .irqfd_free = soft_irqfd_free,
    .ioeventfd_add = soft_ioeventfd_add,
    .ioeventfd_del = soft_ioeventfd_del,
    .dirty_start = soft_dirty_start,
    .dirty_collect = soft_dirty_collect,
    .dirty_stop = soft_dirty_stop,
    .vcpu_new = soft_vcpu_new,
    .vcpu_free = soft_vcpu_free,
    .vcpu_reset = soft_vcpu_reset,
    .vcpu_run = soft_vcpu_run,
    .vcpu_kick = soft_vcpu_kick,
    .vcpu_get = soft_vcpu_get,
    .vcpu_set = soft_vcpu_set,
    .vcpu_get_fpu = soft_vcpu_get_fpu,
    .vcpu_set_fpu = soft_vcpu_set_fpu,
    .vcpu_debug = soft_vcpu_debug,
    .vcpu_pass_breakpoint = soft_vcpu_pass_breakpoint,
    .vcpu_translate = soft_vcpu_translate,
    .vcpu_stats = soft_vcpu_stats,
    .virtual_clock = soft_virtual_clock,
    .vcpu_max = soft_vcpu_max,
    .phys_bits = soft_phys_bits,
};
