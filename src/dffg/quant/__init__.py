"""From a captured network and a stream of images to a quantized graph with a scale and zero point per tensor."""
