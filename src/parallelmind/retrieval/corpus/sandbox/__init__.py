"""Code that is not trusted runs apart: with nothing of this machine that it does not need, and only so much of that."""
