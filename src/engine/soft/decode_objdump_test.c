/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder beside another one: lengths and mnemonics of generated instructions as objdump
 * (binutils) has them. Instructions that either takes for bad are left out: objdump knows
 * extensions that are not offered here, and takes for bad what processors run (x87 aliases, NOPs
 * with hints).
 */
#include <ctype.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/tap.h"
#include "engine/soft/decode.h"

#define SLOT_BYTES 32 /* an instruction, and NOPs by which objdump finds its feet again */
#define SLOTS      15000
#define SHOWN_MAX  20

static uint64_t random_state = 88172645463325252ULL;

static unsigned next_random(unsigned below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 32) % below;
}

static const struct decode_mode *mode_of(unsigned bits)
{
    static const struct decode_mode modes[3] = {
        {16, true, ~0ULL},
        {32, true, ~0ULL},
        {64, true, ~0ULL}
    };
    return &modes[bits / 32];
}

/* A row's example with random operands, perhaps behind a prefix; or random bytes. */
static void make_slot(uint8_t slot[SLOT_BYTES], const struct decode_mode *mode)
{
    static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x64, 0x48, 0x41, 0x45};
    uint8_t bytes[8];
    int modrm_at;
    size_t at = 0, len;
    memset(slot, 0x90, SLOT_BYTES);
    for (size_t i = 0; i < INSN_LEN_MAX; i++)
        slot[i] = (uint8_t)next_random(256);
    if (next_random(4) == 0)
        slot[at++] = prefixes[next_random(mode->code_bits == 64 ? 8 : 5)];
    if (next_random(8) == 0)
        return;
    len =
        decode_opcode_example(next_random((unsigned)decode_opcode_count()), mode, bytes, &modrm_at);
    if (modrm_at >= 0)
        bytes[modrm_at] = (uint8_t)((bytes[modrm_at] & 0x38) | (next_random(256) & 0xc7));
    memcpy(slot + at, bytes, len);
}

/* Is one name the beginning of the other: "movsb" and "movs", "retf" and "retfw"? */
static bool names_agree(const char *ours, const char *theirs)
{
    size_t a = strcspn(ours, " "), b = strcspn(theirs, " ");
    return strncmp(ours, theirs, a < b ? a : b) == 0;
}

/* Prefixes that objdump writes as words ahead of the instruction. */
static const char *skip_prefixes(const char *text)
{
    static const char *const words[] = {"lock ",    "rep ",      "repz ",     "repnz ", "data16 ",
                                        "data32 ",  "addr16 ",   "addr32 ",   "cs ",    "ds ",
                                        "es ",      "ss ",       "fs ",       "gs ",    "bnd ",
                                        "notrack ", "xacquire ", "xrelease ", "repe ",  "repne "};
    bool again = true;
    while (again) {
        again = false;
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
            if (strncmp(text, words[i], strlen(words[i])) == 0) {
                text += strlen(words[i]);
                again = true;
            }
        }
        if (strncmp(text, "rex", 3) == 0 && strchr(text, ' ')) {
            text = strchr(text, ' ') + 1;
            again = true;
        }
    }
    return text;
}

/* What objdump and processors name or cut differently, and why. */
static bool explained(const struct insn *insn, const char *theirs)
{
    /* Intel's processors ignore 66 on near branches in 64-bit code; objdump follows AMD's. */
    bool near_branch = insn->opcode->attr & ATTR_FORCE64;
    if (insn->addr_bytes != 2 && near_branch && (insn->prefixes & PREFIX_OPSIZE))
        return true;
    /* A REX that a later prefix makes void is an instruction of its own to objdump. */
    if (strncmp(skip_prefixes(theirs), "rex", 3) == 0)
        return true;
    /* F3 90 with REX.B is XCHG on processors. */
    if (insn->op == OP_XCHG && (insn->prefixes & PREFIX_REP))
        return true;
    /* FWAIT and an x87 instruction are FSTCW and the like to it. */
    if (insn->op == OP_FWAIT)
        return true;
    /* Hints of extensions, and conditions and the like in names of their own. */
    return insn->op == OP_NOP || strncmp(insn->opcode->name, "cmp", 3) == 0 ||
           strncmp(insn->opcode->name, "vcmp", 4) == 0 ||
           strncmp(insn->opcode->name, "pclmul", 6) == 0 ||
           strncmp(insn->opcode->name, "vpclmul", 7) == 0 ||
           strcmp(insn->opcode->name, "wbinvd") == 0;
}

static bool slot_differs(const uint8_t slot[SLOT_BYTES], const struct decode_mode *mode,
                         unsigned their_len, const char *theirs)
{
    struct insn insn;
    char ours[128];
    if (decode_insn(&insn, slot, SLOT_BYTES, mode) != DECODE_OK || insn.op == OP_UD)
        return false;
    if (strstr(theirs, "(bad)") || explained(&insn, theirs))
        return false;
    decode_print(&insn, 0, ours, sizeof(ours));
    return insn.len != their_len || !names_agree(skip_prefixes(ours), skip_prefixes(theirs));
}

/* One line of objdump: "  20:\t48 89 d8 \tmov    rax,rbx". */
static bool parse_line(char *line, unsigned long *at, unsigned *len, const char **text)
{
    char *end;
    *at = strtoul(line, &end, 16);
    if (end == line || *end != ':')
        return false;
    *len = 0;
    for (end++; *end == '\t' || *end == ' '; end++) {
    }
    while (isxdigit((unsigned char)end[0]) && isxdigit((unsigned char)end[1]) && end[2] == ' ') {
        (*len)++;
        end += 3;
    }
    while (*end == ' ' || *end == '\t')
        end++;
    end[strcspn(end, "\n")] = '\0';
    *text = end;
    return true;
}

static void compare(unsigned bits, const char *arch, const char *path)
{
    const struct decode_mode *mode = mode_of(bits);
    uint8_t *slots = malloc(SLOTS * SLOT_BYTES);
    char command[256], line[512];
    unsigned seen = 0, different = 0;
    FILE *file = fopen(path, "wb"), *objdump;
    if (!ok(slots && file, "a file for objdump")) {
        free(slots);
        return;
    }
    for (unsigned i = 0; i < SLOTS; i++)
        make_slot(slots + (size_t)i * SLOT_BYTES, mode);
    (void)fwrite(slots, SLOT_BYTES, SLOTS, file);
    (void)fclose(file);
    (void)snprintf(command, sizeof(command),
                   "objdump -D -z -b binary -m %s -M intel --insn-width=16 %s", arch, path);
    objdump = popen(command, "r");
    while (objdump && fgets(line, sizeof(line), objdump)) {
        unsigned long at;
        unsigned len;
        const char *text;
        if (!parse_line(line, &at, &len, &text) || at % SLOT_BYTES || at / SLOT_BYTES >= SLOTS)
            continue;
        seen++;
        if (slot_differs(slots + at, mode, len, text) && different++ < SHOWN_MAX) {
            struct insn insn;
            char ours[128];
            decode_insn(&insn, slots + at, SLOT_BYTES, mode);
            decode_print(&insn, at, ours, sizeof(ours));
            printf("# %u bytes: %s; objdump %u: %s\n", insn.len, ours, len, text);
        }
    }
    if (objdump)
        (void)pclose(objdump);
    free(slots);
    is_int(seen, SLOTS, "objdump tells of each instruction");
    printf("# %u-bit code: %u instructions\n", bits, seen);
    is_int(different, 0, "lengths and names are the same");
}

int main(void)
{
    char path[] = "/tmp/hull-decode-XXXXXX";
    int fd;
    if (system("objdump --version >/dev/null 2>&1") != 0) {
        tap_skip("the decoder beside objdump", "there is no objdump");
        return tap_done();
    }
    fd = mkstemp(path);
    if (!ok(fd >= 0, "a temporary file"))
        return tap_done();
    close(fd);
    compare(64, "i386:x86-64", path);
    compare(32, "i386", path);
    compare(16, "i8086", path);
    (void)unlink(path);
    return tap_done();
}
