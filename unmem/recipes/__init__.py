"""YAML recipes, the runner that executes them, and the report."""

if __name__ != "unmem.recipes":
    raise ModuleNotFoundError("import unmem.recipes; this folder has no other name")
