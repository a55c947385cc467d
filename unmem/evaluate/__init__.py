"""What a model gives away, and what it is worth: attacks, quality, analysis and their controls."""

if __name__ != "unmem.evaluate":
    raise ModuleNotFoundError("import unmem.evaluate; this folder has no other name")
