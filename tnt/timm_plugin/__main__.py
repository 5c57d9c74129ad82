"""`python -m tnt.timm_plugin SCRIPT ARGUMENTS...`: run a script that knows the fused names."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit("usage: python -m tnt.timm_plugin SCRIPT ARGUMENTS... (SCRIPT is a file)")
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
