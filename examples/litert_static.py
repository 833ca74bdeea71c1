"""LiteRT Quantizer (once AI Edge Quantizer), calibrated with images that dffg has made, for a float .tflite of NHWC.

dffg synthesize MODEL --out images.npz
python litert_static.py images.npz float.tflite int8.tflite
"""

import sys

from litert_quantizer import quantizer, recipe
from litert_quantizer.utils import tfl_interpreter_utils

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
quantization = quantizer.Quantizer(source, recipe.static_wi8_ai8())
signatures = tfl_interpreter_utils.create_tfl_interpreter(source).get_signature_list()
((signature, names),) = signatures.items()
feeds = handover.feeds(SyntheticSet.load(images), names["inputs"][0], layout="nhwc")
quantization.quantize(quantization.calibrate({signature: feeds})).export_model(target)
