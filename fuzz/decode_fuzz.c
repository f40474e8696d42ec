/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The instruction decoder: the first byte chooses the mode, the rest is code. Each instruction must
 * decode from exactly its own bytes, ask for more with any fewer, and print; nothing is read beyond
 * the bytes that are there.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/soft/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

/* From a copy of exactly len bytes, so that the address sanitizer sees any byte too many. */
static enum decode_status decode_exactly(struct insn *insn, const uint8_t *code, size_t len,
                                         const struct decode_mode *mode)
{
    uint8_t *copy = malloc(len ? len : 1);
    enum decode_status status;
    REQUIRE(copy);
    memcpy(copy, code, len);
    status = decode_insn(insn, copy, len, mode);
    free(copy);
    return status;
}

static void check_fields(const struct insn *insn, const struct decode_mode *mode)
{
    REQUIRE(insn->opcode && insn->opcode->name && insn->op < OP_FALL_THROUGH);
    REQUIRE(insn->op == insn->opcode->op || insn->op == OP_UD);
    REQUIRE(insn->len >= 1 && insn->len <= INSN_LEN_MAX);
    REQUIRE(insn->base <= 16 && insn->index <= 16 && insn->scale <= 3 && insn->seg < 6);
    REQUIRE(insn->reg < 16 && insn->rm < 16 && insn->vvvv < 16);
    REQUIRE(insn->op_bytes <= 32 && insn->addr_bytes <= 8);
    if (insn->op == OP_UD)
        return;
    if (mode->code_bits != 64)
        REQUIRE(insn->rm < 8 && insn->reg < 9 && insn->vvvv < 8 && !insn->rip_relative);
    if (insn->prefixes & PREFIX_LOCK)
        REQUIRE(insn->is_mem && (insn->opcode->attr & ATTR_LOCKABLE));
    if (insn->opcode->attr & ATTR_MMX_REG)
        REQUIRE(insn->reg < 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t widths[4] = {64, 32, 16, 64};
    struct decode_mode mode = {.features = ~0ULL};
    size_t at = 1;
    if (size < 1)
        return 0;
    mode.code_bits = widths[data[0] & 3];
    mode.vex = mode.code_bits == 64 || !(data[0] & 4);
    if (data[0] & 8)
        mode.features ^= 1ULL << (data[0] >> 4) << 16;
    while (at < size) {
        struct insn insn, again;
        char text[128];
        size_t left = size - at;
        enum decode_status status = decode_insn(&insn, data + at, left, &mode);
        if (status != DECODE_OK) {
            REQUIRE(status == DECODE_MORE ? left < INSN_LEN_MAX : left >= INSN_LEN_MAX);
            at++;
            continue;
        }
        check_fields(&insn, &mode);
        decode_print(&insn, at, text, sizeof(text));
        REQUIRE(decode_exactly(&again, data + at, insn.len, &mode) == DECODE_OK);
        REQUIRE(memcmp((const uint8_t *)&insn, (const uint8_t *)&again, sizeof(insn)) == 0);
        REQUIRE(decode_exactly(&again, data + at, insn.len - 1u, &mode) == DECODE_MORE);
        (void)insn_flags(&insn, INSN_COUNT_UNKNOWN);
        at += insn.len;
    }
    return 0;
}
