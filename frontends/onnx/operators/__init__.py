"""What the operators of ONNX are in ATen, a family a file; `table.py` is all of them."""
