/* SPDX-License-Identifier: Apache-2.0 */
#include "base/units.h"

#include <errno.h>

#include "base/err.h"
#include "base/tap.h"

static void test_parse(void)
{
    static const struct {
        const char *text;
        uint64_t bare_unit, want;
    } good[] = {
        {"0",                       1,   0                    },
        {"4096",                    1,   4096                 },
        {"512",                     MIB, 512 * MIB            },
        {"512M",                    1,   512 * MIB            },
        {"1g",                      1,   GIB                  },
        {"1GiB",                    MIB, GIB                  },
        {"1gb",                     1,   GIB                  },
        {"3k",                      1,   3 * KIB              },
        {"2T",                      1,   2 * TIB              },
        {"1.5G",                    1,   GIB + 512 * MIB      },
        {"0.25K",                   1,   256                  },
        {"1.5",                     MIB, MIB + 512 * KIB      },
        {"100B",                    MIB, 100                  },
        {"18446744073709551615",    1,   UINT64_MAX           },
        {"16777215.9999999999T",    1,   18446744073709551506u},
        {"1.00000000000000000009K", 1,   1024                 },
    };
    static const char *const bad[] = {
        "",       "M",   "-1",  "+1",   " 1",  "1 ",  "1.", ".5G",
        "1.5.5G", "1GG", "1Gi", "0x10", "1e3", "1iB", "1P",
    };
    static const char *const large[] = {"18446744073709551616", "16777216T",
                                        "99999999999999999999999"};
    struct err err = ERR_INIT;
    uint64_t bytes;

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        bytes = 1;
        ok(size_parse(good[i].text, good[i].bare_unit, &bytes, &err) == 0, good[i].text);
        is_int(bytes, good[i].want, "has the right value");
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        is_int(size_parse(bad[i], 1, &bytes, &err), -EINVAL, "text that is no size is refused");
    for (size_t i = 0; i < ARRAY_LEN(large); i++)
        is_int(size_parse(large[i], 1, &bytes, &err), -ERANGE, "a size beyond 64 bits is refused");
    ok(strstr(err.text, large[2]) != NULL, "and the text is cited");
}

static void test_format(void)
{
    static const struct {
        uint64_t bytes;
        const char *want;
    } cases[] = {
        {0,               "0 bytes"     },
        {1,               "1 byte"      },
        {1023,            "1023 bytes"  },
        {1024,            "1 KiB"       },
        {1536,            "1.5 KiB"     },
        {MIB - 1,         "1 MiB"       },
        {512 * MIB,       "512 MiB"     },
        {GIB + 512 * MIB, "1.5 GiB"     },
        {5 * TIB,         "5 TiB"       },
        {UINT64_MAX,      "16777216 TiB"},
    };
    char buf[32];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        is_str(size_format(cases[i].bytes, buf, sizeof(buf)), cases[i].want, cases[i].want);
    is_str(size_format(1536, buf, 4), "1.5", "a short buffer is respected");
}

static void test_arithmetic(void)
{
    uint8_t b[8] = {1, 2, 3, 4, 5, 6, 7, 8};

    is_int(align_up(4097, 4096), 8192, "align_up");
    is_int(align_up(4096, 4096), 4096, "align_up of what is aligned");
    is_int(align_down(8191, 4096), 4096, "align_down");
    ok(is_power_of_two(1) && is_power_of_two(1ull << 63), "powers of two");
    ok(!is_power_of_two(0) && !is_power_of_two(6), "and others");
    ok(range_fits(0, 10, 10) && range_fits(10, 0, 10), "ranges that fit");
    ok(!range_fits(1, 10, 10) && !range_fits(UINT64_MAX, 2, 10), "and that do not");
    ok(!range_fits(2, UINT64_MAX, 10), "also where the sum would overflow");
    is_int(load_le16(b), 0x0201, "load_le16");
    is_int(load_le32(b), 0x04030201, "load_le32");
    is_int(load_le64(b), 0x0807060504030201, "load_le64");
    is_int(load_le(b, 2), 0x0201, "load_le");
    store_le(b, 0xaabbccdd, 4);
    is_int(load_le64(b), 0x08070605aabbccdd, "store_le writes what it is told to");
    uint64_t t = clock_now_ns();
    ok(t > 0 && clock_now_ns() >= t, "the clock does not go back");
}

int main(void)
{
    test_parse();
    test_format();
    test_arithmetic();
    return tap_done();
}
