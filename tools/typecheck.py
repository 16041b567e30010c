"""Type-check the package and the tools.

The folders of the repository are parts of one import package (see pyproject.toml), which mypy cannot know: lay them out
as such with symbolic links, run mypy there, and report the paths of the repository.

    python tools/typecheck.py [mypy options]
    python tools/typecheck.py --tree build/tree     # only lay them out, for editors and tools that read trees
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package_folders() -> dict[str, str]:
    """Import name -> folder, of the parts directly under ``ladle``; ``ladle`` itself is among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders: dict[str, str] = project["tool"]["setuptools"]["package-dir"]
    return {name: folder for name, folder in folders.items() if name.count(".") <= 1}


def lay_out(tree: Path) -> None:
    """Make ``tree/ladle`` look like the installed package."""
    package = tree / "ladle"
    package.mkdir()
    for name, folder in package_folders().items():
        if name == "ladle":
            for file in (ROOT / folder).iterdir():
                if file.is_file():
                    (package / file.name).symlink_to(file)
        else:
            (package / name.removeprefix("ladle.")).symlink_to(ROOT / folder, target_is_directory=True)


def main() -> int:
    if sys.argv[1:2] == ["--tree"]:
        if len(sys.argv) != 3:
            sys.exit("usage: python tools/typecheck.py --tree FOLDER")
        tree = ROOT / sys.argv[2]
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        lay_out(tree)
        print(f"{tree / 'ladle'} looks like the installed package, by symbolic links")
        return 0
    root_package = package_folders()["ladle"]
    with tempfile.TemporaryDirectory(prefix="ladle-types-") as folder:
        lay_out(Path(folder))
        (Path(folder) / "tools").symlink_to(ROOT / "tools", target_is_directory=True)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--show-error-codes", *sys.argv[1:], "ladle", "tools"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    output = re.sub(r"^ladle/(?=\w+\.py)", f"{root_package}/", result.stdout, flags=re.MULTILINE)
    print(re.sub(r"^ladle/", "", output, flags=re.MULTILINE), end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
