/* SPDX-License-Identifier: MIT */
#include "halotile.h"

int64_t ht_reflect(int64_t index, int64_t size)
{
    if (index >= 0 && index < size)
        return index;
    if (size == 1)
        return 0;
    int64_t period = 2 * (size - 1);
    int64_t at = index % period;
    if (at < 0)
        at += period;
    return at < size ? at : period - at;
}
