"""Pixels to vectors: backbones, self-supervised methods, augmentation, and the encoder itself."""
