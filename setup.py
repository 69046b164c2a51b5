"""The native engine, and loops of the music wing: plain shared libraries, compiled if there is a compiler that can.

Without them the installation is whole too, and numpy and Python compute. Archives and wheels of equal sources are equal
to the byte. Everything else: pyproject.toml.
"""

import gzip
import os
import shutil
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

KERNELS = "src/pulse88/engine/kernels"
TIME = os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")  # of all files, wheels' too: the first that zip can tell
os.umask(0o022)  # Wheels have the rights of the files that are built.


class EqualArchive(sdist):
    """Builds a source archive without what differs between builds: times, owners, rights, the order of files."""

    def make_archive(self, base_name: str, format: str, *args: object, base_dir: str, **more: object) -> str:
        if format != "gztar":
            return super().make_archive(base_name, format, *args, base_dir=base_dir, **more)
        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", 9, file, int(TIME)) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for member in sorted(Path(base_dir).rglob("*")):
                archive.add(member, recursive=False, filter=_equal)
        return str(path)


def _equal(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = int(TIME), 0, 0, "", ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


class BuildLibrary(build_ext):
    """Builds a library that ctypes opens: no Python symbols in it, so neither headers nor an init function."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Microsoft's compiler has no vectors; MinGW's GCC builds a library that any Python opens.
        if os.name == "nt" and self.compiler is None and shutil.which("gcc"):
            self.compiler = "mingw32"

    def build_extension(self, ext: Extension) -> None:
        kind = self.compiler.compiler_type
        if kind != "msvc":
            # Errors of mathematical functions are never asked for; without this, square roots become calls.
            ext.extra_compile_args += ["-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden"]
            if "-fsanitize" not in os.environ.get("CFLAGS", ""):
                ext.extra_compile_args += ["-O3", "-g0"]
        if kind == "mingw32":
            # On 64-bit Windows GCC doesn't align vectors on the stack, but stores them as if it did.
            ext.extra_compile_args += ["-Wa,-muse-unaligned-vector-move"]
            ext.extra_link_args += ["-static"]
        if kind == "unix":
            ext.extra_compile_args += ["-pthread"]
            ext.extra_link_args += ["-pthread"]
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    cmdclass={"build_ext": BuildLibrary, "sdist": EqualArchive},
    ext_modules=[
        Extension(
            "pulse88.engine._native",
            [f"{KERNELS}/{name}.c" for name in ("native", "crew", "baseline", "avx2", "avx512", "avx512vnni")],
            depends=[f"{KERNELS}/{name}.h" for name in ("native", "crew", "products", "forward")],
            optional=True,
            py_limited_api=True,
        ),
        Extension("pulse88._sequential", ["src/pulse88/sequential.c"], optional=True, py_limited_api=True),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
