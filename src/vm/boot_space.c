/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_space.h"

#include <errno.h>

#include "base/err.h"
#include "vm/layout.h"

#define RANGE_RAM 1

void boot_space_init(struct boot_space *space, const struct boot_params *params)
{
    *space = (struct boot_space){.map = params->map, .map_count = params->map_count};
}

uint64_t boot_space_low_end(const struct boot_space *space)
{
    for (unsigned i = 0; i < space->map_count; i++) {
        const struct boot_range *r = &space->map[i];
        if (r->type == RANGE_RAM && r->base <= LAYOUT_KERNEL_MIN &&
            r->base + r->len > LAYOUT_KERNEL_MIN)
            return r->base + r->len;
    }
    return 0;
}

uint64_t boot_space_claims_end(const struct boot_space *space)
{
    uint64_t end = 0;
    for (unsigned i = 0; i < space->claim_count; i++)
        if (space->claims[i].end > end)
            end = space->claims[i].end;
    return end;
}

static bool in_ram(const struct boot_space *space, uint64_t base, uint64_t len)
{
    for (unsigned i = 0; i < space->map_count; i++) {
        const struct boot_range *r = &space->map[i];
        if (r->type == RANGE_RAM && base >= r->base && range_fits(base - r->base, len, r->len))
            return true;
    }
    return false;
}

/* The claim that [base, end) runs into, or NULL. */
static const struct boot_claim *find_conflict(const struct boot_space *space, uint64_t base,
                                              uint64_t end)
{
    for (unsigned i = 0; i < space->claim_count; i++) {
        const struct boot_claim *c = &space->claims[i];
        if (base < c->end && c->base < end)
            return c;
    }
    return NULL;
}

static int add_claim(struct boot_space *space, uint64_t base, uint64_t len, const char *owner,
                     struct err *err)
{
    if (space->claim_count == BOOT_CLAIMS_MAX)
        return err_set(err, EINVAL, "the kernel has too many segments and modules");
    space->claims[space->claim_count++] =
        (struct boot_claim){.base = base, .end = base + len, .owner = owner};
    return 0;
}

int boot_space_claim(struct boot_space *space, uint64_t base, uint64_t len, const char *owner,
                     struct err *err)
{
    if (!in_ram(space, base, len)) {
        char need[32], have[32];
        uint64_t low_end = boot_space_low_end(space);
        uint64_t end = base + len < base ? UINT64_MAX : base + len;
        /* More memory helps when the range starts in RAM, or where RAM would grow to. */
        if (base >= LAYOUT_KERNEL_MIN && end <= LAYOUT_RAM_LOW_MAX)
            return err_set(err, ENOSPC,
                           "the %s needs the memory up to %s, and the guest's ends at %s: give "
                           "more with --memory",
                           owner, size_format(end, need, sizeof(need)),
                           size_format(low_end, have, sizeof(have)));
        return err_set(err, ENOSPC, "the %s wants 0x%llx-0x%llx, which is not RAM", owner,
                       (unsigned long long)base, (unsigned long long)(end - 1));
    }
    const struct boot_claim *conflict = find_conflict(space, base, base + len);
    if (conflict)
        return err_set(err, EINVAL, "the %s at 0x%llx-0x%llx overlaps the %s at 0x%llx-0x%llx",
                       owner, (unsigned long long)base, (unsigned long long)(base + len - 1),
                       conflict->owner, (unsigned long long)conflict->base,
                       (unsigned long long)(conflict->end - 1));
    return add_claim(space, base, len, owner, err);
}

/* The lowest free place in [min, max). Each step passes one claim. */
static bool place_low(const struct boot_space *space, uint64_t min, uint64_t max, uint64_t len,
                      uint64_t align, uint64_t *base)
{
    for (unsigned i = 0; i <= space->claim_count; i++) {
        if (min > UINT64_MAX - align)
            return false;
        uint64_t at = align_up(min, align);
        if (!range_fits(at, len, max))
            return false;
        const struct boot_claim *conflict = find_conflict(space, at, at + len);
        if (!conflict) {
            *base = at;
            return true;
        }
        min = conflict->end;
    }
    return false;
}

static bool place_high(const struct boot_space *space, uint64_t min, uint64_t max, uint64_t len,
                       uint64_t align, uint64_t *base)
{
    for (unsigned i = 0; i <= space->claim_count; i++) {
        if (max < len)
            return false;
        uint64_t at = align_down(max - len, align);
        if (at < min)
            return false;
        const struct boot_claim *conflict = find_conflict(space, at, at + len);
        if (!conflict) {
            *base = at;
            return true;
        }
        max = conflict->base;
    }
    return false;
}

int boot_space_place(struct boot_space *space, uint64_t len, const struct boot_window *window,
                     const char *owner, uint64_t *base, struct err *err)
{
    bool found = false;
    for (unsigned i = 0; i < space->map_count; i++) {
        const struct boot_range *r = &space->map[i];
        if (r->type != RANGE_RAM)
            continue;
        uint64_t min = r->base > window->min ? r->base : window->min;
        uint64_t max = r->base + r->len < window->max ? r->base + r->len : window->max;
        uint64_t at = 0;
        if (min >= max || !(window->top ? place_high(space, min, max, len, window->align, &at)
                                        : place_low(space, min, max, len, window->align, &at)))
            continue;
        /* The map need not be sorted: keep the best of all ranges. */
        if (!found || (window->top ? at > *base : at < *base))
            *base = at;
        found = true;
    }
    if (!found) {
        char size[32], have[32];
        return err_set(err, ENOSPC,
                       "the %s of %s does not fit into the guest's memory beside the rest (%s "
                       "below 4 GiB): give more with --memory",
                       owner, size_format(len, size, sizeof(size)),
                       size_format(boot_space_low_end(space), have, sizeof(have)));
    }
    return add_claim(space, *base, len, owner, err);
}
