"""From a D2-Net checkpoint to one ONNX graph: network, detection heads, pyramid, export, verification.

The network and its detection are defined here and nowhere else. Nothing in this package knows of
``cv2.KeyPoint`` or of ONNX Runtime sessions' policy; `d2feat` runs what this package writes.
"""
