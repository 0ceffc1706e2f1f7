"""Cases of pooling and resampling."""

from __future__ import annotations

from transfer_cases.harness import Arg, Case, N

IMAGE = Arg((2, 3, 6, 5))
BATCH = Arg((N, 2, 4, 4))
LINE = Arg((2, 3, 7))
VOLUME = Arg((1, 2, 4, 4, 4))

CASES = [
    Case("max_pool2d_with_indices", {"x": BATCH, "kernel_size": [2, 2]}),
    Case(
        "max_pool2d_with_indices",
        {
            "x": IMAGE,
            "kernel_size": [3, 2],
            "stride": [2, 1],
            "padding": [1, 1],
            "dilation": [1, 2],
            "ceil_mode": True,
        },
    ),
    Case("max_pool3d_with_indices", {"x": VOLUME, "kernel_size": [2, 2, 2]}),
    Case("adaptive_max_pool2d", {"x": IMAGE, "output_size": [2, 3]}),
    Case("adaptive_max_pool3d", {"x": VOLUME, "output_size": [2, 1, 3]}),
    Case("avg_pool1d", {"x": LINE, "kernel_size": [3], "stride": [2], "padding": [1]}),
    Case("avg_pool2d", {"x": BATCH, "kernel_size": [2, 2]}),
    *(
        Case(
            "avg_pool2d",
            {
                "x": IMAGE,
                "kernel_size": [3, 3],
                "stride": [2, 2],
                "padding": [1, 1],
                "ceil_mode": True,
                "count_include_pad": include,
                "divisor_override": divisor,
            },
        )
        for include, divisor in ((True, None), (False, None), (True, 2), (False, 5))
    ),
    Case("avg_pool3d", {"x": VOLUME, "kernel_size": [2, 2, 2], "padding": [1, 1, 1]}),
    Case("_adaptive_avg_pool2d", {"x": IMAGE, "output_size": [2, 3]}),
    Case("_adaptive_avg_pool3d", {"x": VOLUME, "output_size": [2, 1, 3]}),
    Case("adaptive_avg_pool2d", {"x": IMAGE, "output_size": [1, 1]}),
    Case("adaptive_avg_pool3d", {"x": VOLUME, "output_size": [2, 1, 3]}),
    *(
        Case(op, {"x": x, "output_size": size})
        for op, x, size in (
            ("upsample_nearest1d", LINE, [10]),
            ("upsample_nearest2d", IMAGE, [12, 4]),
            ("upsample_nearest3d", VOLUME, [8, 8, 3]),
            ("_upsample_nearest_exact1d", LINE, [10]),
            ("_upsample_nearest_exact2d", IMAGE, [12, 4]),
            ("_upsample_nearest_exact3d", VOLUME, [8, 8, 3]),
        )
    ),
    *(
        Case(op, {"x": x, "output_size": size, "align_corners": corners})
        for corners in (False, True)
        for op, x, size in (
            ("upsample_linear1d", LINE, [10]),
            ("upsample_bilinear2d", IMAGE, [11, 4]),
            ("upsample_trilinear3d", VOLUME, [7, 8, 3]),
            ("upsample_bicubic2d", IMAGE, [11, 9]),
        )
    ),
    *(
        Case(
            "im2col",
            {
                "x": IMAGE,
                "kernel_size": [2, 3],
                "dilation": [1, 1],
                "padding": pad,
                "stride": [2, 1],
            },
        )
        for pad in ([0, 0], [1, 1])
    ),
    Case(
        "col2im",
        {
            "x": Arg((2, 8, 9)),
            "output_size": [4, 4],
            "kernel_size": [2, 2],
            "dilation": [1, 1],
            "padding": [0, 0],
            "stride": [1, 1],
        },
    ),
    Case("pixel_shuffle", {"x": Arg((N, 8, 2, 3)), "upscale_factor": 2}),
    Case("pixel_unshuffle", {"x": Arg((2, 2, 4, 6)), "downscale_factor": 2}),
    Case("channel_shuffle", {"x": Arg((N, 6, 3)), "groups": 2}),
    Case("native_channel_shuffle", {"x": Arg((N, 6, 3)), "groups": 3}),
]
