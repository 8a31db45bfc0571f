# SPDX-License-Identifier: MIT
"""A ComfyUI node: enlarges or restores with a model of "Load Upscale Model", without seams and in bounded memory.

Copy this file to ComfyUI/custom_nodes/halotile_node.py; halotile must be installed in ComfyUI's environment.
"""

from halotile import TiledRestorer


class HalotileRestore:
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)},
            "optional": {
                "exact": ("BOOLEAN", {"default": True, "tooltip": "equal to the whole image; else halo pixels"}),
                "halo": ("INT", {"default": 32, "min": 0, "max": 1024}),
                "memory_mb": ("INT", {"default": 0, "min": 0, "max": 1 << 20, "tooltip": "0: no limit"}),
            },
        }

    def restore(self, upscale_model, image, exact=True, halo=32, memory_mb=0):
        """image: (N, H, W, C), 0 to 1. upscale_model: a descriptor of spandrel, as ComfyUI loads it."""
        limit = {"memory_limit": memory_mb << 20} if memory_mb else {}
        restorer = TiledRestorer(
            upscale_model,
            layout="NHWC",
            boundary="native",
            halo="exact" if exact else halo,
            device=_device(),
            progress=_progress(),
            **limit,
        )
        return (restorer(image).clamp(0, 1),)


def _device():
    try:
        from comfy.model_management import get_torch_device
    except ImportError:  # outside ComfyUI
        return None
    return str(get_torch_device())


def _progress():
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = ProgressBar(1)
    return bar.update_absolute


NODE_CLASS_MAPPINGS = {"HalotileRestore": HalotileRestore}
NODE_DISPLAY_NAME_MAPPINGS = {"HalotileRestore": "Restore without seams (halotile)"}
