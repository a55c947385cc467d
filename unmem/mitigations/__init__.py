"""What may make a model memorize less: acts on data, on training or on samples."""

if __name__ != "unmem.mitigations":
    raise ModuleNotFoundError("import unmem.mitigations; this folder has no other name")
