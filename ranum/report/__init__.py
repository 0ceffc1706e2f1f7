"""What a run shows: a story in the terminal, panels in TensorBoard, an HTML page.

Reads the results of analysis, guards and repair and changes nothing.
"""

from ranum.report.html import write_html
from ranum.report.tensorboard import Panels, open_writer
from ranum.report.terminal import Story

__all__ = ["Panels", "Story", "open_writer", "write_html"]
