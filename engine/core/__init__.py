"""The thing itself: a step, the methods that act in it, the problem it trains, what measures it. Imports nothing here,
so that knobs, needs and records can be read without torch.
"""
