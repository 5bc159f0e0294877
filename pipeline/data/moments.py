"""Mean and deviation of pixels, computed without cancellation: a constant channel has deviation exactly 0."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageStat
from pydantic import BaseModel

Channels = tuple[float, float, float]


class Moments(BaseModel):
    """Mean, and sum of squared deviations from it, of RGB grey levels (0..255) over equally weighted images."""

    images: int = 0
    mean: Channels = (0.0, 0.0, 0.0)
    squares: Channels = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, image: Image.Image) -> Moments:
        """The moments of one RGB image. Pillow's sums are whole numbers, which neither round nor overflow."""
        statistics = ImageStat.Stat(image)
        return cls(images=1, mean=tuple(statistics.mean), squares=tuple(statistics.var))

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets of images together, by Chan's formula."""
        images = self.images + other.images
        if images == 0:
            return self
        step = np.subtract(other.mean, self.mean)
        mean = self.mean + step * (other.images / images)
        squares = np.add(self.squares, other.squares) + step**2 * (self.images * other.images / images)
        return Moments(images=images, mean=tuple(mean.tolist()), squares=tuple(squares.tolist()))

    @property
    def deviation(self) -> Channels:
        """The standard deviation of the pixels, in grey levels."""
        red, green, blue = np.sqrt(np.divide(self.squares, self.images)).tolist()
        return red, green, blue
