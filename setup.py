"""The native engine: a plain shared library, compiled if there is a compiler that can. Everything else: pyproject.toml.

Without it the installation is whole too, and the numpy engine runs.
"""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "src/pulse88/engine/kernels"


class BuildLibrary(build_ext):
    """Builds a library that ctypes opens: no Python symbols in it, so neither headers nor an init function."""

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type != "msvc":
            # Errors of mathematical functions are never asked for; without this, square roots become calls.
            ext.extra_compile_args += ["-O3", "-g0", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden"]
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    cmdclass={"build_ext": BuildLibrary},
    ext_modules=[
        Extension(
            "pulse88.engine._native",
            [f"{KERNELS}/{name}.c" for name in ("native", "baseline", "avx2", "avx512", "avx512vnni")],
            depends=[f"{KERNELS}/{name}.h" for name in ("native", "products", "forward")],
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
