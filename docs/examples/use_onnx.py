"""The cluster of each image by an exported ONNX model; needs onnxruntime, numpy and pillow only.

python use_onnx.py EXPORT_FOLDER IMAGE ...

Images are read as the card beside the model says. What this script does not implement (more than 8 bits, chosen bands,
other formats) it refuses; `digpro assign` and the served model read more.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageColor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path, card):
    """The image as the model takes it: uint8 (size, size, 3)."""
    if card["pixels"]["bands"]:
        raise ValueError("the model's images are chosen bands, which this script does not choose")
    image = on_background(upright(load(Path(path).read_bytes())), card["pixels"]["background"])
    size, fit = card["decoding"]["size"], card["decoding"]["fit"]
    method = Image.Resampling[card["decoding"]["interpolation"].upper()]
    if image.size != (size, size):
        image = image.resize(target_size(image, size, fit), method)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def load(data):
    """A single image of 8 bits, whole."""
    for check in (True, False):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if check and image.format == "PNG":
            image.verify()  # its checksums; after that it has to be opened again
    if (image.format == "PNG" and data[24] == 16) or image.mode not in MODES:
        raise ValueError(f"{image.format} of more than 8 bits, or of an unusual mode ({image.mode})")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO is a JPEG with extras
        raise ValueError(f"{image.format} of {image.n_frames} frames")
    image.load()
    return image


def upright(image):
    """Turned as its EXIF data says, if they can be read."""
    try:
        turn = UNDO.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        turn = None
    return image if turn is None else image.transpose(turn)


def on_background(image, colour):
    """RGB, with the background where the image is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    cover = image.convert("RGBA")
    page = Image.new("RGBA", cover.size, ImageColor.getrgb(colour)[:3])
    return Image.alpha_composite(page, cover).convert("RGB")


def target_size(image, size, fit):
    """Width and height: stretched to a square, or with the shorter side resized, for the square in the middle."""
    width, height = image.size
    if fit == "stretch":
        return size, size
    return (int(size * width / height), size) if height < width else (size, int(size * height / width))


def main(folder, *paths):
    """Print the cluster of each image; the number of images that cannot be read."""
    card = json.loads(Path(folder, "model.json").read_text())
    model = onnxruntime.InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    refused = 0
    for path in paths:
        try:
            pixels = read(path, card)
        except Exception as error:  # decoders raise whatever the bytes drive them to
            print(f"{path} refused: {error}", file=sys.stderr)
            refused += 1
            continue
        similarities = model.run(["similarities"], {"images": pixels[None]})[0][0]
        cluster = int(similarities.argmax())
        print(path, card["names"].get(str(cluster), f"cluster {cluster}"), f"{similarities[cluster]:.3f}")
    return refused


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
