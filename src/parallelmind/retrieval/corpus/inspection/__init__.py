"""What runs with a package in a process of its own, with the interpreter it is given: imports it and describes it.

Nothing of parallelmind is imported, and the code keeps to Python 3.7, so that an interpreter on which an old version of
a package runs can describe it. The package may do what it likes in here: who reads the output must trust none of it.
"""
