"""The cluster of each image by an exported ONNX model; needs onnxruntime, numpy and pillow only.

python use_onnx.py EXPORT_FOLDER IMAGE ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, *images = sys.argv[1:]
card = json.loads(Path(folder, "model.json").read_text())
model = onnxruntime.InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
size, names = card["decoding"]["size"], card["names"]
for path in images:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if card["decoding"]["fit"] == "crop":  # otherwise the image is stretched
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    similarities = model.run(["similarities"], {"images": pixels[None]})[0][0]
    cluster = int(similarities.argmax())
    print(path, names.get(str(cluster), cluster), f"{similarities[cluster]:.3f}")
