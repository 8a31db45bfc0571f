/* SPDX-License-Identifier: MIT
 *
 * onnx.c - an ONNX model restores an image from a C program: the C core cuts and blends, OpenVINO runs the model.
 *
 *     make install-core PREFIX=$HOME/.local
 *     export PKG_CONFIG_PATH=$HOME/.local/lib/pkgconfig
 *     pip install openvino                                     # its C headers and libraries are in the wheel
 *     ov=$(python -c "import openvino, os; print(os.path.dirname(openvino.__file__))")
 *     cc -std=c11 -O2 examples/onnx.c -I$ov/include $(pkg-config --cflags --libs halotile) \
 *        $ov/libs/libopenvino_c.so.* -Wl,-rpath,$ov/libs -o onnx
 *     ./onnx model.onnx in.ppm out.ppm --tile 256 --halo 16 --scale 4
 *
 * The model takes and returns float32 (batch, 3, height, width) in [0, 1], of any height and width.
 */
#include "ppm.h"

#include <openvino/c/openvino.h>

struct network {
    ov_core_t *core;
    ov_model_t *model;
    ov_compiled_model_t *compiled;
    ov_infer_request_t *request;
    const char *problem; /* why a call failed */
};

/* One thread, float32: the same bits on every run. */
static void open_network(struct network *network, const char *path)
{
    if (ov_core_create(&network->core) != OK || ov_core_read_model(network->core, path, NULL, &network->model) != OK)
        fail(path, "not a model that OpenVINO can read");
    if (ov_core_compile_model(network->core, network->model, "CPU", 4, &network->compiled, "INFERENCE_NUM_THREADS", "1",
                              "INFERENCE_PRECISION_HINT", "f32") != OK ||
        ov_compiled_model_create_infer_request(network->compiled, &network->request) != OK)
        fail(path, "cannot be compiled for the CPU");
}

static void close_network(struct network *network)
{
    ov_infer_request_free(network->request);
    ov_compiled_model_free(network->compiled);
    ov_model_free(network->model);
    ov_core_free(network->core);
}

/* Copies the outputs, if they are what the plan expects. */
static const char *take(const ov_tensor_t *tensor, const struct ht_batch *batch)
{
    const int64_t want[4] = {batch->count, batch->out_channels, batch->out_height, batch->out_width};
    ov_shape_t shape;
    ov_element_type_e type;
    void *data;
    if (ov_tensor_get_shape(tensor, &shape) != OK || ov_tensor_get_element_type(tensor, &type) != OK ||
        ov_tensor_data(tensor, &data) != OK)
        return "the model's output cannot be read";
    bool fits = type == F32 && shape.rank == 4 && memcmp(shape.dims, want, sizeof want) == 0;
    ov_shape_free(&shape);
    if (!fits)
        return "the model's output has another size or type: check --scale";
    memcpy(batch->outputs, data, sizeof(float) * (size_t)(want[0] * want[1] * want[2] * want[3]));
    return NULL;
}

/* The model of the C core: context is a network. */
static int infer(void *context, const struct ht_batch *batch)
{
    struct network *network = context;
    const int64_t sides[4] = {batch->count, batch->channels, batch->height, batch->width};
    ov_shape_t shape;
    ov_tensor_t *input = NULL, *output = NULL;
    network->problem = "the model does not take such windows";
    if (ov_shape_create(4, sides, &shape) != OK)
        return 1;
    if (ov_tensor_create_from_host_ptr(F32, shape, (void *)(uintptr_t)batch->windows, &input) == OK &&
        ov_infer_request_set_input_tensor(network->request, input) == OK &&
        ov_infer_request_infer(network->request) == OK &&
        ov_infer_request_get_output_tensor(network->request, &output) == OK)
        network->problem = take(output, batch);
    if (output)
        ov_tensor_free(output);
    if (input)
        ov_tensor_free(input);
    ov_shape_free(&shape);
    return network->problem != NULL;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        fail("usage", "onnx MODEL.onnx IN.ppm OUT.ppm [--tile 256] [--halo 16] [--overlap 16] [--scale 1] [--phase 1]");
    struct ht_array image = read_ppm(argv[2]);
    struct ht_axis_options rows = {
        .size = image.height,
        .tile = option(argc, argv, "--tile", 256),
        .halo = option(argc, argv, "--halo", 16),
        .overlap = option(argc, argv, "--overlap", 16),
        .phase = option(argc, argv, "--phase", 1),
        .scale_num = option(argc, argv, "--scale", 1),
        .scale_den = 1,
        .boundary = HT_REFLECT,
    };
    struct ht_axis_options columns = rows;
    columns.size = image.width;
    struct ht_plan plan;
    enum ht_status status = ht_plan_init(&plan, &rows, &columns, HT_AVERAGE, NULL);
    if (status != HT_OK)
        fail("plan", ht_status_text(status));

    struct network network = {0};
    open_network(&network, argv[1]);
    struct ht_array output = new_image(plan.y.output_size, plan.x.output_size);
    struct ht_restore_options options = {
        .plan = &plan,
        .input = ht_values_of(image.dtype),
        .output = ht_values_of(output.dtype),
        .batch = 1,
    };
    status = ht_restore(&image, &output, &options, infer, &network, NULL);
    if (status != HT_OK)
        fail(argv[1], status == HT_MODEL_FAILED ? network.problem : ht_status_text(status));
    write_ppm(argv[3], &output);
    close_network(&network);
    free(image.data);
    free(output.data);
    return 0;
}
