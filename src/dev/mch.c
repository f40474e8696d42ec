/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/mch.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"

#define MCH_PCIEXBAR        0x60u /* 5.1.15 */
#define PCIEXBAR_ENABLE     1u
#define PCIEXBAR_ADDRESS    0xff0000000ULL /* bits 28-35; the two below where the window is small */
#define PCIEXBAR_ADDRESS_27 (1ULL << 27)
#define PCIEXBAR_ADDRESS_26 (1ULL << 26)
#define PCIEXBAR_WRITABLE   (PCIEXBAR_ADDRESS | PCIEXBAR_ADDRESS_27 | PCIEXBAR_ADDRESS_26 | 0x7)

#define MCH_SMRAM           0x9du /* 5.1.27 */
#define SMRAM_OPEN          0x40u
#define SMRAM_CLOSED        0x20u
#define SMRAM_LOCK          0x10u
#define SMRAM_ENABLE        0x08u
#define SMRAM_WRITABLE      (SMRAM_OPEN | SMRAM_CLOSED | SMRAM_LOCK | SMRAM_ENABLE)

#define MCH_ESMRAMC         0x9eu /* 5.1.28 */
#define ESMRAMC_LOCKABLE    0x87u
#define ESMRAMC_ERROR       0x40u

#define MCH_TSEGMB          0xacu /* 5.1.33 */
#define TSEGMB_ADDRESS      0xfff00000u

/* Name, offset, width, value after reset, writable bits, bits cleared by 1. The bridge
 * always decodes memory and masters the bus (5.1.3). */
static const struct pci_register mch_registers[] = {
    {"PCICMD",   0x04,         2, 0x0006,     0x0100,            0            },
    {"PXPEPBAR", 0x40,         8, 0,          0xffffff001,       0            },
    {"MCHBAR",   0x48,         8, 0,          0xfffffc001,       0            },
    {"PCIEXBAR", MCH_PCIEXBAR, 8, 0xe0000000, PCIEXBAR_WRITABLE, 0            },
    {"DMIBAR",   0x68,         8, 0,          0xffffff001,       0            },
    {"PAM0",     0x90,         1, 0,          0x30,              0            },
    {"PAM1",     0x91,         1, 0,          0x33,              0            },
    {"PAM2",     0x92,         1, 0,          0x33,              0            },
    {"PAM3",     0x93,         1, 0,          0x33,              0            },
    {"PAM4",     0x94,         1, 0,          0x33,              0            },
    {"PAM5",     0x95,         1, 0,          0x33,              0            },
    {"PAM6",     0x96,         1, 0,          0x33,              0            },
    {"LAC",      0x97,         1, 0,          0x81,              0            },
    {"SMRAM",    MCH_SMRAM,    1, 0x02,       SMRAM_WRITABLE,    0            },
    {"ESMRAMC",  MCH_ESMRAMC,  1, 0x38,       ESMRAMC_LOCKABLE,  ESMRAMC_ERROR},
    {"TOM",      0xa0,         2, 0x0001,     0x01ff,            0            },
    {"TOUUD",    0xa2,         2, 0,          0xffff,            0            },
    {"GBSM",     0xa4,         4, 0,          0xfff00000,        0            },
    {"BGSM",     0xa8,         4, 0,          0xfff00000,        0            },
    {"TSEGMB",   MCH_TSEGMB,   4, 0,          TSEGMB_ADDRESS,    0            },
    {"TOLUD",    0xb0,         2, 0x0010,     0xfff0,            0            },
    {"SKPD",     0xdc,         4, 0,          0xffffffff,        0            },
};

struct mch_state {
    struct pci_state pci;
};

static const struct state_field mch_fields[] = {
    STATE_STRUCT(struct mch_state, pci, struct pci_state, 1, &pci_state_table,
                 "Configuration space of 00:00.0"),
};
const struct state_table mch_state_table = STATE_TABLE("q35-mch", struct mch_state, 1, mch_fields);

struct mch {
    struct pci_function fn; /* first */
    struct mch_state state;
};

/* Address bits 26 and 27 exist only as far as the window's size leaves them to it. */
static void ecam_update(struct mch *mch)
{
    static const struct {
        unsigned buses;
        uint64_t address;
    } sizes[4] = {
        {256, PCIEXBAR_ADDRESS                                            },
        {128, PCIEXBAR_ADDRESS | PCIEXBAR_ADDRESS_27                      },
        {64,  PCIEXBAR_ADDRESS | PCIEXBAR_ADDRESS_27 | PCIEXBAR_ADDRESS_26},
        {0,   0                                                           }, /* reserved: off */
    };
    uint8_t *reg = &mch->state.pci.config[MCH_PCIEXBAR];
    uint64_t value = load_le64(reg);
    unsigned size = (value >> 1) & 3;

    if (sizes[size].buses)
        value &= sizes[size].address | 0x7;
    store_le64(reg, value);
    pci_bus_set_ecam(mch->fn.bus, GPA(value & sizes[size].address),
                     value & PCIEXBAR_ENABLE ? sizes[size].buses : 0);
}

/* D_LCK closes SMRAM and makes its registers read-only until the next reset. */
static void smram_update(struct mch *mch)
{
    uint8_t *config = mch->state.pci.config;
    bool locked = config[MCH_SMRAM] & SMRAM_LOCK;

    if (locked)
        config[MCH_SMRAM] &= (uint8_t)~SMRAM_OPEN;
    mch->fn.write_mask[MCH_SMRAM] = locked ? SMRAM_CLOSED : SMRAM_WRITABLE;
    mch->fn.write_mask[MCH_ESMRAMC] = locked ? 0 : ESMRAMC_LOCKABLE;
    store_le32(&mch->fn.write_mask[MCH_TSEGMB], locked ? 0 : TSEGMB_ADDRESS);
}

static void mch_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct mch *mch = CONTAINER_OF(fn, struct mch, fn);

    if (offset < MCH_PCIEXBAR + 8 && offset + size > MCH_PCIEXBAR)
        ecam_update(mch);
    if (offset <= MCH_SMRAM && offset + size > MCH_SMRAM)
        smram_update(mch);
}

static void mch_reset(struct device *dev)
{
    struct mch *mch = CONTAINER_OF(dev, struct mch, fn.dev);

    pci_function_reset(&mch->fn);
    ecam_update(mch);
    smram_update(mch);
}

static void mch_fini(struct device *dev)
{
    struct mch *mch = CONTAINER_OF(dev, struct mch, fn.dev);

    if (mch->fn.bus)
        pci_bus_set_ecam(mch->fn.bus, GPA(0), 0);
    pci_function_fini(&mch->fn);
    free(mch);
}

static const struct device_ops mch_ops = {
    .reset = mch_reset,
    .fini = mch_fini,
};

int mch_new(struct device **dev, const struct dev_env *env, struct err *err)
{
    static const struct pci_identity identity = {
        .vendor_id = 0x8086,
        .device_id = 0x29c0,
        .subsystem_vendor_id = 0x1af4,
        .subsystem_id = 0x1100,
        .class_code = 0x060000, /* host bridge */
    };
    struct mch *mch = calloc(1, sizeof(*mch));
    int rc;

    if (!mch)
        return err_errno(err, ENOMEM, "cannot make the host bridge");
    device_init(&mch->fn.dev, &mch_ops, &mch_state_table, &mch->state, env->loop, "mch");
    pci_function_init(&mch->fn, &mch->state.pci, &identity);
    pci_registers_add(&mch->fn, mch_registers, ARRAY_LEN(mch_registers));
    mch->fn.config_written = mch_config_written;
    rc = pci_bus_plug(env->pci, &mch->fn, PCI_DEVFN(0, 0), err);
    if (rc < 0) {
        device_fini(&mch->fn.dev);
        return rc;
    }
    device_reset(&mch->fn.dev);
    *dev = &mch->fn.dev;
    return 0;
}

void mch_enable_ecam(struct device *dev, uint64_t base)
{
    struct mch *mch = CONTAINER_OF(dev, struct mch, fn.dev);

    device_lock(dev);
    store_le64(&mch->state.pci.config[MCH_PCIEXBAR], base | PCIEXBAR_ENABLE);
    ecam_update(mch);
    device_unlock(dev);
}
