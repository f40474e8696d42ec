/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "engine/kvm/internal.h"

/*
 * Guest-physical pages that KVM takes for itself on Intel processors without unrestricted guest
 * mode (api.rst, 4.35 and 4.41): three for the task state, one for an identity page table. They
 * are LAYOUT_KVM_TSS and LAYOUT_KVM_IDENT of the machine's address map, which leaves them free;
 * the engine is below that map and may not include it.
 */
#define TSS_ADDR      0xfeffd000UL
#define IDENTITY_ADDR 0xfeffc000ULL

/* Pages that one KVM_CLEAR_DIRTY_LOG protects: the guest's page faults wait for it. */
#define CLEAR_PAGES (64 * 1024u)

static int create_failed(struct err *err, int code)
{
    if (code == EBUSY)
        return err_set(err, code,
                       "KVM cannot have the processor's virtualization: another hypervisor "
                       "(VirtualBox, VMware) uses it; end its machines");
    if (code == ENOMEM)
        return err_set(err, code, "KVM has no memory for another VM");
    return err_errno(err, code, "create a VM");
}

/* Signals that arrive while KVM registers its notifiers make it give up with EINTR. */
static int create_vm(const struct kvm_host *host)
{
    for (;;) {
        int fd = ioctl(host->fd, KVM_CREATE_VM, 0UL);
        if (fd >= 0)
            return fd;
        if (errno != EINTR)
            return -errno;
    }
}

static int enable_cap(int fd, uint32_t capability, uint64_t arg)
{
    struct kvm_enable_cap cap = {.cap = capability, .args = {arg}};
    return ioctl(fd, KVM_ENABLE_CAP, &cap) < 0 ? -errno : 0;
}

/*
 * The processor's name, and with AMD its first-level caches and TLBs: they say nothing that KVM
 * would have to support, and it leaves them zero.
 */
static void add_processor_leaves(struct cpuid_table *table)
{
    static const uint32_t functions[] = {0x80000002, 0x80000003, 0x80000004, 0x80000005};
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        struct cpuid_leaf *leaf = cpuid_find(table, functions[i], 0);
        if (leaf && !(leaf->eax | leaf->ebx | leaf->ecx | leaf->edx))
            __get_cpuid(functions[i], &leaf->eax, &leaf->ebx, &leaf->ecx, &leaf->edx);
    }
}

/* What KVM and the processor can give a guest, made into the machine's CPUID. */
static int load_cpuid(struct kvm_machine *vm, struct err *err)
{
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_LEAVES_MAX * sizeof(cpuid->entries[0]));
    if (!cpuid)
        return err_errno(err, ENOMEM, "CPUID");
    cpuid->nent = CPUID_LEAVES_MAX;
    if (ioctl(vm->host.fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        int code = errno;
        free(cpuid);
        return err_errno(err, code, "ask KVM for the supported CPUID");
    }
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        vm->cpuid.leaves[i] =
            (struct cpuid_leaf){.function = e->function,
                                .index = e->index,
                                .indexed = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                .eax = e->eax,
                                .ebx = e->ebx,
                                .ecx = e->ecx,
                                .edx = e->edx};
    }
    vm->cpuid.count = cpuid->nent;
    free(cpuid);
    add_processor_leaves(&vm->cpuid);
    cpuid_set_features(
        &vm->cpuid, &(struct cpuid_options){.tsc_deadline = vm->host.tsc_deadline, .x2apic = true});
    return 0;
}

/* Interrupt controllers, PIT and the pages of its own: all before the first vCPU. */
static int create_chips(struct kvm_machine *vm, struct err *err)
{
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, TSS_ADDR) < 0)
        return err_errno(err, errno, "KVM_SET_TSS_ADDR");
    uint64_t identity = IDENTITY_ADDR;
    if (kvm_host_check(&vm->host, KVM_CAP_SET_IDENTITY_MAP_ADDR) &&
        ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return err_errno(err, errno, "KVM_SET_IDENTITY_MAP_ADDR");
    if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return err_errno(err, errno, "create the interrupt controllers");
    /* Port 0x61 is the kernel's too: the bits by which a guest waits for channel 2 are there. */
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit) < 0)
        return err_errno(err, errno, "create the interval timer");
    if (vm->host.x2apic_api)
        enable_cap(vm->fd, KVM_CAP_X2APIC_API,
                   KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    if (vm->host.manual_dirty_protect)
        vm->host.manual_dirty_protect = enable_cap(vm->fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                                   KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0;
    return kvm_state_take_chips(vm, err);
}

static int kvm_vm_new(struct engine_vm **out, const struct engine_vm_config *config,
                      struct err *err)
{
    struct kvm_machine *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return err_errno(err, ENOMEM, "VM");
    vm->base.ops = &engine_kvm;
    vm->config = *config;
    int code = kvm_host_open(&vm->host, err);
    if (code < 0)
        goto free_vm;
    if (config->vcpu_count == 0 || config->vcpu_count > engine_kvm.vcpu_max(&vm->base)) {
        code = err_set(err, EINVAL, "%u vCPUs: this host's KVM runs 1 to %u in a VM",
                       config->vcpu_count, engine_kvm.vcpu_max(&vm->base));
        goto close_host;
    }
    vm->fd = create_vm(&vm->host);
    if (vm->fd < 0) {
        code = create_failed(err, -vm->fd);
        goto close_host;
    }
    int run_bytes = ioctl(vm->host.fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < (int)sizeof(struct kvm_run)) {
        code = err_set(err, ENOTSUP, "KVM's shared page of a vCPU is too small");
        goto close_vm;
    }
    vm->run_bytes = (size_t)run_bytes;
    code = kvm_kick_signal_install(err);
    if (code == 0)
        code = load_cpuid(vm, err);
    if (code == 0)
        code = create_chips(vm, err);
    if (code == 0)
        code = kvm_irq_init(vm, err);
    if (code < 0)
        goto close_vm;
    *out = &vm->base;
    return 0;

close_vm:
    close(vm->fd);
close_host:
    kvm_host_close(&vm->host);
free_vm:
    free(vm);
    return code;
}

static void kvm_vm_free(struct engine_vm *evm)
{
    if (!evm)
        return;
    struct kvm_machine *vm = kvm_machine_of(evm);
    assert(vm->vcpus == 0);
    if (vm->measured)
        kvm_cpu_free(vm->measured);
    kvm_irq_fini(vm);
    kvm_state_fini(vm);
    for (size_t i = 0; i < KVM_SLOT_COUNT; i++)
        free(vm->slots[i].log);
    close(vm->fd);
    kvm_host_close(&vm->host);
    free(vm);
}

static unsigned kvm_vcpu_max(struct engine_vm *evm)
{
    return (unsigned)kvm_machine_of(evm)->host.vcpus_max;
}

static unsigned kvm_phys_bits(struct engine_vm *evm)
{
    return cpuid_phys_bits(&kvm_machine_of(evm)->cpuid);
}

/* --- memory --- */

int kvm_slot_set(struct kvm_machine *vm, unsigned slot, uint64_t gpa, void *host,
                 uint64_t len_bytes, uint32_t flags)
{
    struct kvm_userspace_memory_region region = {.slot = slot,
                                                 .flags = flags,
                                                 .guest_phys_addr = gpa,
                                                 .memory_size = len_bytes,
                                                 .userspace_addr = (uintptr_t)host};
    return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

static int kvm_map(struct engine_vm *evm, unsigned slot, const struct mem_region *region,
                   struct err *err)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    assert(slot < MEM_REGIONS_MAX && vm->slots[slot].len_bytes == 0);
    int code = kvm_slot_set(vm, slot, region->base.a, region->host, region->len_bytes,
                            region->read_only ? KVM_MEM_READONLY : 0);
    if (code < 0)
        return err_errno(err, code, "give %s to KVM", region->name);
    vm->slots[slot] = (struct slot){.base = region->base.a,
                                    .len_bytes = region->len_bytes,
                                    .host = region->host,
                                    .read_only = region->read_only};
    return 0;
}

const uint8_t *kvm_guest_byte(const struct kvm_machine *vm, uint64_t gpa)
{
    for (size_t i = 0; i < KVM_SLOT_COUNT; i++) {
        const struct slot *slot = &vm->slots[i];
        if (gpa - slot->base < slot->len_bytes)
            return slot->host + (gpa - slot->base);
    }
    return NULL;
}

/* --- dirty log --- */

static int slot_log(struct kvm_machine *vm, unsigned index, bool on)
{
    struct slot *slot = &vm->slots[index];
    if (slot->len_bytes == 0 || slot->read_only)
        return 0;
    if (on && !slot->log) {
        slot->log = calloc(bitmap_words(slot->len_bytes / PAGE_SIZE_BYTES), sizeof(*slot->log));
        if (!slot->log)
            return -ENOMEM;
    }
    return kvm_slot_set(vm, index, slot->base, slot->host, slot->len_bytes,
                        on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static int kvm_dirty_stop(struct engine_vm *evm, struct err *err)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    int code = 0;
    for (unsigned i = 0; i < MEM_REGIONS_MAX; i++) {
        int rc = slot_log(vm, i, false);
        if (rc < 0)
            code = rc;
        free(vm->slots[i].log);
        vm->slots[i].log = NULL;
    }
    vm->dirty_logging = false;
    return code < 0 ? err_errno(err, code, "stop KVM's dirty log") : 0;
}

static int kvm_dirty_start(struct engine_vm *evm, struct err *err)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    for (unsigned i = 0; i < MEM_REGIONS_MAX; i++) {
        int rc = slot_log(vm, i, true);
        if (rc < 0) {
            kvm_dirty_stop(evm, NULL);
            return err_errno(err, rc, "start KVM's dirty log");
        }
    }
    vm->dirty_logging = true;
    return 0;
}

/* Write-protect again what the log has shown, in parts, leaving out those that are clean. */
static int clear_log(struct kvm_machine *vm, unsigned index, uint64_t *log, uint64_t pages)
{
    for (uint64_t first = 0; first < pages; first += CLEAR_PAGES) {
        uint64_t count = pages - first < CLEAR_PAGES ? pages - first : CLEAR_PAGES;
        uint64_t any = 0;
        for (uint64_t word = first / 64; word < (first + count + 63) / 64; word++)
            any |= log[word];
        if (!any)
            continue;
        struct kvm_clear_dirty_log clear = {.slot = index,
                                            .num_pages = (uint32_t)count,
                                            .first_page = first,
                                            .dirty_bitmap = &log[first / 64]};
        if (ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
            return -errno;
    }
    return 0;
}

static int kvm_dirty_collect(struct engine_vm *evm, unsigned index, uint64_t *bitmap)
{
    struct kvm_machine *vm = kvm_machine_of(evm);
    assert(index < MEM_REGIONS_MAX);
    struct slot *slot = &vm->slots[index];
    if (slot->read_only)
        return 0;
    if (!vm->dirty_logging || !slot->log)
        return -ENOENT;
    uint64_t pages = slot->len_bytes / PAGE_SIZE_BYTES;
    struct kvm_dirty_log log = {.slot = index, .dirty_bitmap = slot->log};
    if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) < 0)
        return -errno;
    /* First of all: without the manual mode, and in it behind a part that fails to be cleared, the
     * kernel no longer has what is not in bitmap. */
    for (size_t i = 0; i < bitmap_words(pages); i++)
        bitmap[i] |= slot->log[i];
    return vm->host.manual_dirty_protect ? clear_log(vm, index, slot->log, pages) : 0;
}

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .probe = kvm_probe,
    .vm_new = kvm_vm_new,
    .vm_free = kvm_vm_free,
    .vm_measure = kvm_vm_measure,
    .map = kvm_map,
    .vm_reset = kvm_vm_reset,
    .gsi_set = kvm_gsi_set,
    .pic_set = kvm_pic_set,
    .pit_connect = kvm_pit_connect,
    .msi_send = kvm_msi_send,
    .irqfd_new = kvm_irqfd_new,
    .irqfd_set = kvm_irqfd_set,
    .irqfd_free = kvm_irqfd_free,
    .ioeventfd_add = kvm_ioeventfd_add,
    .ioeventfd_del = kvm_ioeventfd_del,
    .dirty_start = kvm_dirty_start,
    .dirty_collect = kvm_dirty_collect,
    .dirty_stop = kvm_dirty_stop,
    .vcpu_new = kvm_vcpu_new,
    .vcpu_free = kvm_vcpu_free,
    .vcpu_reset = kvm_vcpu_reset,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_get = kvm_vcpu_get,
    .vcpu_set = kvm_vcpu_set,
    .vcpu_get_fpu = kvm_vcpu_get_fpu,
    .vcpu_set_fpu = kvm_vcpu_set_fpu,
    .vcpu_debug = kvm_vcpu_debug,
    .vcpu_pass_breakpoint = kvm_vcpu_pass_breakpoint,
    .vcpu_translate = kvm_vcpu_translate,
    .vcpu_stats = kvm_vcpu_stats,
    .vcpu_max = kvm_vcpu_max,
    .phys_bits = kvm_phys_bits,
};
