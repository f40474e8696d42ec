/* SPDX-License-Identifier: Apache-2.0 */
/* What config.c and config_json.c share: working on a struct by its table of fields. */
#ifndef HULL_VM_CONFIG_FIELD_H
#define HULL_VM_CONFIG_FIELD_H

#include "vm/config.h"

/* The field of that name; NULL with err ("WHERE has no option ...; did you mean ...?"). */
const struct config_field *config_field_find(const struct config_field *fields, const char *name,
                                             const char *where, struct err *err);

/* Set one field of the struct at base from text, as on the command line. */
int config_field_set(const struct config_field *field, void *base, const char *value,
                     struct err *err);

/* A group from "first,name=value,flag". */
int config_group_set(const struct config_field *field, void *base, const char *value,
                     struct err *err);

/* Where a group's fields go: the struct itself, or a new, zeroed element of the list. */
int config_group_new(const struct config_field *field, void *base, void **elem, struct err *err);
/* Take the newest element away again, after a failure. */
void config_group_drop(const struct config_field *field, void *base);

/* Empty a list, or free a value. */
void config_list_clear(const struct config_field *field, struct vm_config *config);

#endif
