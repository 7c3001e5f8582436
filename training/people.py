"""Flat cut-outs, people-like or any shape, to be stood on a floor or pasted anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 160, 96  # what a cut-out is drawn on, before its edges are trimmed
DETAIL = 2  # pixels per unit of it
PEOPLE_SHARE = 0.5
WHOLE_PERSON_SHARE, CROPPED_SHARE = 0.55, 0.5
SKIN = ((236, 188, 160), (198, 134, 100), (141, 85, 56), (90, 56, 40))
Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOut:
    """`pixels` uint8 (h, w, 3) RGB and `mask` uint8 (h, w), 255 inside; it touches all four edges."""

    pixels: Image
    mask: Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Wardrobe:
    """What cut-outs are dressed in: textures, and photographs of any size, uint8 (h, w, 3) RGB."""

    textures: list[Image]
    photographs: list[Image]


def draw_cut_outs(random: np.random.Generator, wardrobe: Wardrobe, count: int) -> list[CutOut]:
    """Cut-outs dressed in these."""
    return [
        _person(random, wardrobe) if random.random() < PEOPLE_SHARE else _blob(random, wardrobe)
        for _ in range(count)
    ]


def _enlarged(image: Image) -> Image:
    """A drawing at full detail."""
    size = (WIDTH * DETAIL, HEIGHT * DETAIL)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _cloth(random: np.random.Generator, wardrobe: Wardrobe) -> Image:
    """A texture, or a part of a photograph with its own colours and sharpness."""
    if random.random() < 0.5:
        return _enlarged(wardrobe.textures[random.integers(len(wardrobe.textures))])
    return _detail(random, wardrobe, random.uniform(0.15, 0.5))


def _detail(random: np.random.Generator, wardrobe: Wardrobe, share: float) -> Image:
    """A part of a photograph whose sides are that share of its."""
    photograph = wardrobe.photographs[random.integers(len(wardrobe.photographs))]
    height, width = (max(2, round(side * share)) for side in photograph.shape[:2])
    top = random.integers(photograph.shape[0] - height + 1)
    left = random.integers(photograph.shape[1] - width + 1)
    return _enlarged(photograph[top : top + height, left : left + width])


def _trimmed(pixels: Image, mask: Image) -> CutOut:
    x, y, width, height = cv2.boundingRect(mask)
    cut = slice(y, y + height), slice(x, x + width)
    return CutOut(pixels=np.ascontiguousarray(pixels[cut]), mask=np.ascontiguousarray(mask[cut]))


def _blank() -> tuple[Image, Image]:
    """Nothing yet: a mask and its pixels."""
    mask = np.zeros((HEIGHT * DETAIL, WIDTH * DETAIL), np.uint8)
    return mask, np.zeros((*mask.shape, 3), np.uint8)


def _person(random: np.random.Generator, wardrobe: Wardrobe) -> CutOut:
    """Head, hair, trunk, arms and legs (or a skirt), each in its own cloth, lit from one side."""
    mask, pixels = _blank()
    middle = WIDTH // 2
    skin = np.clip(np.array(SKIN[random.integers(len(SKIN))]) + random.normal(0, 10, 3), 0, 255)
    shoulders, hips = int(random.integers(13, 20)), int(random.integers(10, 16))
    neck, waist = 26 + int(random.integers(-2, 3)), 84 + int(random.integers(-6, 7))
    sway = int(random.integers(-4, 5))

    def lay(part: Image, cloth: Image) -> None:
        is_part = _enlarged(part) > 127
        pixels[is_part] = cloth[is_part]
        mask[is_part] = 255

    def blank() -> Image:
        return np.zeros((HEIGHT, WIDTH), np.uint8)

    skin_cloth = np.broadcast_to(skin.astype(np.uint8), pixels.shape)
    trousers, coat = _cloth(random, wardrobe), _cloth(random, wardrobe)
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
    light = np.linspace(random.uniform(0.6, 1.2), random.uniform(0.6, 1.2), WIDTH * DETAIL)
    lit = np.clip(pixels * light[None, :, None], 0, 255).astype(np.uint8)
    return _maybe_half(random, _trimmed(lit, mask))


def _maybe_half(random: np.random.Generator, person: CutOut) -> CutOut:
    """Portraits end at the waist or the knee; the data set pastes them all the same."""
    if random.random() < WHOLE_PERSON_SHARE:
        return person
    height = round(len(person.mask) * random.uniform(0.35, 0.8))
    return _trimmed(person.pixels[:height], person.mask[:height])


def _blob(random: np.random.Generator, wardrobe: Wardrobe) -> CutOut:
    """A smooth closed outline of any proportions: an animal, a cup; often cut straight by its photograph."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for wave in range(1, 6):
        radius += random.normal(0, 0.25 / wave) * np.cos(wave * angles + random.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.3, None)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
    middle = np.array([WIDTH, HEIGHT]) * DETAIL / 2
    points *= middle / (1.05 * np.abs(points).max(0))
    mask = np.zeros((HEIGHT * DETAIL, WIDTH * DETAIL), np.uint8)
    cv2.fillPoly(mask, [np.round(points + middle).astype(np.int32)], 255)
    pixels = _detail(random, wardrobe, random.uniform(0.3, 0.9))
    if random.random() < CROPPED_SHARE:
        kept = round(mask.shape[0] * random.uniform(0.6, 0.9))
        mask, pixels = mask[:kept], pixels[:kept]
    if random.random() < CROPPED_SHARE / 2:
        kept = round(mask.shape[1] * random.uniform(0.6, 0.9))
        mask, pixels = mask[:, :kept], pixels[:, :kept]
    whole = _trimmed(pixels, mask)
    size = (
        round(WIDTH * DETAIL * random.uniform(0.6, 1.6)),
        round(WIDTH * DETAIL * random.uniform(0.6, 1.6)),
    )
    return CutOut(
        pixels=np.asarray(cv2.resize(whole.pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8),
        mask=np.asarray(cv2.resize(whole.mask, size, interpolation=cv2.INTER_NEAREST), np.uint8),
    )
