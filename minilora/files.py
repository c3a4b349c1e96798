"""Files: safetensors and JSON, written atomically, and read with one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .backend import Array, to_numpy
from .process import LOCK
from .quantization import Quantized, dense, is_finite
from .quantization.base import ALL, parts
from .quantization.bfloat16 import BFloat16, from_bfloat16

Reader: TypeAlias = "Callable[[], Any]"  # of a tensor: an array, or Quantized
LARGEST = 2**31  # bytes that are read of a file
DTYPES = {  # of safetensors -> of NumPy; BF16, which NumPy lacks, as its bits
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "BOOL": "?",
    "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, under another name that is then renamed: `path` is always the old file or the new one.

    Raises OSError (a full or read-only disk) and leaves the old file as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # fsync names no file
        raise


def to_json(value: Any) -> bytes:
    """Indented JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def read_bytes(path: Path) -> bytes:
    """The content of a file or a pipe.

    Raises OSError, always with the file's name, and for a folder with names of files in it; ValueError for a device,
    which may have no end, and for more than LARGEST bytes.
    """
    named = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            holds = ", ".join(sorted(x.name for x in path.iterdir() if x.is_file())[:3]) or "no file"
            named = f"{path}, and a file is meant: it holds {holds}"
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            raise ValueError(f"{path} is a device, which may have no end: give a file")
        data = read_pipe(path) if stat.S_ISFIFO(status.st_mode) else None
        if (status.st_size if data is None else len(data)) > LARGEST:
            raise ValueError(f"{path} is larger than the {LARGEST >> 30} GiB that are read: give a part of it")
        return path.read_bytes() if data is None else data
    except OSError as error:
        raise OSError(error.errno, error.strerror, named) from error


def read_pipe(path: Path) -> bytes:
    """The content of a pipe, at most a little more than LARGEST bytes; b"" if no process writes to it."""
    parts, size = [], 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # does not wait for a writer
        os.set_blocking(file.fileno(), True)
        while size <= LARGEST and (part := file.read(2**20)):
            parts.append(part)
            size += len(part)
    return b"".join(parts)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError for other content, and as read_bytes does."""
    try:
        value = json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def save_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file atomically (write_whole)."""
    write_whole(path, tensors_to_bytes(tensors, metadata))


def tensors_to_bytes(tensors: Mapping[str, Array | Quantized], metadata: Mapping[str, str]) -> bytes:
    """The content of a .safetensors file. Equal tensors and metadata give equal bytes. A BFloat16 is written as it is,
    what is in another format decoded."""
    import safetensors.numpy

    bits = {name: x.arrays["bits"] for name, x in tensors.items() if isinstance(x, BFloat16)}
    numbers = bits | {name: dense(x) for name, x in tensors.items() if name not in bits}
    blob = safetensors.numpy.save({name: np.asarray(to_numpy(x), order="C") for name, x in numbers.items()})
    # The library writes metadata in an order that changes from run to run: put it into the header here. To NumPy, and
    # so to the library, the bits of a bfloat16 are a U16.
    end = 8 + int.from_bytes(blob[:8], "little")
    entries = json.loads(blob[8:end])
    for name in bits:
        entries[name]["dtype"] = "BF16"
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + blob[end:]


class Tensors(Mapping[str, Any]):
    """{name: array}, of which each is read from its file when it is asked for, and not kept. A reader may return a
    Quantized: that is decoded here, and stored() returns it."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = dict(readers)

    def __getitem__(self, name: str) -> Any:
        return dense(self.readers[name]())

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def stored(tensors: Mapping[str, Any], name: str) -> Any:
    """A tensor as its file has it: an array, or Quantized."""
    return tensors.readers[name]() if isinstance(tensors, Tensors) else tensors[name]


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a .safetensors file. Raises as open_tensors and its tensors do."""
    tensors, metadata = open_tensors(path)
    return dict(tensors), metadata


def open_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a .safetensors file; bfloat16, which NumPy lacks, becomes float32, unrounded. A matrix in
    it is stored() as a BFloat16.

    Raises FileNotFoundError, PermissionError, and ValueError for a file that is damaged or of another format, and for
    an unsupported dtype (float8 and smaller). A tensor with NaN or infinity raises ValueError when it is read.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with path.open("rb") as file:  # raises PermissionError, where safetensors finds no file
        start = file.read(7)
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            for name, dtype in dtypes.items():
                if dtype not in DTYPES:
                    raise ValueError(f"{path}: {name} is of dtype {dtype}, which is not supported: save it as bfloat16")
    except (safetensors.SafetensorError, TypeError) as error:
        pickled = start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
        why = "it is a pickle, which can run code and is never read" if pickled else error
        why = "it is a pointer of git-lfs: fetch the file itself, git lfs pull" if start == b"version" else why
        raise ValueError(f"{path} cannot be read as safetensors: {why}") from None
    with path.open("rb") as file:
        end = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(end - 8))
    return Tensors({name: partial(read_tensor, path, name, header[name], end) for name in dtypes}), metadata


def read_tensor(path: Path, name: str, entry: Mapping[str, Any], end: int) -> np.ndarray | BFloat16:
    """One tensor of a file that safetensors has validated, by its entry in the header, which ends at byte `end`.

    NumPy reads it, since safetensors maps the file into memory and copies out of it, which takes twice the memory.
    Raises ValueError for NaN and infinity.
    """
    start, stop = entry["data_offsets"]
    stored = np.dtype(DTYPES[entry["dtype"]])
    numbers = np.fromfile(path, stored, (stop - start) // stored.itemsize, offset=end + start).reshape(entry["shape"])
    x: np.ndarray | BFloat16 = numbers
    if entry["dtype"] == "BF16":
        x = BFloat16({"bits": numbers}, numbers.shape) if numbers.ndim == 2 else from_bfloat16(numbers)
    if not is_finite(x):
        raise ValueError(f"{path}: {name} holds numbers that are not finite: get the file again, or an earlier one")
    return x


def weights_hash(weights: Mapping[str, Array | Quantized]) -> str:
    """sha256 of the names, shapes and bytes of `weights`, sorted by name; as float32, equal for a float64 copy.
    Quantized ones are decoded, some rows at a time."""
    import hashlib  # here, as it loads OpenSSL

    digest = hashlib.sha256()
    for name in sorted(weights):
        data = weights[name]
        digest.update(f"{name} {data.shape}\n".encode())
        for part in parts(data) if isinstance(data, Quantized) else [ALL]:
            digest.update(np.ascontiguousarray(to_numpy(dense(data, part)), dtype=np.float32).data)
    return digest.hexdigest()


def write_folder(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, {name: content}, to the folder `path`, as write_files does, if it is new or empty.

    Raises ValueError when `path` is a file or holds anything; OSError for a full or read-only disk.
    """
    check_contents(Path(path), ())
    write_files(path, files)


def write_files(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, {name: content}, to the folder `path`; a name may be "folder/file".

    A new folder appears with all files or not at all. In an existing one, other files stay, and each file is replaced
    atomically, once all have been written. Raises OSError for a full or read-only disk.
    """
    path = Path(path).absolute()
    with scratch(path) as folder:
        inner = {Path(name).parent for name in files} - {Path()}
        for parent in inner:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
        if path.is_dir():
            for parent in inner:
                (path / parent).mkdir(parents=True, exist_ok=True)
            for name in files:
                os.replace(folder / name, path / name)
        else:
            os.replace(folder, path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A temporary folder on the disk of the folder `path`, inside it if it exists, for files that will be moved there.

    At the end it is removed, and so are parents that were created and stayed empty. An OSError names `path`.
    """
    partial = path / ".minilora.partial" if path.is_dir() else path.with_name(f".{path.name}.partial")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a killed process
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty
                parent.rmdir()


def check_free(path: str | Path, replaces: Collection[str] = ()) -> None:
    """Raise what write_folder would raise, before the work that its files take; the folder may hold `replaces`. Writes
    nothing."""
    check_contents(Path(path), replaces)
    check_writable(path, replaces)


def check_contents(path: Path, replaces: Collection[str]) -> None:
    """Raise ValueError when `path` is a file, or holds anything but `replaces` and the partial files of a killed
    process."""
    names = {file.name for file in path.iterdir() if file.suffix != ".partial"} if path.is_dir() else set()
    others = sorted(names - {LOCK, *replaces})
    if others or (os.path.lexists(path) and not path.is_dir()):
        what = f"already holds {others[0]}" if others else "is a file"
        raise ValueError(f"{path} {what}: choose another folder")


def check_writable(path: str | Path, names: Collection[str]) -> None:
    """Raise OSError when the folder `path` cannot be created or written to, ValueError when one of the files `names` in
    it is a folder. Writes nothing."""
    path = Path(path).absolute()
    folder = next((path / name for name in names if (path / name).is_dir()), None)
    if folder:
        raise ValueError(f"{folder} is a folder, where a file must be written: move it away")
    with scratch(path):
        pass
