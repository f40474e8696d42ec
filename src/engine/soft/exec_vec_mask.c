/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vector instructions that access memory by elements, of which a mask leaves some out: those are
 * not accessed, and cannot fault.
 */
#include "engine/soft/exec_int.h"
#include "engine/soft/exec_vec.h"

/* Eight elements of 4 bytes or four of 8, in one piece. */
struct ymm {
    uint8_t bytes[32];
};

static struct ymm get_ymm(const struct soft_cpu *cpu, unsigned reg)
{
    struct ymm value;
    memcpy(value.bytes, cpu->fpu.xmm[reg], 16);
    memcpy(value.bytes + 16, cpu->fpu.ymm_hi[reg], 16);
    return value;
}

static void put_ymm(struct soft_cpu *cpu, unsigned reg, const struct ymm *value)
{
    memcpy(cpu->fpu.xmm[reg], value->bytes, 16);
    memcpy(cpu->fpu.ymm_hi[reg], value->bytes + 16, 16);
}

static bool selected(const struct ymm *mask, unsigned element, unsigned size)
{
    return mask->bytes[element * size + size - 1] & 0x80;
}

/* --- gathers --- */

static uint64_t gather_address(struct soft_cpu *cpu, const struct insn *insn,
                               const struct ymm *indices, unsigned element, unsigned index_size)
{
    int64_t index;
    if (index_size == 4) {
        int32_t narrow;
        memcpy(&narrow, indices->bytes + 4ul * element, 4);
        index = narrow;
    } else {
        memcpy(&index, indices->bytes + 8ul * element, 8);
    }
    uint64_t offset =
        cpu->gpr[insn->base] + ((uint64_t)index << insn->scale) + (uint64_t)(int64_t)insn->disp;
    return soft_linear(cpu, insn->seg, offset & insn_addr_mask(insn), insn->mem_bytes, false);
}

/* An element that faults leaves those before it loaded (SDM vol. 2, VGATHERDPS), and all masks
 * before it clear, as on AMD's processors. */
static void gather(struct soft_cpu *cpu, const struct insn *insn)
{
    unsigned size = insn->mem_bytes, index_size = insn->opcode_byte & 1 ? 8 : 4;
    unsigned count = insn->op_bytes / (size > index_size ? size : index_size);
    gate_avx(cpu);
    struct ymm indices = get_ymm(cpu, insn->index), mask = get_ymm(cpu, insn->vvvv);
    struct ymm value = get_ymm(cpu, insn->reg);
    for (unsigned i = 0; i < count; i++) {
        if (selected(&mask, i, size)) {
            put_ymm(cpu, insn->vvvv, &mask);
            uint64_t la = gather_address(cpu, insn, &indices, i, index_size);
            uint64_t element = mmu_read_element(cpu, la, size);
            memcpy(value.bytes + (size_t)i * size, &element, size);
            put_ymm(cpu, insn->reg, &value);
        }
        memset(mask.bytes + (size_t)i * size, 0, size);
    }
    memset(value.bytes + (size_t)count * size, 0, sizeof(value.bytes) - (size_t)count * size);
    memset(mask.bytes, 0, sizeof(mask.bytes));
    put_ymm(cpu, insn->reg, &value);
    put_ymm(cpu, insn->vvvv, &mask);
}

/* --- VMASKMOV, VPMASKMOV --- */

static unsigned mask_element(const struct insn *insn)
{
    if ((insn->opcode_byte & 0xfd) == 0x8c)
        return vec_opcode_of(insn).w ? 8 : 4;
    return insn->opcode_byte & 1 ? 8 : 4;
}

static void mask_load(struct soft_cpu *cpu, const struct insn *insn)
{
    unsigned size = mask_element(insn);
    struct ymm value = {{0}};
    gate_avx(cpu);
    struct ymm mask = get_ymm(cpu, insn->vvvv);
    uint64_t offset = insn_offset(cpu, insn);
    for (unsigned at = 0; at < insn->op_bytes; at += size) {
        if (!selected(&mask, at / size, size))
            continue;
        uint64_t la =
            soft_linear(cpu, insn->seg, (offset + at) & insn_addr_mask(insn), size, false);
        uint64_t element = mmu_read_element(cpu, la, size);
        memcpy(value.bytes + at, &element, size);
    }
    put_ymm(cpu, insn->reg, &value);
}

static void mask_store(struct soft_cpu *cpu, const struct insn *insn)
{
    unsigned size = mask_element(insn);
    uint64_t la[8];
    gate_avx(cpu);
    struct ymm mask = get_ymm(cpu, insn->vvvv), value = get_ymm(cpu, insn->reg);
    uint64_t offset = insn_offset(cpu, insn);
    unsigned count = insn->op_bytes / size;
    for (unsigned i = 0; i < count; i++) {
        if (!selected(&mask, i, size))
            continue;
        la[i] = soft_linear(cpu, insn->seg, (offset + (size_t)i * size) & insn_addr_mask(insn),
                            size, true);
        mmu_check_element(cpu, la[i], size, true);
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t element = 0;
        if (!selected(&mask, i, size))
            continue;
        memcpy(&element, value.bytes + (size_t)i * size, size);
        mmu_write_element(cpu, la[i], size, element);
    }
}

/* --- MASKMOVQ, MASKMOVDQU: to DS:rDI --- */

static void store_bytes(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *value,
                        const uint8_t *mask, unsigned count)
{
    uint64_t la[16], offset = cpu->gpr[CPU_RDI];
    /* Of quadwords, whatever the mask, as on AMD's processors. */
    mmu_check_alignment(cpu, cpu->seg_base[insn->seg] + (offset & insn_addr_mask(insn)), 8);
    for (unsigned i = 0; i < count; i++) {
        if (!(mask[i] & 0x80))
            continue;
        la[i] = soft_linear(cpu, insn->seg, (offset + i) & insn_addr_mask(insn), 1, true);
        vec_check_write(cpu, la[i], 1);
    }
    for (unsigned i = 0; i < count; i++) {
        if (mask[i] & 0x80)
            mmu_write8(cpu, la[i], value[i]);
    }
}

static void maskmovdqu(struct soft_cpu *cpu, const struct insn *insn)
{
    if (insn->prefixes & PREFIX_VEX)
        gate_avx(cpu);
    else
        gate_sse(cpu);
    store_bytes(cpu, insn, cpu->fpu.xmm[insn->reg], cpu->fpu.xmm[insn->rm], 16);
}

static void maskmovq(struct soft_cpu *cpu, const struct insn *insn)
{
    if (cpu->cr0 & (CR0_EM | CR0_TS))
        soft_raise(cpu, cpu->cr0 & CR0_EM ? EXC_UD : EXC_NM);
    if (!x87_ready(cpu, insn))
        return;
    /* A store that faults leaves it so, as on AMD's processors. */
    mmx_rotate(cpu);
    store_bytes(cpu, insn, cpu->fpu.st[insn->reg], cpu->fpu.st[insn->rm], 8);
}

soft_exec_fn *vec_mask_bind(const struct insn *insn)
{
    switch (insn->op) {
    case OP_VEC_GATHER:
        return gather;
    case OP_VEC_MASKLOAD:
        return mask_load;
    case OP_VEC_MASKSTORE:
        return mask_store;
    default:
        return insn->opcode->attr & ATTR_MMX ? maskmovq : maskmovdqu;
    }
}
