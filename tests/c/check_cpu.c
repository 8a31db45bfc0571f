/* SPDX-License-Identifier: MIT
 *
 * The choice of row kernels: which environment variables are taken. Prints the level, or what is unknown.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

static int fails(const char *what)
{
    fprintf(stderr, "check_cpu: %s\n", what);
    return 1;
}

int main(void)
{
    const char *asked = getenv("HALOTILE_CPU"), *unknown = NULL;
    bool known = !asked || !*asked || strcmp(asked, "scalar") == 0 || strcmp(asked, "avx2") == 0 ||
                 strcmp(asked, "avx512") == 0 || strcmp(asked, "neon") == 0;
    if (ht_rows_init(NULL) != known || ht_rows_init(&unknown) != known || (unknown != NULL) == known)
        return fails("a level was taken that is none, or the other way round");
    struct ht_array nothing = {NULL, HT_U8, 1, 1, 1, 1, 1, 1};
    struct ht_axis_options side = {.size = 1, .tile = 1, .phase = 1, .scale_num = 1, .scale_den = 1};
    struct ht_plan plan;
    struct ht_restore_options options = {&plan, ht_values_of(HT_U8), ht_values_of(HT_U8), 1, NULL};
    if (!known && (ht_plan_init(&plan, &side, &side, HT_AVERAGE, NULL) != HT_OK ||
                   ht_restore(&nothing, &nothing, &options, NULL, NULL, NULL) != HT_BAD_CPU))
        return fails("a run was begun with an unknown level");
    if (!known && (strcmp(unknown, asked) != 0 || ht_rows_name()))
        return fails("the unknown level is not told");
    if (known && asked && *asked && strcmp(ht_rows_name(), asked) != 0 && strcmp(ht_rows_name(), "scalar") != 0 &&
        !(strcmp(asked, "avx512") == 0 && strcmp(ht_rows_name(), "avx2") == 0))
        return fails("a level above the asked one was taken");
    if (ht_cpu_has(HT_CPU_COUNT) || !ht_cpu_has(HT_CPU_SCALAR))
        return fails("the processor has a level that is none");
    printf("check_cpu: %s: ok\n", known ? ht_rows_name() : unknown);
    return 0;
}
