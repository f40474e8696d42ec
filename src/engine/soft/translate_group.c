/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/soft/translate_group.h"

/* --- which general registers --- */

static bool has_reg(const struct insn *insn)
{
    enum insn_form form = insn->opcode->form;
    return form == FORM_REG_RM || form == FORM_RM_REG || form == FORM_REG_V_RM ||
           form == FORM_REG_RM_V || form == FORM_RM_V_REG;
}

static bool has_rm(const struct insn *insn)
{
    enum insn_form form = insn->opcode->form;
    return form != FORM_NONE && form != FORM_ACC && !insn->is_mem;
}

bool translate_names(const struct insn *insn, unsigned reg)
{
    uint32_t attr = insn->opcode->attr;
    if (insn->is_mem && (insn->base == reg || insn->index == reg))
        return true;
    if (insn->op >= OP_VEC_BASE) /* most of its registers are others */
        return (attr & ATTR_GPR_REG && insn->reg == reg) ||
               (attr & ATTR_GPR_RM && !insn->is_mem && insn->rm == reg) ||
               (attr & ATTR_GPR_V && insn->vvvv == reg);
    return (has_reg(insn) && insn->reg == reg) || (has_rm(insn) && insn->rm == reg) ||
           (translate_has_vvvv(insn) && insn->vvvv == reg);
}

#define BIT(n) (1u << (n))

/* Those that the instruction may change without naming them. */
static unsigned implied(const struct insn *insn)
{
    switch (insn->op) {
    case OP_CMPXCHG:
    case OP_CBW:
    case OP_LAHF:
    case OP_X87_FNSTSW_AX:
        return BIT(CPU_RAX);
    case OP_XCHG:
        return insn->opcode->form == FORM_OPREG ? BIT(CPU_RAX) : 0;
    case OP_MUL:
    case OP_IMUL1:
    case OP_CMPXCHG8B:
    case OP_CMPXCHG16B:
    case OP_DIV:
    case OP_IDIV:
    case OP_CWD:
        return BIT(CPU_RAX) | BIT(CPU_RDX);
    case OP_VEC_STR:
        return BIT(CPU_RCX);
    default:
        return insn->opcode->form == FORM_ACC ? BIT(CPU_RAX) : 0;
    }
}

/* Of an operand, that may be AH, CH, DH, BH: the second bytes of the first four registers. */
static unsigned register_bit(const struct insn *insn, unsigned reg)
{
    bool high = insn->op_bytes == 1 && reg >= 4 && reg < 8 && !(insn->prefixes & PREFIX_REX);
    return BIT(high ? reg - 4 : reg);
}

/* A set of registers that holds all that the instruction changes, of those that it names. */
static unsigned changed(const struct insn *insn)
{
    unsigned reg = has_reg(insn) ? register_bit(insn, insn->reg) : 0;
    unsigned rm = has_rm(insn) ? register_bit(insn, insn->rm) : 0;
    unsigned vvvv = translate_has_vvvv(insn) ? BIT(insn->vvvv) : 0;
    uint32_t attr = insn->opcode->attr;
    if (insn->op >= OP_VEC_BASE)
        return (attr & ATTR_GPR_REG ? BIT(insn->reg) : 0) |
               (attr & ATTR_GPR_RM && !insn->is_mem ? BIT(insn->rm) : 0) |
               (attr & ATTR_GPR_V ? BIT(insn->vvvv) : 0);
    switch (insn->op) {
    case OP_CMP:
    case OP_TEST:
    case OP_BT:
    case OP_BT_IMM:
        return 0;
    case OP_MOV:
    case OP_ADD:
    case OP_OR:
    case OP_ADC:
    case OP_SBB:
    case OP_AND:
    case OP_SUB:
    case OP_XOR:
        return insn->opcode->form == FORM_REG_RM ? reg : rm;
    case OP_MOVZX8:
    case OP_MOVZX16:
    case OP_MOVSX8:
    case OP_MOVSX16:
    case OP_MOVSXD:
    case OP_LEA:
    case OP_IMUL2:
    case OP_IMUL3:
    case OP_CMOVCC:
        return reg;
    default:
        return reg | rm | vvvv;
    }
}

bool translate_changes(const struct insn *insn, unsigned reg)
{
    return (changed(insn) | implied(insn)) >> reg & 1;
}

bool translate_overwrites(const struct insn *insn, unsigned reg)
{
    bool to_reg = insn->opcode->form == FORM_REG_RM;
    if (insn->op_bytes < 4)
        return false;
    switch (insn->op) {
    case OP_MOV_IMM:
        return !insn->is_mem && insn->rm == reg;
    case OP_MOV:
        return to_reg ? insn->reg == reg && (insn->is_mem || insn->rm != reg)
                      : !insn->is_mem && insn->rm == reg && insn->reg != reg;
    case OP_MOVZX8:
    case OP_MOVZX16:
    case OP_MOVSX8:
    case OP_MOVSX16:
    case OP_MOVSXD:
        return insn->reg == reg && (insn->is_mem || insn->rm != reg);
    case OP_LEA:
        return insn->reg == reg && insn->base != reg && insn->index != reg;
    default:
        return false;
    }
}

/* --- addresses --- */

/* What registers hold: equal numbers, equal contents, but for what constants have been added. */
struct registers {
    bool code32;
    unsigned word; /* bytes of a register, and of what is pushed */
    uint16_t version[GPR_SLOTS];
    int64_t added[GPR_SLOTS];
};

struct address {
    uint8_t base, index, scale, seg;
    uint16_t base_version, index_version;
    int64_t offset;
};

/* Constants that are added to a register: SUB and ADD with an immediate, LEA off itself. */
static bool adds_constant(const struct registers *r, const struct insn *insn, unsigned *reg,
                          int64_t *value)
{
    if (insn->op_bytes != r->word)
        return false;
    if (insn->op == OP_LEA && insn->base == insn->reg && insn->index == GPR_ZERO &&
        insn->addr_bytes == r->word) {
        *reg = insn->reg;
        *value = insn->disp;
        return true;
    }
    if ((insn->op == OP_INC || insn->op == OP_DEC) && !insn->is_mem) {
        *reg = insn->rm;
        *value = insn->op == OP_INC ? 1 : -1;
        return true;
    }
    if ((insn->op == OP_ADD || insn->op == OP_SUB) && insn->opcode->form == FORM_RM &&
        !insn->is_mem) {
        *reg = insn->rm;
        *value = insn->op == OP_ADD ? (int64_t)insn->imm : -(int64_t)insn->imm;
        return true;
    }
    return false;
}

static void note_changes(struct registers *r, const struct insn *insn)
{
    unsigned reg;
    int64_t value;
    if (adds_constant(r, insn, &reg, &value)) {
        r->added[reg] += value;
        return;
    }
    unsigned set = changed(insn) | implied(insn);
    for (unsigned i = 0; i < 16; i++)
        r->version[i] = (uint16_t)(r->version[i] + (set >> i & 1));
}

static struct address stack_address(const struct registers *r, int by)
{
    return (struct address){.base = CPU_RSP,
                            .index = GPR_ZERO,
                            .base_version = r->version[CPU_RSP],
                            .offset = r->added[CPU_RSP] + by};
}

static struct address address_of(const struct registers *r, const struct insn *insn)
{
    bool fs_gs = insn->seg == SEG_FS || insn->seg == SEG_GS;
    return (struct address){
        .base = insn->rip_relative ? UINT8_MAX : insn->base,
        .index = insn->rip_relative ? GPR_ZERO : insn->index,
        .scale = insn->scale,
        .seg = fs_gs ? insn->seg : 0,
        .base_version = insn->rip_relative ? 0 : r->version[insn->base],
        .index_version = insn->rip_relative ? 0 : r->version[insn->index],
        .offset = insn->disp + (insn->rip_relative ? insn->next_offset
                                                   : r->added[insn->base] +
                                                         (int64_t)((uint64_t)r->added[insn->index]
                                                                   << insn->scale)),
    };
}

static bool same_registers(const struct address *a, const struct address *b)
{
    return a->base == b->base && a->index == b->index && a->seg == b->seg &&
           (a->index == GPR_ZERO || a->scale == b->scale) && a->base_version == b->base_version &&
           a->index_version == b->index_version;
}

struct access {
    struct address at;
    unsigned bytes;
    bool write;
};

enum part {
    PART_NONE,   /* R10 stays as it is, and no memory is accessed */
    PART_ACCESS, /* the access is one that may share */
    PART_ALONE,  /* R10 is lost */
};

static enum part part_of(const struct registers *r, const struct insn *insn, enum way way,
                         struct access *access)
{
    switch (way) {
    case WAY_X87:
        if (insn->is_mem)
            return PART_ALONE;
        break;
    case WAY_MEMORY:
    case WAY_VECTOR:
        if (!insn->is_mem)
            break;
        /* In 32-bit code only DS and SS are known to be flat. */
        if (insn->addr_bytes != r->word ||
            (r->code32 && insn->seg != SEG_DS && insn->seg != SEG_SS))
            return PART_ALONE;
        *access = (struct access){.at = address_of(r, insn),
                                  .bytes = insn->mem_bytes,
                                  .write = insn->opcode->attr & ATTR_MEM_WRITE};
        return PART_ACCESS;
    case WAY_CALL:
        *access = (struct access){stack_address(r, -(int)r->word), r->word, true};
        return PART_ACCESS;
    case WAY_PUSH:
    case WAY_CALL_IND: /* with a memory operand they access twice */
        *access = (struct access){stack_address(r, -(int)r->word), r->word, true};
        return insn->op != OP_PUSH_IMM && insn->is_mem ? PART_ALONE : PART_ACCESS;
    case WAY_POP:
    case WAY_RET:
        *access = (struct access){stack_address(r, 0), r->word, false};
        return PART_ACCESS;
    case WAY_COPY:
    case WAY_STEP:
        break;
    case WAY_LEA:
        return is_scratch(insn->reg) ? PART_ALONE : PART_NONE;
    case WAY_NOTHING:
    case WAY_PREFETCH: /* it keeps R10 */
    case WAY_JCC:      /* and so do these where a trace goes on */
    case WAY_JMP:
    case WAY_END:
        return PART_NONE;
    default:
        return PART_ALONE;
    }
    return translate_names(insn, R10) ? PART_ALONE : PART_NONE;
}

/* --- groups --- */

struct building {
    struct translate_group *group;
    struct address at;  /* of its first access */
    int64_t low, high;  /* of the stretch */
    unsigned count;     /* of its accesses */
    int64_t offset[64]; /* of each instruction's, as address.offset */
};

static bool joins(const struct building *b, const struct access *a)
{
    if (b->count == 0 || !same_registers(&b->at, &a->at))
        return false;
    int64_t low = a->at.offset < b->low ? a->at.offset : b->low;
    int64_t end = a->at.offset + a->bytes;
    int64_t high = end > b->high ? end : b->high;
    return high - low <= GROUP_BYTES_MAX;
}

static void add(struct building *b, unsigned i, const struct access *a)
{
    if (b->count == 0) {
        *b->group = (struct translate_group){.first = (uint8_t)i};
        b->at = a->at;
        b->low = a->at.offset;
        b->high = b->low + a->bytes;
    }
    b->count++;
    b->offset[i] = a->at.offset;
    b->group->last = (uint8_t)i;
    b->group->write |= a->write;
    if (a->at.offset < b->low)
        b->low = a->at.offset;
    if (a->at.offset + a->bytes > b->high)
        b->high = a->at.offset + a->bytes;
}

/* Can the stretch's start be given as the instruction's displacement, and `before` more? */
static bool is_displacement(const struct insn *insn, int64_t before)
{
    int64_t start = insn->disp + before;
    return start == (int32_t)start;
}

/* No more accesses for this one. Returns how many groups there are: 0 or 1. */
static unsigned finish(struct building *b, const struct insn *const *insns, const uint8_t *way,
                       uint16_t *offset)
{
    struct translate_group *g = b->group;
    bool good = b->count > 1;
    b->count = 0;
    if (!good)
        return 0;
    g->bytes = (uint16_t)(b->high - b->low);
    g->before = (int32_t)(b->low - b->at.offset);
    if (!is_displacement(insns[g->first], g->before))
        return 0;
    for (unsigned i = g->first; i <= g->last; i++) {
        offset[i] = (uint16_t)(b->offset[i] - b->low);
        g->vectors |= (uint8_t)translate_vectors_of(insns[i], (enum way)way[i]);
    }
    return 1;
}

unsigned translate_groups(const struct insn *const *insns, unsigned length, const uint8_t *way,
                          bool code32, struct translate_group *groups, uint16_t *offset)
{
    _Static_assert(BLOCK_INSNS_MAX < 64, "an offset for each instruction");
    struct registers r = {.code32 = code32, .word = code32 ? 4 : 8};
    struct building b = {.group = groups};
    unsigned count = 0;
    for (unsigned i = 0; i < length; i++) {
        const struct insn *insn = insns[i];
        struct access access;
        enum part part = part_of(&r, insn, (enum way)way[i], &access);
        if (part == PART_ALONE || (part == PART_ACCESS && !joins(&b, &access))) {
            count += finish(&b, insns, way, offset);
            b.group = &groups[count];
        }
        if (part == PART_ACCESS)
            add(&b, i, &access);
        if (way[i] == WAY_PUSH || way[i] == WAY_CALL) {
            r.added[CPU_RSP] -= r.word;
        } else if (way[i] == WAY_POP) {
            r.added[CPU_RSP] += r.word;
            r.version[insn->rm]++;
        } else if (part != PART_ALONE && !translate_leads_on((enum way)way[i])) {
            /* no group is open otherwise */
            note_changes(&r, insn);
        }
    }
    return count + finish(&b, insns, way, offset);
}

/* --- loops --- */

struct loop_access {
    struct address at;
    uint8_t insn, bytes;
    bool write;
    int64_t step;
};

/* The accesses of a round whose registers change by constants alone; returns how many; *all: there
 * are no others. */
static unsigned loop_accesses(const struct insn *const *insns, unsigned length, const uint8_t *way,
                              struct loop_access *accesses, bool *all)
{
    struct registers r = {.word = 8};
    unsigned count = 0;
    *all = true;
    for (unsigned i = 0; i + 1 < length; i++) {
        const struct insn *insn = insns[i];
        bool access = (way[i] == WAY_MEMORY || way[i] == WAY_VECTOR) && insn->is_mem;
        if (access && insn->addr_bytes == 8)
            accesses[count++] = (struct loop_access){.at = address_of(&r, insn),
                                                     .insn = (uint8_t)i,
                                                     .bytes = insn->mem_bytes,
                                                     .write = insn->opcode->attr & ATTR_MEM_WRITE};
        else if (access || way[i] == WAY_DIVIDE || way[i] == WAY_PREFETCH)
            *all = false;
        if (!translate_leads_on((enum way)way[i]))
            note_changes(&r, insn);
    }
    unsigned kept = 0;
    for (unsigned n = 0; n < count; n++) {
        struct loop_access *a = &accesses[n];
        const struct insn *insn = insns[a->insn];
        bool fixed = insn->rip_relative;
        /* The version that a register ends with is that which it has all the time. */
        if (!fixed && (r.version[insn->base] != 0 || r.version[insn->index] != 0)) {
            *all = false;
            continue;
        }
        a->step =
            fixed ? 0
                  : r.added[insn->base] + (int64_t)((uint64_t)r.added[insn->index] << insn->scale);
        accesses[kept++] = *a;
    }
    return kept;
}

/* Where an instruction's operand is in the first round, but for its registers' contents then. */
static int64_t own_offset(const struct insn *insn)
{
    return insn->disp + (insn->rip_relative ? insn->next_offset : 0);
}

/* Put an access of so many rounds into a stretch; false: there is none for it. */
static bool loop_add(const struct insn *const *insns, struct translate_loop *loop, int64_t *low,
                     struct address *keys, const struct loop_access *a)
{
    const struct insn *insn = insns[a->insn];
    int64_t last = a->at.offset + a->step * (int64_t)(loop->rounds - 1);
    int64_t first = a->step < 0 ? last : a->at.offset;
    int64_t end = (a->step < 0 ? a->at.offset : last) + a->bytes;
    unsigned align = translate_wants_alignment(insn) ? a->bytes : 1;
    if (end - first > GROUP_BYTES_MAX || (align > 1 && a->step % (int64_t)align != 0))
        return false;
    unsigned n = 0;
    for (; n < loop->count; n++) {
        struct translate_stretch *s = &loop->stretches[n];
        int64_t new_low = first < low[n] ? first : low[n];
        int64_t high = low[n] + s->bytes, new_high = end > high ? end : high;
        /* With alignment all are where their start says. */
        bool fits = new_high - new_low <= GROUP_BYTES_MAX &&
                    ((align == 1 && s->align == 1) || (new_low == low[n] && align <= s->align));
        if (!same_registers(&keys[n], &a->at) || !fits ||
            (align > 1 && (first - low[n]) % (int64_t)align != 0))
            continue;
        s->bytes = (uint16_t)(new_high - new_low);
        low[n] = new_low;
        s->write |= a->write;
        s->uses++;
        break;
    }
    if (n == loop->count) {
        if (n == SOFT_STRETCHES)
            return false;
        keys[n] = a->at;
        low[n] = first;
        loop->stretches[n] = (struct translate_stretch){.insn = a->insn,
                                                        .write = a->write,
                                                        .align = (uint8_t)align,
                                                        .uses = 1,
                                                        .bytes = (uint16_t)(end - first)};
        loop->count++;
    }
    loop->of[a->insn] = (uint8_t)(n + 1);
    return true;
}

void translate_find_stretches(const struct insn *const *insns, unsigned length, const uint8_t *way,
                              unsigned rounds, struct translate_loop *loop)
{
    struct loop_access accesses[BLOCK_INSNS_MAX];
    int64_t low[SOFT_STRETCHES] = {0};
    struct address keys[SOFT_STRETCHES] = {{0}};
    *loop = (struct translate_loop){.rounds = rounds};
    unsigned count = loop_accesses(insns, length, way, accesses, &loop->all);
    for (unsigned n = 0; n < count; n++) {
        if (!loop_add(insns, loop, low, keys, &accesses[n]))
            loop->all = false;
    }
    for (unsigned n = 0; n < loop->count; n++) {
        struct translate_stretch *s = &loop->stretches[n];
        const struct insn *insn = insns[s->insn];
        int64_t before = low[n] - own_offset(insn);
        if (before != (int32_t)before || !is_displacement(insn, before))
            loop->rounds = 0;
        s->before = (int32_t)before;
    }
    for (unsigned n = 0; n < count; n++) {
        const struct loop_access *a = &accesses[n];
        if (!loop->of[a->insn])
            continue;
        loop->offset[a->insn] = (uint16_t)(a->at.offset - low[loop->of[a->insn] - 1]);
        loop->step[a->insn] = (int32_t)a->step;
    }
    if (loop->count == 0)
        loop->rounds = 0;
}
