/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of x86-64 code, for the translator. Nothing is checked: translate_block() leaves room. */
#ifndef HULL_ENGINE_SOFT_TRANSLATE_EMIT_H
#define HULL_ENGINE_SOFT_TRANSLATE_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Scratch registers of translated code. */
#define R10 10u
#define R11 11u

struct emit {
    uint8_t *at; /* where the next byte goes */
};

static inline void emit8(struct emit *e, unsigned byte)
{
    *e->at++ = (uint8_t)byte;
}

static inline void emit16(struct emit *e, unsigned word)
{
    memcpy(e->at, &(uint16_t){(uint16_t)word}, 2);
    e->at += 2;
}

static inline void emit32(struct emit *e, uint32_t word)
{
    memcpy(e->at, &word, 4);
    e->at += 4;
}

static inline void emit64(struct emit *e, uint64_t word)
{
    memcpy(e->at, &word, 8);
    e->at += 8;
}

static inline void emit_bytes(struct emit *e, const void *bytes, unsigned len)
{
    memcpy(e->at, bytes, len);
    e->at += len;
}

/* What `reg` and `rm` need of REX beside `rex`. */
static inline unsigned rex_of(unsigned rex, unsigned reg, unsigned rm)
{
    return 0x40u | rex | (reg >> 3 & 1) << 2 | (rm >> 3 & 1);
}

#define REX_W 8u

/* op reg, rm with registers; 64 bits. */
static inline void emit_rr64(struct emit *e, unsigned opcode, unsigned reg, unsigned rm)
{
    emit8(e, rex_of(REX_W, reg, rm));
    emit8(e, opcode);
    emit8(e, 0xc0u | (reg & 7) << 3 | (rm & 7));
}

/* mov to, from */
static inline void emit_mov(struct emit *e, unsigned to, unsigned from)
{
    if (to != from)
        emit_rr64(e, 0x89, from, to);
}

/* Is it what an immediate of 32 bits is extended to? */
static inline bool is_imm32(uint64_t value)
{
    return (uint64_t)(int64_t)(int32_t)value == value;
}

/* mov reg, value: the shortest form. */
static inline void emit_mov_imm(struct emit *e, unsigned reg, uint64_t value)
{
    if (value <= UINT32_MAX) {
        if (reg >= 8)
            emit8(e, 0x41);
        emit8(e, 0xb8u | (reg & 7));
        emit32(e, (uint32_t)value);
    } else if (is_imm32(value)) {
        emit8(e, rex_of(REX_W, 0, reg));
        emit8(e, 0xc7);
        emit8(e, 0xc0u | (reg & 7));
        emit32(e, (uint32_t)value);
    } else {
        emit8(e, rex_of(REX_W, 0, reg));
        emit8(e, 0xb8u | (reg & 7));
        emit64(e, value);
    }
}

/* The operand %gs:offset, behind the opcode. */
static inline void emit_gs_operand(struct emit *e, unsigned reg, size_t offset)
{
    emit8(e, 0x04u | (reg & 7) << 3);
    emit8(e, 0x25);
    emit32(e, (uint32_t)offset);
}

/* op reg, %gs:offset; 64 bits. */
static inline void emit_gs64(struct emit *e, unsigned opcode, unsigned reg, size_t offset)
{
    emit8(e, 0x65);
    emit8(e, rex_of(REX_W, reg, 0));
    emit8(e, opcode);
    emit_gs_operand(e, reg, offset);
}

#define OP_LOAD  0x8bu
#define OP_STORE 0x89u
#define OP_ADD_R 0x03u /* add reg, rm */
#define OP_SUB_R 0x2bu

/* op reg, %gs:offset(%r11); 64 bits. */
static inline void emit_gs_r11(struct emit *e, unsigned opcode, unsigned reg, size_t offset)
{
    emit8(e, 0x65);
    emit8(e, rex_of(REX_W, reg, R11));
    emit8(e, opcode);
    emit8(e, 0x80u | (reg & 7) << 3 | (R11 & 7));
    emit32(e, (uint32_t)offset);
}

/* mov $value, %gs:offset; 16, 32, 64 bits. */
static inline void emit_gs_imm16(struct emit *e, size_t offset, uint16_t value)
{
    emit8(e, 0x66);
    emit8(e, 0x65);
    emit8(e, 0xc7);
    emit_gs_operand(e, 0, offset);
    emit16(e, value);
}

static inline void emit_gs_imm32(struct emit *e, size_t offset, uint32_t value)
{
    emit8(e, 0x65);
    emit8(e, 0xc7);
    emit_gs_operand(e, 0, offset);
    emit32(e, value);
}

static inline void emit_gs_imm64(struct emit *e, size_t offset, uint64_t value)
{
    if (is_imm32(value)) {
        emit8(e, 0x65);
        emit8(e, rex_of(REX_W, 0, 0));
        emit8(e, 0xc7);
        emit_gs_operand(e, 0, offset);
        emit32(e, (uint32_t)value);
    } else {
        emit_gs_imm32(e, offset, (uint32_t)value);
        emit_gs_imm32(e, offset + 4, (uint32_t)(value >> 32));
    }
}

/* jmp *%gs:offset */
static inline void emit_jmp_gs(struct emit *e, size_t offset)
{
    emit8(e, 0x65);
    emit8(e, 0xff);
    emit_gs_operand(e, 4, offset);
}

/* jmp, or a conditional jump (0x70 + condition): returns where its 32-bit displacement is, which
 * leads nowhere yet. */
static inline uint8_t *emit_jmp(struct emit *e)
{
    emit8(e, 0xe9);
    emit32(e, 0);
    return e->at - 4;
}

static inline uint8_t *emit_jcc(struct emit *e, unsigned condition)
{
    emit8(e, 0x0f);
    emit8(e, 0x80u | condition);
    emit32(e, 0);
    return e->at - 4;
}

/* Make the jump whose displacement is there lead to `to`, in the same view of the code. */
static inline void emit_lead(uint8_t *displacement, const uint8_t *to)
{
    memcpy(displacement, &(int32_t){(int32_t)(to - (displacement + 4))}, 4);
}

#define CONDITION_E  4u
#define CONDITION_NE 5u
#define CONDITION_BE 6u
#define CONDITION_A  7u
#define CONDITION_AE 3u

#endif
