"""Rules about the repository itself that a reviewer would otherwise have to hold by eye."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.spec import load_spec
from tests.components.serve.tiny import image_preprocessing, tiny_context, tiny_model

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE_LINES = 450
RECIPES = sorted((ROOT / "pipelines" / "recipes").glob("*.yaml"))
STAGES = sorted(path.parent for path in (ROOT / "components").glob("*/stage.py"))
HEAVY = ("torch", "ray", "deepspeed", "mlflow", "transformers", "sklearn", "onnxruntime", "pandas", "scipy", "kfp")

BANNED_MODULES = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "skops"})
BANNED_CALLS = frozenset(
    {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "subprocess.getoutput"}
    | {"mlflow.pyfunc.load_model", "torch.hub.load", "ray.cloudpickle.loads", "pandas.read_pickle", "pd.read_pickle"}
)
# (file, what is called) -> why it may be there.
ALLOWED = {
    ("components/train/deepspeed_engine.py", "load_checkpoint"): (
        "DeepSpeed pickles its own training state; it is read by the run that wrote it, in the training process alone, "
        "after every digest matched the manifest authenticated with that run's key (security row 10)"
    ),
}


def tracked_files() -> list[Path]:
    """Files in git or about to be; a checkout without git is searched whole."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".git"} & set(path.parts)]


def shipped_sources() -> list[Path]:
    return [path for folder in ("components", "pipelines") for path in sorted((ROOT / folder).rglob("*.py"))] + [
        path for path in (ROOT / "penstock.py",) if path.exists()
    ]


def dotted_name(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, `?` for whatever it hangs on if that is no name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted_name(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; None without it; ... when it is no constant."""
    for item in call.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ...
    return None


def unsafe_call(call: ast.Call) -> str | None:
    """What is wrong with a call, or None."""
    name = dotted_name(call.func)
    if name in BANNED_CALLS:
        return name
    if name.endswith(".load_checkpoint") or name.endswith("Tuner.restore"):
        return name.split(".")[-1]
    if name == "torch.load" and keyword(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    for flag in ("shell", "allow_pickle", "trust_remote_code"):
        if keyword(call, flag) not in (None, False):
            return f"{flag}="
    return None


def unsafe_constructs(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each import or call by which a file or a string could run as code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if BANNED_MODULES & set(alias.name.split("."))]
        elif isinstance(node, ast.ImportFrom):
            names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            found = sorted(BANNED_MODULES & names)
        elif isinstance(node, ast.Call):
            found = [name for name in [unsafe_call(node)] if name]
        else:
            continue
        yield from ((node.lineno, name) for name in found)


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], int]:
    """(file, construct) -> line of whatever the gate sees in the shipped code."""
    return {
        (str(path.relative_to(ROOT)), name): line
        for path in shipped_sources()
        for line, name in unsafe_constructs(path.read_text())
    }


def test_security_9_no_shipped_code_loads_pickle_or_runs_strings(found: dict[tuple[str, str], int]) -> None:
    assert {where: line for where, line in found.items() if where not in ALLOWED} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "engine.load_checkpoint(folder)",
    ],
)
def test_security_9_the_gate_sees(source: str) -> None:
    assert list(unsafe_constructs(source))


def test_security_9_the_gate_lets_safe_code_pass() -> None:
    safe = (
        "torch.load(path, weights_only=True); np.load(path); model.eval(); subprocess.run([tool, text]); re.compile(x)"
    )
    assert not list(unsafe_constructs(safe))


def test_security_9_no_allowance_outlives_its_reason(found: dict[tuple[str, str], int]) -> None:
    assert set(ALLOWED) <= set(found)


LOAD_UNDER_AUDIT = """
import sys
from pathlib import Path
unpickled = []
sys.addaudithook(lambda event, values: unpickled.append(values) if event == "pickle.find_class" else None)
import pickle
pickle.loads(pickle.dumps(Path))  # the hook sees: without this line an empty list would prove nothing
control = len(unpickled)
from components.models import load_predictor
for folder in sys.argv[1:]:
    load_predictor(Path(folder))
print("unpickled:", control, unpickled[control:])
"""


def test_security_9_opening_a_model_unpickles_nothing(tmp_path: Path) -> None:
    folders = [str(tiny_model(tmp_path / "onnx", tiny_context(tmp_path)).path), str(torch_model(tmp_path / "torch"))]
    command = [sys.executable, "-c", LOAD_UNDER_AUDIT, *folders]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "unpickled: 1 []"


def torch_model(folder: Path) -> Path:
    """A model folder with safetensors weights that nobody trained."""
    from components.models.build import build_model, parse_model_config
    from components.models.folder import model_values, save_model_folder

    preprocessing = image_preprocessing()
    config = parse_model_config({"architecture": "mlp"})
    module = build_model(config, preprocessing.model_inputs(), len(preprocessing.classes))
    values = model_values("image-classification", config, preprocessing.model_inputs(), preprocessing.classes, module)
    save_model_folder(folder, values, preprocessing, module.state_dict())
    return folder


def test_imports_point_one_way() -> None:
    linter = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert linter.returncode == 0, linter.stdout


def test_no_file_is_too_long_to_read() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py" and (lines := len(path.read_text().splitlines())) > LONGEST_FILE_LINES
    }
    assert long == {}


def test_no_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py"}
    assert [str(path) for path in shipped_sources() if path.name in drawers] == []


def test_no_path_of_one_machine() -> None:
    personal = re.compile(rf"{re.escape(str(ROOT))}\b|/home/(?!ray\b|penstock\b)\w+/|/root/\.|/Users/\w+/")
    text_suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".sh", ""}
    offenders = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        if path.suffix in text_suffixes
        for match in personal.finditer(path.read_text(errors="replace"))
    ]
    assert offenders == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(recipe: Path) -> None:
    assert load_spec(recipe).spec.name == recipe.stem


def test_recipes_exist() -> None:
    assert {"digits", "news"} <= {recipe.stem for recipe in RECIPES}


def test_check_of_the_digits_recipe_passes(penstock_home: Path) -> None:
    from pipelines.cli import main

    assert main(["check", "digits"]) == 0


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import contextlib, sys\nfrom pipelines.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.name)
def test_stage_has_a_readme(stage: Path) -> None:
    assert (stage / "README.md").is_file()


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {match.replace("%", "NAME") for match in re.findall(r"^([a-z][\w%-]*):(?!=)", makefile, re.MULTILINE)}
    # Under `make test` this is a make within a make, which tells of its folder.
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == {line.split()[1] for line in shown.splitlines() if line.strip()}


def test_constraints_hold_every_dependency_without_local_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert {plain_name(need) for need in wanted} <= {plain_name(pin) for pin in pins}


def plain_name(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()
