"""The site as a mirror of the repository: a hook of MkDocs.

A page has the path of its file, from the root of the repository on, so that one relative link holds here and there, and
strict mode checks it. What the pages link to, such as scripts and tables, is copied with them. A notebook is a page.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
MODELS = (
    "coordformer-1M-contacts",
    "coordformer-1M-ec",
    "coordformer-1M-pdb",
    "coordformer-7M-pdb",
    "coordformer-8M-backbone",
    "coordformer-mpnn-backbone",
    "coordformer-mpnn-ca",
)
CARDS = (*(f"hub_cards/{name}" for name in MODELS), "hub_cards/masked_residues")
FOLDERS = ("coordformer", "docs", "examples", *CARDS, "tests/data")
SUFFIXES = {".csv", ".ipynb", ".json", ".md", ".png", ".py", ".sh", ".svg", ".yaml"}


class Notebook(File):
    """A notebook with its outputs, as a page: a link to the file leads to it."""

    def is_documentation_page(self) -> bool:
        return True


def notebook_files(path: str, config: MkDocsConfig) -> list[File]:
    """A notebook's page and its pictures."""
    name = Path(path).stem
    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(
        str(ROOT / path), {"unique_key": name, "output_files_dir": f"{name}_files"}
    )
    # The notebook's links to its pictures begin where the notebook lies.
    pictures = [
        File.generated(config, f"{Path(path).parent.as_posix()}/{picture}", content=content)
        for picture, content in resources["outputs"].items()
    ]
    return [Notebook.generated(config, path, content=text), *pictures]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository, under their paths in it."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = [path for path in sorted(ROOT.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for folder in FOLDERS:
        paths += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    mirrored: list[File] = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if "/runs/" in name or "/." in name:  # what notebooks and their editors leave
            continue
        if path.suffix == ".ipynb":
            mirrored += notebook_files(name, config)
        else:
            mirrored.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return Files([*theme, *mirrored])
