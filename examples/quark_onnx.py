"""AMD Quark on an ONNX file, calibrated with images that dffg has made, in place of its random data.

dffg synthesize MODEL --out images.npz
python quark_onnx.py images.npz float.onnx int8.onnx
"""

import sys

import onnx
from quark.onnx import ModelQuantizer, QConfig

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
reader = handover.calibration_reader(SyntheticSet.load(images), onnx.load(source).graph.input[0].name)
ModelQuantizer(QConfig.get_default_config("XINT8")).quantize_model(source, target, reader)
