/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "rows.h"

struct ht_rows ht_rows;

static const char *const level_names[HT_CPU_COUNT] = {
    [HT_CPU_SCALAR] = "scalar",
    [HT_CPU_AVX2] = "avx2",
    [HT_CPU_AVX512] = "avx512",
    [HT_CPU_NEON] = "neon",
};

/* Whether a processor that may use `limit` may use `level`. A limit of another architecture leaves scalar. */
static bool is_at_most(enum ht_cpu level, enum ht_cpu limit)
{
    return level == HT_CPU_SCALAR || level == limit || (level == HT_CPU_AVX2 && limit == HT_CPU_AVX512);
}

/* HT_CPU_COUNT if there is no such level. */
static enum ht_cpu level_of_name(const char *name)
{
    enum ht_cpu level = HT_CPU_SCALAR;

    while (level < HT_CPU_COUNT && strcmp(name, level_names[level]) != 0)
        level++;
    return level;
}

void ht_rows_fill(struct ht_rows *rows, enum ht_cpu level)
{
    ht_rows_scalar(rows);
#if defined(HT_X86_64)
    if (is_at_most(HT_CPU_AVX2, level))
        ht_rows_avx2(rows);
    if (is_at_most(HT_CPU_AVX512, level))
        ht_rows_avx512(rows);
#elif defined(HT_AARCH64)
    if (is_at_most(HT_CPU_NEON, level))
        ht_rows_neon(rows);
#endif
    rows->name = level_names[level];
}

bool ht_rows_init(const char **unknown)
{
    const char *name = getenv("HALOTILE_CPU");
    bool limited = name && *name;
    enum ht_cpu limit = limited ? level_of_name(name) : HT_CPU_COUNT;
    enum ht_cpu best = HT_CPU_SCALAR;

    if (ht_rows.name)
        return true;
    if (limited && limit == HT_CPU_COUNT) {
        if (unknown)
            *unknown = name;
        return false;
    }
    for (enum ht_cpu level = HT_CPU_SCALAR; level < HT_CPU_COUNT; level++)
        if (ht_cpu_has(level) && (!limited || is_at_most(level, limit)))
            best = level;
    ht_rows_fill(&ht_rows, best);
    return true;
}

const char *ht_rows_name(void)
{
    return ht_rows.name;
}
