/* SPDX-License-Identifier: Apache-2.0 */
#include "base/bitmap.h"

#include "base/tap.h"

int main(void)
{
    uint64_t map[2] = {0, 0};

    is_int(bitmap_words(0), 0, "no bits, no words");
    is_int(bitmap_words(64), 1, "64 bits fill a word");
    is_int(bitmap_words(65), 2, "one more takes another");
    bitmap_set(map, 0);
    bitmap_set(map, 63);
    bitmap_set_atomic(map, 64);
    is_int(map[0], (1ULL << 63) | 1, "bit 0 is the lowest of word 0, bit 63 its highest");
    is_int(map[1], 1, "bit 64 is the lowest of word 1");
    ok(bitmap_test(map, 63) && bitmap_test(map, 64) && !bitmap_test(map, 62), "test sees them");
    bitmap_clear(map, 63);
    ok(!bitmap_test(map, 63) && bitmap_test(map, 0), "clear clears one");
    return tap_done();
}
