"""Run a network on batches of images: with OpenVINO or ONNX Runtime, which need no torch, or with torch."""
