"""What this processor does with products of 8-bit integers, found out by asking it."""

from __future__ import annotations

from functools import cache

_PRODUCTS, _WEIGHT, _INPUT = 4, 127, 255
# A convolution of one pixel with four channels, whose result's scale shows the sum as it is.
_CONVOLUTION = """
<ir_version: 10, opset_import: ["" : 21]>
sums (float[1,{n},1,1] x) => (float[1,{n},1,1] y)
<float one = {{1}}, uint8 zero = {{0}}, int8[{n},{n},1,1] weight = {{{weights}}}, float result = {{{scale}}}>
{{
  q = QuantizeLinear (x, one, zero)
  d = DequantizeLinear (q, one, zero)
  w = DequantizeLinear (weight, one)
  sum = Conv (d, w)
  rounded = QuantizeLinear (sum, result, zero)
  y = DequantizeLinear (rounded, result, zero)
}}
"""


@cache
def adds_in_16_bits() -> bool:
    """Whether this processor adds two products of 8-bit integers in 16 bits, where large ones are clipped.

    x86 processors without VNNI do (`vpmaddubsw`), in ONNX Runtime and in oneDNN, which OpenVINO uses. Source: oneDNN,
    "Nuances of int8 computations".
    """
    import numpy as np
    import onnx.parser
    import onnxruntime

    scale = _WEIGHT * _PRODUCTS
    text = _CONVOLUTION.format(n=_PRODUCTS, weights=",".join([str(_WEIGHT)] * _PRODUCTS**2), scale=scale)
    model = onnx.parser.parse_model(text).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.full((1, _PRODUCTS, 1, 1), _INPUT, np.float32)})
    return bool((sums < _INPUT * scale).any())
