# SPDX-License-Identifier: MIT
"""What a network needs, in the words of the BioImage Model Zoo and of CAREamics, from `inspect_model`.

axes = bioimageio_axes(inspect_model(network))
overlap = careamics_overlap(inspect_model(network))
"""


def bioimageio_axes(info):
    """Sizes of the input's y and x axes, and halos of the output's, as a model description of version 0.5 has them.

    The halo is in output pixels; an input grows by `step`, which is the network's multiple.
    """
    if info.receptive_field is None:
        raise ValueError("the network sees the whole image: no halo is enough")
    inputs, outputs = [], []
    for name, halo, multiple in zip("yx", info.receptive_field.halo, info.multiple, strict=True):
        step = multiple or 1
        least = -(-(2 * halo + 1) // step) * step
        inputs.append({"type": "space", "id": name, "size": {"min": least, "step": step}, "scale": 1.0})
        reference = {"tensor_id": "input", "axis_id": name, "offset": 0}
        halo_out = -(-halo * info.scale.numerator // info.scale.denominator)
        outputs.append(
            {"type": "space", "id": name, "size": reference, "halo": halo_out, "scale": float(1 / info.scale)}
        )
    return inputs, outputs


def careamics_overlap(info):
    """`tile_overlap` (rows, columns) of CAREamics' predict: it crops half of it from each side of a tile."""
    if info.receptive_field is None:
        raise ValueError("the network sees the whole image: no overlap is enough")
    return tuple(
        2 * (-(-halo // (step or 1)) * (step or 1))
        for halo, step in zip(info.receptive_field.halo, info.phase, strict=True)
    )
