"""Emission of PyTorch source and ONNX."""
