# SPDX-License-Identifier: MIT
"""GeoTIFF in and out, by rasterio: a scene of any height is read and written by rows, and stays where it is on Earth.

restore_scene("scene.tif", "restored.tif", model, scale=2)
"""

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from halotile import iter_bands


class Bands:
    """An open raster as an array (C, H, W) of which slices are read."""

    def __init__(self, raster):
        self.raster = raster
        self.shape, self.dtype, self.ndim = (raster.count, *raster.shape), np.dtype(raster.dtypes[0]), 3
        self.chunks = (raster.count, *raster.block_shapes[0])

    def __getitem__(self, where):
        bands, rows, columns = (slice(*one.indices(size)) for one, size in zip(where, self.shape, strict=True))
        window = Window.from_slices(rows, columns)
        return self.raster.read(list(range(bands.start + 1, bands.stop + 1)), window=window)


def restore_scene(source, target, model, **options):
    """The nodata value is that of the file, if it has one. options: of `halotile.restore_tiled`."""
    with rasterio.open(source) as raster:
        alpha = "restore" if ColorInterp.alpha in raster.colorinterp else "channel"  # else a fourth band is no alpha
        options = {"layout": "CHW", "nodata": raster.nodata, "alpha": alpha} | options
        made = None
        try:
            for y, rows in iter_bands(Bands(raster), model, **options):
                if made is None:
                    made = _opened(target, raster, rows)
                made.write(rows, window=Window(0, y, rows.shape[2], rows.shape[1]))
        finally:
            if made is not None:
                made.close()


def _opened(target, raster, rows):
    scale = rows.shape[2] / raster.width
    profile = raster.profile | {
        "driver": "GTiff",
        "count": rows.shape[0],
        "dtype": rows.dtype.name,
        "bigtiff": "if_safer",
    }
    profile |= {"width": rows.shape[2], "height": round(raster.height * scale)}
    profile["transform"] = raster.transform @ raster.transform.scale(1 / scale)
    made = rasterio.open(target, "w", **profile)
    made.update_tags(**raster.tags())
    return made
