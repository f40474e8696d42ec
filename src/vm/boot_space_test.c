/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_space.h"

#include <errno.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

/* RAM 0-640K and 1M-16M, and 2 MiB from 4 GiB on. */
static const struct boot_range map[] = {
    {0,         640 * KIB, 1},
    {640 * KIB, 384 * KIB, 2},
    {4 * GIB,   2 * MIB,   1},
    {MIB,       15 * MIB,  1},
};
static const struct boot_params params = {.map = map, .map_count = ARRAY_LEN(map)};

static int claim(struct boot_space *s, uint64_t base, uint64_t len, struct err *err)
{
    return boot_space_claim(s, base, len, "kernel", err);
}

static void test_claim(void)
{
    struct boot_space s;
    struct err err = ERR_INIT;

    boot_space_init(&s, &params);
    is_int(boot_space_low_end(&s), 16 * MIB, "RAM from 1 MiB ends at 16 MiB");
    is_int(boot_space_claims_end(&s), 0, "no claims");
    is_int(claim(&s, MIB, MIB, &err), 0, "RAM is claimed");
    is_int(boot_space_claims_end(&s), 2 * MIB, "its end");
    is_int(claim(&s, 2 * MIB - 1, 1, &err), -EINVAL, "not twice");
    ok(strstr(err.text, "overlaps the kernel"), "the error says with whom");
    is_int(claim(&s, 2 * MIB, 14 * MIB, &err), 0, "to the last byte");
    is_int(claim(&s, 0, 640 * KIB + 1, &err), -ENOSPC, "not into the reserved range");
    is_int(claim(&s, 640 * KIB, 16, &err), -ENOSPC, "nor in it");
    is_int(claim(&s, 16 * MIB - 1, 2, &err), -ENOSPC, "nor across the end");
    ok(strstr(err.text, "--memory"), "the error says what to do");
    is_int(claim(&s, 4096, UINT64_MAX, &err), -ENOSPC, "nor around the end of the world");
    is_int(claim(&s, UINT64_MAX, 2, &err), -ENOSPC, "nor from there");
}

static void test_place(void)
{
    struct boot_space s;
    struct err err = ERR_INIT;
    const struct boot_window low = {.min = MIB, .max = 4 * GIB, .align = 4096};
    const struct boot_window high = {.min = MIB, .max = 4 * GIB, .align = 4096, .top = true};
    const struct boot_window any = {.min = 0, .max = UINT64_MAX, .align = 4096, .top = true};
    uint64_t at = 0;

    boot_space_init(&s, &params);
    claim(&s, MIB + 100, 5000, &err);
    is_int(boot_space_place(&s, 4096, &low, "x", &at, &err), 0, "lowest place");
    is_int(at, MIB + 8192, "behind the claim, aligned");
    is_int(boot_space_place(&s, 101, &low, "x", &at, &err), 0, "the next");
    is_int(at, MIB + 12288, "behind that");
    is_int(boot_space_place(&s, 100, &high, "x", &at, &err), 0, "highest place");
    is_int(at, 16 * MIB - 4096, "aligned");
    is_int(boot_space_place(&s, 8192, &high, "x", &at, &err), 0, "the next");
    is_int(at, 16 * MIB - 12288, "in front of it");
    is_int(boot_space_place(&s, MIB, &any, "x", &at, &err), 0, "above 4 GiB");
    is_int(at, 4 * GIB + MIB, "where that is allowed");
    is_int(boot_space_place(&s, 15 * MIB, &low, "x", &at, &err), -ENOSPC, "no room");
    is_int(boot_space_place(&s, UINT64_MAX, &any, "x", &at, &err), -ENOSPC, "never room for that");
    const struct boot_window empty = {.min = 5 * MIB, .max = 5 * MIB, .align = 1};
    is_int(boot_space_place(&s, 1, &empty, "x", &at, &err), -ENOSPC, "an empty window");
    int ret = 0;
    for (unsigned i = 0; i < BOOT_CLAIMS_MAX && ret == 0; i++)
        ret = boot_space_place(&s, 1, &low, "x", &at, &err);
    is_int(ret, -EINVAL, "claims are limited");
}

int main(void)
{
    test_claim();
    test_place();
    return tap_done();
}
