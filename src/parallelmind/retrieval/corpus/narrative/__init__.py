"""What a package's own pages and tests show of its APIs: examples, and paragraphs that say what they are for.

Texts are read, and nothing of them is run or included.
"""
