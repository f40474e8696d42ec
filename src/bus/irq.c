/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/irq.h"

#include <assert.h>
#include <string.h>

void irq_router_init(struct irq_router *router, struct engine_vm *vm)
{
    memset(router, 0, sizeof(*router));
    router->vm = vm;
    pthread_mutex_init(&router->lock, NULL);
}

void irq_router_fini(struct irq_router *router)
{
    pthread_mutex_destroy(&router->lock);
}

void irq_line_init(struct irq_line *line, struct irq_router *router, unsigned gsi)
{
    assert(gsi < IRQ_GSI_COUNT);
    line->router = router;
    line->gsi = (uint8_t)gsi;
    line->level = false;
}

/* Counts a holder in or out; true when the OR of all holders changed. */
static bool adjust_count(uint16_t *count, bool level)
{
    if (level)
        return (*count)++ == 0;
    assert(*count > 0);
    return --*count == 0;
}

/* The engine is called under the router's lock, so that it sees the changes of an input in the
 * order in which they were counted. Lock held. */
static void update_input(struct irq_router *router, unsigned gsi)
{
    const struct irq_line *sole = router->sole[gsi];
    bool level = sole ? sole->level : router->asserted[gsi] > 0;

    if (router->level[gsi] == level)
        return;
    router->level[gsi] = level;
    router->vm->ops->gsi_set(router->vm, gsi, level);
}

void irq_line_set(struct irq_line *line, bool level)
{
    struct irq_router *router = line->router;

    if (line->level == level)
        return;
    pthread_mutex_lock(&router->lock);
    line->level = level;
    adjust_count(&router->asserted[line->gsi], level);
    update_input(router, line->gsi);
    pthread_mutex_unlock(&router->lock);
}

void irq_line_replace(struct irq_line *line)
{
    struct irq_router *router = line->router;

    pthread_mutex_lock(&router->lock);
    assert(!router->sole[line->gsi] || router->sole[line->gsi] == line);
    router->sole[line->gsi] = line;
    update_input(router, line->gsi);
    pthread_mutex_unlock(&router->lock);
}

void irq_line_restore(struct irq_line *line)
{
    struct irq_router *router = line->router;

    pthread_mutex_lock(&router->lock);
    if (router->sole[line->gsi] == line)
        router->sole[line->gsi] = NULL;
    update_input(router, line->gsi);
    pthread_mutex_unlock(&router->lock);
}

void irq_line_pulse(struct irq_line *line)
{
    irq_line_set(line, true);
    irq_line_set(line, false);
}

void irq_pic_adjust(struct irq_router *router, unsigned irq, bool level)
{
    assert(irq < 16);
    pthread_mutex_lock(&router->lock);
    if (adjust_count(&router->pic_asserted[irq], level))
        router->vm->ops->pic_set(router->vm, irq, level);
    pthread_mutex_unlock(&router->lock);
}

void irq_msi_send(struct irq_router *router, uint64_t addr, uint32_t data)
{
    router->vm->ops->msi_send(router->vm, addr, data);
}
