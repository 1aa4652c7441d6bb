"""ONNX files as graphs: one small function an ONNX operator, on top of `onnx_ir`."""
