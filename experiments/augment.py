"""Random augmentations of a batch of images (B, H, W, c), on the device."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def affine(key: jax.Array, images: jax.Array, train) -> jax.Array:
    """A shift, rotation and zoom of each image, bilinear, edges repeated."""
    return jax.vmap(functools.partial(_affine, train=train))(jax.random.split(key, len(images)), images)


def _affine(key, image, train):
    shift_key, rotate_key, zoom_key = jax.random.split(key, 3)
    shift = jax.random.uniform(shift_key, (2, 1), minval=-train.shift, maxval=train.shift)
    angle = jnp.deg2rad(jax.random.uniform(rotate_key, (), minval=-train.rotate, maxval=train.rotate))
    zoom = 1 + jax.random.uniform(zoom_key, (), minval=-train.zoom, maxval=train.zoom)
    height, width, _ = image.shape
    centre = jnp.array([[(height - 1) / 2], [(width - 1) / 2]])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")).reshape(2, -1)
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) * zoom
    source = turn @ (grid - centre) + centre + shift
    sample = functools.partial(map_coordinates, coordinates=list(source), order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).reshape(image.shape)


def flip_crop(key: jax.Array, images: jax.Array, train) -> jax.Array:
    """Each image mirrored or not, and shifted by whole pixels up to train.shift, edges reflected."""
    flip_key, shift_key = jax.random.split(key)
    count, height, width, channels = images.shape
    flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    images = jnp.where(flip, images[:, :, ::-1], images)
    pad = round(train.shift)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    corners = jax.random.randint(shift_key, (count, 2), 0, 2 * pad + 1)
    size = (height, width, channels)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), size))(padded, corners)


AUGMENTATIONS = {"affine": affine, "flip_crop": flip_crop}
