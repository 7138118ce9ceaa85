"""Ship the shelf: registry.yaml lives at the top of the repository and inside the wheel beside the package zoo."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShelf(build_py):
    """Copy registry.yaml into the built package; an editable install reads the checkout's own."""

    def run(self) -> None:
        """Build as usual, then add the shelf."""
        super().run()
        if not self.editable_mode:
            self.copy_file("registry.yaml", str(Path(self.build_lib) / "zoo" / "registry.yaml"))


setup(cmdclass={"build_py": BuildWithShelf})
