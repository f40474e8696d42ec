/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/chip/clock.h"

#include <pthread.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

#define READERS 2
#define PAUSES  20000

static struct chip_clock *the_clock;
static bool ended; /* atomic */

/* Returns the number of times that time went back. */
static void *reader(void *arg)
{
    unsigned long *back = arg;
    uint64_t last = 0;

    while (!__atomic_load_n(&ended, __ATOMIC_ACQUIRE)) {
        uint64_t now = chip_clock_now(the_clock);
        *back += now < last;
        last = now;
    }
    return NULL;
}

static void test_readers(void)
{
    pthread_t threads[READERS];
    unsigned long back[READERS] = {0}, total = 0;
    bool stood = true;

    for (unsigned i = 0; i < READERS; i++)
        pthread_create(&threads[i], NULL, reader, &back[i]);
    for (unsigned i = 0; i < PAUSES; i++) {
        chip_clock_pause(the_clock);
        uint64_t now = chip_clock_now(the_clock);
        stood &= chip_clock_now(the_clock) == now;
        chip_clock_resume(the_clock);
    }
    __atomic_store_n(&ended, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
        total += back[i];
    }
    ok(stood, "a paused clock stands");
    is_int(total, 0, "for no reader it goes back, while it is paused and goes on");
}

static void test_virtual(void)
{
    is_int(chip_clock_now(the_clock), 0, "a virtual clock begins at 0");
    is_int(chip_clock_advance(the_clock, 1000), CHIP_NEVER, "it is set forward");
    is_int(chip_clock_now(the_clock), 1000, "and is there");
    chip_clock_advance(the_clock, 500);
    is_int(chip_clock_now(the_clock), 1000, "never back");
}

int main(void)
{
    struct err err = ERR_INIT;

    if (chip_clock_new(&the_clock, CHIP_CLOCK_HOST, &err) < 0)
        return 1;
    test_readers();
    chip_clock_free(the_clock);
    if (chip_clock_new(&the_clock, CHIP_CLOCK_VIRTUAL, &err) < 0)
        return 1;
    test_virtual();
    chip_clock_free(the_clock);
    return tap_done();
}
