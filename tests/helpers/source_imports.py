"""Read imports from the source of modules."""

import ast


def imported_names(source: str) -> set[str]:
    """Return the full name of everything that a source imports, also inside functions and for type checkers only."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
