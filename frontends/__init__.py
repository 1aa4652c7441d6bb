"""Frontends: from PyTorch modules and ONNX files to graphs."""
