"""Flat cut-outs, people-like or any shape, to be stood on a floor or pasted anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 160, 96  # pixels of a drawn cut-out before its edges are trimmed
PEOPLE_SHARE = 0.7
SKIN = ((236, 188, 160), (198, 134, 100), (141, 85, 56), (90, 56, 40))
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOut:
    """`pixels` uint8 (h, w, 3) RGB and `mask` uint8 (h, w), 255 inside; it touches all four edges."""

    pixels: Image
    mask: Image


def draw_cut_outs(random: np.random.Generator, textures: list[Image], count: int) -> list[CutOut]:
    """Cut-outs dressed in these textures."""
    return [
        _person(random, textures) if random.random() < PEOPLE_SHARE else _blob(random, textures)
        for _ in range(count)
    ]


def _dress(random: np.random.Generator, textures: list[Image]) -> Image:
    texture = textures[random.integers(len(textures))]
    return np.asarray(cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _trimmed(pixels: Image, mask: Image) -> CutOut:
    x, y, width, height = cv2.boundingRect(mask)
    cut = slice(y, y + height), slice(x, x + width)
    return CutOut(pixels=np.ascontiguousarray(pixels[cut]), mask=np.ascontiguousarray(mask[cut]))


def _person(random: np.random.Generator, textures: list[Image]) -> CutOut:
    """Head, hair, trunk, arms and legs (or a skirt), each in its own cloth, lit from one side."""
    pixels, mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    middle = WIDTH // 2
    skin = np.clip(np.array(SKIN[random.integers(len(SKIN))]) + random.normal(0, 10, 3), 0, 255)
    shoulders, hips = int(random.integers(13, 20)), int(random.integers(10, 16))
    neck, waist = 26 + int(random.integers(-2, 3)), 84 + int(random.integers(-6, 7))
    sway = int(random.integers(-4, 5))

    def lay(part: Image, cloth: Image) -> None:
        pixels[part > 0] = cloth[part > 0]
        mask[part > 0] = 255

    def blank() -> Image:
        return np.zeros((HEIGHT, WIDTH), np.uint8)

    skin_cloth = np.broadcast_to(skin.astype(np.uint8), pixels.shape)
    trousers, coat = _dress(random, textures), _dress(random, textures)
    legs = blank()
    if random.random() < 0.25:
        hem = random.integers(115, 150)
        cv2.line(legs, (middle - 5, waist), (middle - 5, HEIGHT - 1), 255, 6)
        cv2.line(legs, (middle + 5, waist), (middle + 5, HEIGHT - 1), 255, 6)
        lay(legs, skin_cloth)
        legs = blank()
        skirt = [
            (middle - hips, waist - 4),
            (middle + hips, waist - 4),
            (middle + hips + 9, hem),
            (middle - hips - 9, hem),
        ]
        cv2.fillConvexPoly(legs, np.array(skirt, np.int32), 255)
    else:
        for side in (-1, 1):
            foot = middle + side * int(random.integers(4, 16)) + sway
            cv2.line(
                legs,
                (middle + side * hips // 2, waist),
                (foot, HEIGHT - 3 - int(random.integers(0, 4))),
                255,
                int(random.integers(9, 14)),
            )
    lay(legs, trousers)
    trunk = blank()
    outline = [
        (middle - shoulders, neck + 4),
        (middle + shoulders, neck + 4),
        (middle + hips, waist + 4),
        (middle - hips, waist + 4),
    ]
    cv2.fillConvexPoly(trunk, np.array(outline, np.int32), 255)
    cv2.ellipse(trunk, (middle, neck + 6), (int(shoulders), 7), 0, 0, 360, 255, -1)
    lay(trunk, coat)
    for side in (-1, 1):
        arm = blank()
        elbow = (middle + side * int(shoulders + random.integers(1, 12)), int(random.integers(48, 66)))
        hand = (middle + side * int(random.integers(2, 34)), int(random.integers(40, 92)))
        cv2.line(arm, (middle + side * int(shoulders - 3), neck + 7), elbow, 255, 8)
        cv2.line(arm, elbow, hand, 255, 7)
        lay(arm, coat)
        palm = blank()
        cv2.circle(palm, hand, 5, 255, -1)
        lay(palm, skin_cloth)
    head = blank()
    cv2.ellipse(head, (middle + int(sway) // 2, 14), (9, 12), 0, 0, 360, 255, -1)
    cv2.line(head, (middle, 20), (middle, neck + 3), 255, 7)
    lay(head, skin_cloth)
    hair = blank()
    cv2.ellipse(
        hair,
        (middle + int(sway) // 2, 10),
        (10, 10),
        0,
        180 - int(random.integers(0, 50)),
        360 + int(random.integers(0, 50)),
        255,
        -1,
    )
    lay(hair, np.broadcast_to(random.integers(10, 120, 3).astype(np.uint8), pixels.shape))
    light = np.linspace(random.uniform(0.6, 1.2), random.uniform(0.6, 1.2), WIDTH)
    lit = np.clip(pixels * light[None, :, None], 0, 255).astype(np.uint8)
    return _maybe_half(random, _trimmed(lit, mask))


def _maybe_half(random: np.random.Generator, person: CutOut) -> CutOut:
    """Portraits end at the waist or the knee; the data set pastes them all the same."""
    if random.random() < 0.7:
        return person
    height = round(len(person.mask) * random.uniform(0.35, 0.8))
    return _trimmed(person.pixels[:height], person.mask[:height])


def _blob(random: np.random.Generator, textures: list[Image]) -> CutOut:
    """A smooth closed outline of any proportions: an animal, a cup, a bunch of flowers."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for wave in range(1, 6):
        radius += random.normal(0, 0.25 / wave) * np.cos(wave * angles + random.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.3, None)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
    points *= np.array([WIDTH, HEIGHT]) / (2.1 * np.abs(points).max(0))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(points + np.array([WIDTH / 2, HEIGHT / 2])).astype(np.int32)], 255)
    whole = _trimmed(_dress(random, textures), mask)
    size = (round(WIDTH * random.uniform(0.6, 1.6)), round(WIDTH * random.uniform(0.6, 1.6)))
    return CutOut(
        pixels=np.asarray(cv2.resize(whole.pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8),
        mask=np.asarray(cv2.resize(whole.mask, size, interpolation=cv2.INTER_NEAREST), np.uint8),
    )
