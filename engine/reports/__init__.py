"""Records made of what `maths` finds, where several plug-ins report the same thing."""
