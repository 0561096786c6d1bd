"""The rules of the house that a machine can hold: sizes, names, imports, docs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cluster.checks import ROOMS, intruders
from cluster.cli import VERBS
from cluster.where import CHECKOUT

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_COMMENT_WORDS = 10
# Each lets a file's content run as code, or reads one that does.
UNSAFE_IMPORTS = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib.numpy_pickle",
}
BENCHMARK = re.compile(r"benchmarks/\w+\.py")
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)([^)\s]+)\)")


@cache
def tracked() -> tuple[str, ...]:
    """Files of the repository, also those just made and not yet added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return tuple(sorted(name for name in listed.stdout.splitlines() if (CHECKOUT / name).is_file()))


def modules() -> list[str]:
    return [name for name in tracked() if name.startswith(ROOMS) and name.endswith(".py")]


def text_of(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md")]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, CHECKOUT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_is_too_long() -> None:
    sizes = {name: text_of(name).count("\n") for name in tracked() if name.endswith((".py", ".js"))}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name in modules()
        for node in ast.walk(ast.parse(text_of(name)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("name", modules())
def test_all_is_there_and_sorted_and_true(name: str) -> None:
    if name.endswith(("__init__.py", "__main__.py")):
        return
    tree = ast.parse(text_of(name))
    stated = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(stated) == 1, "a module says once what others may use"
    # The order of ruff's RUF022: CONSTANTS, Classes, functions.
    order = sorted(stated[0], key=lambda word: (not word.isupper(), not word[0].isupper(), word))
    assert stated[0] == order
    assert set(stated[0]) <= set(defined(tree))


def defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                word for target in targets for word in re.findall(r"\w+", ast.unparse(target))
            )
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


@pytest.mark.parametrize("name", [name for name in modules() if ">>> " in text_of(name)])
def test_examples_in_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_setting_is_read_with_type_default_and_why(tmp_path: Path) -> None:
    script = load_script("docs/configuration.py")
    (tmp_path / "module.py").write_text(
        "@dataclass(frozen=True)\nclass TrainConfig:\n"
        '    epochs: int = 3\n    """How\n    often."""\n'
        "    name: str | None\n"
        "    inner: InnerConfig = field(default_factory=InnerConfig)\n"
        "    widths: tuple[int, ...] = field(default_factory=lambda: (1, 2))\n"
        "class NotConfig:\n    x: int = 1\n"
    )
    (settings,) = script.settings_of(tmp_path / "module.py")
    assert list(script.fields_of(settings)) == [
        ("epochs", "int", "3", "How often."),
        ("name", "str | None", "required", ""),
        ("inner", "InnerConfig", "InnerConfig()", ""),
        ("widths", "tuple[int, ...]", "(1, 2)", ""),
    ]


def test_the_four_names_are_ours() -> None:
    assert intruders() == {}


def test_nothing_that_runs_what_it_reads_is_imported() -> None:
    guilty = [
        f"{name}: {module}"
        for name in modules()
        for module in imported(ast.parse(text_of(name)))
        if module in UNSAFE_IMPORTS
    ]
    assert guilty == []


def test_torch_and_numpy_load_data_and_never_objects() -> None:
    for name in modules():
        for call in ast.walk(ast.parse(text_of(name))):
            if not isinstance(call, ast.Call):
                continue
            stated = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if ast.unparse(call.func) == "torch.load":
                assert stated.get("weights_only") == "True", f"{name}:{call.lineno}"
            assert stated.get("allow_pickle", "False") == "False", f"{name}:{call.lineno}"


def test_no_room_is_a_lumber_room() -> None:
    lumber = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
    assert [name for name in tracked() if Path(name).stem in lumber] == []


def test_tests_lie_beside_no_init_that_would_shadow_a_room() -> None:
    assert [name for name in tracked() if name.startswith("tests/") and "__init__" in name] == []


def test_nothing_is_put_off_and_no_path_of_a_machine_is_named() -> None:
    put_off = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
    # Homes of people and of build machines; /home/you and such are examples.
    machine = re.compile(r"(?<![\w.$~])/(?:work|root|Users/\w+|home/(?!you\b)\w+)/")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked()
        if not name.endswith((".png", ".webp", ".ico", ".svg", "test_house.py"))
        for number, line in enumerate(text_of(name).splitlines(), start=1)
        if put_off.search(line) or machine.search(line)
    ]
    assert found == []


def test_ray_accepts_ray_config_yaml() -> None:
    config: dict[str, Any] = yaml.safe_load(text_of("ray_config.yaml"))
    validate_cluster(config)
    with pytest.raises(Exception, match="unexpected"):
        validate_cluster({**config, "max_worker": 12})


def validate_cluster(config: dict[str, Any]) -> None:
    """With Ray's own validator; it is private, so with the schema it comes with, should it go."""
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        import json

        import jsonschema
        import ray.autoscaler

        schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()
        jsonschema.validate(config, json.loads(schema))
        return
    validate_config(prepare_config(config))


def test_every_profile_is_described() -> None:
    config = yaml.safe_load(text_of("ray_config.yaml"))
    page = text_of("docs/cluster.md")
    assert [
        name for name in config["metadata"]["lookalike"]["profiles"] if f"`{name}`" not in page
    ] == []


def test_configuration_md_is_fresh() -> None:
    script = load_script("docs/configuration.py")
    assert text_of("docs/configuration.md") == script.render(), "run: make docs"


def test_benchmarks_md_is_what_the_results_give() -> None:
    page = importlib.import_module("benchmarks.page").render()
    assert text_of("docs/benchmarks.md") == page, "run: make docs"


@pytest.mark.parametrize("path", [path for path in tracked() if BENCHMARK.fullmatch(path)])
def test_a_benchmark_finds_what_it_imports(path: str) -> None:
    importlib.import_module(path.removesuffix(".py").replace("/", "."))


def test_every_setting_says_why() -> None:
    script = load_script("docs/configuration.py")
    silent = [
        f"{path}: {settings.name}.{name}"
        for path in modules()
        for settings in script.settings_of(CHECKOUT / path)
        for name, _, _, why in script.fields_of(settings)
        if not why
    ]
    assert silent == []


def test_every_verb_is_documented() -> None:
    shown = text_of("README.md")
    assert [
        verb for verb in VERBS if not re.search(rf"lookalike {verb}\b|make {verb}\b", shown)
    ] == []


def test_every_link_in_the_docs_leads_somewhere() -> None:
    dead = [
        f"{page}: {target}"
        for page in pages()
        for target in LINK.findall(without_code(text_of(page)))
        if not leads_somewhere(page, target)
    ]
    assert dead == []


def leads_somewhere(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (CHECKOUT / page).parent / path if path else CHECKOUT / page
    if not file.exists():
        return False
    return not anchor or anchor in anchors(file.read_text(encoding="utf-8"))


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def test_the_changelog_has_room_for_the_next_change() -> None:
    assert re.search(r"^## (?:\[)?Unreleased", text_of("CHANGELOG.md"), re.MULTILINE)


def test_the_licence_is_apache_2() -> None:
    assert "Apache License" in text_of("LICENSE")
    assert "Version 2.0" in text_of("LICENSE")


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(Path(name).name[:4]) for name in tracked() if name.startswith("docs/adr/")]
    assert numbers == list(range(1, len(numbers) + 1))


def tree_of(page: str) -> dict[str, str]:
    """Path to comment, from the page's first fenced block whose lines are a tree of files.

    A line is ``name  # comment``; a folder ends in ``/``, and what is in it is indented below it.
    Several files of one line share the comment: ``simclr.py moco.py  # one method each``.
    """
    for block in re.findall(r"^```\w*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        if any(line.split("#")[0].strip() == "encoders/" for line in block.splitlines()):
            return parse_tree(block)
    return {}


def parse_tree(block: str) -> dict[str, str]:
    comments: dict[str, str] = {}
    folders: list[tuple[int, str]] = [(-1, "")]
    for line in filter(str.strip, block.splitlines()):
        left, _, comment = line.partition("#")
        indent = len(left) - len(left.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        for name in left.split():
            path = folders[-1][1] + name
            comments[path.rstrip("/")] = comment.strip()
            if name.endswith("/"):
                folders.append((indent, path))
    return comments


def test_a_tree_is_read_with_its_folders_and_comments() -> None:
    page = (
        "# Title\n```sh\nmake demo\n```\nText\n```\n"
        "encoders/          # pixels to vectors\n"
        "  simclr.py moco.py  # one method each\n"
        "docs/adr/          # why\n"
        "Makefile           # targets\n```\n"
    )
    assert tree_of(page) == {
        "encoders": "pixels to vectors",
        "encoders/simclr.py": "one method each",
        "encoders/moco.py": "one method each",
        "docs/adr": "why",
        "Makefile": "targets",
    }


def test_the_tree_in_the_readme_is_the_real_one() -> None:
    tree = tree_of(text_of("README.md"))
    assert tree, "README.md has a fenced block with the tree of files"
    top_level = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    expected = top_level | {name for name in modules() if not name.endswith("__init__.py")}
    assert sorted(expected - set(tree)) == [], "missing in the README's tree"
    assert [path for path in tree if not (CHECKOUT / path).exists()] == [], "in the tree only"
    wordy = [path for path, comment in tree.items() if len(comment.split()) > MAX_COMMENT_WORDS]
    assert wordy == []
    assert [path for path, comment in tree.items() if not comment] == [], "without a comment"
