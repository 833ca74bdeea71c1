"""RKNN-Toolkit2 on an ONNX file, calibrated with pictures that dffg has made. It normalizes pixels by itself.

dffg synthesize MODEL --out pictures
cd pictures && python ../rknn_toolkit2.py list.txt ../float.onnx ../int8.rknn
"""

import sys

from rknn.api import RKNN

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what `dffg inspect MODEL` shows

pictures, source, target = sys.argv[1:]
rknn = RKNN()
pixels = {"mean_values": [[255 * mean for mean in MEAN]], "std_values": [[255 * std for std in STD]]}
rknn.config(target_platform="rk3588", **pixels)
assert rknn.load_onnx(model=source) == 0
assert rknn.build(do_quantization=True, dataset=pictures) == 0
assert rknn.export_rknn(target) == 0
