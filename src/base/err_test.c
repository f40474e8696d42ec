/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"

#include <errno.h>

#include "base/tap.h"

static void test_set(void)
{
    struct err err = ERR_INIT;

    is_int(err_set(&err, EINVAL, "disk %s", "a.raw"), -EINVAL,
           "a positive errno comes out negative");
    is_int(err.code, -EINVAL, "and is stored");
    is_str(err.text, "disk a.raw", "the text is formatted");
    is_int(err_set(&err, -EIO, "second"), -EIO, "a negative one stays");
    is_str(err.text, "second", "the later text replaces the earlier");
    is_int(err_set(NULL, ENOMEM, "x"), -ENOMEM, "without a struct err the code travels");
    ok(err_set(&err, 0, "zero") < 0, "a code of 0 never reads as success");
    err_set(&err, EIO, "inner");
    err_set(&err, EIO, "outer: %s", err.text);
    is_str(err.text, "outer: inner", "the old text may be an argument");
}

static void test_errno(void)
{
    struct err err = ERR_INIT;

    is_int(err_errno(&err, -ENOENT, "cannot open %s", "x"), -ENOENT, "err_errno returns the code");
    is_str(err.text, "cannot open x: No such file or directory", "and names its reason");
    is_int(err_errno(NULL, ENOENT, "x"), -ENOENT, "also without a struct err");
}

static void test_prefix(void)
{
    struct err err = ERR_INIT;
    char want[sizeof(err.text)];

    err_set(&err, ENOENT, "no such image");
    is_int(err_prefix(&err, "--disk %s", "a.raw"), -ENOENT, "a prefix keeps the code");
    is_str(err.text, "--disk a.raw: no such image", "and stands in front");
    err_set(&err, EIO, "%*s", 5000, "x");
    is_int(strlen(err.text), sizeof(err.text) - 1, "a long text is cut to the buffer");
    err_prefix(&err, "p");
    is_int(strlen(err.text), sizeof(err.text) - 1, "so is one that a prefix makes long");
    ok(strncmp(err.text, "p:  ", 4) == 0, "with the prefix in place");
    memset(want, 'y', sizeof(want) - 1);
    want[sizeof(want) - 1] = '\0';
    err_prefix(&err, "%s", want);
    is_str(err.text, want, "a prefix that fills the buffer leaves nothing else");
}

int main(void)
{
    test_set();
    test_errno();
    test_prefix();
    return tap_done();
}
