"""Prints the fenced code of one language in a document, all blocks in order.   python code_of.py LANGUAGE FILE"""

import re
import sys
from pathlib import Path

language, name = sys.argv[1:]
blocks = re.findall(rf"^```{language}\n(.*?)^```", Path(name).read_text("utf-8"), re.MULTILINE | re.DOTALL)
if not blocks:
    sys.exit(f"{name} has no {language} code")
print("\n".join(blocks))
