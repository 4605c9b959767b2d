"""Compiles the kernels while the package is built or installed; without a compiler it goes on."""

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Adds the compiled kernels to wheels; an editable install finds them in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, or says in a line why not."""
        script = Path(self.root) / "jaxsparse" / "kernels" / "build.py"
        spec = importlib.util.spec_from_file_location("jaxsparse_build", script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            libraries = module.build()
        except (RuntimeError, OSError) as error:
            self.app.display_warning(f"jaxsparse without compiled kernels: {error}")
            return
        build_data["artifacts"] += [path.relative_to(self.root).as_posix() for path in libraries]
        build_data["pure_python"] = False
        # They know neither Python nor its version.
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"
