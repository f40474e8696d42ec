/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include <string.h>

#include "base/units.h"

const struct engine_ops *engine_find(const char *name)
{
    static const struct engine_ops *const engines[] = {&engine_kvm, &engine_soft};
    for (size_t i = 0; i < ARRAY_LEN(engines); i++) {
        if (strcmp(engines[i]->name, name) == 0)
            return engines[i];
    }
    return NULL;
}
