"""The page of the Space: a structure goes in; probabilities in 3D, substitutions, designs and contacts come out.

    python hub_cards/space/app.py

`COORDFORMER_MODEL` names the model, a folder or a name on the Hub. Page and viewer fetch nothing from elsewhere.
"""

import os

# Before torch and Gradio are imported. A thread for each user is faster than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import html
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from results import (
    MAX_RESIDUES,
    TABLE_HEAD,
    UNKNOWN,
    WHOLE,
    chain_ids,
    draw_contacts,
    draw_designs,
    draw_scan,
    fetch_entry,
    legend,
    picture,
    read_protein,
    scan,
)
from starlette.middleware import Middleware

from coordformer.inference.checkpoints import load_checkpoint
from coordformer.model.design import plan_design

FOLDER = Path(__file__).resolve().parent
VIEWER = FOLDER / "3Dmol-min.js"
USERS_AT_ONCE = 2  # a core each
MAX_UPLOAD = "50mb"

HEAD = """
# Coordformer
A protein language model that reads structure. Give a PDB or mmCIF file. The model masks one residue after another and
says how probable each letter is there; then it designs sequences for the backbone.
"""
# The policy keeps browsers from fetching anything elsewhere, should a part of the page want to.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:"
)
CSS = """
footer { display: none !important; }
#picture .viewer { width: 100%; height: 410px; position: relative; }
#message p { margin: 0; padding: 10px 12px; border-radius: 6px; overflow-wrap: anywhere; border: 1px solid #8884; }
#message p.error { background: #b3261e; border-color: #b3261e; color: #fff; }
#designs textarea { font-family: monospace; white-space: pre; overflow-x: auto; }
/* On a phone the heat map scrolls: shrunk to the width, its letters could not be read. */
#substitutions .image-container { overflow-x: auto; }
#substitutions .image-container > button, #substitutions .image-frame { display: block; width: max(100%, 860px); }
#substitutions img { width: 100%; height: auto; }
"""
DRAW = """
const draw = () => {
  const place = element.querySelector('.viewer');
  place.replaceChildren();
  if (!props.value) return;
  const given = JSON.parse(props.value);
  let viewer = null;
  try { viewer = $3Dmol.createViewer(place, {backgroundColor: 'white', antialias: true}); } catch (error) {}
  if (!viewer) { place.textContent = 'No picture: this browser has no WebGL.'; return; }
  viewer.addModel(given.pdb, 'pdb');
  const color = atom => given.colors[atom.resi - 1];
  viewer.setStyle({}, {cartoon: {colorfunc: color, style: given.backbone ? 'oval' : 'trace'}});
  let label = null;
  viewer.setHoverable({}, true,
    atom => { label = viewer.addLabel(given.labels[atom.resi - 1], {position: atom, fontSize: 13}); },
    () => { if (label) viewer.removeLabel(label); label = null; });
  viewer.zoomTo();
  // The height now holds the sphere around all atoms. As near as none is cut off: a helix is long, a phone is narrow.
  const slope = Math.tan(Math.PI / 18), wide = place.clientWidth / place.clientHeight, rim = 3;
  const atoms = viewer.selectedAtoms({});
  const sphere = Math.max(5, ...atoms.map(atom => Math.hypot(atom.x, atom.y, atom.z)));
  const needed = atoms.map(({x, y, z}) => Math.max(Math.abs(y), Math.abs(x) / wide) + rim + z * slope);
  viewer.zoom(sphere / Math.max(...needed));
  viewer.render();
  place.dataset.residues = given.colors.length;
};
watch('value', draw);
draw();
"""


def say(text: str, error: bool = False) -> str:
    return f'<p class="{"error" if error else "note"}" role="status">{html.escape(text)}</p>'


def build_page(checkpoint: str | Path) -> gr.Blocks:
    """The page with the one model that all users share; what belongs to a user is in the arguments alone."""
    model, processor = load_checkpoint(checkpoint)
    model.eval()
    name = Path(checkpoint).name
    atoms = tuple(dict.fromkeys((*processor.coordinate_atoms, "CA")))
    nothing: tuple[Any, ...] = (None, None, None, "", None, None, "")

    def look(file: str | None) -> tuple[Any, str]:
        if file is None:
            return gr.Dropdown(choices=[], value=None), say("Choose a file.")
        path = Path(file)
        try:
            names, problems = chain_ids(path.name, path.read_bytes())
        except (ValueError, OSError) as error:
            return gr.Dropdown(choices=[], value=None), say(str(error), error=True)
        choices = [*names, WHOLE] if len(names) > 1 and not problems else names
        left_out = "".join(f" Chain {chain} cannot be read: {reason}." for chain, reason in problems)
        return gr.Dropdown(choices=choices, value=names[0]), say(f"{path.name}: {', '.join(names)}.{left_out}")

    def get(entry: str | None) -> Iterator[tuple[str | None, str]]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield str(fetch_entry(entry or "", folder)), say(f"{entry} was fetched.")
            except (ValueError, OSError) as error:
                yield None, say(str(error), error=True)

    def run(
        file: str | None, chain: str | None, count: float, temperature: float, fixed: str | None
    ) -> Iterator[tuple[Any, ...]]:
        try:
            if file is None:
                raise ValueError("There is no file: choose one, or name an entry.")
            path = Path(file)
            content = path.read_bytes()
            protein = read_protein(path.name, content, chain, atoms)
            task = plan_design(protein, fixed_residues=(fixed or "").strip() or None)
            known = int(protein.observed.any(axis=1).sum())
            about = f"{protein.id}: {len(protein)} residues, {known} with coordinates."
            yield say(f"{about} The model masks them one by one ..."), *nothing
            with tempfile.TemporaryDirectory() as folder:
                found = scan(model, processor, protein)
                about += f" Mean probability {np.nanmean(found.probabilities):.2f}."
                heat_map, contacts = Path(folder, "substitutions.png"), Path(folder, "contacts.png")
                draw_scan(found, heat_map)
                note = draw_contacts(model, processor, found, contacts)
                shown = (picture(found, path.name, content, chain), found.rows(), str(heat_map))
                yield say(f"{about} Sequences are designed ..."), *shown, "", None, str(contacts), note
                settings = {"name": name, "count": int(count), "temperature": float(temperature)}
                text = draw_designs(model, processor, protein, task, **settings)
                designs = Path(folder, "designs.fasta")
                designs.write_text(text)
                yield say(f"{about} Done."), *shown, text, str(designs), str(contacts), note
        except (ValueError, OSError) as error:
            yield say(str(error), error=True), *nothing

    with gr.Blocks(title="Coordformer", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(HEAD)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Structure file (PDB or mmCIF)", elem_id="file", height=130)
                entry = gr.Textbox(
                    label="or name an entry: PDB id or UniProt accession", placeholder="1UBQ", submit_btn="Get",
                    elem_id="entry",
                )  # fmt: skip
                chain = gr.Dropdown(label=f"Chain, of at most {MAX_RESIDUES:,} residues", choices=[], elem_id="chain")
                with gr.Accordion("Designs", open=False):
                    count = gr.Slider(1, 16, value=4, step=1, label="Sequences")
                    temperature = gr.Slider(0, 1, value=0.1, step=0.05, label="Sampling temperature")
                    fixed = gr.Textbox(label="Fixed residues, as the file numbers them", placeholder="A10-A20 A52A")
                start = gr.Button("Run", variant="primary", elem_id="run")
                message = gr.HTML(say("Choose a file."), elem_id="message")
            with gr.Column(scale=2, min_width=280):
                gr.HTML(
                    "<b>Probability of each residue</b> when it is masked: 0 "
                    f'<span style="display:inline-block;width:120px;height:10px;background:linear-gradient(to right, '
                    f'{legend()})"></span> 1; <span style="color:{UNKNOWN}">■</span> unknown'
                )
                view = gr.HTML(
                    "", html_template='<div class="viewer"></div>', js_on_load=DRAW, elem_id="picture",
                    head=f'<script src="/gradio_api/file={VIEWER}"></script>',
                )  # fmt: skip
        table = gr.Dataframe(
            headers=TABLE_HEAD, label="Residues", interactive=False, max_height=300, elem_id="table", buttons=["copy"],
            datatype=["str", "number", "str", "number", "str", "number"],
        )  # fmt: skip
        gr.Markdown("**Substitutions**: log-likelihood ratio to the residue that is there (masked marginals)")
        substitutions = gr.Image(
            show_label=False, type="filepath", interactive=False, elem_id="substitutions",
            buttons=["fullscreen", "download"],
        )  # fmt: skip
        designs = gr.Textbox(
            label="Designed sequences, FASTA", lines=8, max_lines=16, interactive=False, buttons=["copy"],
            elem_id="designs",
        )  # fmt: skip
        download = gr.DownloadButton("Download FASTA", size="sm", elem_id="download")
        contacts = gr.Image(
            label="Contact map",
            buttons=["fullscreen", "download"],
            type="filepath",
            interactive=False,
            elem_id="contacts",
            height=420,
        )
        note = gr.Markdown("", elem_id="contact_note")

        file.change(look, file, [chain, message], api_visibility="private")
        entry.submit(get, entry, [file, message], api_visibility="private")
        shown = [message, view, table, substitutions, designs, download, contacts, note]
        start.click(
            run, [file, chain, count, temperature, fixed], shown, concurrency_limit=USERS_AT_ONCE,
            show_progress="minimal", api_visibility="private",
        )  # fmt: skip
    return page


class Guard:
    """ASGI middleware: every answer has `POLICY`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(answer: Any) -> None:
            if answer["type"] == "http.response.start":
                answer["headers"] = [*answer.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(answer)

        await self.app(scope, receive, guarded)


def find_model() -> str:
    """`COORDFORMER_MODEL`, or the small model beside this folder or in it."""
    folders = [FOLDER.parent / "coordformer-1M-pdb", FOLDER / "coordformer-1M-pdb"]
    return os.environ.get("COORDFORMER_MODEL") or next(
        (str(each) for each in folders if each.is_dir()), str(folders[1])
    )


def launch(**options: Any) -> tuple[Any, str, str]:
    """Start the page on loopback, or where `GRADIO_SERVER_NAME` says, as on the Hub."""
    gr.set_static_paths([VIEWER])
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    fixed: dict[str, Any] = {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False, "share": False}
    fixed |= {"max_file_size": MAX_UPLOAD, "run_history": False, "app_kwargs": {"middleware": [Middleware(Guard)]}}
    return build_page(find_model()).launch(**fixed | options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    launch()
