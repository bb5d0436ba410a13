"""The processes that train and measure: the loop, its observers, checkpoints, replay."""
