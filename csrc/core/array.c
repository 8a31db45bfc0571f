/* SPDX-License-Identifier: MIT */
#include "array.h"

#include <math.h>

int64_t ht_dtype_size(enum ht_dtype dtype)
{
    static const int64_t sizes[HT_DTYPE_COUNT] = {
        [HT_U8] = 1, [HT_U16] = 2, [HT_F16] = 2, [HT_BF16] = 2, [HT_F32] = 4, [HT_F64] = 8};
    return sizes[dtype];
}

bool ht_dtype_is_model(enum ht_dtype dtype) { return dtype == HT_F32 || dtype == HT_F16 || dtype == HT_BF16; }

bool ht_values_are_valid(const struct ht_values *v)
{
    return v->peak > 0 && isfinite(v->peak) && isfinite(v->gain) && v->gain != 0 && isfinite(v->offset);
}

bool ht_array_fits(const struct ht_array *a, const struct ht_array *b)
{
    bool dtypes_exist = (unsigned)a->dtype < HT_DTYPE_COUNT && (unsigned)b->dtype < HT_DTYPE_COUNT;
    bool same = a->channels == b->channels && a->height == b->height && a->width == b->width;
    return dtypes_exist && same && a->channels >= 1 && a->height >= 1 && a->width >= 1;
}

void *ht_array_at(const struct ht_array *array, int64_t c, int64_t y, int64_t x)
{
    int64_t element = c * array->stride_c + y * array->stride_y + x * array->stride_x;
    return (char *)array->data + element * ht_dtype_size(array->dtype);
}

static bool is_interleaved(const struct ht_array *array)
{
    return array->stride_c == 1 && array->stride_x == array->channels;
}

static bool is_triples(const struct ht_array *array)
{
    return array->channels == HT_GROUP && is_interleaved(array);
}

static void flatten(struct ht_array *array)
{
    array->width *= array->channels;
    array->stride_x = 1;
    array->channels = 1;
}

int64_t ht_array_flatten(struct ht_array *a, struct ht_array *b)
{
    int64_t channels = a->channels;
    if (!is_interleaved(a) || !is_interleaved(b))
        return 1;
    flatten(a);
    flatten(b);
    return channels;
}

int ht_array_group(const struct ht_array *a, const struct ht_array *b)
{
    return is_triples(a) || is_triples(b) ? HT_GROUP : 1;
}

bool ht_piece_point(struct ht_piece *piece, const struct ht_array *array)
{
    bool direct = array->dtype == HT_F32 && array->stride_x == 1;
    for (int k = 0; k < piece->group; k++)
        piece->row[k] = direct ? ht_array_at(array, piece->c + k, piece->y, piece->x) : piece->scratch[k];
    return direct;
}

void ht_piece_load(struct ht_piece *piece, const struct ht_array *array)
{
    if (is_triples(array)) {
        const void *source = ht_array_at(array, 0, piece->y, piece->x);
        ht_rows.load3[array->dtype](piece->row[0], piece->row[1], piece->row[2], source, piece->n);
        return;
    }
    for (int k = 0; k < piece->group; k++) {
        const void *source = ht_array_at(array, piece->c + k, piece->y, piece->x);
        if (array->stride_x == 1)
            ht_rows.load[array->dtype](piece->row[k], source, piece->n);
        else
            ht_load_strided(piece->row[k], source, array->dtype, array->stride_x, piece->n);
    }
}

void ht_piece_store(const struct ht_piece *piece, const struct ht_array *array)
{
    if (is_triples(array)) {
        void *destination = ht_array_at(array, 0, piece->y, piece->x);
        ht_rows.store3[array->dtype](destination, piece->row[0], piece->row[1], piece->row[2], piece->n);
        return;
    }
    for (int k = 0; k < piece->group; k++) {
        void *destination = ht_array_at(array, piece->c + k, piece->y, piece->x);
        if (array->stride_x == 1)
            ht_rows.store[array->dtype](destination, piece->row[k], piece->n);
        else
            ht_store_strided(destination, array->dtype, array->stride_x, piece->row[k], piece->n);
    }
}

enum ht_dtype ht_piece_source(struct ht_piece *piece, const struct ht_array *array, const void *from[HT_GROUP])
{
    bool direct = array->stride_x == 1;
    for (int k = 0; k < piece->group; k++) {
        piece->row[k] = piece->scratch[k];
        from[k] = direct ? ht_array_at(array, piece->c + k, piece->y, piece->x) : piece->row[k];
    }
    if (direct)
        return array->dtype;
    ht_piece_load(piece, array);
    return HT_F32;
}
