/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpuid.h"

#include "base/tap.h"
#include "base/units.h"

static void add(struct cpuid_table *t, uint32_t function, uint32_t index, bool indexed,
                uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx)
{
    t->leaves[t->count++] = (struct cpuid_leaf){.function = function,
                                                .index = index,
                                                .indexed = indexed,
                                                .eax = eax,
                                                .ebx = ebx,
                                                .ecx = ecx,
                                                .edx = edx};
}

static void add_vendor(struct cpuid_table *t, uint32_t max, const char *vendor)
{
    add(t, 0, 0, false, max, load_le32(vendor), load_le32(vendor + 8), load_le32(vendor + 4));
}

static void intel(struct cpuid_table *t)
{
    t->count = 0;
    add_vendor(t, 0x1f, "GenuineIntel");
    add(t, 1, 0, false, 0x906a0, 0x05ff0800, ~0u, ~0u);
    add(t, 4, 0, true, 0xfc00c121, 0, 0, 0); /* L1 data */
    add(t, 4, 1, true, 0xfc00c122, 0, 0, 0); /* L1 code */
    add(t, 4, 2, true, 0xfc00c143, 0, 0, 0); /* L2 */
    add(t, 4, 3, true, 0xfc1fc163, 0, 0, 0); /* L3 */
    add(t, 4, 4, true, 0, 0, 0, 0);
    add(t, 5, 0, false, 0x40, 0x40, 3, 0);
    add(t, 7, 0, true, 1, ~0u, ~0u, ~0u);
    add(t, 0xb, 0, true, 1, 2, 0x100, 77);
    add(t, 0xb, 1, true, 7, 96, 0x201, 77);
    add(t, 0x12, 0, true, 1, 0, 0, 0);
    add(t, 0x14, 0, true, 1, 0, 0, 0);
    add(t, 0x1f, 0, true, 1, 2, 0x100, 77);
    add(t, 0x40000000, 0, false, 0x40000001, 0, 0, 0);
    add(t, 0x40000001, 0, false, 0x01007efb, 0, 0, 0);
    add(t, 0x80000008, 0, false, 0x303934, 0, 0, 0);
}

static void amd(struct cpuid_table *t)
{
    t->count = 0;
    add_vendor(t, 0x10, "AuthenticAMD");
    add(t, 1, 0, false, 0xa10f11, 0x4d600800, ~0u, ~0u);
    add(t, 0x80000001, 0, false, 0, 0, ~0u, ~0u);
    add(t, 0x80000008, 0, false, 0x2d3030, 0xffff, 0xffffffff, 0);
    add(t, 0x8000000a, 0, false, 1, 8, 0, 0);
    add(t, 0x8000001d, 0, true, 0x4121, 0, 0, 0);
    add(t, 0x8000001d, 3, true, 0x3c163, 0, 0, 0);
    add(t, 0x8000001e, 0, false, 77, 0x123, 0x707, 0);
    add(t, 0x80000026, 0, true, 1, 2, 0x100, 77);
}

static void test_features(void)
{
    static struct cpuid_table t;
    intel(&t);
    cpuid_set_features(&t, &(struct cpuid_options){.tsc_deadline = true, .x2apic = true});
    struct cpuid_leaf *l = cpuid_find(&t, 1, 0);
    ok((l->ecx & 1u << 5) == 0, "VMX is hidden");
    ok((l->ecx & 1u << 3) == 0, "MWAIT is hidden");
    ok((l->ecx & 1u << 21) && (l->ecx & 1u << 24) && (l->ecx & 1u << 31),
       "x2APIC, TSC deadline, hypervisor are set");
    ok((l->ecx & 1u << 0) && (l->ecx & 1u << 28), "SSE3 and AVX are left");
    l = cpuid_find(&t, 7, 0);
    is_int(l->ebx, ~0u & ~(1u << 2) & ~(1u << 12) & ~(1u << 15) & ~(1u << 25),
           "SGX, RDT, PT are hidden, all else is left");
    is_int(l->edx, ~0u & ~(1u << 19), "architectural LBRs are hidden");
    ok(!cpuid_find(&t, 5, 0) && !cpuid_find(&t, 0x12, 0) && !cpuid_find(&t, 0x14, 0),
       "leaves of hidden features are gone");
    l = cpuid_find(&t, 0x40000000, 0);
    char signature[13] = {0};
    store_le32(signature, l->ebx);
    store_le32(signature + 4, l->ecx);
    store_le32(signature + 8, l->edx);
    is_str(signature, "KVMKVMKVM", "KVM's signature");
    is_int(l->eax, 0x40000001, "with its features");
    is_int(cpuid_find(&t, 0x40000001, 0)->eax, 0x01007efb, "which are those of the engine");

    intel(&t);
    cpuid_set_features(&t, &(struct cpuid_options){0});
    l = cpuid_find(&t, 1, 0);
    ok(!(l->ecx & 1u << 21) && !(l->ecx & 1u << 24), "without x2APIC and TSC deadline");

    amd(&t);
    cpuid_set_features(&t, &(struct cpuid_options){.x2apic = true});
    ok(!(cpuid_find(&t, 0x80000001, 0)->ecx & 4) && !cpuid_find(&t, 0x8000000a, 0),
       "SVM is hidden");

    t.count = 0;
    cpuid_set_features(&t, &(struct cpuid_options){.x2apic = true});
    is_int(cpuid_find(&t, 0, 0)->eax, 0xb, "leaf 0xB is in range even if nothing was there");
}

/* What a guest makes of leaf 0xB: package id and core id. */
static unsigned package_of(struct cpuid_table *t)
{
    const struct cpuid_leaf *core = cpuid_find(t, 0xb, 1);
    return core->edx >> core->eax;
}

static void test_topology_intel(void)
{
    static struct cpuid_table t;
    for (unsigned id = 0; id < 6; id++) {
        intel(&t);
        cpuid_set_topology(&t, id, 6);
        const struct cpuid_leaf *l = cpuid_find(&t, 1, 0);
        bool good = l->ebx >> 24 == id && (l->ebx >> 16 & 0xff) == 8 &&
                    (l->ebx & 0xffff) == 0x0800 && (l->edx & 1u << 28) &&
                    cpuid_find(&t, 0xb, 0)->edx == id && package_of(&t) == 0 &&
                    cpuid_find(&t, 0x1f, 1)->edx == id;
        ok(good, "ids of a vCPU");
    }
    const struct cpuid_leaf *l = cpuid_find(&t, 0xb, 0);
    ok(l->eax == 0 && l->ebx == 1 && l->ecx == 0x100, "one thread a core");
    l = cpuid_find(&t, 0xb, 1);
    ok(l->eax == 3 && l->ebx == 6 && l->ecx == 0x201, "six cores");
    l = cpuid_find(&t, 0xb, 2);
    ok(l->eax == 0 && l->ebx == 0 && l->ecx == 2, "the list ends");
    l = cpuid_find(&t, 4, 0);
    is_int(l->eax, 0x1c000121, "the first level is a core's own; 8 core ids");
    is_int(cpuid_find(&t, 4, 2)->eax, 0x1c000143, "the second level, too");
    is_int(cpuid_find(&t, 4, 3)->eax, 0x1c01c163, "the third is shared by all");
    is_int(cpuid_find(&t, 4, 4)->eax, 0, "the end of the list stays");

    intel(&t);
    cpuid_set_topology(&t, 0, 1);
    l = cpuid_find(&t, 1, 0);
    ok(!(l->edx & 1u << 28) && (l->ebx >> 16 & 0xff) == 1, "a single vCPU has no HTT");
    is_int(cpuid_find(&t, 0xb, 1)->ebx, 1, "one core");

    intel(&t);
    cpuid_set_topology(&t, 254, 255);
    l = cpuid_find(&t, 1, 0);
    ok(l->ebx >> 24 == 254 && (l->ebx >> 16 & 0xff) == 0xff, "255 vCPUs");
    is_int(cpuid_find(&t, 4, 0)->eax >> 26, 0x3f, "a field that is too narrow is at its maximum");
    is_int(cpuid_find(&t, 0xb, 1)->eax, 8, "8 bits of core id");
}

static void test_topology_amd(void)
{
    static struct cpuid_table t;
    amd(&t);
    cpuid_set_topology(&t, 2, 3);
    const struct cpuid_leaf *l = cpuid_find(&t, 0x80000008, 0);
    is_int(l->ecx & 0xff, 2, "three cores");
    is_int(l->ecx >> 12 & 0xf, 2, "in two bits of APIC id");
    is_int(l->ecx >> 16, 0xffff, "the rest of the register is left");
    l = cpuid_find(&t, 0x8000001e, 0);
    is_int(l->eax, 2, "extended APIC id");
    is_int(l->ebx & 0xffff, 2, "one thread; the core's id");
    is_int(l->ecx & 0x7ff, 0, "one node");
    is_int(cpuid_find(&t, 0x8000001d, 0)->eax, 0x121, "the first level is a core's own");
    is_int(cpuid_find(&t, 0x8000001d, 3)->eax, 0xc163, "the third is shared");
    ok(cpuid_find(&t, 0x80000001, 0)->ecx & 2, "CmpLegacy with several");
    amd(&t);
    cpuid_set_topology(&t, 0, 1);
    ok(!(cpuid_find(&t, 0x80000001, 0)->ecx & 2), "and not with one");
    amd(&t);
    cpuid_set_features(&t, &(struct cpuid_options){0});
    ok(!cpuid_find(&t, 0x80000026, 0), "no extended topology of the host");
}

static void test_limits(void)
{
    static struct cpuid_table t;
    intel(&t);
    is_int(cpuid_phys_bits(&t), 0x30, "the bits that can be mapped, when fewer");
    cpuid_find(&t, 0x80000008, 0)->eax = 0x30392e;
    is_int(cpuid_phys_bits(&t), 0x2e, "else the processor's");
    t.count = 0;
    is_int(cpuid_phys_bits(&t), 36, "36 where nothing says");

    memset(&t, 0, sizeof(t));
    for (size_t i = 0; i < CPUID_LEAVES_MAX; i++)
        add(&t, 0x90000000 + (uint32_t)i, 0, false, 0, 0, 0, 0);
    cpuid_set_features(&t, &(struct cpuid_options){.x2apic = true});
    cpuid_set_topology(&t, 3, 4);
    is_int(t.count, CPUID_LEAVES_MAX, "a full table stays full");
}

int main(void)
{
    test_features();
    test_topology_intel();
    test_topology_amd();
    test_limits();
    return tap_done();
}
