"""Private names of other libraries: each library's in one file."""

import ast
import re
from collections.abc import Iterator

import pytest
from sources import trees

# The last one inherits from a class of Hydra, and may load nothing of ours.
FILES = {
    "gradexp/numerics/torch_internals.py",
    "gradexp/cli/hydra_internals.py",
    "hydra_plugins/gradexp_sweeper/sweeper.py",
}
# Public in Python's own library, in spite of their looks: those of a NamedTuple, of sys and of os.
OF_PYTHON = {"_fields", "_replace", "_asdict", "_getframe", "_exit"}
# A mark that Mamba's layers set on biases of their own for whoever initialises them.
OF_MODELS = {"_no_reinit"}


def is_private(dotted: str) -> bool:
    return any(re.match(r"_(?!_)\w", name) for name in dotted.split("."))


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield attributes of other objects, imports, and texts that name an attribute or a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute() if not is_of_self(node):
                yield node.attr
            case ast.ImportFrom():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]):
                yield name
            case ast.Constant(value=str(text)) if re.fullmatch(r"(torch|hydra)(\.\w+)+", text):
                yield text


def private_names(tree: ast.AST) -> list[str]:
    return [name for name in names_in(tree) if is_private(name)]


def names_of_our_own(tree: ast.AST) -> set[str]:
    """Return the names of functions and of attributes that a file's objects have."""
    nodes = list(ast.walk(tree))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return functions | {node.attr for node in attributes if is_of_self(node)}


@pytest.mark.slow
def test_private_names_of_other_libraries_are_in_their_files() -> None:
    by_file = trees()
    ours = (OF_PYTHON | OF_MODELS).union(*map(names_of_our_own, by_file.values()))
    strangers = {
        file: [name for name in private_names(tree) if name not in ours and not name.startswith("gradexp.")]
        for file, tree in by_file.items()
    }
    assert {file for file, names in strangers.items() if names} == FILES, strangers


@pytest.mark.parametrize(
    "line",
    [
        "torch._C.has_mkl",
        "base = tensor._base",
        "from torch.utils._python_dispatch import return_and_correct_aliasing",
        "from torch.utils import _python_dispatch",
        "import torch._dynamo",
        "getattr(model, '_orig_mod', None)",
        "'torch._dynamo' in sys.modules",
    ],
)
def test_a_private_name_is_noticed_however_it_is_written(line: str) -> None:
    assert private_names(ast.parse(line))


@pytest.mark.parametrize("line", ["self._names", "Tensor.__torch_dispatch__", "_ = x.grad_fn", "getattr(x, 'y')"])
def test_other_names_are_not_taken_for_private_ones_of_another_library(line: str) -> None:
    assert not private_names(ast.parse(line))
