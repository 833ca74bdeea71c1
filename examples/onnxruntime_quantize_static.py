"""ONNX Runtime's own quantizer, calibrated with images that dffg has made.

dffg synthesize MODEL --out images.npz
python onnxruntime_quantize_static.py images.npz float.onnx int8.onnx
"""

import sys

import onnx
from onnxruntime.quantization import QuantType, quant_pre_process, quantize_static

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
reader = handover.calibration_reader(SyntheticSet.load(images), onnx.load(source).graph.input[0].name)
quant_pre_process(source, target)
types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
# The answer stays float: synthetic images say little about its range, and rounding it costs accuracy anyway.
options = {"OpTypesToExcludeOutputQuantization": ["Gemm"]}
quantize_static(target, target, reader, per_channel=True, extra_options=options, **types)
