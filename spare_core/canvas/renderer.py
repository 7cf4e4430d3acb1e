"""Draw one Canvas picture: a piece of emoji artwork, augmented, in one of the procedural styles.

Textures (tiles, hatching, dots, flakes) lie where they always lie: a small autoencoder can then learn them, and a
picture's chance goes into its subject, its colours and its soft shapes.

Every style is a pure function ``(subject, alpha, rng) -> picture``: ``subject`` is RGB ``(S, S, 3)`` in [0, 1], not
premultiplied, ``alpha`` its coverage ``(S, S)``, ``rng`` the only source of chance. Pictures are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from spare_core.canvas.grid import RESOLUTION

Array = NDArray[np.float32]
Style = Callable[[Array, Array, np.random.Generator], Array]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_YY, _XX = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32)


def render(artwork: Image.Image, style: str, rng: np.random.Generator) -> Array:
    """A picture of ``artwork`` (RGBA) in ``style``: float32 RGB of shape (64, 64, 3) in [0, 1]."""
    subject, alpha = _place(artwork, rng)
    return np.clip(STYLE_FUNCTIONS[style](subject, alpha, rng), 0.0, 1.0).astype(np.float32)


def _place(artwork: Image.Image, rng: np.random.Generator) -> tuple[Array, Array]:
    """Flip, turn, scale and shift the artwork; returns its colour and its coverage."""
    if rng.random() < 0.5:
        artwork = artwork.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = int(RESOLUTION * rng.uniform(0.78, 0.90))
    # Premultiplied while resampling, otherwise the transparent pixels' colour bleeds into the rim.
    turned = artwork.convert("RGBa").rotate(rng.uniform(-7.0, 7.0), Image.Resampling.BICUBIC)
    turned = turned.resize((side, side), Image.Resampling.LANCZOS)
    sheet = Image.new("RGBa", (RESOLUTION, RESOLUTION))
    middle = (RESOLUTION - side) // 2
    shift = rng.integers(-2, 3, size=2)
    sheet.paste(turned, (middle + int(shift[0]), middle + int(shift[1])))
    pixels = np.asarray(sheet.convert("RGBA"), dtype=np.float32) / 255.0
    return pixels[..., :3], pixels[..., 3]


# --- small tools the styles share ------------------------------------------------------------------------------------


def _over(subject: Array, alpha: Array, ground: Array) -> Array:
    return subject * alpha[..., None] + ground * (1.0 - alpha[..., None])


def _flat(*rgb: float) -> Array:
    return np.broadcast_to(np.array(rgb, dtype=np.float32), (RESOLUTION, RESOLUTION, 3)).copy()


def _noise(rng: np.random.Generator, sigma: float) -> Array:
    """Smooth noise of unit range: white noise blurred over ``sigma`` pixels, stretched to [0, 1]."""
    field = ndimage.gaussian_filter(rng.standard_normal((RESOLUTION, RESOLUTION)).astype(np.float32), sigma)
    return (field - field.min()) / (np.ptp(field) + 1e-6)


def _edges(subject: Array, alpha: Array) -> Array:
    """Strength of outlines in [0, 1]: colour steps inside the subject and its silhouette."""
    layers = [*np.moveaxis(_over(subject, alpha, _flat(0.5, 0.5, 0.5)), -1, 0), alpha * 0.8]
    steps = [np.hypot(ndimage.sobel(layer, 0), ndimage.sobel(layer, 1)) for layer in layers]
    return np.clip(np.max(steps, axis=0) / 2.0, 0.0, 1.0)


def _ramp(values: Array, *stops: tuple[float, float, float]) -> Array:
    """Map [0, 1] to colours that run evenly through ``stops``."""
    at = np.linspace(0.0, 1.0, len(stops))
    colours = np.array(stops, dtype=np.float32)
    return np.stack([np.interp(values, at, colours[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def _cells(picture: Array, size: int) -> Array:
    """Each ``size`` x ``size`` cell filled with its mean."""
    count = RESOLUTION // size
    means = picture.reshape(count, size, count, size, 3).mean(axis=(1, 3))
    return means.repeat(size, axis=0).repeat(size, axis=1)


def _saturate(picture: Array, amount: float) -> Array:
    grey = (picture @ _LUMA)[..., None]
    return np.clip(grey + (picture - grey) * amount, 0.0, 1.0)


# --- the styles ------------------------------------------------------------------------------------------------------


def bricks(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Painted on a brick wall: courses of 8 pixels, pale mortar that shows faintly through the paint."""
    course = (_YY // 8).astype(int)
    along = _XX + np.where(course % 2, 8, 0)
    shade = 0.85 + 0.25 * ((course * 5 + (along // 16).astype(int) * 3) % 7) / 6.0
    mortar = (((_YY % 8) < 1.0) | ((along % 16) < 1.0))[..., None]
    wall = np.where(mortar, 0.8, _flat(0.55, 0.2, 0.14) * shade[..., None])
    paint = np.where(mortar, 0.65, 1.0) * _saturate(subject, 1.25) * (0.9 + 0.1 * shade[..., None])
    return _over(paint, alpha, wall)


def magic_cube(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Stickers of a magic cube: 4-pixel cells in the six cube colours, black gaps; the ground is blue."""
    colours = np.array([[1, 1, 1], [0.78, 0.06, 0.1], [1, 0.45, 0], [1, 0.85, 0], [0, 0.6, 0.2]], dtype=np.float32)
    coverage = _cells(np.repeat(alpha[..., None], 3, -1), 4)
    cells = _cells(_saturate(subject, 1.6) * alpha[..., None], 4) / np.maximum(coverage, 1e-3)
    nearest = ((cells[:, :, None, :] - colours) ** 2).sum(-1).argmin(-1)
    stickers = np.where(coverage > 0.4, colours[nearest], _flat(0.0, 0.22, 0.7))
    gap = ((_YY % 4) < 1.0) | ((_XX % 4) < 1.0)
    return np.where(gap[..., None], 0.05, stickers)


def _stone_pattern(step: int, jitter: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Cells nearest to jittered grid points: which cell each pixel belongs to, and the joints between cells."""
    count = RESOLUTION // step + 2
    grid = np.mgrid[0:count, 0:count].reshape(2, -1).T * step
    points = grid + np.random.default_rng(seed).uniform(-jitter, jitter, size=grid.shape)
    distance = np.hypot(_YY[..., None] - points[:, 0], _XX[..., None] - points[:, 1])
    nearest, second = np.moveaxis(np.partition(distance, 1, axis=-1)[..., :2], -1, 0)
    return distance.argmin(-1), (second - nearest) < 0.8


_STONES, _JOINTS = _stone_pattern(step=5, jitter=1.2, seed=0)


def mosaic(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Irregular stone tiles with pale grout, always laid the same way."""
    ground = _ramp(_YY / RESOLUTION, (0.16, 0.36, 0.38), (0.1, 0.26, 0.3))
    picture = _over(_saturate(subject, 1.3), alpha, ground)
    weight = np.bincount(_STONES.ravel()).clip(1)
    tiles = np.stack([np.bincount(_STONES.ravel(), picture[..., c].ravel()) / weight for c in range(3)], -1)
    return np.where(_JOINTS[..., None], _flat(0.9, 0.88, 0.82), tiles[_STONES])


def neon_lines(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Glowing outlines in shifting hues on black."""
    lines = np.clip(_edges(subject, alpha) * 1.6, 0.0, 1.0)
    turn = 2 * np.pi * ((_XX + _YY) / (2.2 * RESOLUTION) + rng.random())
    hue = np.stack([0.55 + 0.45 * np.cos(turn + shift) for shift in (0.0, 2.1, 4.2)], -1)
    glow = ndimage.gaussian_filter(lines, 2.2)
    core = np.clip(lines - 0.45, 0.0, 1.0)
    return hue * (lines + 0.9 * glow)[..., None] + 0.9 * core[..., None]


def on_fire(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """A glowing subject in black, red, orange and yellow, with flames licking up from below."""
    inside = (subject @ _LUMA) * 0.55 + 0.38
    wave = 9 * _noise(rng, 2.5) + 6 * np.sin(_XX / 3.0 + 6.3 * rng.random())
    tongues = np.clip((_YY + wave - 44.0) / 20.0, 0.0, 1.0) * 0.75
    heat = np.maximum(inside * alpha + tongues * (1.0 - alpha), 0.7 * tongues)
    halo = 0.28 * ndimage.gaussian_filter(alpha, 3.0) * (1.0 - alpha)
    return _ramp(heat + halo, (0.04, 0.0, 0.0), (0.6, 0.05, 0.0), (1.0, 0.4, 0.0), (1.0, 0.8, 0.15), (1.0, 1.0, 0.8))


def pencil_drawing(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Graphite outlines and hatching on paper."""
    paper = 0.95 - 0.05 * _noise(rng, 0.7)
    dark = (1.0 - subject @ _LUMA) * alpha
    hatch = 0.5 + 0.5 * np.sin((_XX + _YY) * np.pi / 2)
    tone = paper - 0.75 * _edges(subject, alpha) - 0.5 * dark * hatch - 0.12 * alpha
    return np.repeat(np.clip(tone, 0.08, 1.0)[..., None], 3, axis=-1)


def photo(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """The subject outdoors: blurred sky over grass, light from above, a soft shadow."""
    horizon = rng.uniform(38, 46)
    sky = _ramp(_YY / horizon, (0.36, 0.6, 0.88), (0.82, 0.9, 0.96))
    grass = _ramp((_YY - horizon) / (RESOLUTION - horizon), (0.42, 0.56, 0.28), (0.2, 0.36, 0.12))
    grass *= (0.9 + 0.2 * _noise(rng, 1.2))[..., None]
    blend = ndimage.gaussian_filter((horizon < _YY).astype(np.float32), 1.5)[..., None]
    ground = sky * (1 - blend) + grass * blend
    shadow = ndimage.gaussian_filter(np.roll(alpha, (3, 2), (0, 1)), 2.5)[..., None]
    light = (1.08 - 0.25 * _YY / RESOLUTION)[..., None]
    return _over(subject * light, alpha, ground * (1 - 0.45 * shadow))


def pop_art(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Flat, loud colours, a thick black outline, dots on a bright ground."""
    grounds = ((1.0, 0.86, 0.0), (0.0, 0.82, 0.86), (1.0, 0.35, 0.68))
    ground = _flat(*grounds[int(rng.integers(len(grounds)))])
    dots = ((_XX % 6 - 2.5) ** 2 + (_YY % 6 - 2.5) ** 2) < 3.2
    ground = np.where(dots[..., None], np.float32(1.0), ground)
    flat = np.round(_saturate(subject, 2.0) * 2.0) / 2.0
    outline = np.clip(ndimage.grey_dilation(_edges(subject, alpha), size=(2, 2)) * 1.8 - 0.5, 0, 1)[..., None]
    return _over(flat.astype(np.float32), np.round(alpha), ground) * (1 - outline)


def red_blue_ink(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Two printing plates, red and blue, on white paper, slightly out of register."""
    dark = ((1.0 - subject @ _LUMA) * 0.7 + 0.15) * alpha
    plate = np.clip(dark + 0.7 * _edges(subject, alpha), 0.0, 1.0)
    red = ndimage.shift(plate, (-1, -2), order=0)[..., None]
    blue = ndimage.shift(plate, (1, 2), order=0)[..., None]
    paper = _flat(0.98, 0.97, 0.95)
    return paper * (1 - red * (1 - np.array([0.9, 0.12, 0.16]))) * (1 - blue * (1 - np.array([0.1, 0.2, 0.85])))


def rust(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Corroded sheet metal: browns and oranges, blotches and pitting, the subject embossed."""
    luma = (subject @ _LUMA) * alpha + 0.5 * (1.0 - alpha)
    emboss = ndimage.gaussian_filter(np.roll(luma + 0.7 * alpha, (1, 1), (0, 1)) - (luma + 0.7 * alpha), 0.6)
    blotch = 0.6 * _noise(rng, 4.0) + 0.4 * _noise(rng, 1.0)
    level = 0.14 + 0.62 * luma * alpha + 0.2 * blotch + 0.7 * emboss + 0.1 * alpha
    return _ramp(level, (0.12, 0.06, 0.04), (0.42, 0.18, 0.08), (0.74, 0.38, 0.14), (0.93, 0.68, 0.4))


def watercolor(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Thin pigment that runs at the rim, granulated, with white paper at the border."""
    wash_colours = ((0.75, 0.88, 0.95), (0.95, 0.85, 0.88), (0.86, 0.94, 0.82))
    wash = _flat(*wash_colours[int(rng.integers(len(wash_colours)))])
    soft = np.stack([ndimage.gaussian_filter(_over(subject, alpha, wash)[..., c], 1.1) for c in range(3)], -1)
    pale = 0.32 + 0.68 * soft
    pale *= (1.04 - 0.14 * _noise(rng, 1.8))[..., None]
    rim = np.clip(ndimage.gaussian_filter(_edges(subject, alpha), 0.7) * 0.45, 0, 0.35)[..., None]
    distance = np.minimum.reduce([_XX, _YY, RESOLUTION - 1 - _XX, RESOLUTION - 1 - _YY])
    paper = np.clip((5.5 + 4 * (_noise(rng, 2.5) - 0.5) - distance) / 2.0, 0, 1)[..., None]
    return (pale - rim * (1.0 - soft)) * (1 - paper) + 0.99 * paper


def _snowflakes(count: int, seed: int) -> Array:
    """Coverage of soft round flakes, ``(S, S, 1)``."""
    flakes = np.zeros((RESOLUTION, RESOLUTION), dtype=np.float32)
    flakes[tuple(np.random.default_rng(seed).integers(1, RESOLUTION - 1, size=(2, count)))] = 1.0
    return np.clip(ndimage.gaussian_filter(flakes, 0.9) * 5.0, 0, 1)[..., None]


_FLAKES = _snowflakes(count=36, seed=3)


def winter(subject: Array, alpha: Array, rng: np.random.Generator) -> Array:
    """Cold light, snow on the ground and flakes in the air."""
    sky = _ramp(_YY / RESOLUTION, (0.45, 0.56, 0.74), (0.8, 0.87, 0.95))
    snow_line = 50 + 3 * np.sin(_XX / 9 + 6.3 * rng.random())
    ground = np.where((snow_line < _YY)[..., None], 0.96, sky)
    cold = _saturate(subject, 0.55) * np.array([0.78, 0.9, 1.08], dtype=np.float32) + np.float32(0.06)
    picture = _over(cold, alpha, ground)
    cap = np.clip(alpha - np.roll(alpha, 4, 0), 0, 1)[..., None]
    picture = picture * (1 - 0.85 * cap) + 0.85 * cap
    return picture * (1 - _FLAKES) + _FLAKES


STYLE_FUNCTIONS: dict[str, Style] = {
    "Bricks": bricks,
    "Magic Cube": magic_cube,
    "Mosaic": mosaic,
    "Neon Lines": neon_lines,
    "On Fire": on_fire,
    "Pencil Drawing": pencil_drawing,
    "Photo": photo,
    "Pop Art": pop_art,
    "Red Blue Ink": red_blue_ink,
    "Rust": rust,
    "Watercolor": watercolor,
    "Winter": winter,
}
