# SPDX-License-Identifier: MIT
"""A MONAI inferer: `inferer(inputs, network)` where SlidingWindowInferer stood, for images of two dimensions.

inferer = TiledInferer(halo="exact")
result = inferer(batch, network)          # (N, C, H, W), on the device of `batch`
"""

from monai.inferers import Inferer

from halotile import TiledRestorer


class TiledInferer(Inferer):
    """Args:
    options: of `halotile.restore_tiled`.

    Attributes:
        last_run: what the last call did.
    """

    def __init__(self, **options):
        super().__init__()
        self.options = {"halo": "exact", "boundary": "native"} | options
        self.last_run = None
        self._restorer = None

    def __call__(self, inputs, network, *args, **kwargs):
        """args, kwargs: further inputs of the network, the same for every window."""
        if kwargs and args:
            raise ValueError("further inputs must all be positional or all be named")
        if self._restorer is None or self._restorer.model is not network:  # it is inspected once
            self._restorer = TiledRestorer(network, layout="NCHW", extra=kwargs or args or None, **self.options)
        result = self._restorer(inputs)
        self.last_run = self._restorer.last_run
        return result
