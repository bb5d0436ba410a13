"""Batches of features: singular values, noise on them, contrastive losses, what predicts what."""
