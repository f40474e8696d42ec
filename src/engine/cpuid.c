/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/cpuid.h"

#include <string.h>

#include "base/units.h"

#define KVM_LEAF_SIGNATURE 0x40000000u
#define KVM_LEAF_FEATURES  0x40000001u

/* Topology level types of leaf 0xB and 0x1F, ECX[15:8] (SDM vol. 2, table 3-8). */
#define LEVEL_TYPE_SMT  1u
#define LEVEL_TYPE_CORE 2u

enum cpuid_register {
    REG_EAX,
    REG_EBX,
    REG_ECX,
    REG_EDX,
};

/* Features that are hidden: what a guest could find, and not use. */
static const struct hidden_bit {
    uint32_t function, index;
    enum cpuid_register reg;
    unsigned bit;
    const char *name;
} hidden_bits[] = {
    {0x1,        0, REG_ECX, 2,  "DTES64"                                                 },
    {0x1,        0, REG_ECX, 3,  "MONITOR/MWAIT: an idle loop would not leave to the host"},
    {0x1,        0, REG_ECX, 4,  "DS-CPL"                                                 },
    {0x1,        0, REG_ECX, 5,  "VMX: nested virtualization is not offered"              },
    {0x1,        0, REG_ECX, 6,  "SMX"                                                    },
    {0x1,        0, REG_ECX, 7,  "EIST: no frequency control"                             },
    {0x1,        0, REG_ECX, 8,  "TM2"                                                    },
    {0x1,        0, REG_EDX, 21, "DS: debug store"                                        },
    {0x7,        0, REG_EBX, 2,  "SGX: needs memory of its own kind"                      },
    {0x7,        0, REG_EBX, 12, "RDT-M"                                                  },
    {0x7,        0, REG_EBX, 15, "RDT-A"                                                  },
    {0x7,        0, REG_EBX, 25, "Intel PT: writes traces by physical address"            },
    {0x7,        0, REG_ECX, 30, "SGX launch configuration"                               },
    {0x7,        0, REG_EDX, 19, "architectural LBRs"                                     },
    {0x80000001, 0, REG_ECX, 2,  "SVM: nested virtualization is not offered"              },
    {0x80000001, 0, REG_ECX, 10, "IBS"                                                    },
    {0x80000001, 0, REG_ECX, 29, "MWAITX"                                                 },
};

/* Leaves that only make sense with a feature that is hidden, or describe the host's topology in
 * ways that the virtual one does not have: they read as zero, as leaves out of range do. */
static const uint32_t hidden_leaves[] = {
    0x5,        /* MONITOR/MWAIT */
    0xf,        /* RDT monitoring */
    0x10,       /* RDT allocation */
    0x12,       /* SGX */
    0x14,       /* Intel PT */
    0x1c,       /* architectural LBRs */
    0x8000000a, /* SVM */
    0x8000001b, /* IBS */
    0x8000001f, /* SME, SEV */
    0x80000026, /* AMD extended topology: 0xB says all there is */
};

struct cpuid_leaf *cpuid_find(struct cpuid_table *table, uint32_t function, uint32_t index)
{
    for (size_t i = 0; i < table->count; i++) {
        struct cpuid_leaf *leaf = &table->leaves[i];
        if (leaf->function == function && (!leaf->indexed || leaf->index == index))
            return leaf;
    }
    return NULL;
}

/* Find or append; NULL when the table is full. */
static struct cpuid_leaf *leaf_put(struct cpuid_table *table, uint32_t function, uint32_t index,
                                   bool indexed)
{
    struct cpuid_leaf *leaf = cpuid_find(table, function, index);
    if (leaf)
        return leaf;
    if (table->count == CPUID_LEAVES_MAX)
        return NULL;
    leaf = &table->leaves[table->count++];
    *leaf = (struct cpuid_leaf){.function = function, .index = index, .indexed = indexed};
    return leaf;
}

static void leaf_remove_all(struct cpuid_table *table, uint32_t function)
{
    size_t kept = 0;
    for (size_t i = 0; i < table->count; i++) {
        if (table->leaves[i].function != function)
            table->leaves[kept++] = table->leaves[i];
    }
    table->count = kept;
}

static uint32_t *leaf_reg(struct cpuid_leaf *leaf, enum cpuid_register reg)
{
    switch (reg) {
    case REG_EAX:
        return &leaf->eax;
    case REG_EBX:
        return &leaf->ebx;
    case REG_ECX:
        return &leaf->ecx;
    case REG_EDX:
        break;
    }
    return &leaf->edx;
}

/* AMD's leaves (and Hygon's, which are the same). */
static bool is_amd(struct cpuid_table *table)
{
    const struct cpuid_leaf *leaf = cpuid_find(table, 0, 0);
    if (!leaf)
        return false;
    char vendor[12];
    store_le32(vendor, leaf->ebx);
    store_le32(vendor + 4, leaf->edx);
    store_le32(vendor + 8, leaf->ecx);
    return memcmp(vendor, "AuthenticAMD", 12) == 0 || memcmp(vendor, "HygonGenuine", 12) == 0;
}

static void set_bit32(uint32_t *value, unsigned bit, bool on)
{
    *value = on ? *value | 1u << bit : *value & ~(1u << bit);
}

void cpuid_set_features(struct cpuid_table *table, const struct cpuid_options *options)
{
    for (size_t i = 0; i < ARRAY_LEN(hidden_bits); i++) {
        const struct hidden_bit *h = &hidden_bits[i];
        struct cpuid_leaf *leaf = cpuid_find(table, h->function, h->index);
        if (leaf)
            set_bit32(leaf_reg(leaf, h->reg), h->bit, false);
    }
    for (size_t i = 0; i < ARRAY_LEN(hidden_leaves); i++)
        leaf_remove_all(table, hidden_leaves[i]);

    struct cpuid_leaf *leaf = leaf_put(table, 0x1, 0, false);
    if (leaf) {
        set_bit32(&leaf->ecx, 21, options->x2apic);
        set_bit32(&leaf->ecx, 24, options->tsc_deadline);
        set_bit32(&leaf->ecx, 31, true); /* a hypervisor is present */
        set_bit32(&leaf->edx, 9, true);  /* APIC */
    }

    /* KVM's interface by its name: "KVMKVMKVM\0\0\0" in EBX, ECX, EDX. The features are those that
     * the engine has filled in. */
    leaf = leaf_put(table, KVM_LEAF_SIGNATURE, 0, false);
    if (leaf) {
        leaf->eax = KVM_LEAF_FEATURES;
        leaf->ebx = load_le32("KVMK");
        leaf->ecx = load_le32("VMKV");
        leaf->edx = load_le32("M\0\0");
    }
    leaf_put(table, KVM_LEAF_FEATURES, 0, false);

    /* x2APIC ids are found in leaf 0xB: it must be within the range of basic leaves. */
    leaf = leaf_put(table, 0, 0, false);
    if (leaf && leaf->eax < 0xb)
        leaf->eax = 0xb;
}

/* Bits that number 0 .. count - 1. */
static unsigned id_bits(unsigned count)
{
    unsigned bits = 0;
    while (bits < 31 && (1u << bits) < count)
        bits++;
    return bits;
}

static uint32_t field_max(uint32_t value, uint32_t max)
{
    return value < max ? value : max;
}

/* Leaf 0xB, and 0x1F where there is one: thread, core, end of list. */
static void set_extended_topology(struct cpuid_table *table, uint32_t function, unsigned id,
                                  unsigned vcpu_count)
{
    const struct {
        uint32_t shift, count, type;
    } levels[] = {
        {0,                   1,          LEVEL_TYPE_SMT },
        {id_bits(vcpu_count), vcpu_count, LEVEL_TYPE_CORE},
        {0,                   0,          0              },
    };
    leaf_remove_all(table, function);
    for (uint32_t i = 0; i < ARRAY_LEN(levels); i++) {
        struct cpuid_leaf *leaf = leaf_put(table, function, i, true);
        if (!leaf)
            return;
        leaf->eax = levels[i].shift;
        leaf->ebx = levels[i].count;
        leaf->ecx = i | levels[i].type << 8;
        leaf->edx = id;
    }
}

/* Leaves 4 (Intel) and 0x8000001D (AMD), which share their layout: EAX[7:5] the level, EAX[25:14]
 * how many threads share the cache, less one. First and second level are a core's own. */
static void set_cache_sharing(struct cpuid_table *table, unsigned vcpu_count)
{
    uint32_t ids = 1u << id_bits(vcpu_count);
    for (size_t i = 0; i < table->count; i++) {
        struct cpuid_leaf *leaf = &table->leaves[i];
        if ((leaf->function != 0x4 && leaf->function != 0x8000001d) || (leaf->eax & 0x1f) == 0)
            continue;
        bool shared = (leaf->eax >> 5 & 7) >= 3;
        uint32_t sharing = shared ? field_max(ids - 1, 0xfff) : 0;
        leaf->eax = (leaf->eax & ~(0xfffu << 14)) | sharing << 14;
        if (leaf->function == 0x4) /* core ids in the package, less one */
            leaf->eax = (leaf->eax & ~(0x3fu << 26)) | field_max(ids - 1, 0x3f) << 26;
    }
}

static void set_amd_topology(struct cpuid_table *table, unsigned id, unsigned vcpu_count)
{
    struct cpuid_leaf *leaf = cpuid_find(table, 0x80000001, 0);
    if (leaf)
        set_bit32(&leaf->ecx, 1, vcpu_count > 1); /* CmpLegacy: HTT means cores */
    leaf = cpuid_find(table, 0x80000008, 0);
    if (leaf)
        leaf->ecx =
            (leaf->ecx & ~0xf0ffu) | id_bits(vcpu_count) << 12 | field_max(vcpu_count - 1, 0xff);
    leaf = cpuid_find(table, 0x8000001e, 0);
    if (leaf) {
        leaf->eax = id;                                   /* extended APIC id */
        leaf->ebx = (leaf->ebx & ~0xffffu) | (id & 0xff); /* 1 thread a core; the core's id */
        leaf->ecx &= ~0x7ffu;                             /* 1 node, node 0 */
    }
}

void cpuid_set_topology(struct cpuid_table *table, unsigned id, unsigned vcpu_count)
{
    struct cpuid_leaf *leaf = cpuid_find(table, 0x1, 0);
    if (leaf) {
        uint32_t ids = field_max(1u << id_bits(vcpu_count), 0xff);
        leaf->ebx = (leaf->ebx & 0xffff) | ids << 16 | (id & 0xff) << 24;
        set_bit32(&leaf->edx, 28, vcpu_count > 1); /* HTT: EBX[23:16] is valid */
    }
    set_extended_topology(table, 0xb, id, vcpu_count);
    leaf = cpuid_find(table, 0, 0);
    if (leaf && leaf->eax >= 0x1f)
        set_extended_topology(table, 0x1f, id, vcpu_count);
    set_cache_sharing(table, vcpu_count);
    if (is_amd(table))
        set_amd_topology(table, id, vcpu_count);
}

unsigned cpuid_phys_bits(struct cpuid_table *table)
{
    const struct cpuid_leaf *leaf = cpuid_find(table, 0x80000008, 0);
    if (!leaf || (leaf->eax & 0xff) == 0)
        return 36;
    unsigned bits = leaf->eax & 0xff, mappable = leaf->eax >> 16 & 0xff;
    /* [23:16]: less can be mapped by nested paging than the processor has. */
    return mappable != 0 && mappable < bits ? mappable : bits;
}
