/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A builder of ACPI Machine Language (ACPI 6.4, chapter 20) and of the resource templates in it
 * (6.4). Bytes are appended to the caller's buffer; what does not fit sets overflow and is dropped,
 * so that only the end needs a check.
 *
 * Something with contents is begun and ended: the returned mark goes to aml_end(), which puts the
 * length in front.
 */
#ifndef HULL_VM_AML_H
#define HULL_VM_AML_H

#include <stdbool.h>
#include <stdint.h>

struct aml {
    uint8_t *bytes;
    uint32_t len, cap;
    bool overflow;
};

void aml_init(struct aml *aml, void *buf, uint32_t cap);

void aml_byte(struct aml *aml, uint8_t value);
void aml_bytes(struct aml *aml, const void *bytes, uint32_t len);

/* --- names and constants (20.2.2, 20.2.3) --- */

/* "\\_SB", "_SB.PCI0", "PCI0": segments of up to four characters, padded. */
void aml_path(struct aml *aml, const char *path);
/* The shortest encoding. */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
/* "PNP0A08" compressed to an integer (6.1.5). */
void aml_eisaid(struct aml *aml, const char *id);

/* --- objects (20.2.5); Name(path, ...): the value follows --- */

void aml_name(struct aml *aml, const char *path);
void aml_name_integer(struct aml *aml, const char *path, uint64_t value);
void aml_name_eisaid(struct aml *aml, const char *path, const char *id);
void aml_name_string(struct aml *aml, const char *path, const char *text);

uint32_t aml_scope_begin(struct aml *aml, const char *path);
uint32_t aml_device_begin(struct aml *aml, const char *name);
uint32_t aml_method_begin(struct aml *aml, const char *name, unsigned args, bool serialized);
uint32_t aml_package_begin(struct aml *aml, uint8_t elements);
uint32_t aml_if_begin(struct aml *aml); /* the predicate follows, then the body */
uint32_t aml_else_begin(struct aml *aml);
void aml_end(struct aml *aml, uint32_t mark);

/* --- resource templates (6.4) --- */

uint32_t aml_resources_begin(struct aml *aml);
void aml_resources_end(struct aml *aml, uint32_t mark);

void aml_io(struct aml *aml, uint16_t base, uint8_t len);
/* Edge-triggered, active high, exclusive: ISA interrupts. */
void aml_irq(struct aml *aml, unsigned irq);
void aml_memory32_fixed(struct aml *aml, uint32_t base, uint32_t len);

/* What a host bridge decodes and passes on. */
void aml_window_bus(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_io(struct aml *aml, uint16_t first, uint16_t last);
void aml_window_memory32(struct aml *aml, uint32_t first, uint32_t last);
void aml_window_memory64(struct aml *aml, uint64_t first, uint64_t last);

#endif
