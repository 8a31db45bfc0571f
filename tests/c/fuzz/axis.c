/* SPDX-License-Identifier: MIT
 *
 * One axis: what is refused, of any numbers at all; how it is cut and weighed, of small ones.
 */
#include "naive_plan.h"

static bool is_true(enum ht_status status, const struct ht_axis_options *o)
{
    int64_t num = o->scale_num, den = o->scale_den, phase = o->phase, halo = o->halo;
    if (status == HT_TILE_TOO_SMALL || status == HT_HALO_TOO_SMALL)
        for (int64_t divisor = 2; divisor <= den; divisor++)
            while (num % divisor == 0 && den % divisor == 0)
                num /= divisor, den /= divisor;
    switch (status) {
    case HT_BAD_SIZE: return o->size < 1 || o->least < 0;
    case HT_BAD_TILE: return o->tile < 1;
    case HT_BAD_HALO: return o->halo < 0;
    case HT_BAD_OVERLAP: return o->overlap < 0 || o->overlap >= o->tile;
    case HT_BAD_PHASE: return o->phase < 1;
    case HT_BAD_SCALE: return num < 1 || num > 1024 || den < 1 || den > 1024;
    case HT_BAD_TRIM: return o->trim < 0;
    case HT_BAD_CHOICE: return o->boundary != HT_REFLECT && o->boundary != HT_NATIVE;
    case HT_NATIVE_LOSS: return o->boundary == HT_NATIVE && o->trim > 0;
    case HT_TOO_LARGE:
        return o->size > HT_MAX_SIDE || o->tile > HT_MAX_SIDE || halo > HT_MAX_SIDE || phase > HT_MAX_SIDE ||
               o->least > HT_MAX_SIDE;
    case HT_TILE_TOO_SMALL:
        while (phase % den != 0)
            phase += o->phase;
        return o->tile - o->overlap < phase;
    case HT_HALO_TOO_SMALL: return o->trim > counted_up(halo, den) / den * num;
    default: return false;
    }
}

static void check_status(enum ht_status status, const struct ht_axis_options *o)
{
    if (status != HT_OK) {
        CHECK(is_true(status, o));
        return;
    }
    for (int other = HT_OK + 1; other <= HT_TOO_LARGE; other++)
        CHECK(!is_true((enum ht_status)other, o));
}

static void check_tile(const struct ht_axis *axis, const struct naive_axis *a, enum ht_blend blend, int64_t i)
{
    struct ht_range keep = ht_axis_keep(axis, i), exclusive = ht_axis_exclusive(axis, i), done = ht_axis_done(axis, i);
    struct ht_range own = naive_exclusive(a, i), last = naive_done(a, i);
    CHECK(ht_axis_window(axis, i) == a->starts[i]);
    CHECK(keep.start == a->keep[i].start && keep.stop == a->keep[i].stop);
    CHECK(done.start == last.start && done.stop == last.stop);
    if (own.start >= 0)
        CHECK(exclusive.start == own.start && exclusive.stop == own.stop);
    else
        CHECK(exclusive.start == exclusive.stop && exclusive.start >= keep.start && exclusive.stop <= keep.stop);
    CHECK(ht_kept_origin(&axis->kept, i) + naive_crop(a, i) == keep.start);
    float *weights = malloc((size_t)range_length(keep) * sizeof(float));
    ht_axis_weights(weights, axis, blend, i);
    for (int64_t p = keep.start; p < keep.stop; p++)
        CHECK(weights[p - keep.start] == naive_weight(a, blend, i, p) && weights[p - keep.start] > 0);
    free(weights);
}

static void check_small(const struct ht_axis *axis, const struct ht_axis_options *o, struct input *in)
{
    static struct naive_axis a;
    enum ht_blend blend = (enum ht_blend)number(in, 0, HT_BLEND_COUNT - 1);
    naive_axis(&a, o);
    CHECK(axis->count == a.count && axis->window == a.window && axis->output_size == a.output_size);
    CHECK(axis->phase == a.phase && axis->halo == a.halo && axis->scale_num == a.num && axis->scale_den == a.den);
    CHECK(ht_axis_model_output(axis) == naive_output(&a) && axis->size == o->size && axis->trim == o->trim);
    for (int64_t i = 0; i < a.count; i++)
        check_tile(axis, &a, blend, i);
    int64_t start = number(in, 0, 255) % (a.output_size + 1), stop = start + byte_of(in) % (a.output_size - start + 1);
    float *sums = malloc((size_t)(stop - start) * sizeof(float) + 1);
    ht_axis_normaliser(sums, axis, blend, (struct ht_range){start, stop});
    for (int64_t p = start; p < stop; p++)
        CHECK(sums[p - start] == naive_sum(&a, blend, p));
    free(sums);
}

/* Numbers that no loop counts up to: what has to hold of some tiles. */
static void check_large(const struct ht_axis *axis, struct input *in)
{
    int64_t some[4] = {0, axis->count - 1, axis->count / 2, (int64_t)((uint64_t)whole_number(in) % (uint64_t)axis->count)};
    CHECK(axis->count >= 1 && axis->window >= axis->phase && axis->window % axis->phase == 0);
    for (int k = 0; k < 4; k++) {
        int64_t i = some[k];
        struct ht_range keep = ht_axis_keep(axis, i), done = ht_axis_done(axis, i);
        CHECK(0 <= keep.start && keep.start < keep.stop && keep.stop <= axis->output_size);
        CHECK(done.start == keep.start && done.stop <= keep.stop && done.start < done.stop);
        CHECK(i > 0 || keep.start == 0);
        CHECK(i < axis->count - 1 ? ht_axis_keep(axis, i + 1).start == done.stop : keep.stop == axis->output_size);
        int64_t crop = keep.start - ht_kept_origin(&axis->kept, i);
        CHECK(crop >= 0 && crop + range_length(keep) <= ht_axis_model_output(axis));
    }
}

static struct ht_axis_options any_axis(struct input *in)
{
    static const int64_t edges[] = {0, 1, -1, HT_MAX_SIDE, HT_MAX_SIDE - 1, HT_MAX_SIDE + 1, INT64_MAX, INT64_MIN};
    int64_t n[9];
    for (int k = 0; k < 9; k++) {
        uint8_t how = byte_of(in);
        n[k] = how < 64 ? edges[how % 8] : how < 160 ? how - 63 : how < 210 ? whole_number(in) >> how % 64
                                                                              : HT_MAX_SIDE >> how % 41;
    }
    return (struct ht_axis_options){n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7],
                                    (enum ht_boundary)(byte_of(in) % 4 - 1), n[8]};
}

/* One thing that is wrong gives its own status. */
static void check_each_refusal(void)
{
    const struct ht_axis_options good = {.size = 50, .tile = 16, .halo = 2, .overlap = 2, .phase = 1, .scale_num = 1,
                                         .scale_den = 1};
    struct ht_axis_options o[] = {good, good, good, good, good, good, good, good};
    const enum ht_status want[] = {HT_BAD_SIZE,  HT_BAD_TILE,  HT_BAD_HALO, HT_BAD_OVERLAP,
                                   HT_BAD_PHASE, HT_BAD_SCALE, HT_BAD_TRIM, HT_BAD_SIZE};
    struct ht_axis axis;
    o[0].size = 0, o[1].tile = 0, o[2].halo = -1, o[3].overlap = -1, o[4].phase = 0, o[5].scale_den = 0;
    o[6].trim = -1, o[7].least = -1;
    for (int k = 0; k < 8; k++)
        CHECK(ht_axis_init(&axis, &o[k]) == want[k]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    bool small = byte_of(&in) & 1;
    struct ht_axis_options o = small ? small_axis(&in, (enum ht_boundary)number(&in, 0, 1)) : any_axis(&in);
    struct ht_axis axis;
    enum ht_status status = ht_axis_init(&axis, &o);
    check_each_refusal();
    check_status(status, &o);
    if (status == HT_OK && small)
        check_small(&axis, &o, &in);
    else if (status == HT_OK)
        check_large(&axis, &in);
    if (!small) {
        int64_t side = number(&in, 1, 200), index = number(&in, 0, 255) * 7 - 900;
        CHECK(ht_reflect(index, side) == naive_reflect(index, side));
    }
    return 0;
}
