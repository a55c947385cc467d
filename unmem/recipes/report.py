from pathlib import Path
def render(root: Path, redact: bool=False) -> None:
    (root/"report.md").write_text("stub")
