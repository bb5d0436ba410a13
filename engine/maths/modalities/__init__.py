"""Modalities against one another: what each says alone, adds, and costs when it is missing."""
