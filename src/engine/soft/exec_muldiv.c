/* SPDX-License-Identifier: Apache-2.0 */
/* Multiplication and division, decimal adjustment, BMI, CRC32, random numbers. */
#include <sys/random.h>

#include "engine/soft/exec_int.h"
#include "engine/soft/vm.h"

__extension__ typedef __int128 int128;
__extension__ typedef unsigned __int128 uint128;

/* --- MUL, IMUL --- */

/* The others are undefined. Processors that leave them alone would tell the guest what was in the
 * host's: so they stay the guest's. */
#define MULTIPLY_FLAGS (RFLAGS_CF | RFLAGS_OF)

/* rDX:rAX (AX for bytes) = rAX * source. */
/* Bytes: the product is AX. */
#define NARROW(name, mnemonic)                                                                     \
    static uint16_t name(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high)                    \
    {                                                                                              \
        uint64_t product;                                                                          \
        uint16_t ax;                                                                               \
        __asm__(mnemonic " %2\n\tmovq %%rax, %1\n\t" HOST_FLAGS                                    \
                : "=&a"(ax), "=&r"(product)                                                        \
                : "r"((uint8_t)b), "0"((uint16_t)(uint8_t)a)                                       \
                : "cc");                                                                           \
        *low = (uint16_t)product;                                                                  \
        *high = 0;                                                                                 \
        return ax;                                                                                 \
    }
NARROW(mul8, "mulb")
NARROW(imul8, "imulb")

#define WIDE(name, mnemonic, bits, suffix)                                                         \
    static uint16_t name##bits(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high)              \
    {                                                                                              \
        uint64_t l = a, h = 0;                                                                     \
        uint16_t ax;                                                                               \
        __asm__(mnemonic suffix " %3\n\tmovq %%rax, %1\n\t" HOST_FLAGS                             \
                : "=&a"(ax), "=&r"(l), "=&d"(h)                                                    \
                : "r"((uint##bits##_t)b), "0"((uint##bits##_t)a)                                   \
                : "cc");                                                                           \
        *low = (uint##bits##_t)l;                                                                  \
        *high = (uint##bits##_t)h;                                                                 \
        return ax;                                                                                 \
    }
WIDE(mul, "mul", 16, "w")
WIDE(mul, "mul", 32, "l")
WIDE(mul, "mul", 64, "q")
WIDE(imul, "imul", 16, "w")
WIDE(imul, "imul", 32, "l")
WIDE(imul, "imul", 64, "q")

typedef uint16_t multiply_fn(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high);

static void multiply(struct soft_cpu *cpu, const struct insn *i)
{
    static multiply_fn *const functions[2][4] = {
        {mul8,  mul16,  mul32,  mul64 },
        {imul8, imul16, imul32, imul64}
    };
    unsigned bytes = i->op_bytes;
    uint64_t source = int_get_rm(cpu, i, bytes), low, high;
    uint16_t flags = functions[i->op == OP_IMUL1][size_index(bytes)](
        int_get_reg(cpu, i, CPU_RAX, 8), source, &low, &high);
    if (bytes == 1) {
        soft_set_reg16(cpu, CPU_RAX, (uint16_t)low);
    } else {
        int_put_reg(cpu, i, CPU_RAX, bytes, low);
        int_put_reg(cpu, i, CPU_RDX, bytes, high);
    }
    set_some_flags(cpu, flags, MULTIPLY_FLAGS);
}

#define IMUL(bits, suffix)                                                                         \
    static uint64_t imul2_##bits(struct soft_cpu *cpu, uint64_t a, uint64_t b)                     \
    {                                                                                              \
        uint##bits##_t value = (uint##bits##_t)a;                                                  \
        uint16_t ax;                                                                               \
        __asm__("imul" suffix " %2, %1\n\t" HOST_FLAGS                                             \
                : "=&a"(ax), "+r"(value)                                                           \
                : "r"((uint##bits##_t)b)                                                           \
                : "cc");                                                                           \
        set_some_flags(cpu, ax, MULTIPLY_FLAGS);                                                   \
        return value;                                                                              \
    }
IMUL(16, "w")
IMUL(32, "l")
IMUL(64, "q")

/* The hot one: of 64-bit registers. */
static void imul64_reg(struct soft_cpu *cpu, const struct insn *i)
{
    cpu->gpr[i->reg] = imul2_64(cpu, cpu->gpr[i->reg], cpu->gpr[i->rm]);
}

static void imul(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t a = int_get_rm(cpu, i, bytes);
    uint64_t b = i->op == OP_IMUL3 ? i->imm : int_get_reg(cpu, i, i->reg, bytes);
    uint64_t product = bytes == 2   ? imul2_16(cpu, a, b)
                       : bytes == 4 ? imul2_32(cpu, a, b)
                                    : imul2_64(cpu, a, b);
    int_put_reg(cpu, i, i->reg, bytes, product);
}

/* --- DIV, IDIV: what the host would trap on is #DE first --- */

static void divide(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bits = 8u * i->op_bytes;
    uint64_t divisor = int_get_rm(cpu, i, i->op_bytes);
    uint128 dividend = i->op_bytes == 1
                           ? (uint16_t)cpu->gpr[CPU_RAX]
                           : (uint128)int_get_reg(cpu, i, CPU_RDX, i->op_bytes) << bits |
                                 int_get_reg(cpu, i, CPU_RAX, i->op_bytes);
    /* The quotient fits exactly when the upper half is less than the divisor. */
    if (divisor == 0 || (uint64_t)(dividend >> bits) >= divisor)
        soft_raise(cpu, EXC_DE);
    uint64_t quotient, remainder;
    if (bits == 64) {
        __asm__("divq %4"
                : "=a"(quotient), "=d"(remainder)
                : "0"((uint64_t)dividend), "1"((uint64_t)(dividend >> 64)), "r"(divisor)
                : "cc");
    } else {
        quotient = (uint64_t)dividend / divisor;
        remainder = (uint64_t)dividend % divisor;
    }
    if (bits == 8) {
        soft_set_reg16(cpu, CPU_RAX, (uint16_t)(quotient | remainder << 8));
        return;
    }
    int_put_reg(cpu, i, CPU_RAX, i->op_bytes, quotient);
    int_put_reg(cpu, i, CPU_RDX, i->op_bytes, remainder);
}

static int128 sign_extend(uint128 value, unsigned bits)
{
    unsigned shift = 128 - bits;
    return (int128)(value << shift) >> shift;
}

static void divide_signed(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bits = 8u * i->op_bytes;
    int128 divisor = sign_extend(int_get_rm(cpu, i, i->op_bytes), bits);
    uint128 raw = i->op_bytes == 1 ? (uint16_t)cpu->gpr[CPU_RAX]
                                   : (uint128)int_get_reg(cpu, i, CPU_RDX, i->op_bytes) << bits |
                                         int_get_reg(cpu, i, CPU_RAX, i->op_bytes);
    int128 dividend = sign_extend(raw, 2 * bits);
    if (divisor == 0)
        soft_raise(cpu, EXC_DE);
    /* The one quotient that 128 bits do not hold. */
    int128 lowest = (int128)((uint128)1 << 127);
    if (divisor == -1 && dividend == lowest)
        soft_raise(cpu, EXC_DE);
    int128 quotient = dividend / divisor, remainder = dividend % divisor;
    if (sign_extend((uint128)quotient, bits) != quotient)
        soft_raise(cpu, EXC_DE);
    if (bits == 8) {
        soft_set_reg16(cpu, CPU_RAX,
                       (uint16_t)((uint8_t)quotient | (uint16_t)((uint8_t)remainder << 8)));
        return;
    }
    int_put_reg(cpu, i, CPU_RAX, i->op_bytes, (uint64_t)quotient);
    int_put_reg(cpu, i, CPU_RDX, i->op_bytes, (uint64_t)remainder);
}

/* --- decimal adjustment (SDM vol. 2, the operation sections) --- */

static void set_szp(struct soft_cpu *cpu, uint8_t value)
{
    set_flag(cpu, RFLAGS_SF, value & 0x80);
    set_flag(cpu, RFLAGS_ZF, value == 0);
    set_flag(cpu, RFLAGS_PF, !__builtin_parity(value));
}

static void daa_das(struct soft_cpu *cpu, const struct insn *i)
{
    uint8_t *al = (uint8_t *)&cpu->gpr[CPU_RAX];
    uint8_t old = *al;
    bool carry = cpu->rflags & RFLAGS_CF, subtract = i->op == OP_DAS;
    bool cf = false;
    bool low = (old & 15) > 9 || cpu->rflags & RFLAGS_AF;
    if (low) {
        cf = carry || (subtract ? old < 6 : old > 0xf9);
        *al = (uint8_t)(subtract ? *al - 6 : *al + 6);
    }
    if (old > 0x99 || carry) {
        *al = (uint8_t)(subtract ? *al - 0x60 : *al + 0x60);
        cf = true;
    }
    set_flag(cpu, RFLAGS_AF, low);
    set_flag(cpu, RFLAGS_CF, cf);
    set_flag(cpu, RFLAGS_OF, false); /* undefined */
    set_szp(cpu, *al);
}

static void aaa_aas(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t ax = (uint16_t)cpu->gpr[CPU_RAX];
    bool adjust = (ax & 15) > 9 || cpu->rflags & RFLAGS_AF;
    if (adjust)
        ax = (uint16_t)(i->op == OP_AAA ? ax + 0x106 : ax - 0x106);
    soft_set_reg16(cpu, CPU_RAX, ax & 0xff0f);
    set_flag(cpu, RFLAGS_AF, adjust);
    set_flag(cpu, RFLAGS_CF, adjust);
}

static void aam(struct soft_cpu *cpu, const struct insn *i)
{
    uint8_t base = (uint8_t)i->imm, al = (uint8_t)cpu->gpr[CPU_RAX];
    if (base == 0)
        soft_raise(cpu, EXC_DE);
    soft_set_reg16(cpu, CPU_RAX, (uint16_t)((al / base) << 8 | al % base));
    set_flag(cpu, RFLAGS_CF | RFLAGS_OF | RFLAGS_AF, false);
    set_szp(cpu, al % base);
}

static void aad(struct soft_cpu *cpu, const struct insn *i)
{
    uint16_t ax = (uint16_t)cpu->gpr[CPU_RAX];
    uint8_t al = (uint8_t)((ax & 0xff) + (ax >> 8) * (uint8_t)i->imm);
    soft_set_reg16(cpu, CPU_RAX, al);
    set_flag(cpu, RFLAGS_CF | RFLAGS_OF | RFLAGS_AF, false);
    set_szp(cpu, al);
}

/* --- BMI, ADX --- */

/* Flags of ANDN, BLSI and their like: SF and ZF of the result, OF clear. */
static void set_bmi_flags(struct soft_cpu *cpu, uint64_t value, unsigned bytes, bool cf)
{
    set_flag(cpu, RFLAGS_SF, value >> (8 * bytes - 1) & 1);
    set_flag(cpu, RFLAGS_ZF, value == 0);
    set_flag(cpu, RFLAGS_CF, cf);
    set_flag(cpu, RFLAGS_OF, false);
}

static uint64_t width_mask(unsigned bytes)
{
    return bytes == 8 ? UINT64_MAX : UINT32_MAX;
}

static uint64_t deposit(uint64_t source, uint64_t mask)
{
    uint64_t result = 0;
    for (; mask; mask &= mask - 1, source >>= 1) {
        if (source & 1)
            result |= mask & -mask;
    }
    return result;
}

static uint64_t extract(uint64_t source, uint64_t mask)
{
    uint64_t result = 0;
    for (uint64_t bit = 1; mask; mask &= mask - 1, bit <<= 1) {
        if (source & mask & -mask)
            result |= bit;
    }
    return result;
}

static void bmi(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes, bits = 8u * bytes;
    uint64_t mask = width_mask(bytes);
    uint64_t rm = int_get_rm(cpu, i, bytes), v = cpu->gpr[i->vvvv] & mask, result = 0;
    unsigned index = (unsigned)v & 0xff, length = (unsigned)(v >> 8) & 0xff;
    unsigned destination = i->reg;
    switch (i->op) {
    case OP_ANDN:
        result = ~v & rm & mask;
        set_bmi_flags(cpu, result, bytes, false);
        break;
    case OP_BEXTR:
        result = index < bits ? rm >> index : 0;
        result &= length < bits ? (1ULL << length) - 1 : mask;
        set_flag(cpu, RFLAGS_ZF, result == 0);
        set_flag(cpu, RFLAGS_CF | RFLAGS_OF, false);
        break;
    case OP_BLSI:
        result = rm & -rm;
        set_bmi_flags(cpu, result, bytes, rm != 0);
        destination = i->vvvv;
        break;
    case OP_BLSMSK:
        result = (rm ^ (rm - 1)) & mask;
        set_bmi_flags(cpu, result, bytes, rm == 0);
        destination = i->vvvv;
        break;
    case OP_BLSR:
        result = rm & (rm - 1);
        set_bmi_flags(cpu, result, bytes, rm == 0);
        destination = i->vvvv;
        break;
    case OP_BZHI:
        result = index < bits ? rm & ((1ULL << index) - 1) : rm;
        set_bmi_flags(cpu, result, bytes, index >= bits);
        break;
    case OP_PDEP:
        result = deposit(v, rm);
        break;
    case OP_PEXT:
        result = extract(v, rm);
        break;
    case OP_RORX: {
        unsigned count = (unsigned)i->imm & (bits - 1);
        result = count ? (rm >> count | rm << (bits - count)) & mask : rm;
        break;
    }
    case OP_SARX:
        result = (uint64_t)(bytes == 8 ? (int64_t)rm >> (v & 63) : (int32_t)rm >> (v & 31)) & mask;
        break;
    case OP_SHLX:
        result = rm << (v & (bits - 1)) & mask;
        break;
    default: /* SHRX */
        result = rm >> (v & (bits - 1));
        break;
    }
    int_put_reg(cpu, i, destination, bytes, result);
}

/* vvvv gets the low half, then reg the high one. */
static void mulx(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t rm = int_get_rm(cpu, i, bytes);
    uint128 product = (uint128)int_get_reg(cpu, i, CPU_RDX, bytes) * rm;
    int_put_reg(cpu, i, i->vvvv, bytes, (uint64_t)product);
    int_put_reg(cpu, i, i->reg, bytes, (uint64_t)(product >> (8 * bytes)));
}

static void adcx_adox(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    uint64_t flag = i->op == OP_ADCX ? RFLAGS_CF : RFLAGS_OF;
    uint128 sum = (uint128)int_get_reg(cpu, i, i->reg, bytes) + int_get_rm(cpu, i, bytes) +
                  !!(cpu->rflags & flag);
    int_put_reg(cpu, i, i->reg, bytes, (uint64_t)sum);
    set_flag(cpu, flag, sum >> (8 * bytes) & 1);
}

/* --- CRC32 (of the Castagnoli polynomial, bit-reflected) --- */

__attribute__((target("sse4.2"))) static uint64_t crc_of_host(uint64_t crc, uint64_t data,
                                                              unsigned bytes)
{
    uint32_t c = (uint32_t)crc;
    switch (bytes) {
    case 1:
        return __builtin_ia32_crc32qi(c, (uint8_t)data);
    case 2:
        return __builtin_ia32_crc32hi(c, (uint16_t)data);
    case 4:
        return __builtin_ia32_crc32si(c, (uint32_t)data);
    default:
        return __builtin_ia32_crc32di(crc & 0xffffffff, data);
    }
}

static void crc32(struct soft_cpu *cpu, const struct insn *i)
{
    unsigned bytes = i->op_bytes;
    bool wide = i->prefixes & PREFIX_REX_W;
    uint64_t crc = crc_of_host(cpu->gpr[i->reg], int_get_rm(cpu, i, bytes), bytes);
    int_put_reg(cpu, i, i->reg, wide ? 8 : 4, crc);
}

/* --- RDRAND, RDSEED --- */

/* On a virtual clock nothing may come from outside: numbers of a fixed generator, by time. */
static bool random_number(struct soft_cpu *cpu, uint64_t *value)
{
    if (chip_clock_is_virtual(cpu->vm->clock)) {
        uint64_t z = cpu->random_state += 0x9e3779b97f4a7c15ULL; /* splitmix64 */
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
        *value = z ^ z >> 31;
        return true;
    }
    return getrandom(value, sizeof(*value), GRND_NONBLOCK) == sizeof(*value);
}

static void rdrand(struct soft_cpu *cpu, const struct insn *i)
{
    uint64_t value = 0;
    bool good = random_number(cpu, &value);
    cpu->rflags &= ~RFLAGS_ARITH;
    set_flag(cpu, RFLAGS_CF, good);
    int_put_reg(cpu, i, i->rm, i->op_bytes, good ? value : 0);
}

soft_exec_fn *muldiv_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_MUL:
    case OP_IMUL1:
        return multiply;
    case OP_IMUL2:
        return insn->op_bytes == 8 && !insn->is_mem ? imul64_reg : imul;
    case OP_IMUL3:
        return imul;
    case OP_DIV:
        return divide;
    case OP_IDIV:
        return divide_signed;
    case OP_DAA:
    case OP_DAS:
        return daa_das;
    case OP_AAA:
    case OP_AAS:
        return aaa_aas;
    case OP_AAM:
        return aam;
    case OP_AAD:
        return aad;
    case OP_MULX:
        return mulx;
    case OP_ADCX:
    case OP_ADOX:
        return adcx_adox;
    case OP_CRC32:
        return crc32;
    case OP_RDRAND:
    case OP_RDSEED:
        return rdrand;
    case OP_ANDN:
    case OP_BEXTR:
    case OP_BLSI:
    case OP_BLSMSK:
    case OP_BLSR:
    case OP_BZHI:
    case OP_PDEP:
    case OP_PEXT:
    case OP_RORX:
    case OP_SARX:
    case OP_SHLX:
    case OP_SHRX:
        return bmi;
    default:
        return NULL;
    }
}
