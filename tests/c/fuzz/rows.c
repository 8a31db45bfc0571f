/* SPDX-License-Identifier: MIT
 *
 * Every row kernel of every level of this processor, against naive.h: rows of exact size at any alignment.
 */
#include "naive.h"

enum { LOAD, STORE, LOAD3, STORE3, SCALE, READ, READ3, ACCUMULATE, RESOLVE, KINDS };

struct row {
    unsigned char *memory, *at; /* at: after some elements that must stay as they are */
    enum ht_dtype dtype;
    int64_t n, before;
};

static struct row row_of(enum ht_dtype dtype, int64_t n, int64_t before)
{
    struct row row = {malloc((size_t)((n + before) * ht_dtype_size(dtype)) + 1), NULL, dtype, n, before};
    CHECK(row.memory);
    memset(row.memory, 0xa5, (size_t)((n + before) * ht_dtype_size(dtype)));
    row.at = row.memory + before * ht_dtype_size(dtype);
    return row;
}

static struct row filled(struct input *in, enum ht_dtype dtype, int64_t n, int64_t before, enum content content)
{
    struct row row = row_of(dtype, n, before);
    for (int64_t i = 0; i < n; i++)
        put_any(row.at + i * ht_dtype_size(dtype), dtype, in, content);
    return row;
}

/* Floats that an integer dtype holds, once rounded. */
static void limit(struct row *row, enum ht_dtype dtype)
{
    float high = dtype == HT_U8 ? 255 : 65535;
    for (int64_t i = 0; i < row->n && is_integer_dtype(dtype); i++) {
        float value = naive_load(HT_F32, row->at + 4 * i);
        value = isfinite(value * 200) ? fabsf(fmodf(value * 200, high)) : 0.5f;
        memcpy(row->at + 4 * i, &value, sizeof value);
    }
}

static void check_element(const struct row *row, int64_t i, float want)
{
    unsigned char expected[8] = {0};
    const unsigned char *at = row->at + i * ht_dtype_size(row->dtype);
    naive_store(row->dtype, expected, want);
    if (!is_integer_dtype(row->dtype) && isnan(want) && isnan(naive_load(row->dtype, at)))
        return;
    CHECK(memcmp(at, expected, (size_t)ht_dtype_size(row->dtype)) == 0);
}

static void check_before(const struct row *row)
{
    for (const unsigned char *at = row->memory; at < row->at; at++)
        CHECK(*at == 0xa5);
}

static float loaded(const struct row *row, int64_t i)
{
    return naive_load(row->dtype, row->at + i * ht_dtype_size(row->dtype));
}

/* Loads, stores and reads: k rows, or one of k times the length, to the other. */
static void check_moves(struct input *in, int kind, int64_t n, enum ht_dtype dtype, const struct ht_values *v)
{
    bool loads = kind != STORE && kind != STORE3, reads = kind == READ || kind == READ3;
    int k = kind == LOAD3 || kind == STORE3 || kind == READ3 ? 3 : 1;
    enum ht_dtype to = reads ? (enum ht_dtype)number(in, HT_F16, HT_F32) : HT_F32;
    if (reads && dtype > HT_U16)
        dtype = (enum ht_dtype)(dtype % 2);
    struct row joined = loads ? filled(in, dtype, k * n, number(in, 0, 5), ANYTHING) : row_of(dtype, k * n, number(in, 0, 5));
    struct row apart[3];
    for (int j = 0; j < 3; j++) {
        int64_t before = number(in, 0, 5);
        apart[j] = loads ? row_of(to, n, before) : filled(in, HT_F32, n, before, ANYTHING);
        if (!loads)
            limit(&apart[j], dtype);
    }
    void *a = apart[0].at, *b = apart[1].at, *c = apart[2].at;
    switch (kind) {
    case LOAD: ht_rows.load[dtype](a, joined.at, n); break;
    case LOAD3: ht_rows.load3[dtype](a, b, c, joined.at, n); break;
    case STORE: ht_rows.store[dtype](joined.at, a, n); break;
    case STORE3: ht_rows.store3[dtype](joined.at, a, b, c, n); break;
    case READ: ht_rows.read[dtype][to](a, joined.at, n, v); break;
    default: ht_rows.read3[dtype][to](a, b, c, joined.at, n, v);
    }
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < k; j++) {
            if (loads)
                check_element(&apart[j], i, reads ? naive_model_value(loaded(&joined, k * i + j), v)
                                                  : loaded(&joined, k * i + j));
            else
                check_element(&joined, k * i + j, loaded(&apart[j], i));
        }
    check_before(&joined);
    free(joined.memory);
    for (int j = 0; j < 3; j++) {
        check_before(&apart[j]);
        free(apart[j].memory);
    }
}

static void check_scale(struct input *in, int64_t n, const struct ht_values *v)
{
    struct row row = filled(in, HT_F32, n, number(in, 0, 5), ANYTHING);
    float *before = malloc((size_t)n * sizeof(float) + 1);
    memcpy(before, row.at, (size_t)n * sizeof(float));
    ht_rows.scale((void *)row.at, n, v->peak, v->gain, v->offset);
    for (int64_t i = 0; i < n; i++)
        check_element(&row, i, naive_model_value(before[i], v));
    check_before(&row);
    free(row.memory), free(before);
}

static void check_sums(struct input *in, bool resolves, int64_t n, enum ht_dtype dtype, const struct ht_values *v)
{
    dtype = is_model_dtype(dtype) ? dtype : HT_F32;
    enum content content = (enum content)number(in, TAME, ANYTHING);
    struct row source = filled(in, dtype, n, number(in, 0, 5), content);
    struct row out = filled(in, HT_F32, n, number(in, 0, 5), ANY_FINITE);
    float *weights = weights_from(in, n), *before = malloc((size_t)n * sizeof(float) + 1), w = fabsf(from_bytes(in, TAME));
    bool divides = byte_of(in) & 1, found, bad = false;
    w = w > 0.001f ? w : 1;
    memcpy(before, out.at, (size_t)n * sizeof(float));
    found = resolves ? ht_rows.resolve[dtype]((void *)out.at, source.at, w, divides ? weights : NULL, n, v)
                     : ht_rows.accumulate[dtype]((void *)out.at, source.at, w, weights, n);
    for (int64_t i = 0; i < n; i++) {
        volatile float value = loaded(&source, i), weight = w * weights[i], part = weight * value;
        if (!resolves) {
            bad |= !isfinite(value);
            check_element(&out, i, before[i] + part);
            continue;
        }
        volatile float quotient = value == 0 ? 0 : value;
        if (divides)
            quotient = quotient / weight;
        bad |= !isfinite(quotient);
        check_element(&out, i, naive_image_value(quotient, v, v->clamp));
    }
    CHECK(found == bad);
    check_before(&out);
    free(source.memory), free(out.memory), free(weights), free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    choose_rows(&in);
    int kind = (int)number(&in, 0, KINDS - 1);
    int64_t n = byte_of(&in) + (byte_of(&in) > 250 ? 3000 : 0);
    enum ht_dtype dtype = (enum ht_dtype)number(&in, 0, 5);
    struct ht_values values = values_from(&in);
    if (!naive_valid(&values))
        return 0;
    if (kind == SCALE)
        check_scale(&in, n, &values);
    else if (kind == ACCUMULATE || kind == RESOLVE)
        check_sums(&in, kind == RESOLVE, n, dtype, &values);
    else
        check_moves(&in, kind, n, dtype, &values);
    return 0;
}
