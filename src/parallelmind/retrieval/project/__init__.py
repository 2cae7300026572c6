"""Which versions of which distributions a project uses, from its lockfiles, requirements or environment."""
