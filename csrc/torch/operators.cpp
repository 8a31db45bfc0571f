// SPDX-License-Identifier: MIT
//
// operators.cpp - halotile::read_tiles, accumulate and finish_rows: arguments checked, numbers laid out as tiles.metal
// has them, one launch each. Whatever they are given, no kernel leaves its arrays.
#include <cstring>
#include <stdexcept>

#include "halotile.h"
#include "torch_shim.h"

namespace halotile {
namespace {

const char *const SCHEMAS[] = {
    // windows (k, c, h, w), contiguous <- image (c, rows, w), which holds rows [strip[0], strip[1]) of the whole image
    // of `size`; the windows of tiles first .. first + k - 1. rows, columns: where windows start: origin, step, phase,
    // longer. across: tiles in a row of them.
    "read_tiles(Tensor(a!) windows, Tensor image, int[] size, int[] strip, int[] rows, int[] columns, int first, "
    "int across, float peak, float gain, float offset) -> ()",
    // band (c, ring, w) += weighted outputs (k, c, h, w) of tiles first .. first + k - 1 inside box (y, x, height,
    // width) of the output image. band_x: the band's first column. wy, wx: one row of weights for each row (column) of
    // tiles. rows, columns: what tiles keep: the numbers of struct ht_kept (halotile.h), in its order.
    "accumulate(Tensor(a!) band, Tensor outputs, Tensor wy, Tensor wx, int[] box, int band_x, int[] rows, "
    "int[] columns, int first) -> ()",
    // rows (c, h, w) <- the band from output pixel (y, x) on, whose sums become 0. ny, nx: of the whole output image.
    // bad: int32 (2), see tiles.metal.
    "finish_rows(Tensor(a!) rows, Tensor(b!) band, Tensor ny, Tensor nx, Tensor(c!) bad, int y, int x, int band_x, "
    "float peak, float gain, float offset, bool clamp) -> ()",
};

// ---- arguments ------------------------------------------------------------------------------------------------------

using Ints = std::vector<int64_t>;

// A list of a kernel's stack: owned, deleted with this.
class List {
public:
    explicit List(StableIValue value) : handle_(reinterpret_cast<StableListHandle>(value)) {}
    ~List() { torch.torch_delete_list(handle_); }
    List(const List &) = delete;
    List &operator=(const List &) = delete;

    Ints ints(size_t count, const char *name) const
    {
        size_t size = 0;
        check(torch.torch_list_size(handle_, &size), name);
        require(size == count, std::string(name) + " must have " + std::to_string(count) + " numbers");
        Ints result(count);
        for (size_t i = 0; i < count; i++) {
            StableIValue item = 0;
            check(torch.torch_list_get_item(handle_, i, &item), name);
            result[i] = static_cast<int64_t>(item);
        }
        return result;
    }

private:
    StableListHandle handle_;
};

float real(StableIValue value)
{
    double number;
    std::memcpy(&number, &value, sizeof number);
    return static_cast<float>(number);
}

int32_t bits(float number)
{
    int32_t result;
    std::memcpy(&result, &number, sizeof result);
    return result;
}

// u8, u16, f16, bf16 or f32, as kernels are named. Words of 16 bits travel as int16: MPS knows little of uint16.
std::string kind(const Tensor &tensor)
{
    int32_t dtype = tensor.dtype();
    if (dtype == torch.aoti_torch_dtype_uint8()) return "u8";
    if (dtype == torch.aoti_torch_dtype_int16()) return "u16";
    if (dtype == torch.aoti_torch_dtype_float16()) return "f16";
    if (dtype == torch.aoti_torch_dtype_bfloat16()) return "bf16";
    if (dtype == torch.aoti_torch_dtype_float32()) return "f32";
    throw std::runtime_error("halotile has Metal kernels for uint8, int16, float16, bfloat16 and float32 alone");
}

// One on another device would be read as what it is not.
void require_together(std::initializer_list<const Tensor *> tensors)
{
    for (const Tensor *tensor : tensors)
        require(tensor->device() == (*tensors.begin())->device(), "all arrays must be on one device");
}

void require_dense(const Tensor &tensor, const char *name, int64_t dims)
{
    require(tensor.dim() == dims, std::string(name) + " must have " + std::to_string(dims) + " dimensions");
    int64_t stride = 1;
    for (int64_t d = dims; d-- > 0;) {
        require(tensor.size(d) <= 1 || tensor.stride(d) == stride, std::string(name) + " must be contiguous");
        stride *= tensor.size(d);
    }
}

// float32 and contiguous.
void require_table(const Tensor &tensor, const char *name, int64_t dims)
{
    require_dense(tensor, name, dims);
    require(tensor.dtype() == torch.aoti_torch_dtype_float32(), std::string(name) + " must be float32");
}

// ---- numbers --------------------------------------------------------------------------------------------------------

// What the kernels divide must fit 32 bits.
void require_small(int64_t start, int64_t count)
{
    require(start <= INT32_MAX && count <= INT32_MAX - start, "a number does not fit 32 bits: the array is too large");
}

class Layout {
public:
    Layout &add(int64_t number)
    {
        require(number >= INT32_MIN && number <= INT32_MAX, "a number does not fit 32 bits: the array is too large");
        numbers_.at(count_++) = static_cast<int32_t>(number);
        return *this;
    }
    Layout &add(const Ints &list)
    {
        for (int64_t number : list)
            add(number);
        return *this;
    }
    Layout &add_float(float number)
    {
        numbers_.at(count_++) = bits(number);
        return *this;
    }
    Layout &strides(const Tensor &tensor)
    {
        for (int64_t d = 0; d < tensor.dim(); d++)
            add(tensor.stride(d));
        return *this;
    }
    const Numbers &numbers() const { return numbers_; }

private:
    Numbers numbers_ = {};
    size_t count_ = 0;
};

ht_kept kept(const Ints &n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]}; }

// Tile i's weights are in the table, and what it keeps is inside its output.
void require_kept(const ht_kept &axis, int64_t i, const Tensor &weights, int64_t output)
{
    ht_range keep = ht_kept_range(&axis, i);
    int64_t origin = ht_kept_origin(&axis, i);
    require(i < weights.size(0) && keep.stop - keep.start <= weights.size(1), "weights must cover what tiles keep");
    require(keep.stop <= keep.start || (keep.start >= origin && keep.stop <= origin + output),
            "outputs must cover what tiles keep");
}

uint64_t length(int64_t number) { return static_cast<uint64_t>(number); }

// ---- operators ------------------------------------------------------------------------------------------------------

void read_tiles(StableIValue *stack, uint64_t, uint64_t)
{
    Tensor windows(stack[0]), image(stack[1]);
    List sizes(stack[2]), strips(stack[3]), row_starts(stack[4]), column_starts(stack[5]);
    Ints size = sizes.ints(2, "size"), strip = strips.ints(2, "strip");
    Ints rows = row_starts.ints(4, "rows"), columns = column_starts.ints(4, "columns");
    int64_t first = static_cast<int64_t>(stack[6]), across = static_cast<int64_t>(stack[7]);
    float peak = real(stack[8]), gain = real(stack[9]), offset = real(stack[10]);

    require_together({&windows, &image});
    require_dense(windows, "windows", 4);
    require(image.dim() == 3 && image.size(0) == windows.size(1), "image must be (channels, rows, columns) as windows");
    require(image.size(1) == strip[1] - strip[0] && image.size(2) == size[1] && strip[0] >= 0 && strip[1] <= size[0],
            "image must hold the strip's rows and all columns");
    require(size[0] > 0 && size[1] > 0 && first >= 0 && across > 0, "size and tiles must be above 0");
    require_small(first, windows.size(0));
    require_small(0, windows.size(0) * windows.size(1));
    Layout layout;
    layout.add({windows.size(0), windows.size(1), windows.size(2), windows.size(3)}).strides(image);
    layout.add(size).add(strip).add({first, across}).add(rows).add(columns);
    layout.add_float(peak).add_float(gain).add_float(offset);
    launch("read_" + kind(image) + "_" + kind(windows), layout.numbers(), {&image, &windows},
           {length(windows.size(3)), length(windows.size(2)), length(windows.size(0) * windows.size(1))});
}

void accumulate(StableIValue *stack, uint64_t, uint64_t)
{
    Tensor band(stack[0]), outputs(stack[1]), wy(stack[2]), wx(stack[3]);
    List boxes(stack[4]), kept_rows(stack[6]), kept_columns(stack[7]);
    Ints box = boxes.ints(4, "box"), rows = kept_rows.ints(8, "rows"), columns = kept_columns.ints(8, "columns");
    int64_t band_x = static_cast<int64_t>(stack[5]), first = static_cast<int64_t>(stack[8]);

    require_together({&band, &outputs, &wy, &wx});
    require(outputs.dim() == 4, "outputs must have 4 dimensions");
    require_table(band, "band", 3);
    require_table(wy, "wy", 2);
    require_table(wx, "wx", 2);
    int64_t channels = outputs.size(1), tiles = outputs.size(0), across = columns[6];
    require(band.size(0) == channels && band.size(1) > 0, "band must have outputs' channels and some rows");
    require(box[0] >= 0 && box[2] >= 0 && box[2] <= band.size(1), "box must have at most the band's rows");
    require(box[3] >= 0 && box[1] >= band_x && box[1] + box[3] <= band_x + band.size(2), "box must lie in the band");
    require_small(box[0], box[2]);
    require(first >= 0 && across > 0 && rows[6] > 0 && first + tiles <= rows[6] * across, "tiles must be of the plan");
    for (int64_t k = first; k < first + tiles; k++) {
        require_kept(kept(rows), k / across, wy, outputs.size(2));
        require_kept(kept(columns), k % across, wx, outputs.size(3));
    }
    Layout layout;
    layout.add({channels, box[2], box[3], box[0], box[1]}).add({band.size(1), band.stride(0), band.stride(1), band_x});
    layout.add({first, tiles, across}).strides(outputs).add({wy.size(1), wx.size(1)}).add(rows).add(columns);
    launch("accumulate_" + kind(outputs), layout.numbers(), {&band, &outputs, &wy, &wx},
           {length(box[3]), length(box[2]), length(channels)});
}

void finish_rows(StableIValue *stack, uint64_t, uint64_t)
{
    Tensor rows(stack[0]), band(stack[1]), ny(stack[2]), nx(stack[3]), bad(stack[4]);
    int64_t y = static_cast<int64_t>(stack[5]), x = static_cast<int64_t>(stack[6]);
    int64_t band_x = static_cast<int64_t>(stack[7]);
    float peak = real(stack[8]), gain = real(stack[9]), offset = real(stack[10]);
    bool clamp = stack[11] & 0xff;

    require_together({&rows, &band, &ny, &nx, &bad});
    require(rows.dim() == 3, "rows must have 3 dimensions");
    require_table(band, "band", 3);
    require_table(ny, "ny", 1);
    require_table(nx, "nx", 1);
    require_dense(bad, "bad", 1);
    require(bad.size(0) == 2 && bad.dtype() == torch.aoti_torch_dtype_int32(), "bad must be two int32");
    int64_t channels = rows.size(0), height = rows.size(1), width = rows.size(2);
    require(band.size(0) == channels && height <= band.size(1), "rows must be of the band");
    require(x >= band_x && x + width <= band_x + band.size(2) && y >= 0 && x >= 0, "rows must lie in the band");
    require(y + height <= ny.size(0) && x + width <= nx.size(0), "ny and nx must cover the rows");
    std::string to = kind(rows);
    bool integer = to == "u8" || to == "u16";
    float most = to == "u8" ? 255.0f : 65535.0f;
    require(!integer || (clamp && peak <= most), "integers must be clamped to what they can hold");
    Layout layout;
    layout.add({channels, height, width}).strides(rows).add({y, x});
    layout.add({band.size(1), band.stride(0), band.stride(1), band_x});
    layout.add_float(peak).add_float(gain).add_float(offset).add(clamp);
    launch("finish_" + to, layout.numbers(), {&rows, &band, &ny, &nx, &bad},
           {length(width), length(height), length(channels)});
}

} // namespace

// ---- registration ---------------------------------------------------------------------------------------------------

void define_operators()
{
    TorchLibraryHandle library = nullptr; // never deleted: that would take the operators away
    check(torch.aoti_torch_library_init_def("halotile", __FILE__, __LINE__, &library), "defining operators");
    for (const char *schema : SCHEMAS)
        check(torch.aoti_torch_library_def(library, schema), "defining an operator");
}

void register_operators(const std::string &key)
{
    TorchLibraryHandle library = nullptr;
    check(torch.aoti_torch_library_init_impl("halotile", key.c_str(), __FILE__, __LINE__, &library),
          "registering operators");
    struct {
        const char *name;
        void (*kernel)(StableIValue *, uint64_t, uint64_t);
    } operators[] = {{"read_tiles", read_tiles}, {"accumulate", accumulate}, {"finish_rows", finish_rows}};
    for (auto &op : operators)
        check(torch.torch_library_impl(library, op.name, op.kernel, HT_TORCH_FLOOR_VERSION), op.name);
}

} // namespace halotile
