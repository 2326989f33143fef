"""The page of the Space, which computes recovery in the browser."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("masked_residues.py")), "recovery"))
