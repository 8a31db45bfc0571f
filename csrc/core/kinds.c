/* SPDX-License-Identifier: MIT */
#include "kinds.h"

int ht_axis_kinds(const struct ht_axis *axis, struct ht_kind kinds[HT_KINDS])
{
    int64_t inner = axis->count - 2, longer = axis->longer; /* steps before tile i are longer if i <= longer */
    int64_t between_longer = longer > 1 ? longer - 1 : 0, between_both = longer > 0;
    const struct ht_kind all[HT_KINDS] = {
        {0, 1},
        {1, between_longer},
        {longer, between_both},
        {longer + 1, inner - between_longer - between_both},
        {axis->count - 1, axis->count > 1},
    };
    int found = 0;
    for (int k = 0; k < HT_KINDS; k++)
        if (all[k].count > 0)
            kinds[found++] = all[k];
    return found;
}
