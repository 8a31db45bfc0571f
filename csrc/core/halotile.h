/* SPDX-License-Identifier: MIT
 *
 * halotile.h - the C core's one public header.
 *
 * Conventions, said once:
 *   - Coordinates and sizes are int64_t, rows before columns, half-open ranges [start, stop).
 *   - "input" pixels are pixels of the image, "output" pixels those of the restored image.
 *   - Strides are in elements and may be zero or negative.
 *   - Pointers must not be NULL unless a parameter says so. Buffers belong to the caller; nothing is kept, and nothing
 *     allocated but by ht_restore.
 *   - Destination and source must not overlap unless a function says so.
 *   - Every function is safe to call from several threads at once on different destinations.
 *   - What can fail returns an ht_status. With HT_OK and HT_NONFINITE it has done all of its work; with any other
 *     status it has written nothing, unless it says so. Sizes, strides and pointers of arrays are trusted.
 *   - bad: filled with the first NaN or infinity where HT_NONFINITE is returned, and left alone otherwise; NULL if that
 *     is not wanted.
 */
#ifndef HALOTILE_H
#define HALOTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ----------------------------------------------------------------------------------------------------- */

enum ht_status {
    HT_OK = 0,
    HT_BAD_SIZE,      /* an image side is below 1, or the least window below 0 */
    HT_BAD_TILE,      /* tile below 1 */
    HT_BAD_HALO,      /* halo below 0 */
    HT_BAD_OVERLAP,   /* overlap below 0 */
    HT_BAD_PHASE,     /* phase below 1 */
    HT_BAD_SCALE,     /* numerator or denominator below 1 or above HT_MAX_SCALE */
    HT_BAD_TRIM,      /* trim below 0 */
    HT_BAD_CHOICE,    /* boundary or blend is not one of its enum */
    HT_TILE_TOO_SMALL,/* tile - overlap is below the phase (made a multiple of the scale's denominator) */
    HT_HALO_TOO_SMALL,/* the model's trim is larger than the halo */
    HT_NATIVE_LOSS,   /* boundary native with a model that loses pixels at its edges */
    HT_TOO_LARGE,     /* a size above HT_MAX_SIDE, or a product that does not fit 64 bits */
    HT_BAD_ARRAY,     /* shapes or dtypes of two arrays do not fit together */
    HT_BAD_ORDER,     /* a tile that is not the plan's next one, or a tile row that it has not */
    HT_BAD_VALUES,    /* peak not above 0, gain 0, or a number that is not finite */
    HT_MODEL_FAILED,  /* the model returned something else than 0 */
    HT_NO_MEMORY,     /* malloc gave none */
    HT_BAD_CPU,       /* the environment variable HALOTILE_CPU holds an unknown name */
    HT_BAD_SHIFT,     /* shift below 0, no multiple of the phase, not below the step, or with boundary native */
    HT_NONFINITE,     /* a NaN or an infinity was met; what was asked for is done all the same */
    HT_STATUS_COUNT
};

/* A sentence for people, without a full stop; never NULL, also for a value outside the enum. */
const char *ht_status_text(enum ht_status status);

/* ---- axis: how one side of the image is cut --------------------------------------------------------------------- */

#define HT_MAX_SIDE ((int64_t)1 << 40)
#define HT_MAX_SCALE 1024

enum ht_boundary {
    HT_REFLECT, /* windows reach over the edge; what lies outside is the image, reflected */
    HT_NATIVE,  /* windows stay inside, so that the model's own padding acts at the true edge */
    HT_BOUNDARY_COUNT
};

enum ht_blend { HT_AVERAGE, HT_LINEAR, HT_COSINE, HT_GAUSSIAN, HT_BLEND_COUNT };

struct ht_axis_options {
    int64_t size;    /* image side, input pixels, >= 1 */
    int64_t tile;    /* largest tile, input pixels, >= 1 */
    int64_t halo;    /* context on either side of a tile, input pixels, >= 0 */
    int64_t overlap; /* least overlap of neighbouring tiles, input pixels, 0 <= overlap < tile */
    int64_t phase;   /* window origins and sizes are multiples of it, >= 1 */
    int64_t scale_num, scale_den; /* output pixels per input pixel, 1 .. HT_MAX_SCALE each */
    int64_t trim;    /* output pixels that the model's valid convolutions take from either end of a window */
    enum ht_boundary boundary;
    int64_t least;   /* windows are at least this long, rounded up to the phase, input pixels; 0: any length will do */
    int64_t shift;   /* several windows lie this many input pixels earlier than with 0, and there is one more of them:
                      * a multiple of the phase, below the step between windows; 0 for boundary native */
};

struct ht_range { int64_t start, stop; };

/* What the tiles of one side keep, in output pixels. Tile i, moved by i * step + min(i, longer) * phase, keeps
 *     [start + moved, start + length + moved)
 * but for the image's ends: the first tile keeps everything from 0 on, the last one everything up to size. The model's
 * output for it starts at origin + moved. Kernels on devices are given these eight numbers, in this order. */
struct ht_kept { int64_t start, length, origin, step, phase, longer, count, size; };

static inline int64_t ht_kept_moved(const struct ht_kept *kept, int64_t i)
{
    return i * kept->step + (i < kept->longer ? i : kept->longer) * kept->phase;
}

static inline struct ht_range ht_kept_range(const struct ht_kept *kept, int64_t i)
{
    struct ht_range range;
    range.start = i == 0 ? 0 : kept->start + ht_kept_moved(kept, i);
    range.stop = i == kept->count - 1 ? kept->size : kept->start + kept->length + ht_kept_moved(kept, i);
    return range;
}

static inline int64_t ht_kept_origin(const struct ht_kept *kept, int64_t i)
{
    return kept->origin + ht_kept_moved(kept, i);
}

/* The cut of one side. All windows are `window` input pixels; window i starts at the input pixel
 *     origin + i * step + min(i, longer) * phase
 * so that steps differ by at most one phase. phase and halo are the effective ones: phase is the least common multiple
 * of the asked one and the scale's denominator, halo is rounded up to the denominator, so that keep ranges start and
 * stop on output pixels. A window is a tile and its halo, rounded up to the phase. A tile (keep, without what the
 * image's edge adds) is never larger than the asked one, unless two halos are no multiple of the phase and the smallest
 * window that can step by one phase leaves more, or `least` does. Where the domain is shorter than `least` it ends
 * later. */
struct ht_axis {
    int64_t size, output_size; /* input, output pixels; output_size = ceil(size * scale) */
    int64_t count;             /* tiles, >= 1 */
    int64_t window;            /* input pixels, a multiple of phase */
    int64_t origin, step, longer;
    int64_t halo, phase, scale_num, scale_den, trim;
    struct ht_kept kept; /* the same in output pixels */
};

/* Fills *axis. On failure *axis is unspecified. */
enum ht_status ht_axis_init(struct ht_axis *axis, const struct ht_axis_options *options);

/* For all of the following 0 <= i < axis->count, and ranges are in output pixels of the whole restored image.
 *
 * window: first input pixel of window i; below zero or beyond the image where it is to be reflected.
 * keep:   what tile i contributes. Starts and stops both grow with i; together they cover [0, output_size).
 * exclusive: the part of keep that no other tile contributes to; start == stop if there is none (inside keep even so).
 * done:   the part of keep that no later tile contributes to: [keep.start, next tile's keep.start). */
int64_t ht_axis_window(const struct ht_axis *axis, int64_t i);
struct ht_range ht_axis_keep(const struct ht_axis *axis, int64_t i);
struct ht_range ht_axis_exclusive(const struct ht_axis *axis, int64_t i);
struct ht_range ht_axis_done(const struct ht_axis *axis, int64_t i);

/* How many output pixels the model makes of a window: window * scale - 2 * trim. */
int64_t ht_axis_model_output(const struct ht_axis *axis);

/* Blend weights of tile i for its keep range: keep.stop - keep.start floats, all > 0, exactly 1 outside overlaps. */
void ht_axis_weights(float *weights, const struct ht_axis *axis, enum ht_blend blend, int64_t i);

/* Sum of the weights of all tiles over the range: range.stop - range.start floats, all > 0; the sum is taken in double
 * in tile order and rounded once. 0 <= start <= stop <= output_size. */
void ht_axis_normaliser(float *sums, const struct ht_axis *axis, enum ht_blend blend, struct ht_range range);

/* ---- plan: two axes, row-major tiles ---------------------------------------------------------------------------- */

struct ht_plan {
    struct ht_axis y, x;
    enum ht_blend blend;
    int64_t count; /* y.count * x.count */
};

struct ht_box { int64_t y, x, height, width; };

struct ht_tile {
    int64_t row, column;
    struct ht_box window; /* input pixels; may leave the image when it reflects */
    struct ht_box keep;   /* output pixels */
    struct ht_box exclusive;   /* output pixels, inside keep; height == 0 or width == 0 if nothing is exclusive */
    int64_t crop_y, crop_x; /* where keep starts inside the model's output for this window */
};

/* *failed_axis is 0 (rows) or 1 (columns) if an axis was refused, else -1; it may be NULL. */
enum ht_status ht_plan_init(struct ht_plan *plan, const struct ht_axis_options *y, const struct ht_axis_options *x,
                            enum ht_blend blend, int *failed_axis);

/* 0 <= index < plan->count. */
struct ht_tile ht_plan_tile(const struct ht_plan *plan, int64_t index);

/* How many output rows, from the top, are complete once tiles 0 .. index have been accumulated. -1 <= index < count. */
int64_t ht_plan_rows_complete(const struct ht_plan *plan, int64_t index);

/* The most output rows that are finished with one tile row. */
int64_t ht_plan_tallest_band(const struct ht_plan *plan);

/* The most output rows from the first unfinished one to the last that a batch adds to, where tiles come in order,
 * `batch` at a time, from tile row first_row on: what a ring of full rows of sums has to hold. batch >= 1,
 * 0 <= first_row < plan->y.count. Takes time in proportion to the number of batches. */
int64_t ht_plan_rows_in_progress(const struct ht_plan *plan, int64_t batch, int64_t first_row);

/* ---- reflect ---------------------------------------------------------------------------------------------------- */

/* The index inside [0, size) that `index` is reflected to, without repeating the edge pixel, bouncing as often as
 * needed: size 4 gives ... 2 1 | 0 1 2 3 | 2 1 0 1 ... ; size 1 always gives 0. size >= 1, |index| < 2^62. */
int64_t ht_reflect(int64_t index, int64_t size);

/* ---- arrays and the three verbs --------------------------------------------------------------------------------- */

enum ht_dtype { HT_U8, HT_U16, HT_F16, HT_BF16, HT_F32, HT_F64, HT_DTYPE_COUNT };

int64_t ht_dtype_size(enum ht_dtype dtype); /* bytes */

/* An image, one window, one model output or sums: channels x height x width with any strides. data is aligned to its
 * dtype. A read-only array may have zero strides (a grey image shown as three channels). */
struct ht_array {
    void *data;
    enum ht_dtype dtype;
    int64_t channels, height, width;
    int64_t stride_c, stride_y, stride_x;
};

/* How image values and model values correspond:
 *     model = image / peak * gain + offset       image = (model - offset) / gain * peak, then clamped if clamp is set
 * every step in f32, rounded once each; a step that changes nothing (peak 1, gain 1 with offset 0) is left out.
 * peak > 0, gain != 0, all finite, or HT_BAD_VALUES. An integer destination is always clamped, and its peak is at most
 * its dtype's largest value. */
struct ht_values {
    float peak, gain, offset;
    bool clamp; /* to [0, peak] */
};

struct ht_position { int64_t c, y, x; };

/* READ  window <- the image box that starts at input pixel (y, x) and has the window's size, reflected where it leaves
 * the image. window: f32, f16 or bf16, any layout; image: any dtype; same channels, all sizes >= 1. |y|, |x| <
 * 2^61. What the image holds is not looked at: NaN and infinity are read as they are. */
enum ht_status ht_read(const struct ht_array *window, const struct ht_array *image, int64_t y, int64_t x,
                       const struct ht_values *values);

/* ACCUMULATE  sums += (wy[y] * wx[x]) * source, rounded at each of the three steps. sums: f32, rows contiguous
 * (stride_x 1); source: f32, f16 or bf16 of the same shape. bad: the first in source, in the order channel, row,
 * column, as a position within the array. */
enum ht_status ht_accumulate(const struct ht_array *sums, const struct ht_array *source, const float *wy,
                             const float *wx, struct ht_position *bad);

/* FINISH  destination <- source / (ny[y] * nx[x]), mapped from model to image values, clamped, rounded half to even.
 * source: f32, f16 or bf16 of the destination's shape; destination: any dtype. ny and nx may both be NULL: no division.
 * -0 becomes +0 (a sum never is -0). NaN becomes 0 where values are clamped. bad: the first quotient (before mapping),
 * as ht_accumulate. */
enum ht_status ht_finish(const struct ht_array *destination, const struct ht_array *source, const float *ny,
                         const float *nx, const struct ht_values *values, struct ht_position *bad);

/* ---- band: the rows still being made ---------------------------------------------------------------------------- */

/* Lengths in output pixels that a band's buffer is made of. */
struct ht_band_sizes {
    int64_t width;   /* of the output image */
    int64_t ring;    /* most rows of a tile row that it shares with others */
    int64_t middle;  /* most rows of a tile row that are its own */
    int64_t tallest; /* most rows that a tile keeps */
    int64_t shared;  /* shared columns in all */
    int64_t weights; /* columns that all tiles of a row keep, together */
};

/* A band takes the model's outputs tile by tile and fills finished rows. It keeps float sums only of pixels to which
 * more than one tile contributes; everything else goes straight from the output to the rows. It is a plain value over
 * the caller's buffer, and nothing has to be released. Its members are private. */
struct ht_band {
    struct ht_plan plan;
    struct ht_values values;
    struct ht_band_sizes sizes;
    int64_t channels, next; /* next: the tile that is to come */
    float *rows, *columns, *nx, *wx, *wy, *ny;
    struct ht_range keep, exclusive, done;   /* of the tile row in work */
    int64_t first_slot;                 /* shared rows that lay above its keep range */
    int64_t columns_left, weights_left; /* shared columns, and weights, of the tiles left of the next one */
    bool opened; /* whether a tile row was begun */
    bool bad;    /* whether NaN or infinity was added: sums may hold it from then on */
};

/* How many floats a band's buffer holds; -1 if channels is below 1 or the number does not fit 64 bits. The number of
 * bytes, four times as many, may not fit even where this does. */
int64_t ht_band_floats(const struct ht_plan *plan, int64_t channels);

/* Begins with tile row first_row, 0 <= first_row < plan->y.count, or HT_BAD_ORDER. Where that is not 0, rows that it
 * shares with tile rows above are incomplete when they are finished: a run that is taken up again begins with the
 * first tile row that adds to a row which is not done. values: those of the rows. buffer: ht_band_floats of them in any
 * state; it belongs to the band until that is no longer used. HT_TOO_LARGE where ht_band_floats is -1. */
enum ht_status ht_band_init(struct ht_band *band, const struct ht_plan *plan, int64_t channels,
                            const struct ht_values *values, float *buffer, int64_t first_row);

/* Takes the model's output for a tile. Tiles come in the plan's order, or HT_BAD_ORDER.
 * output: f32, f16 or bf16, ht_axis_model_output pixels high and wide, in any layout.
 * rows: where the finished rows of this tile row go: ht_axis_done(&plan->y, tile row) of the output image over its full
 * width, in any dtype and layout; the same for all tiles of a tile row. They are complete once its last tile was added.
 * bad: the first NaN or infinity in what this tile keeps, in coordinates of the output image. The kept box is worked
 * on in parts (exclusive pixels, runs of shared rows, shared columns): each gives its first one in the order channel,
 * row, column, and of those the first in the order row, column, channel is told. With the last tile of a tile row the
 * quotients of sums are checked as well, as long as everything added was finite: they may be too large for float32. */
enum ht_status ht_band_add(struct ht_band *band, int64_t tile, const struct ht_array *output,
                           const struct ht_array *rows, struct ht_position *bad);

/* ---- restore: the whole loop ------------------------------------------------------------------------------------ */

/* The values of images of a dtype for models that work in [0, 1]: the peak is 255, 65535 or, for floats, 1; integers
 * are clamped. */
struct ht_values ht_values_of(enum ht_dtype dtype);

/* A batch of windows for the model. Both buffers are float32, contiguous, in the order (count, channels, height,
 * width), and hold model values, which options->input and options->output relate to those of the images. */
struct ht_batch {
    const float *windows;
    float *outputs;            /* to be filled, every element */
    int64_t count;             /* the same in all calls of a run */
    int64_t channels, height, width;             /* of windows: the image's channels, the plan's window */
    int64_t out_channels, out_height, out_width; /* of outputs: window * scale - 2 * trim */
    int64_t first_tile;        /* window k belongs to tile first_tile + k */
};

/* The model returns 0, or any other number to end the run; it can say what went wrong in its context. It may use
 * threads of its own, but has written every output when it returns, and keeps no pointer to either buffer. Windows come
 * in the plan's order. The last call may repeat windows of the one before, so that all calls have equally many. */
typedef int ht_model(void *context, const struct ht_batch *batch);

struct ht_restore_options {
    const struct ht_plan *plan;     /* of the image's size */
    struct ht_values input, output; /* how values of the image, and of the output, correspond to those of the model */
    int64_t batch; /* most windows in a call of the model, spread evenly over the calls; below 1: one */
    float *memory; /* ht_restore_floats of them, in any state; NULL: one malloc of as many, freed before the return */
};

/* How many floats a run needs besides the image, the output and what the model itself allocates; -1 if either number
 * of channels is below 1 or the number does not fit 64 bits. */
int64_t ht_restore_floats(const struct ht_restore_options *options, int64_t channels, int64_t out_channels);

/* Restores an image: output <- the model's outputs for all tiles of the plan, blended. One thread.
 *
 * image: any dtype and layout, of the plan's size; output: any dtype and layout, of the plan's output size; any number
 * of channels each. They must not overlap. context is passed to the model. ht_restore calls ht_rows_init; a program
 * that restores images in several threads calls that itself before it starts them.
 *
 * HT_NONFINITE: the output is complete; *bad is what ht_band_add told of the first tile that has a NaN or infinity.
 * HT_MODEL_FAILED: the run has ended. Rows that were complete before that call of the model stay so, others may be
 * partly written. With HT_BAD_ARRAY, HT_BAD_VALUES, HT_BAD_CPU, HT_TOO_LARGE (ht_restore_floats is -1) and
 * HT_NO_MEMORY nothing was run. */
enum ht_status ht_restore(const struct ht_array *image, const struct ht_array *output,
                          const struct ht_restore_options *options, ht_model *model, void *context,
                          struct ht_position *bad);

/* ---- row kernels ------------------------------------------------------------------------------------------------ */

/* Chooses the row kernels by what the processor can do, at most HALOTILE_CPU (scalar, avx2, avx512 or neon) if that
 * environment variable is set. Called once, before any verb and before other threads start; later calls do nothing.
 * Returns false if HALOTILE_CPU holds an unknown name, which *unknown (may be NULL) then points to. */
bool ht_rows_init(const char **unknown);

/* "scalar", "avx2", "avx512" or "neon". */
const char *ht_rows_name(void);

#ifdef __cplusplus
}
#endif
#endif
