# The C core on NumPy arrays. Contracts: csrc/core/halotile.h. Boxes are (y, x, height, width), ranges (start, stop).
# bfloat16 travels as uint16: always for windows and model outputs, for images where bfloat16=True.
import numpy as np
import numpy.typing as npt

_Pair = tuple[int, int]
_Box = tuple[int, int, int, int]
_Values = tuple[float, float, float, bool]  # peak, gain, offset, clamp
_Position = tuple[int, int, int]  # channel, row, column

class Plan:
    image_size: _Pair
    output_size: _Pair
    grid: _Pair
    window: _Pair
    halo: _Pair
    phase: _Pair
    loss: _Pair
    scale: _Pair
    count: int
    def __new__(
        cls,
        size: _Pair,
        tile: _Pair,
        halo: _Pair,
        overlap: _Pair,
        phase: _Pair,
        scale: _Pair,
        loss: _Pair,
        boundary: int,
        blend: int,
        least: _Pair = (0, 0),
    ) -> Plan: ...
    def tile(self, index: int, /) -> tuple[int, int, _Box, _Box, _Box, _Pair]: ...
    def rows_complete(self, index: int, /) -> int: ...
    def keep(self, axis: int, i: int, /) -> _Pair: ...
    def sole(self, axis: int, i: int, /) -> _Pair: ...
    def done(self, axis: int, i: int, /) -> _Pair: ...
    def starts(self, axis: int, /) -> tuple[int, int, int, int]: ...
    def weights(self, axis: int, i: int, /) -> npt.NDArray[np.float32]: ...
    def normaliser(self, axis: int, start: int, stop: int, /) -> npt.NDArray[np.float32]: ...

def read(
    window: np.ndarray, image: np.ndarray, y: int, x: int, values: _Values = ..., bfloat16: bool = ...
) -> None: ...
def accumulate(sums: np.ndarray, source: np.ndarray, wy: np.ndarray, wx: np.ndarray) -> _Position | None: ...
def finish(
    destination: np.ndarray,
    source: np.ndarray,
    ny: np.ndarray | None = ...,
    nx: np.ndarray | None = ...,
    values: _Values = ...,
    bfloat16: bool = ...,
) -> _Position | None: ...
def reflect(index: int, size: int, /) -> int: ...
def rows_name() -> str: ...
def heap_keep() -> bool: ...
def heap_release() -> None: ...
