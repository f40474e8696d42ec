/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Included before every source by tool/lint: tells clang's analyser, which sees one source at a
 * time, that the functions of err.h return a negative number. Without it, it follows paths on which
 * an error was success, and reports what is uninitialised there.
 */
#include "base/err.h"

#define err_set(...)    (err_set(__VA_ARGS__), -1)
#define err_errno(...)  (err_errno(__VA_ARGS__), -1)
#define err_prefix(...) (err_prefix(__VA_ARGS__), -1)
