"""TensorFlow Lite's converter, calibrated with images that dffg has made. The source is a SavedModel that takes NHWC.

dffg synthesize MODEL --out images.npz
python tflite_representative.py images.npz saved_model int8.tflite
"""

import sys
from pathlib import Path

import tensorflow as tf

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
converter = tf.lite.TFLiteConverter.from_saved_model(source)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = handover.representative_dataset(SyntheticSet.load(images))
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
Path(target).write_bytes(converter.convert())
