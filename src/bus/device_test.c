/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/device.h"

#include <stdlib.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

struct thing_state {
    uint32_t value;
};

static const struct state_field thing_fields[] = {
    STATE_U32(struct thing_state, value, 1, 7, "Anything"),
};
static const struct state_table thing_table =
    STATE_TABLE("thing", struct thing_state, 1, thing_fields);

struct thing {
    struct device dev;
    struct thing_state state;
    struct device_timer timer;
    unsigned resets, fired;
    bool quiet, lock_held;
};

static bool locked(struct device *dev)
{
    if (pthread_mutex_trylock(&dev->lock) != 0)
        return true;
    pthread_mutex_unlock(&dev->lock);
    return false;
}

static void thing_reset(struct device *dev)
{
    struct thing *thing = CONTAINER_OF(dev, struct thing, dev);

    thing->resets++;
    thing->lock_held = locked(dev);
}

static bool thing_quiet(struct device *dev)
{
    return CONTAINER_OF(dev, struct thing, dev)->quiet;
}

static void thing_fini(struct device *dev)
{
    free(CONTAINER_OF(dev, struct thing, dev));
}

static const struct device_ops thing_ops = {
    .reset = thing_reset,
    .quiet = thing_quiet,
    .fini = thing_fini,
};

static void timer_fired(struct device_timer *timer)
{
    struct thing *thing = CONTAINER_OF(timer, struct thing, timer);

    thing->fired++;
    thing->lock_held = locked(&thing->dev);
    loop_stop(thing->dev.loop);
}

struct stopper {
    struct loop_timer timer;
    struct loop *loop;
};

static void stopper_fired(struct loop_timer *timer)
{
    loop_stop(CONTAINER_OF(timer, struct stopper, timer)->loop);
}

static void test_timers(struct thing *thing)
{
    struct stopper stopper = {.loop = thing->dev.loop};
    uint64_t now = clock_now_ns();

    loop_timer_init(&stopper.timer, stopper_fired);
    device_timer_init(&thing->timer, &thing->dev, timer_fired);
    device_lock(&thing->dev);
    device_timer_arm(&thing->timer, now + 2 * NS_PER_MS);
    device_timer_arm(&thing->timer, now + 4 * NS_PER_MS);
    device_unlock(&thing->dev);
    loop_run(thing->dev.loop);
    ok(clock_now_ns() >= now + 4 * NS_PER_MS, "a timer that was moved fires at the new time");
    is_int(thing->fired, 1, "once");
    ok(thing->lock_held, "with the device's lock held");
    is_int(thing->timer.armed_ns, UINT64_MAX, "and is disarmed then");

    device_lock(&thing->dev);
    device_timer_arm(&thing->timer, clock_now_ns() + NS_PER_MS);
    device_timer_cancel(&thing->timer);
    device_unlock(&thing->dev);
    loop_timer_arm(thing->dev.loop, &stopper.timer, clock_now_ns() + 5 * NS_PER_MS);
    loop_run(thing->dev.loop);
    is_int(thing->fired, 1, "a cancelled timer does not fire");

    /* The loop took the timer off its heap, and waits for the lock that a vCPU holds. */
    thing->timer.armed_ns = UINT64_MAX;
    thing->timer.timer.fn(&thing->timer.timer);
    is_int(thing->fired, 1, "nor one that was cancelled while the loop waited for the lock");
    thing->timer.armed_ns = clock_now_ns() + NS_PER_SEC;
    thing->timer.timer.fn(&thing->timer.timer);
    is_int(thing->fired, 1, "nor one that was moved into the future meanwhile");
    thing->timer.armed_ns = UINT64_MAX;
}

static void count_release(void *ctx)
{
    ++*(unsigned *)ctx;
}

static void test_hold(struct thing *thing)
{
    struct err err = ERR_INIT;
    bool held = false, other = false;
    unsigned released = 0;

    device_hold(&thing->dev, &held, true);
    ok(!held, "nothing is held on the host's clock");
    if (chip_clock_new(&thing->dev.clock, CHIP_CLOCK_VIRTUAL, &err) < 0)
        return;
    chip_clock_on_release(thing->dev.clock, count_release, &released);
    device_hold(&thing->dev, &held, true);
    device_hold(&thing->dev, &held, true);
    device_hold(&thing->dev, &other, true);
    ok(chip_clock_is_held(thing->dev.clock), "a busy device holds a virtual clock");
    device_hold(&thing->dev, &other, false);
    ok(chip_clock_is_held(thing->dev.clock) && released == 0, "for as long as one is busy");
    device_hold(&thing->dev, &held, false);
    device_hold(&thing->dev, &held, false);
    ok(!chip_clock_is_held(thing->dev.clock) && released == 1, "the last one lets it go");
    chip_clock_free(thing->dev.clock);
    thing->dev.clock = NULL;
}

int main(void)
{
    struct thing *thing = calloc(1, sizeof(*thing));
    struct loop *loop;
    struct err err = ERR_INIT;

    if (!thing || loop_new(&loop, 0, &err) < 0)
        return 1;
    device_init(&thing->dev, &thing_ops, &thing_table, &thing->state, loop, "thing%d", 3);
    is_str(thing->dev.name, "thing3", "the name is formatted");
    is_int(thing->state.value, 7, "device_init() gives the state its reset values");

    thing->state.value = 1;
    device_reset(&thing->dev);
    is_int(thing->state.value, 7, "device_reset() does so again");
    ok(thing->resets == 1 && thing->lock_held, "and calls reset with the lock held");

    ok(!device_quiet(&thing->dev), "a device says that it is not quiet");
    thing->quiet = true;
    ok(device_quiet(&thing->dev), "and that it is");

    test_timers(thing);
    test_hold(thing);
    device_fini(&thing->dev);
    loop_free(loop);
    return tap_done();
}
