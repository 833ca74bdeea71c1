"""NNCF on an ONNX file, calibrated with images that dffg has made.

dffg synthesize MODEL --out images.npz
python nncf_onnx.py images.npz float.onnx int8.onnx
"""

import sys

import nncf
import onnx

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
made, model = SyntheticSet.load(images), onnx.load(source)
dataset = handover.nncf_dataset(made, model.graph.input[0].name)
onnx.save(nncf.quantize(model, dataset, subset_size=len(made)), target)
