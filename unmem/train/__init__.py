"""A plain diffusion trainer and its data sets and models; it has never heard of privacy."""

if __name__ != "unmem.train":
    raise ModuleNotFoundError("import unmem.train; this folder has no other name")
